"""ActNorm is nflows', initialises itself once on the first batch, and on all ranks alike."""

import copy

import pytest
import torch
from torch import nn

from fastgen.nn import ActNorm
from tests.nn.transform_properties import PROPERTIES, Case
from tests.ranks import run_on_ranks


def initialised(features):
    layer = ActNorm(features)
    layer.initialized.fill_(True)
    return layer


CASES = [
    Case("vectors", lambda: initialised(4), (4,)),
    Case("images", lambda: initialised(3), (3, 2, 2)),
]


@pytest.mark.parametrize("check", PROPERTIES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_property(case, check):
    check(case)


SHAPES = pytest.mark.parametrize("shape", [(64, 5), (8, 5, 4, 3)], ids=["vectors", "images"])


def batch(*shape, dtype=torch.float64):
    scale = torch.tensor([1e-3, 0.5, 2.0, 30.0, 1.0], dtype=torch.float64).view(1, 5, *(1,) * (len(shape) - 2))
    return (scale * torch.randn(shape, dtype=torch.float64) + 3 * scale.sqrt()).to(dtype)


@SHAPES
def test_first_batch_comes_out_normalised_and_later_ones_change_nothing(shape):
    layer = ActNorm(5).double()
    y, logabsdet = layer(batch(*shape))
    std, mean = torch.std_mean(y.transpose(0, 1).flatten(1), dim=1)
    torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-10)
    torch.testing.assert_close(std, torch.ones_like(std))
    pixels = y[0, 0].numel()
    torch.testing.assert_close(logabsdet, (pixels * layer.log_scale.sum()).expand(shape[0]))
    assert layer.initialized
    before = copy.deepcopy(layer.state_dict())
    layer(batch(*shape) * 7)
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[name])


@SHAPES
def test_is_nflows(shape):
    normalization = pytest.importorskip("nflows.transforms.normalization")
    theirs, ours = normalization.ActNorm(5).double(), ActNorm(5).double()
    first, second = batch(*shape), batch(*shape)
    for x in (first, second):
        for found, expected in zip(ours(x), theirs(x), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert {name: value.dtype for name, value in ours.state_dict().items()} == {
        name: value.dtype for name, value in theirs.state_dict().items()
    }
    loaded = ActNorm(5).double()
    loaded.load_state_dict(theirs.state_dict())
    for found, expected in zip(loaded.inverse(second), theirs.inverse(second), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_first_batch_is_part_of_the_graph():
    layer, x = ActNorm(5).double(), batch(16, 5).requires_grad_()
    y, logabsdet = layer(x)
    (y.square().sum() + logabsdet.sum()).backward()
    torch.testing.assert_close(layer.shift.grad, 2 * y.detach().sum(0))
    torch.testing.assert_close(x.grad, 2 * y.detach() * layer.log_scale.detach().exp())


def test_eval_and_inverse_never_initialise():
    layer, x = ActNorm(5).double(), batch(16, 5)
    assert torch.equal(layer.inverse(x)[0], x)
    assert torch.equal(layer.eval()(x)[0], x)
    assert not layer.initialized and not layer.shift.any()
    layer.train()(x)
    assert layer.initialized and layer.shift.all()


def test_a_checkpoint_says_whether_it_is_initialised():
    trained, x = ActNorm(5).double(), batch(16, 5)
    trained(x)
    resumed = ActNorm(5).double()
    resumed.load_state_dict(trained.state_dict())
    assert torch.equal(resumed(2 * x)[0], trained(2 * x)[0])
    # A layer that has run takes a fresh checkpoint's word too.
    resumed.load_state_dict(ActNorm(5).double().state_dict())
    y, _ = resumed(2 * x)
    torch.testing.assert_close(y.std(0), torch.ones(5, dtype=torch.float64))


def test_initialising_waits_for_no_device():
    from tests.nn.transform_properties import _Waits

    layer = ActNorm(5)
    with _Waits() as waits:
        layer(batch(8, 5, dtype=torch.float32))
    assert not waits.found and layer.initialized


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_batch_is_measured_in_float32(dtype):
    # Squares of these overflow float16.
    x = 300 * batch(256, 5, dtype=torch.float32)
    layer = ActNorm(5)
    y, _ = layer(x.to(dtype))
    torch.testing.assert_close(y.float().std(0), torch.ones(5), rtol=0.02, atol=0.02)
    half = ActNorm(5).to(dtype)
    assert half(x.to(dtype) / 300)[0].isfinite().all()


def test_a_constant_channel_stays_finite():
    layer, x = ActNorm(5), batch(16, 5, dtype=torch.float32)
    x[:, 2] = 4.0
    y, logabsdet = layer(x)
    assert y.isfinite().all() and logabsdet.isfinite().all()
    assert not y[:, 2].any()


def test_numbers_that_are_not_finite_are_not_measured():
    layer, expected = ActNorm(5).double(), ActNorm(5).double()
    x = batch(16, 5)
    expected(x[2:])
    x[0, :] = torch.nan
    x[1, :] = torch.inf
    y, _ = layer(x)
    torch.testing.assert_close(layer.state_dict(), expected.state_dict())
    assert y[2:].isfinite().all() and not y[:2].isfinite().any()


@pytest.mark.parametrize("rows", [0, 1])
def test_a_batch_that_has_no_variance_leaves_the_parameters_finite(rows):
    layer = ActNorm(5)
    layer(torch.randn(rows, 5))
    assert layer.shift.isfinite().all() and layer.log_scale.isfinite().all()
    assert bool(layer.initialized) == (rows == 1)


def test_first_batch_compiles_to_one_graph():
    plain, x = ActNorm(5).double(), batch(16, 5)
    layer = copy.deepcopy(plain)
    torch.compiler.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for factor in (1.0, 2.0, 3.0):
        torch.testing.assert_close(compiled(factor * x), plain(factor * x))
    assert layer.initialized
    torch.testing.assert_close(layer.state_dict(), plain.state_dict())


def different_numbers_of_rows(rank, folder):
    torch.manual_seed(0)
    x = 3 + 5 * torch.randn(10, 4, dtype=torch.float64)
    mine = x[:6] if rank == 0 else x[6:]
    layer = ActNorm(4).double()
    layer(mine)
    layer(2 * mine)
    torch.save(layer.state_dict(), folder / f"{rank}.pt")


def test_ranks_agree_on_the_statistics_of_all_of_them(tmp_path):
    run_on_ranks(different_numbers_of_rows, tmp_path)
    torch.manual_seed(0)
    alone = ActNorm(4).double()
    alone(3 + 5 * torch.randn(10, 4, dtype=torch.float64))
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), alone.state_dict())


def test_refuses():
    with pytest.raises(ValueError, match="features: expected a positive int, got 0"):
        ActNorm(0)
    for direction in (ActNorm(3).forward, ActNorm(3).inverse):
        for shape in ((2, 4), (2, 3, 4)):
            with pytest.raises(ValueError, match=r"x: expected \[batch, 3\] or \[batch, 3, height, width\], got"):
                direction(torch.randn(shape))
        with pytest.raises(TypeError, match="x: expected a floating dtype"):
            direction(torch.zeros(2, 3, dtype=torch.int64))
    assert isinstance(ActNorm(3), nn.Module)
