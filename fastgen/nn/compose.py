"""Transforms one after another: the flow `f_n ∘ ... ∘ f_1` and its log-determinant."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fastgen.nn.frozen import Freezable
from fastgen.nn.reversible import Drift, is_reversible_here, run_reversibly


class Compose(Freezable):
    """Transforms one after another; log-determinants add up.

    `y = f_n(... f_1(x))`, `log |det dy/dx| = sum_i log |det df_i|`; `inverse` runs the inverses from the last to the
    first. A transform is a module with `forward(x, context=None) -> (y, logabsdet[B])` and `inverse` of the same form;
    all of them get the same context.

    With `reversible=True` training keeps the last output only and rebuilds the other activations by the inverses in
    backward, for both directions: activation memory does not grow with the number of transforms. It costs the
    inverses, which for couplings is one more pass through each conditioner. `fastgen.nn.reversible` says how, what is
    replayed and what is refused (running statistics). Gradients reach x, context and parameters,
    and no other tensor that a transform may hold. Where autograd does not record, in graphs of `torch.compile`, in
    `torch.func` and in forward-mode differentiation the ordinary way is taken, with the same numbers.

    Rounding makes what is rebuilt differ from what was: the drift. It is measured at every rebuilt activation, on up to
    64 rows of the batch, and where it exceeds `max_drift` the next forward pass keeps the input of every k-th segment
    (a transform with a network, and the layers without one before it), k starting at all of them and halving until it
    suffices: at k = 1 nothing is rebuilt, and gradients are those of the ordinary way. Half-precision activations are
    there from the start.

    Args:
        transforms: modules as above; a nested Compose is run reversibly transform by transform, as if written out.
        reversible: rebuild activations instead of keeping them.
        max_drift: relative to the activation's norm. Couplings in float32 stay two orders below the default.
        checkpoint_every: the first k; None to keep no input.

    Attributes:
        transforms: as a ModuleList, in the order of `forward`. State dicts of nflows' `CompositeTransform` load too.
        drift: the largest in the last backward, a scalar tensor where the activations are; None before it.
        checkpoint_every: the k in use; None where no input is kept.

    Shape: what the transforms take and give; logabsdet [batch], nats, of the direction run.

    Raises:
        TypeError: a transform that is not a module with an `inverse`.
        ValueError: `max_drift` that is not positive, `checkpoint_every` below 1.

    Source: Gomez et al., "The Reversible Residual Network" (2017), algorithm 1, for the backward.
    """

    def __init__(
        self,
        transforms: Iterable[nn.Module],
        *,
        reversible: bool = False,
        max_drift: float = 1e-4,
        checkpoint_every: int | None = None,
    ) -> None:
        super().__init__()
        transforms = list(transforms)
        for i, transform in enumerate(transforms):
            if not isinstance(transform, nn.Module) or not callable(getattr(transform, "inverse", None)):
                raise TypeError(
                    f"transforms[{i}]: expected a module with forward and inverse, got {type(transform).__name__}"
                )
        self.transforms = nn.ModuleList(transforms)
        self.reversible = reversible
        self._drift = Drift(max_drift, checkpoint_every)
        self.register_load_state_dict_pre_hook(_accept_nflows_keys)

    def forward(self, x: Tensor, context: Any = None) -> tuple[Tensor, Tensor]:
        """`(y, log |det dy/dx|)` of shapes x's and [B]; context goes to every transform."""
        return self._run(list(self.transforms), x, context, inverse=False)

    def inverse(self, y: Tensor, context: Any = None) -> tuple[Tensor, Tensor]:
        """`(x, log |det dx/dy|)`: what `forward` maps to `y`."""
        return self._run(list(reversed(self.transforms)), y, context, inverse=True)

    def _run(self, transforms: list[nn.Module], x: Tensor, context: Any, *, inverse: bool) -> tuple[Tensor, Tensor]:
        if not transforms:
            return x, x.new_zeros(x.shape[0], dtype=torch.promote_types(x.dtype, torch.float32))
        if self.reversible and is_reversible_here(self, x, context):
            return run_reversibly(_written_out(transforms, inverse), x, context, inverse=inverse, drift=self._drift)
        total = None
        for transform in transforms:
            x, logabsdet = transform.inverse(x, context) if inverse else transform(x, context)
            total = logabsdet if total is None else total + logabsdet
        return x, total

    @property
    def max_drift(self) -> float:
        return self._drift.limit

    @property
    def drift(self) -> Tensor | None:
        return self._drift.largest

    @property
    def checkpoint_every(self) -> int | None:
        return self._drift.checkpoint_every

    def __len__(self) -> int:
        return len(self.transforms)

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self.transforms)

    def __getitem__(self, index: int | slice) -> nn.Module:
        """A transform, or a Compose of a slice of them."""
        if isinstance(index, slice):
            return Compose(self.transforms[index], reversible=self.reversible, max_drift=self.max_drift)
        return self.transforms[index]

    def extra_repr(self) -> str:
        return "reversible=True" if self.reversible else ""


def _written_out(transforms: Iterable[nn.Module], inverse: bool) -> list[nn.Module]:
    """The transforms in the order they run, those of a nested Compose in its place."""
    found = []
    for transform in transforms:
        if type(transform) is Compose:
            inner = reversed(transform.transforms) if inverse else transform.transforms
            found += _written_out(inner, inverse)
        else:
            found.append(transform)
    return found


def _accept_nflows_keys(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    old = f"{prefix}_transforms."
    for key in [key for key in state_dict if key.startswith(old)]:
        state_dict[f"{prefix}transforms.{key.removeprefix(old)}"] = state_dict.pop(key)
