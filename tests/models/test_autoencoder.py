"""The autoencoder: its linear form is principal component analysis, its draws have the distribution of its latents."""

import pytest
import torch

from fastgen.models import Autoencoder
from tests.models.autoencoder_cases import learn


def trained(model, x, iterations=400):
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=iterations, tolerance_grad=1e-12, tolerance_change=1e-16,
                                  line_search_fn="strong_wolfe")  # fmt: skip

    def closure():
        optimizer.zero_grad()
        loss = model.loss(x)
        loss.backward()
        return loss

    optimizer.step(closure)
    return model


def test_the_linear_one_finds_the_subspace_of_principal_components():
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([5.0, 3.0, 2.0, 0.5, 0.3, 0.1], dtype=torch.float64)
    mixing = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64))[0]
    x = (torch.randn(300, 6, generator=generator, dtype=torch.float64) * scales) @ mixing + 1.5
    model = Autoencoder((1, 6), 1, None, latent_size=3, layers=0, sigma=1.0, components=1).double()
    trained(model, x.view(-1, 1, 1, 6))

    centred = x - x.mean(0)
    _, singular, directions = torch.linalg.svd(centred, full_matrices=False)
    projector = directions[:3].T @ directions[:3]
    reached = model.reconstruct(x.view(-1, 1, 1, 6)).flatten(1)
    torch.testing.assert_close(reached, x.mean(0) + centred @ projector, atol=1e-4, rtol=0)
    # What is lost is what the other components hold.
    lost = (reached - x).square().sum()
    torch.testing.assert_close(lost, singular[3:].square().sum(), rtol=1e-6, atol=0)
    basis = torch.linalg.qr(model.decoder.layers[0].weight.detach())[0]
    torch.testing.assert_close(basis @ basis.T, projector, atol=1e-4, rtol=0)


def test_draws_are_those_of_the_mixture_of_latents():
    model = Autoencoder((1, 4), 1, None, latent_size=2, layers=0, components=2).double()
    x = torch.randn(2000, 1, 1, 4, dtype=torch.float64)
    x[::2] += 6
    model.fit_latents(x)
    z, drawn = model.encode(x), model.draw_latents(20_000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.mean(0), z.mean(0), atol=0.1, rtol=0)
    torch.testing.assert_close(drawn.T.cov(), z.T.cov(), rtol=0.08, atol=0.02)
    # Of two heaps, and not of one between them.
    middle = ((z[::2].mean(0) + z[1::2].mean(0)) / 2).detach()
    near = (z[::2].mean(0) - z[1::2].mean(0)).norm() / 8
    assert ((drawn - middle).norm(dim=1) < near).double().mean() < 0.02
    images = model.sample(5, generator=torch.Generator().manual_seed(1))
    again = model.decode(model.draw_latents(5, torch.Generator().manual_seed(1)))
    torch.testing.assert_close(images, again)


@pytest.mark.parametrize("network", ["dense", "convolutional", "spatial"])
def test_it_learns_to_reconstruct(network):
    torch.manual_seed(0)
    # One bright square somewhere: two numbers say where.
    places = torch.cartesian_prod(torch.arange(6), torch.arange(6))
    x = torch.zeros(36, 1, 8, 8, dtype=torch.long)
    for image, (row, column) in zip(x, places.tolist(), strict=True):
        image[0, row : row + 3, column : column + 3] = 4
    model = Autoencoder(8, 1, 5, latent_size=4, network=network, channels=32, layers=1, components=1)
    learn(model, (x,), 300)
    wrong = (model.reconstruct(x).long() - x).abs().double().mean()
    assert wrong < 0.35 * (x.double() - x.double().mean(0)).abs().mean()
