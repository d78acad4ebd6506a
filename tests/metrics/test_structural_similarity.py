"""Structural similarity equals torchmetrics', on one scale and on several, and stays right for bright images."""

import functools

import pytest
import torch
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    structural_similarity_index_measure,
)

from fastgen.metrics import (
    MultiscaleStructuralSimilarity,
    StructuralSimilarity,
    multiscale_structural_similarity,
    structural_similarity,
)


def pair(*shape, noise=0.2, dtype=torch.float64):
    x = torch.rand(shape, dtype=dtype)
    return x, (x + noise * torch.randn(shape, dtype=dtype)).clamp(0, 1)


@pytest.mark.parametrize("shape", [(3, 1, 8, 8), (2, 3, 17, 40), (1, 1, 64, 33)])
@pytest.mark.parametrize("data_range", [1.0, 2.0])
def test_equals_torchmetrics(shape, data_range):
    x, y = pair(*shape)
    ours = structural_similarity(x, y, data_range=data_range)
    theirs = structural_similarity_index_measure(x, y, data_range=data_range, reduction="none")
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


def test_several_scales_equal_torchmetrics():
    x, y = pair(2, 3, 180, 192)
    ours = multiscale_structural_similarity(x, y)
    theirs = multiscale_structural_similarity_index_measure(x, y, data_range=1.0, reduction="none")
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)
    # Unlike images have negative contrast, which counts as zero.
    assert multiscale_structural_similarity(x, 1 - x).tolist() == [0, 0]


def test_two_scales_equal_torchmetrics():
    x, y = pair(2, 1, 32, 32)
    ours = multiscale_structural_similarity(x, y, weights=(0.4, 0.6))
    theirs = multiscale_structural_similarity_index_measure(x, y, data_range=1.0, betas=(0.4, 0.6), reduction="none")
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


def test_properties():
    x, y = pair(4, 3, 16, 16)
    torch.testing.assert_close(structural_similarity(x, x), torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(structural_similarity(x, y), structural_similarity(y, x))
    assert (structural_similarity(x, y) < 1).all()
    a, b = pair(1, 1, 7, 7)
    torch.autograd.gradcheck(structural_similarity, (a.requires_grad_(), b.requires_grad_()))


def test_metrics_are_means_over_all_pairs():
    x, y = pair(5, 1, 32, 32)
    for metric, function in (
        (StructuralSimilarity(data_range=2.0), lambda x, y: structural_similarity(x, y, data_range=2.0)),
        (
            MultiscaleStructuralSimilarity(weights=(0.5, 0.5)),
            lambda x, y: multiscale_structural_similarity(x, y, weights=(0.5, 0.5)),
        ),
    ):
        metric.update(x[:2], y[:2])
        metric.update(x[2:], y[2:])
        torch.testing.assert_close(metric.compute(), function(x, y).mean())
        metric.reset()
        with pytest.raises(ValueError, match="at least 1 pair"), pytest.warns(UserWarning):
            metric.compute()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((torch.rand(2, 1, 8, 8), torch.rand(2, 1, 8, 9)), "expected the same shape"),
        ((torch.rand(2, 1, 5, 5), torch.rand(2, 1, 5, 5)), "needs more than 5 pixels a side"),
        ((torch.rand(8, 8), torch.rand(8, 8)), r"\[B, C, H, W\]"),
    ],
)
def test_bad_shapes(arguments, said):
    with pytest.raises(ValueError, match=said):
        structural_similarity(*arguments)


def test_bad_arguments():
    x, y = pair(1, 1, 32, 32)
    with pytest.raises(TypeError, match="one floating dtype"):
        structural_similarity(x, y.float())
    with pytest.raises(ValueError, match="data_range"):
        structural_similarity(x, y, data_range=0.0)
    with pytest.raises(ValueError, match="sigma"):
        structural_similarity(x, y, sigma=-1.0)
    with pytest.raises(ValueError, match="5 scales need images of at least 161 pixels"):
        multiscale_structural_similarity(x, y)
    with pytest.raises(ValueError, match="weights"):
        multiscale_structural_similarity(x, y, weights=())


BOTH = [structural_similarity, functools.partial(multiscale_structural_similarity, weights=(0.4, 0.6))]


@pytest.mark.parametrize("similarity", BOTH)
class TestPrecision:
    def bright(self):
        x = 200 + 50 * torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        return x, x + torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
    def test_of_bright_images(self, similarity, dtype):
        x, y = (images.to(dtype) for images in self.bright())
        found = similarity(x, y, data_range=255.0)
        assert found.dtype == torch.float32
        expected = similarity(x.double(), y.double(), data_range=255.0)
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)

    def test_autocast_changes_nothing(self, similarity):
        x, y = (images.float() for images in self.bright())
        expected = similarity(x, y, data_range=255.0)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(similarity(x, y, data_range=255.0), expected, rtol=0, atol=0)

    @pytest.mark.parametrize("offset", [1e4, -1e5])
    def test_far_from_zero(self, similarity, offset):
        x, y = (images.float() for images in pair(2, 1, 32, 32))
        x, y = x + offset, y + offset
        found, expected = similarity(x, y), similarity(x.double(), y.double())
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)

    def test_compiles_in_one_graph(self, similarity):
        torch._dynamo.reset()
        x, y = (images.float() for images in pair(1, 1, 32, 32))
        compiled = torch.compile(lambda a, b: similarity(a, b), fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(x, y), similarity(x, y))

    def test_the_first_call_leaves_nothing_behind(self, similarity):
        """Its window had been kept: one made in inference mode, or elsewhere, for all later calls."""
        shape = (1, 1, 34, 35)
        with torch.inference_mode():
            similarity(*pair(*shape))
        with torch.device("meta"):
            found = similarity(*(torch.rand(shape, dtype=torch.float64, device="cpu") for _ in "xy"))
        assert found.device.type == "cpu"
        x, y = pair(*shape)
        similarity(x.requires_grad_(), y).sum().backward()
        assert x.grad.isfinite().all()
