"""Diffusion models whose networks are in half precision or under autocast, fresh, unmade or seeded by each image."""

import copy

import numpy as np
import pytest
import torch

from fastgen import inverse
from fastgen.models import LatentDiffusion, ScoreSDE
from fastgen.models.diffusion import classifier_gradient
from fastgen.nn.unet import TimeEmbedding
from tests.models.diffusion_cases import CONTINUOUS, FAMILIES, TINY, make

every = pytest.mark.parametrize("family", FAMILIES)
# The sum over timesteps that bounds a likelihood is as long as these.
SMALL = {name: {"num_train_timesteps": 10} for name in ("ddpm", "ddpm-v", "ddpm-x0", "2015")}


def small(family, **options):
    torch.manual_seed(0)
    return make(family, **{**SMALL.get(family, {}), **options}).eval()


class Rounded(torch.nn.Module):
    """A network that says in half precision what it says in float32: all that may differ is what the model makes of
    it.
    """

    def __init__(self, network, dtype):
        super().__init__()
        self.network, self.dtype = network, dtype
        self.seen = []

    def forward(self, x, time, labels=None):
        self.seen.append(time.dtype)
        return self.network(x, time, labels).to(self.dtype)


def losses(model, images):
    """What a model says of images, with the same random numbers every time."""
    found = {}
    for name in ("errors", "validation_errors", "bits_per_dim"):
        # A network that rounds has no smooth path to follow closely.
        options = {"rtol": 2e-2, "atol": 2e-2} if name == "bits_per_dim" and hasattr(model, "velocity") else {}
        found[name] = getattr(model, name)(images, generator=torch.Generator().manual_seed(5), **options)
    return found


def some_images(levels=17):
    return torch.randint(0, levels, (4, 1, 4, 4), generator=torch.Generator().manual_seed(1))


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_likelihood_of_a_network_in_half_precision(family, dtype):
    """As far off as the network's own rounding, under autocast, as half a model and as a whole one."""
    model, images = small(family), some_images()
    with torch.no_grad():
        expected = losses(model, images)
        halves = {"half": copy.deepcopy(model).to(dtype), "network": copy.deepcopy(model)}
        halves["network"].network.to(dtype)
        rounded = copy.deepcopy(model)
        rounded.network = Rounded(rounded.network, dtype)
        for kind, other in {**halves, "rounded": rounded}.items():
            compare(losses(other, images), expected, 0.03 if kind != "rounded" else 0.01)
        with torch.autocast("cpu", dtype=dtype):
            compare(losses(model, images), expected, 0.03)


def compare(found, expected, tolerance):
    for name, value in expected.items():
        assert found[name].dtype == torch.float32, name
        relative = ((found[name] - value).abs().mean() / value.abs().mean()).item()
        assert relative < tolerance, f"{name}: {relative:.4f}"


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_sampler_of_a_network_in_half_precision(family, dtype):
    model = small(family)
    for sampler in model.samplers:
        options = {"steps": SMALL.get(family, {}).get("num_train_timesteps", 5), "sampler": sampler}
        if sampler == "ode":
            options |= {"rtol": 1e-2, "atol": 1e-2}
        half = draw(copy.deepcopy(model).to(dtype), options)
        assert half.dtype == torch.uint8
        expected = draw(model, options).float()
        with torch.autocast("cpu", dtype=dtype):
            under = draw(model, options).float()
        assert (under - expected).abs().mean() < 0.5
        assert (half.float() - expected).abs().mean() < 0.5
        floats = small(family, levels=None)
        assert draw(floats.to(dtype), options).dtype == dtype


def draw(model, options, n=3):
    return model.sample(n, generator=torch.Generator().manual_seed(2), **options)


@every
def test_a_fresh_model_says_nothing_and_samples(family):
    """Its network says 0 everywhere: a score of 0 is one."""
    cls, options = FAMILIES[family]
    model = cls(4, 1, 17, **{**TINY, **options, **SMALL.get(family, {})})
    steps = SMALL.get(family, {}).get("num_train_timesteps", 5)
    for sampler in model.samplers:
        assert model.sample(2, sampler=sampler, steps=steps).shape == (2, 1, 4, 4)
    if isinstance(model, ScoreSDE):
        for predictor in ("reverse_diffusion", "ancestral", "none"):
            x = model.sample(2, steps=5, predictor=predictor, corrector_steps=2)
            assert x.shape == (2, 1, 4, 4)
    assert model.loss(some_images()).isfinite()


@every
def test_a_fresh_model_of_floating_data_learns(family):
    model = small(family, levels=None).train()
    x = torch.randn(6, 1, 4, 4)
    for seed in range(12):
        assert model.errors(x, generator=torch.Generator().manual_seed(seed)).isfinite().all()
    assert model.validation_errors(x).isfinite().all()


@every
def test_schedules_stay_whatever_the_weights_become(family):
    model = small(family)
    before = {name: value.clone() for name, value in model.named_buffers()}
    for there_and_back in (lambda m: m.bfloat16(), lambda m: m.half(), lambda m: m.double(), lambda m: m.float()):
        there_and_back(model)
        for name, value in model.named_buffers():
            assert value.dtype in (torch.float32, torch.float64)
            assert torch.equal(value.float(), before[name])


def test_angles_are_in_float32():
    embedding = TimeEmbedding(16, 16)
    times = torch.tensor([999, 998, 500, 3])
    exact, half = embedding(times), copy.deepcopy(embedding).bfloat16()(times)
    torch.testing.assert_close(half.float(), exact, rtol=0.05, atol=0.02)


@every
def test_a_list_of_generators_for_a_batch(family):
    model = small(family)
    steps = SMALL.get(family, {}).get("num_train_timesteps", 4)
    for sampler in model.samplers:
        options = {"sampler": sampler, "steps": steps}
        # Langevin steps are as long as the whole batch asks.
        options |= {"pc": {"corrector": "none"}, "ode": {"rtol": 1e-2, "atol": 1e-2}}.get(sampler, {})

        def drawn(seeds, options=options):
            return model.sample(len(seeds), generator=[torch.Generator().manual_seed(s) for s in seeds], **options)

        together, alone = drawn((1, 2, 3)), drawn((2,))
        assert (together[1].int() - alone[0].int()).abs().max() <= 1
        with pytest.raises(ValueError, match="generator: expected one, or 3, one for each sample, got 2"):
            model.sample(3, generator=[torch.Generator(), torch.Generator()], **options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["ddpm", "edm", "flow-matching", "vp"])
def test_inverse_problems_of_a_network_in_half_precision(family, dtype):
    model = small(family, levels=None)
    mask = torch.ones(4, 4, dtype=torch.bool)
    mask[1:3] = False
    operators = {
        "ddnm": [inverse.SuperResolution(2), inverse.Deblurring.gaussian(3), inverse.Inpainting(mask, 0.1)],
        "repaint": [inverse.Inpainting(mask)],
        "dps": [inverse.SingleImageHDR(), inverse.Denoising()],
    }
    x = torch.rand(2, 1, 4, 4) * 2 - 1
    for method, problems in operators.items():
        for operator in problems:

            def solved(model, operator=operator, method=method):
                y = operator(x)
                return inverse.solve(
                    model, y, operator, method=method, steps=4, generator=torch.Generator().manual_seed(0)
                )

            expected = solved(model)
            with torch.autocast("cpu", dtype=dtype):
                torch.testing.assert_close(solved(model), expected, rtol=0.1, atol=0.15)
            half = solved(copy.deepcopy(model).to(dtype))
            assert half.dtype == dtype
            torch.testing.assert_close(half.float(), expected, rtol=0.1, atol=0.15)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_operators_of_images_in_half_precision(dtype):
    x = torch.rand(2, 3, 4, 4).to(dtype) * 2 - 1
    mask = torch.rand(4, 4) > 0.5
    for operator in (
        inverse.Denoising(),
        inverse.Inpainting(mask),
        inverse.SuperResolution(2),
        inverse.Colourisation(),
        inverse.Deblurring.gaussian(3),
        inverse.SingleImageHDR(),
    ):
        y = operator(x)
        exact = operator(x.float())
        assert y.dtype == dtype
        torch.testing.assert_close(y.float(), exact, rtol=0, atol=torch.finfo(dtype).eps)
        back = operator.pseudo_inverse(y)
        assert back.dtype == dtype
        torch.testing.assert_close(back.float(), operator.pseudo_inverse(y.float()), rtol=0.01, atol=0.02)


class Halved(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(0.5))

    def encode(self, x):
        return x * self.scale + 3

    def decode(self, z):
        return (z - 3) / self.scale


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_latents_in_half_precision(dtype):
    model = LatentDiffusion(Halved(), small("ddpm", levels=None))
    x = torch.randn(8, 1, 4, 4)
    model.fit_scale(x)
    torch.manual_seed(0)
    expected = model.loss(x).item()
    half = copy.deepcopy(model).to(dtype)
    torch.manual_seed(0)
    assert half.loss(x.to(dtype)).item() == pytest.approx(expected, rel=0.03)
    assert half.sample(2, steps=3).dtype == dtype
    with torch.autocast("cpu", dtype=dtype):
        torch.manual_seed(0)
        assert model.loss(x).item() == pytest.approx(expected, rel=0.03)
        assert model.sample(2, steps=3).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["ddpm-v", "edm", "flow-matching", "subvp"])
def test_a_classifier_in_half_precision(family, dtype):
    model = small(family, levels=None)
    classifier = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
    options = {"labels": 1, "classifier_scale": 2.0, "steps": 4, "sampler": {"vp": "em"}.get(family)}
    expected = draw(model, {**options, "classifier": lambda x, time: classifier(x)})
    half_classifier = copy.deepcopy(classifier).to(dtype)
    half = copy.deepcopy(model).to(dtype)
    got = draw(half, {**options, "classifier": lambda x, time: half_classifier(x)})
    torch.testing.assert_close(got.float(), expected, rtol=0.1, atol=0.1)
    x = torch.randn(3, 1, 4, 4)
    gradient = classifier_gradient(
        lambda x, time: half_classifier(x.to(dtype)), x, torch.ones(1), torch.tensor([0, 1, 0])
    )
    assert gradient.dtype == torch.float32


@pytest.mark.parametrize("family", CONTINUOUS)
def test_the_flow_is_solved_in_float32_under_autocast(family):
    """A network that needs no matrix product says the same there, and so has the whole solution to."""
    model = small(family, levels=None)
    model.network.forward = lambda x, time, labels=None: torch.tanh(x) * 0.5
    x = torch.rand(3, 1, 4, 4) - 0.5
    options = {"probes": "exact"}
    expected = model.log_prob(x, **options)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(model.log_prob(x, **options), expected, rtol=1e-6, atol=1e-6)
        sampled = draw(model, {"sampler": "ode"})
    torch.testing.assert_close(sampled, draw(model, {"sampler": "ode"}), rtol=1e-6, atol=1e-6)


@every
def test_numbers_of_numpy_in_samplers(family):
    model = small(family)
    for sampler in model.samplers:
        for steps in (10,) if family == "2015" else (1, 7):
            options = {"sampler": sampler, **({"rtol": 1e-2, "atol": 1e-2} if sampler == "ode" else {})}
            found = draw(model, {**options, "steps": np.int64(steps)}, np.int32(2))
            assert torch.equal(found, draw(model, {**options, "steps": steps}, 2))
            assert found.shape == (2, 1, 4, 4)
            more = {"eta": np.float64(0.5)} if sampler == "ddim" else {}
            more |= {"s_churn": np.float32(3)} if (family, sampler) == ("edm", "heun") else {}
            if more:
                assert draw(model, {**options, **more, "steps": steps}, 2).shape == (2, 1, 4, 4)
    options = {"timesteps": np.int64(3)} if family in SMALL else {"num_probes": np.int64(2), "rtol": 0.1, "atol": 0.1}
    assert model.bits_per_dim(some_images(), **options).isfinite().all()


def test_numbers_of_numpy_in_inverse_problems():
    model = small("edm", levels=None)
    for operator in (
        inverse.SuperResolution(np.int64(2)),
        inverse.Deblurring.gaussian(np.int64(3), np.float64(1.0)),
        inverse.SingleImageHDR(np.float32(2.0), np.int64(16), np.float64(0.1)),
    ):
        assert inverse.solve(model, operator(torch.zeros(1, 1, 4, 4)), operator, steps=np.int64(3)).shape[0] == 1
    operator = inverse.Inpainting(torch.ones(4, 4, dtype=torch.bool))
    options = {"method": "repaint", "resamples": np.int64(2), "steps": 2}
    assert inverse.solve(model, torch.zeros(1, 1, 4, 4), operator, **options).shape[0] == 1


@every
def test_memory_of_any_content_holds_a_schedule_at_once(family):
    """Made on the meta device, and given weights by hand and not by a state dict."""
    cls, options = FAMILIES[family]
    expected = small(family)
    with torch.device("meta"):
        model = cls(4, 1, 17, **{**TINY, **options, **SMALL.get(family, {})})
    model.to_empty(device="cpu")
    buffers = dict(model.named_buffers())
    assert buffers.keys() == dict(expected.named_buffers()).keys()
    for name, value in expected.named_buffers():
        assert torch.equal(buffers[name], value)
