"""What every adversarial model does: losses that reach one network alone, samples, checks, copies."""

import copy
import io
import json

import pytest
import torch
from torch import nn

from fastgen.gan import LOSSES
from fastgen.models import DCGAN, GAN, MODELS, WGANGP, StyleGAN2
from fastgen.models.adversarial import PLAYERS, frozen
from tests.models.adversarial_cases import FAMILIES, make


@pytest.fixture(params=FAMILIES)
def model(request):
    torch.manual_seed(0)
    model = make(request.param)
    if isinstance(model, DCGAN | WGANGP):
        # Its first weights are so small that all images are one grey.
        with torch.no_grad():
            for parameter in model.generator.parameters():
                parameter.mul_(8 if parameter.dim() > 1 else 1)
    return model


def data(model, n=8):
    x = torch.randn(n, *model.shape) if model.levels is None else torch.randint(model.levels, (n, *model.shape))
    return x, None if model.num_classes is None else torch.arange(n) % model.num_classes


def test_names():
    names = {"gan": GAN, "dcgan": DCGAN, "wgan-gp": WGANGP, "stylegan2": StyleGAN2}
    assert {name: MODELS[name] for name in names} == names


def test_config_and_state_dict_make_the_same_model(model):
    other = type(model).from_config(json.loads(json.dumps(model.config)))
    assert other.config == model.config
    labels = data(model, 5)[1]

    def drawn(of):
        return of.sample(5, labels=labels, generator=torch.Generator().manual_seed(1))

    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(drawn(other), drawn(model))
    kept = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    assert torch.equal(drawn(kept), drawn(other))


@pytest.mark.parametrize("player", PLAYERS)
def test_a_loss_reaches_its_own_network_alone(model, player):
    x, labels = data(model)
    loss = model.loss(x, labels, player)
    assert loss.dim() == 0 and loss.isfinite()
    loss.backward()
    own, others = (getattr(model, name) for name in (player, *(p for p in PLAYERS if p != player)))
    assert all(p.requires_grad and p.grad is None for p in others.parameters())
    missing = [name for name, p in own.named_parameters() if p.grad is None]
    assert not missing
    norms = {name: p.grad.abs().sum() for name, p in own.named_parameters()}
    assert all(norm.isfinite() for norm in norms.values()) and sum(norms.values()) > 0


def test_discriminator_learns_to_tell_and_generator_to_deceive(model):
    """A few steps of one player alone lower its loss."""
    x, labels = data(model, 16)
    for player in PLAYERS:
        optimizer = torch.optim.Adam(getattr(model, player).parameters(), lr=1e-3)

        def mean_loss(player=player):
            torch.manual_seed(1)
            with torch.enable_grad():
                losses = [model.player_loss(player, x, labels, regularize=False)[0].item() for _ in range(6)]
            return sum(losses) / 6

        before = mean_loss()
        for _ in range(30):
            optimizer.zero_grad()
            model.player_loss(player, x, labels, regularize=False)[0].backward()
            optimizer.step()
        assert mean_loss() < before


def test_samples_are_data_and_follow_their_generator(model):
    labels = data(model, 7)[1]
    samples = model.sample(7, labels=labels, generator=torch.Generator().manual_seed(3))
    assert samples.shape == (7, *model.shape) and model.training
    if model.levels is None:
        assert samples.is_floating_point()
    else:
        assert samples.dtype == torch.uint8 and samples.max() < model.levels
    again, other = (model.sample(7, labels=labels, generator=torch.Generator().manual_seed(s)) for s in (3, 4))
    assert torch.equal(samples, again) and not torch.equal(samples, other)
    model.check_data(samples)
    # One sample is the same alone as among others.
    z = model.draw_latents(3, torch.Generator().manual_seed(3))
    assert z.shape == (3, *model.latent_shape)
    some = None if labels is None else labels[:3]
    alone = torch.cat([model.render(z[i : i + 1], None if some is None else some[i : i + 1]) for i in range(3)])
    assert (model.render(z, some).float() - alone.float()).abs().max() <= (1 if model.levels else 1e-4)


def test_one_label_stands_for_all():
    model = make("dcgan-conditional").eval()
    draws = [model.sample(4, labels=y, generator=torch.Generator().manual_seed(0)) for y in (2, torch.full((4,), 2))]
    assert torch.equal(*draws)


def test_classes_change_what_both_networks_say():
    for family in ("dcgan-conditional", "stylegan2-conditional"):
        model = make(family).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
            z, x = model.draw_latents(2), model.normalize(data(model, 2)[0])
            zero, one = torch.tensor([0, 0]), torch.tensor([1, 1])
            assert not torch.allclose(model.generate(z, zero), model.generate(z, one))
            assert not torch.allclose(model.discriminate(x, zero), model.discriminate(x, one))


def test_truncation_keeps_noise_within():
    model = make("gan")
    assert model.latents(1000, truncation=0.5).abs().max() <= 0.5
    z = model.latents(20_000, torch.Generator().manual_seed(0), truncation=1.0).double()
    # Of a normal density truncated to [-1, 1]: 1 - 2 phi(1) / (Phi(1) - Phi(-1)).
    assert z.var().item() == pytest.approx(0.2911, abs=0.005)
    assert model.latents(20_000, truncation=50.0).std().item() == pytest.approx(1, abs=0.02)
    for wrong in (0, -1, float("nan"), "1"):
        with pytest.raises(ValueError, match="truncation: expected a positive number or None"):
            model.sample(2, truncation=wrong)


def test_vectors_are_in_their_own_units():
    model = make("gan-vectors")
    x = torch.tensor([[1.0, -2.0], [1.5, 1.0]])
    torch.testing.assert_close(model.normalize(x), torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
    with torch.no_grad():
        model.generator.last.weight.zero_()
        model.generator.last.bias.copy_(torch.tensor([1.0, 1.0]))
    torch.testing.assert_close(model.sample(1), x[1:])


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_by_its_name(name):
    model = make("gan", loss=name)
    x, _ = data(model)
    for player in PLAYERS:
        model.loss(x, None, player).backward()


def test_penalties_are_those_of_their_definitions():
    torch.manual_seed(0)
    model = make("gan", dropout=0.0, r1=2.0, regularize_every=3)
    x, _ = data(model)
    torch.manual_seed(5)
    plain = model.player_loss("discriminator", x, regularize=False)[0]
    torch.manual_seed(5)
    loss, told = model.player_loss("discriminator", x)
    real = model.normalize(x).requires_grad_()
    (gradient,) = torch.autograd.grad(model.discriminator(real).sum(), real)
    r1 = gradient.square().sum((1, 2, 3)).mean() / 2
    torch.testing.assert_close(told["r1"], r1)
    torch.testing.assert_close(loss, plain + 3 * 2.0 * r1)
    assert [model.regularizes("discriminator", update) for update in range(5)] == [True, False, False, True, False]


def test_spectral_norm_bounds_every_weight():
    model = make("gan-spectral", hidden_features=32).train()
    for _ in range(60):
        model.loss(data(model)[0])
    for layer in [module for module in model.discriminator.modules() if isinstance(module, nn.Linear)]:
        assert torch.linalg.matrix_norm(layer.weight, 2).item() == pytest.approx(1, abs=0.02)
    assert not any("parametrizations" in name for name, _ in model.generator.named_parameters())


def test_frozen_networks_thaw():
    network = nn.Linear(2, 2)
    network.bias.requires_grad_(False)
    with pytest.raises(RuntimeError), frozen(network):
        assert not network.weight.requires_grad
        raise RuntimeError
    assert network.weight.requires_grad and not network.bias.requires_grad


class WrongShape(nn.Module):
    def forward(self, x, labels=None):
        return x.flatten(1).mean(1, keepdim=True)


class Nothing(nn.Module):
    def forward(self, x, labels=None):
        return None


def test_a_discriminator_of_the_wrong_shape():
    for network, got in ((WrongShape(), r"\[8, 1\]"), (Nothing(), "NoneType")):
        model = GAN(8, 1, 17, discriminator=network)
        for player in PLAYERS:
            with pytest.raises(ValueError, match=rf"discriminator: expected outputs \[8\], one .* got {got}"):
                model.loss(data(model)[0], None, player)


def test_a_generator_of_the_wrong_shape():
    model = GAN(8, 1, 17, generator=WrongShape())
    with pytest.raises(ValueError, match=r"generator: expected \[4, 1, 8, 8\], got \[4, 1\]"):
        model.sample(4)


def test_refuses_data(model):
    x, labels = data(model)
    with pytest.raises(TypeError, match="x: expected a tensor, got list"):
        model.loss(x.tolist(), labels)
    with pytest.raises(TypeError, match=r"x: expected (integer levels|a floating dtype), got"):
        model.loss(x.long() if model.levels is None else x.float(), labels)
    for wrong in (x[:0], x[0], x[..., :-1]):
        with pytest.raises(ValueError, match=r"x: expected \[batch, .*, at least one example"):
            model.loss(wrong, labels)
    with pytest.raises(ValueError, match="x: expected a tensor on cpu"):
        model.loss(x.to("meta"), labels)
    if model.levels is not None:
        with pytest.raises(ValueError, match="x: expected levels 0 to 16, got 0 to 17"):
            model.loss(torch.where(torch.arange(x.numel()).view(x.shape) == 3, 17, x * 0), labels)
    with pytest.raises(ValueError, match="player: expected one of discriminator, generator, got 'critic'"):
        model.loss(x, labels, "critic")
    with pytest.raises(ValueError, match=r"z: expected \[batch, latent_size\] = \[batch, 6\], got \[2, 5\]"):
        model.decode(torch.zeros(2, 5), None if labels is None else labels[:2])
    with pytest.raises(ValueError, match="n: expected a positive int"):
        model.sample(0, labels=labels)


def test_refuses_labels(model):
    x, labels = data(model)
    if labels is None:
        with pytest.raises(ValueError, match="labels: this model is unconditional"):
            model.loss(x, torch.zeros(8, dtype=torch.long))
        with pytest.raises(ValueError, match="labels: this model is unconditional"):
            model.sample(2, labels=1)
        return
    for wrong, error, match in (
        (None, ValueError, "labels: this model has 3 classes"),
        (labels.float(), TypeError, r"labels: expected integers, got torch.float32"),
        (labels[:3], ValueError, r"labels: expected \[8\], one class per example, got \[3\]"),
        (labels + 1, ValueError, "labels: expected classes 0 to 2, got 1 to 3"),
        (labels - 1, ValueError, "labels: expected classes 0 to 2, got -1 to 1"),
    ):
        with pytest.raises(error, match=match):
            model.loss(x, wrong)
        with pytest.raises(error, match=match):
            model.sample(8, labels=wrong)


@pytest.mark.parametrize(
    ("family", "changed", "match"),
    [
        ("gan", {"loss": "hings"}, "loss: expected one of minimax"),
        ("gan", {"r1": -1.0}, "r1: expected a number of at least 0, got -1.0"),
        ("gan", {"gradient_penalty": float("nan")}, "gradient_penalty: expected a number of at least 0"),
        ("gan", {"augment": "blur"}, "augment: expected some of brightness"),
        ("gan", {"features": 2}, "features, image_size: expected one of them"),
        ("gan", {"image_size": None}, "features, image_size: expected one of them"),
        ("gan", {"levels": 300}, "levels: expected an int from 2 to 256"),
        ("gan", {"dropout": 1.0}, "dropout: expected a probability"),
        ("gan", {"maxout_pieces": 0}, "pieces: expected a positive int"),
        ("gan", {"latent_size": 0}, "latent_size: expected a positive int"),
        ("gan", {"discriminator_steps": 0}, "discriminator_steps: expected a positive int"),
        ("gan-vectors", {"augment": "cutout"}, "augment: it is of images"),
        ("dcgan", {"stages": 4}, "stages: expected 1 to 3, as often as an image of 8 halves, got 4"),
        ("dcgan", {"image_size": 7}, "stages: expected 1 to 0"),
        ("dcgan", {"discriminator_norm": "layer"}, "discriminator_norm: expected 'batch' or None"),
        ("dcgan", {"num_classes": 0}, "num_classes: expected a positive int"),
        ("stylegan2", {"image_size": 6}, "image_size: expected sides that can be halved to 4 or more, got 6"),
        ("stylegan2", {"style_mixing": 2.0}, "style_mixing: expected a share"),
        ("stylegan2", {"path_length": -1.0}, "path_length: expected a number of at least 0"),
        ("stylegan2", {"style_size": 0}, "style_size: expected a positive int"),
    ],
)
def test_refuses_arguments(family, changed, match):
    with pytest.raises(ValueError, match=match):
        make(family, **changed)
