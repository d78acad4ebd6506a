"""What holds for autoencoders of every kind: files, shapes, latents, gradients, refusals."""

import copy
import io
import json

import pytest
import torch

from fastgen.models import DDPM, VAE, VQVAE, Autoencoder, ConditionalVAE, DenoisingAutoencoder, LatentDiffusion
from tests.models.autoencoder_cases import EVERY, data_for, make


@pytest.fixture(params=EVERY)
def model(request):
    return make(request.param)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_config_and_state_dict_make_the_same_model(model):
    config = json.loads(json.dumps(model.config))
    other = type(model).from_config(config).double().eval()
    assert other.config == model.config
    images, labels = data_for(model, 3)
    assert not torch.equal(other.encode(images, labels), model.encode(images, labels))
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    for m in (model, copy.deepcopy(model)):
        assert torch.equal(other.reconstruct(images, labels), m.reconstruct(images, labels))
        drawn = [one.sample(3, labels=labels, generator=generator()) for one in (m, other)]
        assert torch.equal(*drawn)


@pytest.mark.parametrize("mean", [True, False])
def test_samples_are_data(model, mean):
    _, labels = data_for(model, 4)
    drawn = model.sample(4, labels=labels, mean=mean, generator=generator())
    assert drawn.shape == (4, *model.shape)
    assert drawn.dtype == (torch.float64 if model.levels is None else torch.uint8)
    if model.levels is not None:
        assert int(drawn.max()) < model.levels
        model.check_images(drawn)
    again = model.sample(4, labels=labels, mean=mean, generator=generator())
    assert torch.equal(drawn, again)
    # Means of a decoder that has learnt nothing are all the same.
    assert mean or not torch.equal(drawn, model.sample(4, labels=labels, mean=mean, generator=generator(1)))


def test_the_loss_reaches_every_parameter(model):
    images, labels = data_for(model, 5)
    model.train().loss(images, labels).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("name", ["ae", "vae", "vae-conv", "iwae", "cvae", "dae-mask"])
def test_gradients_of_the_loss(name):
    model = make(name)
    images, labels = data_for(model, 3)
    # Of some weights of each part: that of all takes a while.
    names = ["encoder", "decoder", "likelihood"]
    parameters = {part: [p for n, p in model.named_parameters() if n.startswith(part)] for part in names}
    chosen = [found[-1] for found in parameters.values() if found]

    def loss(*values):
        with torch.no_grad():
            for parameter, value in zip(chosen, values, strict=True):
                parameter.copy_(value)
        torch.manual_seed(0)
        return model.loss(images, labels)

    found = torch.autograd.grad(loss(*[p.detach().clone() for p in chosen]), chosen)
    for index, parameter in enumerate(chosen):
        start = [p.detach().clone() for p in chosen]
        direction = torch.randn_like(parameter)
        ahead, behind = (
            [*start[:index], start[index] + step * direction, *start[index + 1 :]] for step in (1e-6, -1e-6)
        )
        slope = (loss(*ahead) - loss(*behind)) / 2e-6
        torch.testing.assert_close((found[index] * direction).sum(), slope, rtol=1e-5, atol=1e-7)
        loss(*start)


def test_latent_tools(model):
    images, labels = data_for(model, 6)
    z = model.encode(images, labels)
    assert z.shape == (6, *model.latent_shape)
    two = None if labels is None else labels[:2]
    for how in ("linear", "spherical"):
        path = model.interpolate(images[:2], images[2:4], 5, two, how=how)
        assert path.shape == (5, 2, *model.shape)
        torch.testing.assert_close(path[0], model.reconstruct(images[:2], two))
    # b - a + c of a = b is c.
    contexts = (two, two, two)
    same = model.analogy(images[:2], images[:2], images[2:4], contexts)
    torch.testing.assert_close(same, model.render(model.encode(images[2:4], two), two))
    attribute = torch.arange(6) % 2 == 0
    vector = model.attribute_vector(images, attribute, labels)
    torch.testing.assert_close(vector, z[::2].mean(0) - z[1::2].mean(0))
    moved = model.manipulate(images, vector, 0.5, labels)
    torch.testing.assert_close(moved, model.render(z + 0.5 * vector, labels))
    assert model.draw_latents(3, generator()).shape == (3, *model.latent_shape)
    with pytest.raises(ValueError, match="how: expected 'linear' or 'spherical', got 'straight'"):
        model.interpolate(images[:2], images[2:4], 5, two, how="straight")
    with pytest.raises(ValueError, match="c: expected the shape of a"):
        model.analogy(images[:2], images[:2], images[:3])
    with pytest.raises(ValueError, match="vector: expected"):
        model.manipulate(images, vector.flatten()[:-1], 1.0, labels)


def test_decoding_gives_levels_and_training_mode_comes_back(model):
    images, labels = data_for(model, 2)
    model.train()
    found = model.reconstruct(images, labels)
    assert model.training and model.encoder.training and found.shape == images.shape
    assert torch.equal(found, model.reconstruct(images, labels))


@pytest.mark.parametrize("method", ["loss", "encode", "reconstruct"])
def test_refuses_images(model, method):
    images, labels = data_for(model, 3)
    call = getattr(model, method)
    wrong = images.double() if model.levels is not None else images.long()
    with pytest.raises(TypeError, match=r"images: expected (integer levels|a floating dtype), got"):
        call(wrong, labels)
    with pytest.raises(TypeError, match="images: expected a tensor, got ndarray"):
        call(images.numpy(), labels)
    for wrong in (images[:0], images[0], images[..., :-1]):
        with pytest.raises(ValueError, match=r"images: expected \[batch, .*\], at least one image"):
            call(wrong, labels if labels is None else labels[: len(wrong)])
    if model.levels is not None:
        wrong = images.clone()
        wrong[0, 0, 1, 1] = model.levels
        with pytest.raises(ValueError, match=f"images: expected levels 0 to {model.levels - 1}"):
            call(wrong, labels)


def test_refuses_labels(model):
    images, labels = data_for(model, 3)
    if labels is None:
        with pytest.raises(ValueError, match="labels: this model is unconditional"):
            model.loss(images, torch.zeros(3, dtype=torch.int64))
        with pytest.raises(ValueError, match="labels: this model is unconditional"):
            model.sample(3, labels=torch.zeros(3, dtype=torch.int64))
        return
    with pytest.raises(ValueError, match="labels: this model has 3 classes, expected a tensor"):
        model.loss(images)
    with pytest.raises(ValueError, match="labels: this model has 3 classes"):
        model.sample(3)
    with pytest.raises(TypeError, match="labels: expected integers"):
        model.loss(images, labels.float())
    with pytest.raises(ValueError, match=r"labels: expected \[3\], one class per image"):
        model.loss(images, labels[:2])
    with pytest.raises(ValueError, match="labels: expected classes 0 to 2, got 3 to 3"):
        model.loss(images, torch.full((3,), 3))


def test_refuses_latents(model):
    _, labels = data_for(model, 2)
    z = model.draw_latents(2, generator())
    with pytest.raises(TypeError, match="z: expected a floating tensor"):
        model.decode(z.long(), labels)
    with pytest.raises(ValueError, match="z: expected"):
        model.decode(z[:, :-1], labels)


def test_refuses_numbers_of_samples(model):
    for wrong in (0, 2.0):
        with pytest.raises(ValueError, match="n: expected a positive int"):
            model.sample(wrong)


@pytest.mark.parametrize(
    ("kind", "config", "match"),
    [
        (Autoencoder, {"image_size": 0}, "image_size: expected an int or a pair of ints"),
        (Autoencoder, {"levels": 1}, "levels: expected an int from 2 to 256, or None, got 1"),
        (Autoencoder, {"network": "deep"}, "network: expected one of dense, convolutional, spatial, got 'deep'"),
        (Autoencoder, {"latent_size": 0}, "latent_size: expected a positive int, got 0"),
        (Autoencoder, {"layers": -1}, "layers: expected an int of at least 0, got -1"),
        (Autoencoder, {"channels": 1.5}, "channels: expected a positive int, got 1.5"),
        (Autoencoder, {"dropout": 1.0}, "dropout: expected a probability"),
        (Autoencoder, {"components": 0}, "components: expected a positive int, got 0"),
        (
            Autoencoder,
            {"likelihood": "normal"},
            "likelihood: expected one of bernoulli, gaussian, discretized_logistic",
        ),
        (Autoencoder, {"sigma": 0.0}, "sigma: expected a positive number or None, got 0.0"),
        (VAE, {"sigma": 1.0}, "sigma: bernoulli has none, expected None, got 1.0"),
        (VAE, {"levels": None, "likelihood": "discretized_logistic"}, "discretized_logistic is of integer levels"),
        (VAE, {"beta": -1}, "beta: expected a number of at least 0, got -1"),
        (VAE, {"beta": float("nan")}, "beta: expected a number of at least 0, got nan"),
        (VAE, {"beta": 2, "importance_samples": 5}, "beta: expected 1 with importance_samples"),
        (VAE, {"importance_samples": 0}, "importance_samples: expected a positive int, got 0"),
        (ConditionalVAE, {"num_classes": 0}, "num_classes: expected a positive int, got 0"),
        (
            DenoisingAutoencoder,
            {"corruption": "rust"},
            "corruption: expected one of gaussian, masking, salt-and-pepper",
        ),
        (DenoisingAutoencoder, {"noise": 0}, "noise: expected a positive number, got 0"),
        (DenoisingAutoencoder, {"corruption": "masking", "noise": 1.5}, "noise: expected a share of pixels"),
        (DenoisingAutoencoder, {"walkback": 1.0}, "walkback: expected a probability"),
        (VQVAE, {"num_codes": 1}, "num_codes: expected an int from 2 to 256, got 1"),
        (VQVAE, {"num_codes": 512}, "num_codes: expected an int from 2 to 256, got 512"),
        (VQVAE, {"commitment": -1.0}, "commitment: expected at least 0"),
        (VQVAE, {"prior_channels": 7}, "channels: expected a multiple of 2, got 7"),
    ],
)
def test_refuses_arguments(kind, config, match):
    with pytest.raises(ValueError, match=match):
        kind(**{"image_size": 8, "image_channels": 1, "levels": 5, **config})


def test_a_conditional_model_has_to_have_classes():
    with pytest.raises(TypeError, match="num_classes"):
        ConditionalVAE(8, 1, 5)


@pytest.mark.parametrize("name", ["ae", "ae-spatial", "vae", "vqvae"])
def test_diffusion_of_their_latents(name):
    model = make(name).float()
    shape = model.latent_shape if len(model.latent_shape) == 3 else (model.latent_size, 1, 1)
    diffusion = DDPM(
        shape[1:], shape[0], None, channels=8, channel_multipliers=(1,), layers=1, groups=4, attention_levels=()
    )
    latent = LatentDiffusion(model, diffusion)
    images = data_for(model, 8)[0]
    latent.fit_scale(images)
    assert torch.equal(latent.decode(latent.encode(images)), model.reconstruct(images))
    latent.train().loss(images).backward()
    drawn = latent.sample(2, steps=2, generator=generator())
    assert drawn.shape == (2, *model.shape) and drawn.dtype == images.to(torch.uint8 if model.levels else None).dtype


def test_nothing_to_draw_from_before_a_density_was_fitted():
    model = Autoencoder(8, 1, 5, latent_size=2, components=2)
    with pytest.raises(ValueError, match="no density of latents was fitted, expected a call of fit_latents"):
        model.sample(1)
    with pytest.raises(ValueError, match="expected at least 2"):
        model.fit_latents(torch.randint(5, (1, 1, 8, 8)))
