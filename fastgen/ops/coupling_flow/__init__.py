"""A whole coupling flow as one call: conditioners and transforms, for density and sampling without gradients.

There is no GPU kernel: `fastgen.nn.fused_flow` replays the layers from a captured graph there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from fastgen.ops.affine_coupling import affine_coupling_reference
from fastgen.ops.checks import check_same_type
from fastgen.ops.coupling_flow import program as fp
from fastgen.ops.coupling_flow.program import Affine, FlowProgram, Spline, Words, mlp_layers, residual_layers, steps_of
from fastgen.ops.drawing import Drawing, normals
from fastgen.ops.registry import Cost, Op, Sample, Tolerance, full_precision, needs_gradient
from fastgen.ops.spline import rational_quadratic_spline_reference


def coupling_flow(
    x: Tensor, context: Tensor | None, weights: Tensor, program: Tensor, inverse: bool = False
) -> tuple[Tensor, Tensor]:
    """Run a flow of couplings, `y = f_n(... f_1(x))`, or its inverse, from weights that were packed once.

    The layers of `fastgen.nn` compute the same numbers; here all of them are one call, whose activations never leave
    the cache. `fastgen.nn.fused_flow` makes programs from layers.

    Args:
        x: [batch, features]; y where `inverse`.
        context: [batch, context_features], or None where the flow has none.
        weights: [.], in the dtype of `x`, and
        program: [.], int64 on the CPU: what `FlowProgram.finish` returns.
        inverse: run the steps backwards, each by its inverse.

    Returns:
        The result [batch, features] and the log-determinant of the direction run, [batch], nats.

    Raises:
        ValueError: shapes that do not match each other or the program.
        TypeError: dtypes that differ, or that are not float32 or float64.
        RuntimeError: a program that was not written by `FlowProgram`.

    The kernels compute no gradient: where one is recorded, the reference runs.

    Source: Dinh et al., "Density estimation using Real NVP" (2017), equations 3 to 8; Durkan et al., "Neural Spline
    Flows" (2019), section 3.
    """
    _check(x, context, weights, program)
    backend = COUPLING_FLOW.choose((x, context, weights))
    if backend == "reference":
        return coupling_flow_reference(x, context, weights, program, inverse)
    context = None if context is None else context.contiguous()
    whole = weights.contiguous(), program.contiguous()
    return COUPLING_FLOW.call[backend]["coupling_flow"](x.contiguous(), context, *whole, inverse)


@full_precision
def coupling_flow_reference(
    x: Tensor, context: Tensor | None, weights: Tensor, program: Tensor, inverse: bool = False
) -> tuple[Tensor, Tensor]:
    words = Words(program.tolist())
    features, _, num_steps = words.take(3)
    order = torch.tensor(words.take(features), device=x.device)
    steps = list(steps_of(words, num_steps))
    state = x[:, order.argsort()] if inverse else x
    logabsdet = x.new_zeros(x.shape[0])
    for kind, step in reversed(steps) if inverse else steps:
        state, added = _STEPS[kind](state, context, weights, step, inverse)
        logabsdet = logabsdet + added
    return state if inverse else state[:, order], logabsdet


def _elementwise(x: Tensor, context: Tensor | None, weights: Tensor, step: Sequence[int], inverse: bool):
    scale, shift = (weights[offset : offset + x.shape[1]] for offset in step[:2])
    logabsdet = weights[step[2]]
    return ((x - shift) / scale, -logabsdet) if inverse else (x * scale + shift, logabsdet)


def _linear(x: Tensor, context: Tensor | None, weights: Tensor, step: Sequence[int], inverse: bool):
    weight, bias = step[2:4] if inverse else step[:2]
    logabsdet = weights[step[4]]
    return _dense(x, weights, weight, bias, x.shape[1]), -logabsdet if inverse else logabsdet


def _coupling(x: Tensor, context: Tensor | None, weights: Tensor, step: fp.CouplingStep, inverse: bool):
    transformed = torch.tensor(step.transformed, device=x.device)
    identity = x[:, step.identity]
    params = _conditioner(identity if context is None else torch.cat((identity, context), 1), weights, step)
    params = params.unflatten(1, (-1, len(step.transformed))).movedim(1, -1)
    y, logabsdet = _transform(x[:, transformed], params, weights, step, inverse)
    return x.index_copy(1, transformed, y), logabsdet


def _conditioner(x: Tensor, weights: Tensor, step: fp.CouplingStep) -> Tensor:
    """Run the conditioner's layers; returns its output buffer, [batch, parameters * transformed features]."""
    activation = fp.ACTIVATIONS[step.activation]
    buffers = {fp.INPUT: x}
    for kind, source, offset, target, copy, in_features, out_features, weight, bias, add in step.layers:
        if kind == fp.GATED:
            value = buffers[target] + buffers[source] * torch.sigmoid(buffers[fp.GATE])
        else:
            value = _dense(buffers[source][:, offset : offset + in_features], weights, weight, bias, out_features)
            value = value + buffers[target] if add else value
        buffers[target] = value
        if copy != fp.NO_COPY:
            buffers[copy] = activation(value)
    return buffers[fp.OUTPUT]


def _dense(x: Tensor, weights: Tensor, weight: int, bias: int, out_features: int) -> Tensor:
    columns = out_features + -out_features % fp.PADDING
    panels = weights[weight : weight + x.shape[1] * columns].split(x.shape[1] * fp.PANEL)
    matrix = torch.cat([panel.view(x.shape[1], -1) for panel in panels], 1)[:, :out_features]
    return torch.addmm(weights[bias : bias + out_features], x, matrix)


def _transform(x: Tensor, params: Tensor, weights: Tensor, step: fp.CouplingStep, inverse: bool):
    """Transform `x` [batch, features] by `params` [batch, features, parameters]."""
    if step.transform == "additive":
        return (x - params[..., 0] if inverse else x + params[..., 0]), x.new_zeros(x.shape[0])
    if step.transform != "rational_quadratic":
        constant = float(weights[step.constants])
        # Each map reads one of the two, tanh the bound and sigmoid the least scale.
        return affine_coupling_reference(
            x, params[..., 0], params[..., 1], inverse=inverse, scale_map=step.transform, bound=constant,
            min_scale=constant,
        )  # fmt: skip
    widths, heights, derivatives = params.tensor_split((step.num_bins, 2 * step.num_bins), -1)
    bound, *minima = weights[step.constants : step.constants + 4].tolist()
    y, logabsdet = rational_quadratic_spline_reference(
        x, widths, heights, derivatives, inverse, step.tails, bound, *minima, parameterization=step.parameterization
    )
    return y, logabsdet.sum(1)


_STEPS = {fp.ELEMENTWISE: _elementwise, fp.LINEAR: _linear, fp.COUPLING: _coupling}


def _check(x: Tensor, context: Tensor | None, weights: Tensor, program: Tensor) -> None:
    if x.dim() != 2:
        raise ValueError(f"x: expected [batch, features], got {tuple(x.shape)}")
    if x.dtype not in _DTYPES:
        raise TypeError(f"x: expected float32 or float64, got {x.dtype}")
    if weights.dim() != 1:
        raise ValueError(f"weights: expected a vector, got {tuple(weights.shape)}")
    check_same_type("weights", weights, x)
    if program.dtype != torch.int64 or program.dim() != 1 or not program.is_cpu:
        raise TypeError(f"program: expected an int64 vector on the CPU, got {program.dtype} {tuple(program.shape)}")
    # To read the program would break a compiled graph.
    if not torch.compiler.is_compiling():
        features, context_features = program[:2].tolist()
        if x.shape[1] != features:
            raise ValueError(f"x: expected [batch, {features}], got {tuple(x.shape)}")
        if context is None and context_features:
            raise ValueError(f"context: expected [{x.shape[0]}, {context_features}], got None")
        if context is not None and context.shape != (x.shape[0], context_features):
            raise ValueError(f"context: expected [{x.shape[0]}, {context_features}], got {tuple(context.shape)}")
    check_same_type("context", context, x)


def _supports(x: Tensor, context: Tensor | None, weights: Tensor) -> str:
    return "kernels compute no gradient, and one is recorded" if needs_gradient(x, context, weights) else ""


def _random_layers(
    num_identity: int, outputs: int, hidden: int, context: int = 0, blocks: int | None = 2, scale: float = 1.0
) -> list[fp.Dense | fp.Gated]:
    """A conditioner with random weights: an MLP of two hidden layers where `blocks` is None, else a residual net."""

    def dense(in_features: int, out_features: int) -> tuple[Tensor, Tensor]:
        weight = torch.randn(out_features, in_features, dtype=torch.float64) * scale / max(1, in_features) ** 0.5
        return weight, torch.randn(out_features, dtype=torch.float64) * 0.1

    initial = dense(num_identity + context, hidden)
    if blocks is None:
        return mlp_layers([initial, dense(hidden, hidden), dense(hidden, outputs)])
    pairs = [[dense(hidden, hidden), dense(hidden, hidden)] for _ in range(blocks)]
    gates = [[dense(context, hidden)] if context else [] for _ in range(blocks)]
    return residual_layers(
        initial, [p + g for p, g in zip(pairs, gates, strict=True)], dense(hidden, outputs), num_identity
    )


def random_flow(
    features: int,
    transforms: Sequence[Affine | Spline],
    dtype: torch.dtype,
    *,
    hidden: int = 20,
    context: int = 0,
    blocks: int | None = 2,
    activation: str = "relu",
    mixed: bool = False,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Weights and program of couplings of alternating halves; `mixed` puts steps of other kinds between them."""
    flow = FlowProgram(features, context, dtype)
    halves = [range(features // 2), range(features // 2, features)]
    for i, transform in enumerate(transforms):
        identity, transformed = halves[i % 2], halves[1 - i % 2]
        outputs = len(transformed) * transform.params_per_feature
        layers = _random_layers(len(identity), outputs, hidden, context, blocks, scale)
        flow.coupling(identity, transformed, layers, transform, activation)
        if mixed:
            log_scale = torch.randn(features, dtype=torch.float64) * 0.3
            flow.elementwise(log_scale.exp(), torch.randn(features), log_scale.sum())
            flow.permutation(torch.randperm(features).tolist())
            weight = torch.eye(features) + 0.1 * torch.randn(features, features, dtype=torch.float64)
            flow.linear(weight, torch.randn(features), weight.inverse(), torch.linalg.slogdet(weight)[1])
    return flow.finish()


_SPLINE = Spline(8, "linear", 3.0, 1e-3, 1e-3, 1e-3, softmax_scale=0.5)


def _samples(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    randn = normals(device, dtype)

    def sample(name: str, batch: int, features: int, transforms: Sequence, *, inverse: bool = False, **flow) -> Sample:
        weights, program = random_flow(features, transforms, dtype, **flow)
        context = randn(batch, flow["context"]) if flow.get("context") else None
        return Sample(name, (randn(batch, features), context, weights.to(device), program), {"inverse": inverse})

    small = Spline(3, "linear", 2.0, 1e-2, 1e-2, 1e-2)
    affine = [Affine("exp"), Affine("tanh", 1.5), Affine("sigmoid", 1e-3), Affine("sigmoid"), Affine("additive")]
    circular = [Spline(5, "circular", 3.0, 1e-3, 1e-3, 1e-3), Spline(5, "linear", 5.0, 0, 0, 1e-3, "zuko")]
    for inverse in (False, True):
        direction = "inverse" if inverse else "forward"
        both = partial(sample, inverse=inverse)
        yield both(f"splines, {direction}", 9, 6, [_SPLINE] * 4)
        yield both(f"affine maps, other steps, {direction}", 7, 5, affine, blocks=None, mixed=True)
        yield both(f"context, {direction}", 8, 5, [small, Affine("tanh", 2.0)], context=3, mixed=True)
        yield both(f"circular and zuko, {direction}", 11, 3, circular, activation="silu")
        yield both(f"one feature against one, {direction}", 70, 2, [small] * 2, blocks=None, activation="tanh")
        yield both(f"empty, {direction}", 0, 6, [_SPLINE])
    yield sample("one row", 1, 40, [_SPLINE] * 2)
    yield sample("several tiles", 203, 4, [_SPLINE, Affine("exp")], hidden=70, blocks=1)
    yield sample("more features than a chunk", 5, 150, [small, Affine("sigmoid", 1e-3)], hidden=9, activation="elu")
    yield sample("64 bins", 24, 3, [Spline(64, "linear", 3.0, 1e-3, 1e-3, 1e-3)], blocks=0, activation="gelu")
    transposed = sample("transposed", 6, 6, [_SPLINE])
    yield transposed._replace(args=(randn(6, 6).t(), *transposed.args[1:]))


def _drawn(drawing: Drawing) -> Sample:
    def transform() -> Affine | Spline:
        if drawing.chance(0.5):
            kind = drawing.choice(("exp", "tanh", "sigmoid", "additive"))
            return Affine(kind, {"tanh": drawing.number(0.5, 4), "sigmoid": drawing.choice((0.0, 1e-3))}.get(kind, 0.0))
        bins, tails = drawing.choice((2, 3, 5, 8, 16, 33, 64)), drawing.choice(("linear", "circular"))
        bound = drawing.number(0.5, 5)
        if drawing.chance(0.3):
            return Spline(bins, tails, bound, 0, 0, 1e-3, "zuko")
        return Spline(bins, tails, bound, *(0.1 / bins,) * 2, 1e-3, softmax_scale=drawing.number(0.2, 1))

    features, context = drawing.size(33, 2), drawing.choice((0, 0, drawing.size(17, 1)))
    weights, program = random_flow(
        features,
        [transform() for _ in range(drawing.random.randint(1, 4))],
        drawing.dtype,
        hidden=drawing.size(34, 1),
        context=context,
        blocks=drawing.choice((None, 0, 1, 2)),
        activation=drawing.choice(list(fp.ACTIVATIONS)),
        mixed=drawing.chance(0.3),
        scale=drawing.choice((0.3, 1.0)),
    )
    x = drawing.normal(drawing.size(), features) * drawing.choice((1.0, 1.0, 3.0, 0.0))
    given = drawing.normal(len(x), context) if context else None
    return Sample("drawn", (x, given, weights.to(drawing.device), program), {"inverse": drawing.chance(0.5)})


def _cases(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    # The networks of neural spline flows at their initial scale: the last layer is small.
    generator_state = torch.get_rng_state()
    torch.manual_seed(0)
    weights, program = random_flow(16, [_SPLINE._replace(softmax_scale=128**-0.5)] * 8, dtype, hidden=128)
    torch.set_rng_state(generator_state)
    for batch in (4096, 64, 1):
        x = torch.randn(batch, 16, device=device, dtype=dtype)
        yield Sample(f"8 splines, D=16, 2x128, batch {batch}", (x, None, weights.to(device), program))


def _cost(
    pass_: str, x: Tensor, context: Tensor | None, weights: Tensor, program: Tensor, inverse: bool = False
) -> Cost:
    words = Words(program.tolist())
    features, _, num_steps = words.take(3)
    words.take(features)
    multiplications = 0
    for kind, step in steps_of(words, num_steps):
        if kind == fp.COUPLING:
            multiplications += sum(layer[5] * layer[6] for layer in step.layers if layer[0] == fp.DENSE)
        elif kind == fp.LINEAR:
            multiplications += features * features
    elements = 2 * x.numel() + x.shape[0] + weights.numel() + (0 if context is None else context.numel())
    return Cost(bytes=elements * x.element_size(), flops=2 * x.shape[0] * multiplications)


_DTYPES = (torch.float32, torch.float64)

COUPLING_FLOW = Op(
    "coupling_flow",
    schema=(
        "coupling_flow(Tensor x, Tensor? context, Tensor weights, Tensor program, bool inverse) -> (Tensor, Tensor)",
    ),
    fake=(("x", "x[batch]"),),
    reference=coupling_flow_reference,
    supports={"cpp": _supports},
    dtypes={"cpp": _DTYPES},
    samples=_samples,
    draw=_drawn,
    cases=_cases,
    tolerance={torch.float64: Tolerance(2, 1e-13), torch.float32: Tolerance(2, 1e-6)},
    cost=_cost,
    grad_order=0,
    passes=("forward", "inverse"),
)
