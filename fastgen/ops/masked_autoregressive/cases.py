"""Test inputs, benchmark cases and cost of the masked autoregressive inverse."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from fastgen.ops.drawing import Drawing, normals
from fastgen.ops.masked_autoregressive.activations import ACTIVATIONS
from fastgen.ops.masked_autoregressive.elements import SCALE_MAPS, Affine, RationalQuadratic
from fastgen.ops.masked_autoregressive.order import DegreeOrder, degree_order
from fastgen.ops.registry import Cost, Sample


def random_network(
    features: int,
    hidden_features: tuple[int, ...],
    num_parameters: int,
    device: str,
    dtype: torch.dtype,
    *,
    residual: bool = False,
    shuffled: bool = False,
    scale: float = 0.5,
) -> tuple[Tensor, DegreeOrder]:
    """Random packed weights of a masked network, and their order."""
    place = torch.randperm(features) if shuffled else torch.arange(features)
    degrees = [place, *(torch.arange(width) % max(1, features - 1) for width in hidden_features)]
    masks = [after[:, None] >= before for before, after in pairwise(degrees)]
    masks.append((place[:, None] > degrees[-1]).repeat_interleave(num_parameters, 0))
    order = degree_order(masks, residual=residual)
    sizes = [(mask.shape[0], mask.shape[1]) for mask in masks]
    weights = [torch.randn(size, dtype=torch.float64) * scale / max(1, size[1]) ** 0.5 for size in sizes]
    packed = order.pack(weights, [torch.randn(size[0], dtype=torch.float64) * scale for size in sizes])
    return packed.to(device, dtype), order.to(torch.device(device))


def samples(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    randn = normals(device, dtype)

    def network(*sizes, **kwargs) -> tuple[Tensor, DegreeOrder]:
        return random_network(*sizes, device, dtype, **kwargs)

    def call(name: str, y: Tensor, made: tuple[Tensor, DegreeOrder], context: Tensor | None = None, **kwargs) -> Sample:
        return Sample(name, (y, made[0], context, made[1]), {"element": Affine(), **kwargs})

    yield call("one hidden layer", randn(3, 3), network(3, (5,), 2))
    yield call(
        "two hidden layers, elu, exp",
        randn(2, 4),
        network(4, (3, 4), 2),
        activation="elu",
        element=Affine("exp"),
    )
    yield call("context", randn(4, 3), network(3, (4, 5), 2), randn(4, 4), activation="tanh", element=Affine("tanh"))
    yield call("residual", randn(2, 3), network(3, (4, 4, 4), 2, residual=True), randn(2, 8), element=Affine("sigmoid"))
    yield call(
        "softclip, silu", randn(5, 2), network(2, (3,), 2), element=Affine("softclip", bound=6.9), activation="silu"
    )
    yield call("one feature", randn(2, 1), network(1, (2,), 2), activation="gelu")
    yield call("empty batch", randn(0, 3), network(3, (5,), 2))
    yield call("fewer units than features", randn(3, 9), network(9, (4, 3), 2, shuffled=True), activation="softplus")
    yield call("many rows", randn(70, 5), network(5, (19, 10), 2, shuffled=True), activation="leaky_relu")
    yield call("wide", randn(19, 9), network(9, (70, 17), 2), activation="sigmoid")
    yield call("transposed", randn(3, 70).t(), network(3, (5, 5, 5), 2, residual=True), randn(10, 70).t())
    yield call("expanded", randn(1, 4).expand(6, 4), network(4, (6,), 2))
    yield call("extreme inputs", randn(4, 3) * 1e20, network(3, (5,), 2))
    spline = RationalQuadratic(4, tail_bound=3.0)
    yield call("splines", randn(3, 3), network(3, (4,), 11), element=spline)
    yield call(
        "splines, circular",
        randn(21, 5),
        network(5, (12, 9), 12, shuffled=True),
        element=RationalQuadratic(4, "circular", 2.0),
    )
    yield call("splines, empty batch", randn(0, 3), network(3, (4,), 11), element=spline)
    yield call("splines of 8", randn(9, 4), network(4, (8, 8), 23), element=RationalQuadratic(8, tail_bound=3.0))


def drawn(drawing: Drawing) -> Sample:
    features, layers = drawing.size(18, 1), drawing.random.randint(1, 3)
    # A residual network has one hidden layer and then pairs of them.
    residual = layers == 3 and drawing.chance(0.5)
    hidden = (drawing.size(34, 1),) * layers if residual else tuple(drawing.size(34, 1) for _ in range(layers))
    element = Affine(drawing.choice(SCALE_MAPS), drawing.number(0.5, 5), drawing.choice((0.0, 1e-3, 0.1)))
    if drawing.chance(0.4):
        tails = drawing.choice(("linear", "circular"))
        element = RationalQuadratic(drawing.choice((1, 2, 4, 8, 13)), tails, drawing.number(0.5, 5))
    weights, order = random_network(
        features,
        hidden,
        element.num_parameters,
        drawing.device,
        drawing.dtype,
        residual=residual,
        shuffled=drawing.chance(0.5),
    )
    y = drawing.normal(drawing.size(), features) * drawing.choice((1.0, 1.0, 3.0, 0.0))
    context = drawing.normal(len(y), order.context_width) if drawing.chance(0.3) else None
    kwargs = {"element": element, "activation": drawing.choice(list(ACTIVATIONS))}
    return Sample("drawn", (y, weights, context, order), kwargs)


def cases(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    nflows, zuko = Affine(), Affine("softclip", bound=math.log(1000))
    for name, batch, features, hidden, element in (
        ("256x64, hidden 2x128, softclip", 256, 64, 128, zuko),
        ("256x64, hidden 2x128, softplus", 256, 64, 128, nflows),
        ("1x64, hidden 2x128, softplus", 1, 64, 128, nflows),
        ("256x16, hidden 2x64, softplus", 256, 16, 64, nflows),
        ("256x16, hidden 2x64, splines of 8", 256, 16, 64, RationalQuadratic(8, tail_bound=3.0)),
    ):
        weights, order = random_network(features, (hidden, hidden), element.num_parameters, device, dtype)
        y = torch.randn(batch, features, device=device, dtype=dtype)
        yield Sample(name, (y, weights, None, order), {"element": element})


def cost(pass_: str, y: Tensor, weights: Tensor, context: Tensor | None, order: DegreeOrder, **options: object) -> Cost:
    numbers = 2 * y.numel() + len(y) + weights.numel() + (0 if context is None else context.numel())
    # A multiplication and an addition for every weight in a prefix that is read.
    return Cost(bytes=numbers * y.element_size(), flops=2 * len(y) * order.multiplications)
