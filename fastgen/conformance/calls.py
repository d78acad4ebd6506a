"""One pass of an op on one case, as a call without arguments: what is timed, and what is compared with the reference.

A pass is `forward`, `inverse` (the public function with `inverse=True`) or any other name for the plain call
(`sample`); with `_backward` behind it, the gradients are computed too. `double_backward` is what a gradient penalty
does: the gradients, and those of half their squares, also in the gradients of the outputs. A case that marks some of
its tensors with `requires_grad` gets the gradients of those, any other case the gradients of all its floating-point
tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastgen.ops.registry import Sample, use_backend

Call = Callable[[], Any]


def copy_case(case: Sample, dtype: torch.dtype | None = None) -> Sample:
    """The case with its own tensors: same strides and `requires_grad`, floating-point ones in `dtype`."""

    def copy(value):
        if not isinstance(value, Tensor):
            return value
        target = dtype if value.is_floating_point() else None
        return value.detach().to(target or value.dtype, copy=True).requires_grad_(value.requires_grad)

    return Sample(case.name, tuple(map(copy, case.args)), {name: copy(value) for name, value in case.kwargs.items()})


def with_gradients(case: Sample, pass_: str) -> Sample:
    """The case ready for a pass: its tensors marked with what needs a gradient in it."""
    case = copy_case(case)
    tensors = [t for t in (*case.args, *case.kwargs.values()) if isinstance(t, Tensor) and t.is_floating_point()]
    marked = any(t.requires_grad for t in tensors)
    for tensor in tensors:
        tensor.requires_grad_(pass_.endswith("_backward") and (tensor.requires_grad or not marked))
    return case


def wanted(case: Sample) -> list[Tensor]:
    """The tensors of a case whose gradients a pass computes."""
    return [t for t in (*case.args, *case.kwargs.values()) if isinstance(t, Tensor) and t.requires_grad]


def keywords(case: Sample, pass_: str) -> dict:
    """The keyword arguments of the case's call in a pass."""
    return {**case.kwargs, "inverse": True} if pass_.startswith("inverse") else dict(case.kwargs)


def bind(function: Callable, case: Sample, pass_: str, output_gradients: Sequence[Tensor] = ()) -> Call:
    """A call that runs the pass and returns its outputs, and its gradients where the pass has any."""
    kwargs = keywords(case, pass_)
    if not (inputs := wanted(case)):

        def forward() -> tuple[Tensor, ...]:
            with torch.no_grad():
                return as_tuple(function(*case.args, **kwargs))

        return forward

    def recorded(gradients: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], list[Tensor], list[Tensor]]:
        """All outputs; those that depend on the inputs (a shift's log-determinant does not), and their gradients."""
        outputs = as_tuple(function(*case.args, **kwargs))
        floating = [output for output in outputs if output.is_floating_point()]
        used = [(o, g) for o, g in zip(floating, gradients, strict=True) if o.requires_grad]
        return outputs, [o for o, _ in used], [g for _, g in used]

    def double_backward() -> tuple[Tensor, ...]:
        given = [g.detach().requires_grad_() for g in output_gradients]
        outputs, differentiable, gradients = recorded(given)
        first = torch.autograd.grad(differentiable, inputs, gradients, create_graph=True, allow_unused=True)
        targets, first = [*given, *inputs], [g for g in first if g is not None and g.requires_grad]
        squares = [g.detach() for g in first]
        found = torch.autograd.grad(first, targets, squares, allow_unused=True) if first else [None] * len(targets)
        return *outputs, *(torch.zeros_like(x) if g is None else g for x, g in zip(targets, found, strict=True))

    def forward_backward() -> tuple[Tensor, ...]:
        outputs, differentiable, gradients = recorded(output_gradients)
        found = torch.autograd.grad(differentiable, inputs, gradients, allow_unused=True)
        return *outputs, *(torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True))

    return double_backward if pass_ == "double_backward" else forward_backward


def draw_output_gradients(reference: Callable, case: Sample, pass_: str) -> list[Tensor]:
    """Gradients of the loss in the floating-point outputs, drawn once so that every method gets the same; they lie in
    memory as the outputs do, as those lie that a next layer gives.
    """
    if not wanted(case):
        return []
    outputs = [o for o in as_tuple(reference(*case.args, **keywords(case, pass_))) if o.is_floating_point()]
    return [torch.empty_like(o).copy_(torch.randn(o.shape, dtype=torch.float64)) for o in outputs]


def forced(function: Callable, backend: str) -> Callable:
    """The function on one backend; `auto` leaves the choice to the op."""
    if backend == "auto":
        return function

    def on_backend(*args, **kwargs):
        with use_backend(backend):
            return function(*args, **kwargs)

    return on_backend


def as_tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
