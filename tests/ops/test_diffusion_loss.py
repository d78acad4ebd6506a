"""The diffusion loss is a weighted mean square with the papers' weights."""

from __future__ import annotations

import pytest
import torch

from fastgen.ops import diffusion_loss, diffusion_loss_weight, q_sample
from fastgen.ops.diffusion.cases import linear_alphas_cumprod

ALPHAS = linear_alphas_cumprod()


def test_weighted_mean_square():
    prediction, target, weight = torch.randn(2, 5, 3, 4), torch.randn(2, 5, 3, 4), torch.tensor([0.5, 2.0])
    each = [(prediction[i] - target[i]).square().mean() for i in range(2)]
    torch.testing.assert_close(diffusion_loss(prediction, target, weight), (0.5 * each[0] + 2 * each[1]) / 2)
    torch.testing.assert_close(diffusion_loss(prediction, target), (each[0] + each[1]) / 2)


def test_gradients():
    args = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((3, 4), (3, 4), 3)]
    assert torch.autograd.gradcheck(diffusion_loss, args)
    assert torch.autograd.gradgradcheck(diffusion_loss, args)


def test_half_types_are_summed_in_float32():
    prediction = torch.full((2, 100_000), 1.0, dtype=torch.bfloat16)
    loss = diffusion_loss(prediction, torch.zeros_like(prediction), torch.ones(2))
    assert loss.dtype == torch.float32 and float(loss) == 1.0


@pytest.mark.parametrize("gamma", [None, 2.0])
@pytest.mark.parametrize("kind", ["min_snr", "p2"])
def test_every_prediction_has_the_same_loss(kind: str, gamma: float | None):
    """An error in x0 is an error in epsilon and in v at the same x_t; weighted, all three are one loss."""
    t = torch.tensor([3, 400, 998])
    x0, error, a = torch.randn(3, 10, dtype=torch.float64), torch.randn(3, 10, dtype=torch.float64), ALPHAS[t][:, None]
    losses = []
    for prediction_type in ("sample", "epsilon", "v_prediction"):
        x_t, target = q_sample(x0, t, ALPHAS, seed=1, prediction_type=prediction_type)
        wrong = x0 + error
        noise = (x_t - a.sqrt() * wrong) / (1 - a).sqrt()
        prediction = {"sample": wrong, "epsilon": noise, "v_prediction": a.sqrt() * noise - (1 - a).sqrt() * wrong}
        weight = diffusion_loss_weight(ALPHAS, kind=kind, prediction_type=prediction_type, gamma=gamma, k=0.7)[t]
        losses.append(diffusion_loss(prediction[prediction_type], target, weight))
    torch.testing.assert_close(losses[1:], losses[:1] * 2)


def test_weights_are_the_papers():
    snr = ALPHAS / (1 - ALPHAS)
    torch.testing.assert_close(diffusion_loss_weight(ALPHAS), torch.minimum(snr, torch.tensor(5.0)) / snr)
    torch.testing.assert_close(diffusion_loss_weight(ALPHAS, kind="p2", gamma=0.5, k=2.0), (2 + snr) ** -0.5)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("kind", ["min_snr", "p2"])
def test_noise_alone_has_a_finite_weight(kind: str, prediction_type: str):
    a = torch.tensor([0.999, 0.5, 0.0])
    assert diffusion_loss_weight(a, kind=kind, prediction_type=prediction_type).isfinite().all()


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        ((torch.zeros(2, 3), torch.zeros(2, 4)), ValueError, r"target: expected the shape of prediction, \(2, 3\)"),
        ((torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(3)), ValueError, r"weight: expected \[batch\], \(2,\)"),
        ((torch.zeros(2).int(), torch.zeros(2)), TypeError, "prediction: expected a floating dtype"),
    ],
)
def test_bad_arguments(args: tuple, error: type, message: str):
    with pytest.raises(error, match=message):
        diffusion_loss(*args)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "snr"}, "kind: expected one of min_snr, p2, got 'snr'"),
        ({"prediction_type": "x0"}, "prediction_type: expected one of epsilon, sample, v_prediction, got 'x0'"),
        ({"gamma": 0.0}, "gamma: expected a positive number, got 0.0"),
        ({"k": -1.0}, "k: expected a positive number, got -1.0"),
        ({"alphas_cumprod": torch.zeros(2, 2)}, r"alphas_cumprod: expected floating \[steps\], got \(2, 2\)"),
    ],
)
def test_bad_weights(change: dict, message: str):
    with pytest.raises(ValueError, match=message):
        diffusion_loss_weight(**{"alphas_cumprod": ALPHAS, **change})
