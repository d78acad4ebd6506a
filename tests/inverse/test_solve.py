"""Restoration: operators and their pseudo-inverses, methods on data whose posterior is known, refusals."""

import math

import pytest
import torch

from fastgen.inverse import (
    METHODS,
    Colourisation,
    Deblurring,
    Denoising,
    Inpainting,
    SingleImageHDR,
    SuperResolution,
    Uncropping,
    solve,
)
from fastgen.models import PixelCNN, SamplingDiverged
from tests.models.diffusion_cases import FAMILIES, knowing, make

MASK = torch.tensor([[True, False, True, True]] * 4)
LINEAR = {
    "super-resolution": SuperResolution(2),
    "denoising": Denoising(0.2),
    "inpainting": Inpainting(MASK),
    "uncropping": Uncropping((4, 4), 0, 1, 4, 2),
    "deblurring": Deblurring.gaussian(3, 0.8),
    "asymmetric": Deblurring(torch.tensor([[0.5, 0.3, 0.0], [0.2, 0.0, 0.0]])),
    "colourisation": Colourisation(),
}
SOLVABLE = [family for family in FAMILIES if family != "2015"]
MEAN, VARIANCE = 0.2, 0.09


def image(operator, n=5):
    return torch.rand(n, 3 if isinstance(operator, Colourisation) else 1, 4, 4, dtype=torch.float64) * 2 - 1


@pytest.mark.parametrize("name", LINEAR)
def test_pseudo_inverse(name):
    """The four conditions of Moore and Penrose, on the operator's matrix."""
    operator = LINEAR[name]
    shape = image(operator).shape[1:]
    basis = torch.eye(math.prod(shape), dtype=torch.float64).view(-1, *shape)
    forward = operator(basis).flatten(1).T
    measured = operator(basis[:1]).shape[1:]
    other = torch.eye(forward.shape[0], dtype=torch.float64).view(-1, *measured)
    inverse = operator.pseudo_inverse(other).flatten(1).T
    torch.testing.assert_close(forward @ inverse @ forward, forward, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(inverse @ forward @ inverse, inverse, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close((forward @ inverse).T, forward @ inverse, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close((inverse @ forward).T, inverse @ forward, rtol=1e-9, atol=1e-9)


def test_hdr_clips_rounds_and_has_a_gradient():
    operator = SingleImageHDR(exposure=2.0, levels=5)
    x = torch.tensor([-1.0, -0.9, -0.5, 0.0, 0.7], requires_grad=True)
    y = operator(x)
    torch.testing.assert_close(y.detach(), torch.tensor([-1.0, -1.0, 0.0, 1.0, 1.0]))
    y.sum().backward()
    assert x.grad.tolist() == [2.0] * 5


@pytest.mark.parametrize("family", SOLVABLE)
@pytest.mark.parametrize("method", ["ddnm", "repaint"])
def test_inpainting_keeps_what_is_known_and_draws_the_rest(family, method):
    """Pixels of the data are independent: those that are known stay, the others have the prior."""
    model = knowing(make(family, levels=None), MEAN, VARIANCE)
    operator = Inpainting(MASK)
    truth = (MEAN + VARIANCE**0.5 * torch.randn(1, 1, 4, 4)).clamp(-1, 1)
    measurement = operator(truth).repeat(400, 1, 1, 1)
    # Of steps that draw all their noise anew, as a chain has to.
    options = {"eta": 1.0} if method == "ddnm" else {"resamples": 2}
    steps = 100
    got = solve(model, measurement, operator, method=method, steps=steps, generator=seeded(), **options)
    torch.testing.assert_close(got[..., MASK], measurement[..., MASK], rtol=0, atol=0.02)
    hidden = got[..., ~MASK]
    assert hidden.mean().item() == pytest.approx(MEAN, abs=0.05)
    assert hidden.std().item() == pytest.approx(VARIANCE**0.5, rel=0.2)


@pytest.mark.parametrize("family", SOLVABLE)
@pytest.mark.parametrize("name", [name for name in LINEAR if name not in ("denoising", "colourisation")])
def test_ddnm_agrees_with_the_measurement(family, name):
    model = knowing(make(family, levels=None), MEAN, VARIANCE)
    measurement = LINEAR[name](torch.rand(3, 1, 4, 4) - 0.3)
    got = solve(model, measurement, LINEAR[name], steps=20, generator=seeded())
    torch.testing.assert_close(LINEAR[name](got), measurement, rtol=0, atol=0.05)


def test_ddnm_of_noisy_measurements_finds_the_mean_of_the_posterior():
    model = knowing(make("vp", levels=None), MEAN, VARIANCE)
    operator = Denoising(0.3)
    truth = MEAN + VARIANCE**0.5 * torch.randn(1, 1, 4, 4)
    measurement = operator.measure(truth, seeded()).repeat(300, 1, 1, 1)
    got = solve(model, measurement, operator, steps=200, generator=seeded())
    # Prior and noise have the same variance. The method is not exact, but nearer to it than what was measured.
    posterior = (measurement[0] + MEAN) / 2
    naive = (measurement[0] - posterior).abs().mean()
    assert (got.mean(0) - posterior).abs().mean() < 0.75 * naive


@pytest.mark.parametrize("family", SOLVABLE)
@pytest.mark.parametrize(
    "operator", [SingleImageHDR(2.0), SuperResolution(2), Denoising(0.05)], ids=["hdr", "super-resolution", "denoising"]
)
def test_dps_comes_nearer_to_the_measurement_than_the_prior(family, operator):
    model = knowing(make(family, levels=None), MEAN, VARIANCE)
    truth = (MEAN + VARIANCE**0.5 * torch.randn(1, 1, 4, 4)).clamp(-1, 1)
    measurement = operator(truth).repeat(20, 1, 1, 1)
    got = solve(
        model, measurement, operator, method="dps", steps=100, generator=seeded(), scale=0.5 if operator.linear else 0.2
    )
    free = model.sample(20, steps=50, generator=seeded())
    off = [(operator(x) - measurement).square().mean().item() for x in (got, free)]
    assert off[0] < 0.5 * off[1]


def test_colourisation_keeps_the_grey():
    model = knowing(coloured(), MEAN, VARIANCE)
    operator = Colourisation()
    measurement = operator(torch.rand(2, 3, 4, 4) - 0.5)
    got = solve(model, measurement, operator, steps=20, generator=seeded())
    assert got.shape == (2, 3, 4, 4)
    torch.testing.assert_close(operator(got), measurement, rtol=0, atol=0.02)


def coloured():
    from fastgen.models import DDPM
    from tests.models.diffusion_cases import TINY

    return DDPM(4, 3, None, **TINY)


def seeded():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("method", METHODS)
def test_nan_stops_at_its_step(method):
    model = knowing(make("vp", levels=None), MEAN, VARIANCE)
    honest, calls = model.output, []

    def broken(x, time, labels=None):
        calls.append(time)
        return honest(x, time) * (math.nan if len(calls) > 3 else 1.0)

    model.output = broken
    options = {"resamples": 1} if method == "repaint" else {}
    with pytest.raises(SamplingDiverged, match="after step 4 of 10") as caught:
        solve(model, torch.zeros(1, 1, 4, 4), Inpainting(MASK), method=method, steps=10, **options)
    assert caught.value.last_good.isfinite().all()


def test_what_solve_refuses():
    model, zeros = make("vp", levels=None), torch.zeros(1, 1, 4, 4)
    for operator, measurement, options, message in (
        (Inpainting(torch.ones(3, 4, dtype=torch.bool)), zeros, {}, r"mask: expected \[4, 4\]"),
        (SuperResolution(3), zeros, {}, "factor: expected a divisor"),
        (SuperResolution(2), zeros, {}, r"measurement: expected \[n, 1, 2, 2\]"),
        (Colourisation(), zeros, {}, "colourisation is of images of 3 channels"),
        (Deblurring(torch.ones(5, 5)), zeros, {}, "kernel: expected no larger than the image"),
        (Denoising(), zeros * math.nan, {}, "measurement: expected finite"),
        (Denoising(), zeros, {"method": "magic"}, "method: expected one of ddnm, repaint, dps"),
        (Denoising(), zeros, {"method": "repaint"}, "method: repaint fills in pixels"),
        (SingleImageHDR(), zeros, {"method": "ddnm"}, "method: ddnm is for linear operators"),
        (Denoising(), zeros, {"steps": 0}, "steps"),
        (Denoising(), zeros, {"labels": 1}, "labels: this model is unconditional"),
        (Denoising(), zeros, {"method": "dps", "scale": 0.0}, "scale"),
        (Inpainting(MASK), zeros, {"method": "repaint", "resamples": 0}, "resamples"),
    ):
        with pytest.raises(ValueError, match=message):
            solve(model, measurement, operator, **options)
    with pytest.raises(TypeError, match="measurement: expected a floating tensor"):
        solve(model, zeros.long(), Denoising())
    with pytest.raises(TypeError, match="model: expected a diffusion model, got PixelCNN"):
        solve(PixelCNN(image_size=4, image_channels=1, levels=17, channels=8, layers=1), zeros, Denoising())


@pytest.mark.parametrize(
    "make_one, message",
    [
        (lambda: Denoising(-1.0), "noise_std"),
        (lambda: Inpainting(torch.zeros(4, 4)), "mask: expected a bool tensor"),
        (lambda: Uncropping((4, 4), 2, 0, 3, 4), "expected a box within"),
        (lambda: SuperResolution(1), "factor"),
        (lambda: Deblurring(torch.zeros(3)), "kernel"),
        (lambda: Deblurring.gaussian(2), "size and sigma"),
        (lambda: SingleImageHDR(0.0), "exposure"),
        (lambda: SingleImageHDR(levels=1), "levels"),
    ],
)
def test_operators_that_are_none(make_one, message):
    with pytest.raises(ValueError, match=message):
        make_one()
