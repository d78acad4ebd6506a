"""Running moments have the same bits for any batches, and merge in any order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from fastgen.metrics import Moments
from fastgen.ops import moments
from tests.ranks import run_on_ranks


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def seen(x: Tensor, batch: int, **options) -> Moments:
    found = Moments(x.shape[1], **options)
    for rows in x.split(batch):
        found.update(rows)
    return found


def assert_close(found: Moments, x: Tensor, error: float) -> None:
    mean, covariance = moments(x, dtype=torch.float64)
    deviations = covariance.diagonal().sqrt()
    assert found.count == len(x)
    assert ((found.mean - mean).abs() / deviations).max() < error
    assert ((found.covariance - covariance).abs() / (deviations * deviations[:, None])).max() < error


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-6), (torch.float64, 1e-13)])
@pytest.mark.parametrize("batch", [1, 7, 512, 513, 1300])
def test_batches_of_any_size_give_the_same_bits(dtype: torch.dtype, error: float, batch: int):
    x = torch.randn(1300, 5) + 50
    whole, parts = seen(x, len(x), dtype=dtype), seen(x, batch, dtype=dtype)
    assert torch.equal(whole.mean, parts.mean) and torch.equal(whole.covariance, parts.covariance)
    assert_close(parts, x, error)


def test_columns_of_several_blocks():
    x = torch.randn(900, 300)
    found = seen(x, 100)
    assert_close(found, x, 1e-6)
    assert torch.equal(found.covariance, found.covariance.mT)


def test_reading_changes_nothing():
    x = torch.randn(700, 4)
    read, unread = Moments(4), Moments(4)
    for rows in x.split(100):
        for found in (read, unread):
            found.update(rows)
        read.mean_and_covariance(), read.state()
    assert torch.equal(read.covariance, unread.covariance)


@pytest.mark.parametrize("sizes", [(700, 600), (3, 1200), (0, 40), (40, 0), (1, 1)])
def test_merged_in_any_order(sizes: tuple[int, int]):
    x = torch.randn(sum(sizes), 6) + torch.arange(sum(sizes))[:, None] / 100
    first, second = x.split(sizes)
    for one, other in ((first, second), (second, first)):
        found = seen(one, 256, dtype=torch.float64).merge(seen(other, 100, dtype=torch.float64))
        assert_close(found, x, 1e-12)
        assert_close(found.update(x[:5]), torch.cat([x, x[:5]]), 1e-12)


def test_merging_three_is_associative():
    parts = torch.randn(3, 50, 6, dtype=torch.float64)
    a, b, c, bc = (seen(part, 50, dtype=torch.float64) for part in (*parts, parts[1]))
    left, right = seen(parts[0], 50, dtype=torch.float64).merge(b).merge(c), a.merge(bc.merge(c))
    torch.testing.assert_close(left.covariance, right.covariance, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("rows", [0, 1, 2, 1300])
def test_state_is_taken_up(rows: int):
    x = torch.randn(rows + 40, 5) + 10
    first, rest = x[:rows], x[rows:]
    state = Moments(5).update(first).state()
    assert state["count"] == rows and state["scatter"].isfinite().all()
    found = Moments(5).update(torch.zeros(3, 5)).load(state).update(rest)
    assert_close(found, x, 5e-7)


def test_half_precision_rows_and_none():
    x = torch.randn(60, 3).bfloat16()
    found = Moments(3).update(x[:0]).update(x)
    assert_close(found, x.float(), 5e-7)


def test_reset_forgets():
    found = Moments(3).update(torch.randn(600, 3))
    found.reset()
    x = torch.randn(9, 3)
    assert_close(found.update(x), x, 5e-7)


def test_bad_input():
    found = Moments(3)
    with pytest.raises(ValueError, match=r"x: expected features \[N, 3\], got \(2, 4\)"):
        found.update(torch.zeros(2, 4))
    with pytest.raises(TypeError, match=r"x: expected a floating dtype, got torch\.int64"):
        found.update(torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(TypeError, match="x: expected a tensor on cpu, got one on meta"):
        found.update(torch.zeros(2, 3, device="meta"))
    with pytest.raises(ValueError, match="no rows"):
        _ = found.mean
    with pytest.raises(ValueError, match="expected at least two rows for a covariance, got 1"):
        _ = found.update(torch.zeros(1, 3)).covariance
    with pytest.raises(ValueError, match=r"x: .* in 2 of 3 rows"):
        found.update(torch.tensor([[1.0, float("nan"), 0], [0, 0, 0], [float("inf"), 0, 0]]))
    assert found.count == 1
    with pytest.raises(ValueError, match="other: expected 3 features, got 4"):
        found.merge(Moments(4))
    with pytest.raises(ValueError, match="state: expected count, mean and scatter, got mu"):
        found.load({"mu": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"state: expected scatter of shape \(3, 3\), got \(4, 4\)"):
        found.load(Moments(3).state() | {"scatter": torch.zeros(4, 4)})
    with pytest.raises(TypeError, match=r"dtype: expected .*, got torch\.float16"):
        Moments(3, dtype=torch.float16)
    with pytest.raises(ValueError, match="num_features: expected a positive int, got 0"):
        Moments(0)


def rows_of_everyone() -> Tensor:
    return torch.randn(1500, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 7


def one_process(rank: int) -> None:
    x = rows_of_everyone()
    # The last process has no rows, the first a chunk more than the second.
    mine = [x[:1100], x[1100:], x[:0]][rank]
    own = seen(mine, 64, dtype=torch.float64)
    total = own.all_reduce()
    assert_close(total, x, 1e-12)
    assert own.count == len(mine)
    assert_close(total.update(x[:9]), torch.cat([x, x[:9]]), 1e-12)
    try:
        Moments(4 + rank).all_reduce()
    except ValueError as error:
        assert "same number of features on every process, got [4, 5, 6]" in str(error)
    else:
        raise AssertionError("different widths were added up")
    assert Moments(4).all_reduce().count == 0


def test_processes_together_have_seen_all_rows():
    run_on_ranks(one_process, world_size=3)


def test_without_processes_it_is_a_copy():
    x = torch.randn(20, 3)
    found = Moments(3).update(x)
    total = found.all_reduce()
    found.reset()
    assert_close(total, x, 5e-7)


def test_autocast_changes_nothing():
    rows = torch.randn(600, 5, generator=torch.Generator().manual_seed(0))
    expected = Moments(5).update(rows).covariance
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(Moments(5).update(rows).covariance, expected)
    assert torch.equal(Moments(np.int64(5)).update(rows).covariance, expected)
