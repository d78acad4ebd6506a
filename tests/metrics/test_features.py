"""The extractors: Inception's architecture and preprocessing, the classifier of digits, names and errors."""

import hashlib
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fastgen.data.digits import digits
from fastgen.metrics.features import DigitFeatures, InceptionV3Features, PretrainedFeatures, feature_extractor
from fastgen.metrics.features import inception_features as weights_module
from fastgen.metrics.features.images import resize_antialiased, unit_images
from fastgen.metrics.features.inception import InceptionV3


def random_weights(network: InceptionV3) -> None:
    """The same weights everywhere: the numbers of `RandomState` are fixed for good."""
    state = network.state_dict()
    for i, (name, tensor) in enumerate(sorted(state.items())):
        if not tensor.is_floating_point():
            continue
        noise = torch.from_numpy(np.random.RandomState(i).randn(*tensor.shape))
        if name.endswith("running_var"):
            noise = 1 + 0.1 * noise.abs()
        elif name.endswith("bn.weight"):
            noise = 1 + 0.1 * noise
        else:
            noise = noise * ((2 / tensor[0].numel()) ** 0.5 if tensor.dim() >= 2 else 0.1)
        tensor.copy_(noise)
    network.load_state_dict(state)


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
    """A file of weights of the right shapes."""
    network = InceptionV3()
    random_weights(network)
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture
def trusted(weights_file, monkeypatch):
    """That file, as if it were the published one."""
    monkeypatch.setattr(weights_module, "SHA256_PREFIX", hashlib.sha256(weights_file.read_bytes()).hexdigest()[:8])
    return weights_file


def test_inception_is_the_published_network():
    network = InceptionV3().double().eval()
    random_weights(network)
    x = torch.cos(torch.arange(3 * 299 * 299, dtype=torch.float64) * 0.37).view(1, 3, 299, 299)
    levels = ((x + 1) / 2 * 255).round()
    with torch.no_grad():
        features = network((levels - 128) / 128)
    # What torch-fidelity 0.4.0's network, a port of TensorFlow's graph, gives with these weights in float64; it rounds
    # its results to float32.
    expected = [0.01661582, 0.63225904, 1.30113428, 0.003732211, 0.32865413, 1.02635556, 0.90276297, 0.13358923]
    np.testing.assert_allclose(features[0, ::256], expected, rtol=1e-6)
    assert features.norm().item() == pytest.approx(22.5209, abs=1e-4)
    logits = features @ network.fc.weight.T
    expected = [0.32422452, -0.03415269, 0.44983093, -0.28961888, 0.72184695, -0.70410154, 0.37822551]
    np.testing.assert_allclose(logits[0, ::144].detach(), expected, rtol=3e-6)
    # 23.85 million weights, under the names of the published file.
    assert sum(p.numel() for p in network.parameters()) == 23_850_960
    names = network.state_dict().keys()
    assert {"Conv2d_1a_3x3.conv.weight", "Mixed_6e.branch7x7dbl_5.bn.running_var", "fc.bias"} <= names


def test_inception_features_of_images(trusted):
    extractor = InceptionV3Features(trusted)
    grey = torch.randint(0, 256, (2, 1, 40, 32), dtype=torch.uint8)
    features = extractor(grey)
    assert features.shape == (2, 2048) and not extractor.training and not extractor.train().training
    torch.testing.assert_close(extractor(grey.expand(-1, 3, -1, -1)), features)
    torch.testing.assert_close(extractor(grey.float() / 255), features, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(extractor.logits(grey), extractor.logits_of_features(features))
    assert extractor.logits(grey).shape == (2, 1008)
    other = feature_extractor("inception", weights=str(trusted), preprocessing="pytorch-fid")
    assert (other(grey) - features).norm() > 1e-3 * features.norm()


def test_preprocessing(trusted):
    images = torch.randint(0, 256, (1, 3, 61, 47), dtype=torch.uint8)
    clean = InceptionV3Features(trusted).prepare(images)
    channels = [
        np.asarray(Image.fromarray(channel.numpy().astype(np.float32)).resize((299, 299), Image.Resampling.BICUBIC))
        for channel in images[0]
    ]
    expected = (torch.from_numpy(np.stack(channels)).clamp(0, 255) - 128) / 128
    torch.testing.assert_close(clean[0], expected, rtol=0, atol=2e-5)
    plain = InceptionV3Features(trusted, "pytorch-fid").prepare(images)
    expected = nn.functional.interpolate(images / 255, (299, 299), mode="bilinear", align_corners=False) * 2 - 1
    torch.testing.assert_close(plain, expected)


@pytest.mark.parametrize("size", [(299, 299), (20, 31), (100, 64)])
def test_resizing_is_pillows(size):
    image = torch.rand(1, 1, 64, 100, dtype=torch.float64)
    picture = Image.fromarray(image[0, 0].float().numpy())
    expected = np.asarray(picture.resize(size[::-1], Image.Resampling.BICUBIC))
    found = resize_antialiased(image, size)[0, 0].float()
    torch.testing.assert_close(found, torch.from_numpy(expected.clip(0, 1)), rtol=0, atol=3e-7)


class TestWeights:
    def test_the_wrong_checksum(self, weights_file):
        with pytest.raises(ValueError, match=r"inception.pth has the SHA-256 \w{16}..., expected 6726825d"):
            InceptionV3Features(weights_file)

    def test_no_such_file(self, tmp_path):
        with pytest.raises(ValueError, match=r"no file .*nowhere.pth"):
            InceptionV3Features(tmp_path / "nowhere.pth")

    def test_another_network(self, tmp_path, monkeypatch):
        path = tmp_path / "other.pth"
        torch.save({"fc.weight": torch.zeros(1008, 2048), "surplus": torch.zeros(1)}, path)
        monkeypatch.setattr(weights_module, "SHA256_PREFIX", hashlib.sha256(path.read_bytes()).hexdigest()[:8])
        with pytest.raises(ValueError, match=r"of another network: .* tensors are missing and 1 are unknown"):
            InceptionV3Features(path)
        path.write_bytes(b"no weights at all")
        monkeypatch.setattr(weights_module, "SHA256_PREFIX", hashlib.sha256(path.read_bytes()).hexdigest()[:8])
        with pytest.raises(ValueError, match=r"other.pth cannot be read"):
            InceptionV3Features(path)

    def test_without_a_network_it_says_where_to_get_them(self, tmp_path, monkeypatch):
        monkeypatch.setenv("FASTGEN_CACHE", str(tmp_path))
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        monkeypatch.setattr(weights_module, "URL", (tmp_path / "nowhere.pth").as_uri())
        with pytest.raises(ValueError, match=r"could not be downloaded .* fetch it from .*nowhere.pth"):
            InceptionV3Features()
        assert not list(tmp_path.iterdir())

    def test_a_download_is_checked_and_kept(self, tmp_path, monkeypatch, trusted):
        monkeypatch.setenv("FASTGEN_CACHE", str(tmp_path))
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        damaged = tmp_path / "damaged.pth"
        damaged.write_bytes(trusted.read_bytes()[:-100])
        monkeypatch.setattr(weights_module, "URL", damaged.as_uri())
        with pytest.raises(ValueError, match="gave a file with the SHA-256"):
            InceptionV3Features()
        assert not (tmp_path / weights_module.NAME).exists()
        monkeypatch.setattr(weights_module, "URL", trusted.as_uri())
        InceptionV3Features()
        monkeypatch.setattr(weights_module, "URL", "file:///nowhere")
        InceptionV3Features()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged.pth", weights_module.NAME]


class TestDigits:
    @pytest.fixture(autouse=True)
    def cache(self, tmp_path, monkeypatch):
        monkeypatch.setenv("FASTGEN_CACHE", str(tmp_path / "cache"))
        self.file = tmp_path / "cache" / "digits-1-0.npz"

    def test_learns_and_is_kept(self):
        first = DigitFeatures()
        assert first.accuracy > 0.97
        _, held_out = digits().split(0.1, 0)
        images = held_out.images.float() / 16
        right = (first.logits(images).argmax(1) == held_out.labels).double().mean().item()
        assert right == first.accuracy
        assert first(images).shape == (180, 64) and first.logits(images).shape == (180, 10)
        torch.testing.assert_close(first.logits_of_features(first(images)), first.logits(images))
        # From the cache, and made again from a damaged one: the same numbers to the bit.
        state = first.state_dict()
        for damage in (lambda: None, lambda: self.file.write_bytes(self.file.read_bytes()[:1000])):
            damage()
            again = DigitFeatures()
            assert all(torch.equal(state[name], tensor) for name, tensor in again.state_dict().items())
        assert [path.name for path in self.file.parent.iterdir()] == ["digits-1-0.npz"]

    def test_works_without_a_place_to_keep_it(self, monkeypatch, tmp_path):
        (tmp_path / "file").touch()
        monkeypatch.setenv("FASTGEN_CACHE", str(tmp_path / "file" / "below"))
        monkeypatch.setattr("fastgen.metrics.features.digits.EPOCHS", 1)
        before = torch.random.get_rng_state()
        assert DigitFeatures(1).accuracy > 0.5
        assert torch.equal(before, torch.random.get_rng_state())

    def test_other_images(self, monkeypatch):
        monkeypatch.setattr("fastgen.metrics.features.digits.EPOCHS", 1)
        with pytest.raises(ValueError, match=r"of \[B, 1, 8, 8\], got \(2, 3, 8, 8\)"):
            DigitFeatures(cached=False)(torch.rand(2, 3, 8, 8))


class TestNames:
    def test_modules_and_names(self):
        module = nn.Flatten()
        assert feature_extractor(module) is module
        x = torch.rand(3, 1, 2, 2)
        torch.testing.assert_close(feature_extractor("pixels")(x), x.flatten(1))
        torch.testing.assert_close(feature_extractor("given")(x.flatten(1)), x.flatten(1))

    @pytest.mark.parametrize(
        ("arguments", "error", "said"),
        [
            ((3,), TypeError, "feature: expected a name or a torch.nn.Module, got int"),
            (("resnet0",), ValueError, "features: no 'resnet0': expected inception, digits, pixels, given"),
            (("clip:x",), ValueError, "expected timm:NAME or torchvision:NAME, got 'clip:x'"),
        ],
    )
    def test_refuses(self, arguments, error, said):
        with pytest.raises(error, match=said):
            feature_extractor(*arguments)

    def test_refuses_weights_for_others(self):
        with pytest.raises(ValueError, match="weights: they are Inception's"):
            feature_extractor("pixels", weights="x.pth")
        with pytest.raises(ValueError, match="preprocessing: expected one of clean-fid, pytorch-fid"):
            InceptionV3Features(preprocessing="none")
        with pytest.raises(ValueError, match=r"features: expected rows \[B, d\]"):
            feature_extractor("given")(torch.rand(3, 1, 2, 2))

    def test_a_missing_library_is_named(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "timm", None)
        with pytest.raises(ModuleNotFoundError, match="timm"):
            PretrainedFeatures("timm:resnet18")

    def test_timm(self, monkeypatch):
        timm = types.ModuleType("timm")
        timm.data = types.SimpleNamespace(
            resolve_model_data_config=lambda _: {"input_size": (3, 6, 5), "mean": (0.5,) * 3, "std": (0.25,) * 3}
        )

        def create_model(name, pretrained, num_classes):
            if name != "known":
                raise RuntimeError(f"Unknown model ({name})")
            assert pretrained and num_classes == 0
            return nn.AdaptiveAvgPool2d(1)

        timm.create_model = create_model
        monkeypatch.setitem(sys.modules, "timm", timm)
        features = PretrainedFeatures("timm:known")(torch.ones(2, 1, 12, 10))
        torch.testing.assert_close(features, torch.full((2, 3), 2.0))
        with pytest.raises(ValueError, match="timm gives no 'other'"):
            PretrainedFeatures("timm:other")

    def test_torchvision(self, monkeypatch):
        class Network(nn.Module):
            def __init__(self):
                super().__init__()
                self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(3, 2)

            def forward(self, x):
                return self.fc(self.pool(x).flatten(1))

        recipe = types.SimpleNamespace(crop_size=[4], mean=[0.0] * 3, std=[0.5] * 3)
        weights = types.SimpleNamespace(DEFAULT=types.SimpleNamespace(transforms=lambda: recipe))
        models = types.ModuleType("torchvision.models")
        models.get_model_weights, models.get_model = lambda _: weights, lambda name, weights: Network()
        torchvision = types.ModuleType("torchvision")
        torchvision.models = models
        monkeypatch.setitem(sys.modules, "torchvision", torchvision)
        monkeypatch.setitem(sys.modules, "torchvision.models", models)
        features = PretrainedFeatures("torchvision:resnet50")(torch.ones(2, 3, 8, 8))
        torch.testing.assert_close(features, torch.full((2, 3), 2.0))


@pytest.mark.parametrize(
    ("images", "error", "said"),
    [
        ([[1]], TypeError, "expected a tensor"),
        (torch.zeros(2, 2, 4, 4), ValueError, r"expected \[B, 1 or 3, H, W\]"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.int64), TypeError, "expected uint8"),
        (torch.full((1, 1, 2, 2), 16.0), ValueError, r"floats in \[0, 1\], got 16 to 16"),
        (torch.full((1, 1, 2, 2), torch.nan), ValueError, "got nan to nan"),
    ],
)
def test_images_that_are_none(images, error, said):
    with pytest.raises(error, match=said):
        unit_images(images)
