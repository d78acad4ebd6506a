"""Gradients of several orders where the inputs of an op are made of each other, for every op and kernel."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from fastgen import conformance as c
from fastgen.ops.registry import Op, Sample

DIFFERENTIABLE = [op for op in c.EVERY_OP if op.grad_order]
VARIANTS = [(op, v) for op, v in c.variants("cpu") if op.grad_order] + [(op, "reference") for op in DIFFERENTIABLE]

# The arguments of a call, and the leaves that they are made of.
Inputs = tuple[list, list[Tensor]]


def small_samples(op: Op, variant: str, dtype: torch.dtype, count: int = 4) -> list[Sample]:
    """A few; of Triton, whose interpreter takes long, one."""
    drawn = list(op.samples("cpu", dtype)) if variant == "reference" else c.samples(op, variant, dtype)
    chosen = [s for s in drawn if all(t.numel() for t in c.floating(s.args)) and "extreme" not in s.name]
    chosen.sort(key=lambda s: sum(t.numel() for t in c.floating(s.args)))
    return chosen[: 1 if variant == "triton" else count]


def dtype_of(op: Op, variant: str) -> torch.dtype:
    return torch.float64 if variant == "reference" or torch.float64 in c.dtypes(op, variant) else torch.float32


def is_floating(argument) -> bool:
    return isinstance(argument, Tensor) and argument.is_floating_point()


def made_of_each_other(args: Sequence, dtype: torch.dtype) -> Inputs:
    """Every tensor is scaled, which keeps it positive, symmetric and within bounds, by a function of one shared number
    and of the tensors before it.
    """
    shared = torch.tensor(0.3, dtype=dtype, requires_grad=True)
    made, leaves, before = [], [shared], shared
    for argument in args:
        if is_floating(argument):
            leaf = c.cast(argument, dtype, True)
            leaves.append(leaf)
            argument = leaf * (1 - 0.2 * torch.sigmoid(shared + before))
            before = before + argument.tanh().mean()
        made.append(argument)
    return made, leaves


def one_for_all_of_a_shape(args: Sequence, dtype: torch.dtype) -> Inputs:
    """The same tensor, not a copy of it, wherever its shape is asked for."""
    leaves: dict[torch.Size, Tensor] = {}
    made = []
    for argument in args:
        if is_floating(argument):
            argument = leaves.setdefault(argument.shape, c.cast(argument, dtype, True))
        made.append(argument)
    return made, list(leaves.values())


def gradients(
    fn: Callable, sample: Sample, inputs: Inputs, orders: int, create_graph: bool = True, output: int | None = None
) -> list[Tensor]:
    """The gradients, in the leaves and in what was made of them, of a loss whose gradients depend on the inputs; then
    those of half their squares, and so on.
    """
    made, leaves = inputs
    outputs = [o for o in c.as_tuple(fn(*made, **sample.kwargs)) if o.is_floating_point()]
    values = [o for o in (outputs if output is None else outputs[output : output + 1]) if o.requires_grad]
    generator = torch.Generator().manual_seed(1)
    wanted = [*leaves, *(t for t in made if isinstance(t, Tensor) and t.requires_grad)]
    found = []
    for _ in range(orders):
        drawn = [torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.dtype) for t in values]
        loss = sum(((0.5 * t + d) * t).sum() for t, d in zip(values, drawn, strict=True))
        if not isinstance(loss, Tensor) or not loss.requires_grad:
            break
        values = torch.autograd.grad(loss, wanted, create_graph=create_graph, allow_unused=True)
        values = [torch.zeros_like(t) if g is None else g for t, g in zip(wanted, values, strict=True)]
        found += values
        wanted = leaves
    return [t.detach() for t in found]


def check(op: Op, variant: str, sample: Sample, make: Callable[[Sequence, torch.dtype], Inputs], **options) -> None:
    dtype = dtype_of(op, variant)
    # One more than the kernels have.
    orders = op.grad_order + 1
    exact = gradients(op.reference, sample, make(sample.args, torch.float64), orders, **options)
    usual = exact
    if dtype != torch.float64:
        usual = gradients(op.reference, sample, make(sample.args, dtype), orders, **options)
    with c.running_on(variant):
        once = gradients(op.public, sample, make(sample.args, dtype), 1, False, **options)
        found = gradients(op.public, sample, make(sample.args, dtype), orders, **options)
    # An output of ours is recorded where any input needs a gradient, also one that does not depend on it.
    assert len(found) == len(exact) or (not exact and not any(t.any() for t in found))
    # What cancels between paths, all of it where a set is compared with itself, does not cancel in their errors.
    scale = max([1.0, *(float(t.norm()) for t in exact)])
    for how, results in (("once", once), ("create_graph", found)):
        for i, (value, true, reference) in enumerate(zip(results, exact, usual, strict=False)):
            error = float((value.double() - true).norm()) / max(float(true.norm()), 1e-3 * scale)
            bound = 2 * c.relative_error(reference, true) + 10 * max(op.tolerance[dtype].floor, 1e-11)
            assert error <= bound, f"{op.name} {variant} {sample.name!r} {how} result {i}: {error:.2e}, {bound:.2e}"


@pytest.mark.parametrize("make", [made_of_each_other, one_for_all_of_a_shape])
@pytest.mark.parametrize(("op", "variant"), VARIANTS, ids=c.ids)
def test_gradients_of_inputs_that_depend_on_each_other(op: Op, variant: str, make: Callable):
    for sample in small_samples(op, variant, dtype_of(op, variant)):
        check(op, variant, sample, make)


@pytest.mark.parametrize(("op", "variant"), VARIANTS, ids=c.ids)
def test_gradients_of_one_input_and_of_one_output_alone(op: Op, variant: str):
    (sample,) = small_samples(op, variant, dtype_of(op, variant), 1)
    places = [i for i, argument in enumerate(sample.args) if is_floating(argument)]
    outputs = c.as_tuple(op.reference(*sample.args, **sample.kwargs))
    for place in places:

        def make(args: Sequence, dtype: torch.dtype, place: int = place) -> Inputs:
            made = [c.cast(argument, dtype, i == place) for i, argument in enumerate(args)]
            return made, [made[place]]

        for output in range(sum(o.is_floating_point() for o in outputs)):
            check(op, variant, sample, make, output=output)


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize(("op", "variant"), [p for p in VARIANTS if p[1] != "cpp/AVX2"], ids=c.ids)
def test_an_input_changed_after_the_call_is_an_error_or_does_no_harm(op: Op, variant: str, create_graph: bool):
    dtype = dtype_of(op, variant)
    (sample,) = small_samples(op, variant, dtype, 1)

    def run(change: int | None) -> list[Tensor]:
        leaves = [c.cast(a, dtype, True) if is_floating(a) else a for a in sample.args]
        made = [t * 1 if is_floating(t) else t for t in leaves]
        outputs = [o for o in c.as_tuple(op.public(*made, **sample.kwargs)) if o.requires_grad]
        if change is not None:
            made[change].detach().mul_(0.5)
        wanted = [t for t in leaves if is_floating(t)]
        loss = sum(o.square().sum() for o in outputs)
        return torch.autograd.grad(loss, wanted, create_graph=create_graph, allow_unused=True)

    with c.running_on(variant):
        usual = run(None)
        for place in (i for i, argument in enumerate(sample.args) if is_floating(argument)):
            try:
                found = run(place)
            except RuntimeError as error:
                assert re.search("modified (by an )?inplace", str(error))
                continue
            for value, expected in zip(found, usual, strict=True):
                torch.testing.assert_close(value, expected, msg=f"argument {place}")
