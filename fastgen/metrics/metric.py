"""The base of all metrics: `torchmetrics.Metric`, with copies, errors that change nothing, and float32 or more."""

from __future__ import annotations

import contextlib
import functools
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastgen.density.distributed import gather_rows
from fastgen.nn.full_precision import full_precision

try:
    import torchmetrics
    from torchmetrics.utilities.exceptions import TorchMetricsUserError
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"fastgen.metrics needs {error.name}: pip install 'fastgen[metrics]'", name=error.name
    ) from None

__all__ = ["MeanMetric", "Metric"]


class Metric(torchmetrics.Metric):
    """torchmetrics' base, with more guarantees:

    - `update`, `forward`, `compute` and `merge_state` do all of their work, or raise and leave the metric as it was.
    - Metrics copy what they keep and what they return: callers may change their own tensors and the results.
    - Everything is computed in float32 or more: autocast is off inside, and states do not get narrower.
    - A network that a metric holds is the user's. It is not a submodule of the metric: its mode, its parameters'
      gradients and its dtype stay as they are, and it only follows the metric to another device. Modules that are in
      eval mode when the network is handed in work in eval mode.
    - `forward` returns the value of the batch, together with the states that outlive a `reset` (`outlives_reset`).
    - Processes may have different numbers of rows, or none.
    - In a `MetricCollection` metrics share states only where they say so (`share_states`).

    List states hold tensors of rows [n, ...]; `keep` adds to them. `update` does not change tensors in place.
    """

    full_state_update = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"dist_sync_fn": gather_rows, **kwargs})
        self.share_states(uuid.uuid4().bytes)

    def share_states(self, *settings: Any) -> None:
        """Lets metrics of one class of states be a compute group where these settings are equal.

        torchmetrics groups metrics whose states are close after the first batch, which states of metrics with different
        settings may be by chance. So a hash of the settings is one of the states.
        """
        number = (hash(settings) & (2**64 - 1)).to_bytes(8)
        self.add_state("compute_group", torch.tensor(list(number), device=self.device), dist_reduce_fx="max")

    @property
    def outlives_reset(self) -> Sequence[str]:
        """The states that `reset` and `forward` do not empty."""
        return ()

    def keep(self, state: str, rows: Tensor) -> None:
        """Add a copy of rows [n, ...] to a list state.

        Raises:
            ValueError: rows of another shape than those before.
        """
        held = getattr(self, state)
        _check_shape(state, held, rows)
        held.append(rows.detach().clone(memory_format=torch.contiguous_format))

    def check_enough(self, count: int, at_least: int, what: str) -> None:
        """Raises ValueError where there are too few of something to compute with."""
        if count < at_least:
            raise ValueError(f"{type(self).__name__}: expected at least {at_least} {what}, got {count}")

    def rows(self, state: str) -> Tensor:
        """All rows of a list state, or [0] where there are none."""
        held = getattr(self, state)
        # torchmetrics turns gathered list states into a tensor each.
        return held if isinstance(held, Tensor) else torch.cat(held) if held else torch.empty(0, device=self.device)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """`update`, and the value of `compute` for this batch alone."""
        if self.full_state_update:
            return super().forward(*args, **kwargs)
        if self._is_synced:
            raise TorchMetricsUserError("forward: the metric is synced, call `unsync` first")
        before, whole = self._snapshot(), self.metric_state
        try:
            self._empty(but=self.outlives_reset)
            self._to_sync, self._enable_grad, self.compute_on_cpu = self.dist_sync_on_step, True, False
            self.update(*args, **kwargs)
            value = self.compute()
            self._update_count = before[0]["_update_count"] + 1
            self._add_states(whole, but=self.outlives_reset)
        except BaseException:
            self._restore(before)
            raise
        self._to_sync, self._enable_grad = self.sync_on_compute, False
        self.compute_on_cpu = before[0]["compute_on_cpu"]
        if self.compute_on_cpu:
            self._move_list_states_to_cpu()
        # Detached: its graph would live as long as the metric.
        self._computed, self._forward_cache = None, _copy(value, torch.Tensor.detach)
        return value

    def reset(self) -> None:
        """Empty all states but those in `outlives_reset`."""
        if self._is_synced:
            self.unsync()
        kept = {name: getattr(self, name) for name in self.outlives_reset}
        # torchmetrics would empty the lists themselves, which may be shared with other metrics.
        self._empty()
        super().reset()
        for name, state in kept.items():
            setattr(self, name, state)

    def merge_state(self, incoming_state: dict[str, Any] | torchmetrics.Metric) -> None:
        """Add the states of another metric of this class, or those in a dict."""
        count = 1
        if isinstance(incoming_state, torchmetrics.Metric):
            if not isinstance(incoming_state, type(self)):
                raise ValueError(
                    f"incoming_state: expected states or a {type(self).__name__}, got {type(incoming_state).__name__}"
                )
            count, incoming_state = incoming_state.update_count, incoming_state.metric_state
        if not isinstance(incoming_state, dict):
            raise ValueError(f"incoming_state: expected a dict or a metric, got {type(incoming_state).__name__}")
        if missing := [name for name in self._defaults if name not in {"compute_group", *incoming_state}]:
            raise ValueError(f"incoming_state: expected {', '.join(missing)} too, got {', '.join(incoming_state)}")
        before = self._snapshot()
        try:
            self._update_count += count
            others = {name: self._copied(name, incoming_state.get(name, self.compute_group)) for name in self._defaults}
            self._add_states(others)
        except BaseException:
            self._restore(before)
            raise
        self._computed = None

    def _empty(self, but: Sequence[str] = ()) -> None:
        """Set all states but some to their defaults."""
        for name, default in self._defaults.items():
            if name not in but:
                setattr(self, name, [] if isinstance(default, list) else default.clone().to(self.device))

    def _add_states(self, others: dict[str, Any], but: Sequence[str] = ()) -> None:
        """Reduce other states into all of these but some."""
        stay = {name: getattr(self, name) for name in but}
        for name, default in self._defaults.items():
            if isinstance(default, list) and name not in but:
                _check_shape(name, others[name], *getattr(self, name)[:1])
        with torch.no_grad():
            self._reduce_states(others)
        for name, state in stay.items():
            setattr(self, name, state)

    def _copied(self, name: str, state: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
        """A copy of another metric's state, on the device of this metric, and a list where this metric has a list."""
        if not isinstance(self._defaults[name], list):
            return state.detach().clone().to(self.device)
        parts = [state] if isinstance(state, Tensor) else state
        return [part.detach().clone().to(self.device) for part in parts]

    def _snapshot(self) -> tuple[dict[str, Any], dict[str, int]]:
        """All attributes, and the lengths of the lists among the states."""
        lists = [name for name, default in self._defaults.items() if isinstance(default, list)]
        return dict(vars(self)), {name: len(getattr(self, name)) for name in lists}

    def _restore(self, snapshot: tuple[dict[str, Any], dict[str, int]]) -> None:
        attributes, lengths = snapshot
        vars(self).update(attributes)
        for name, length in lengths.items():
            if isinstance(getattr(self, name), list):
                del getattr(self, name)[length:]

    def _sync_dist(self, *args: Any, **kwargs: Any) -> None:
        reductions = self._reductions
        # The number of the group differs between processes, and is not to be reduced.
        self._reductions = {name: reduce for name, reduce in reductions.items() if name != "compute_group"}
        try:
            super()._sync_dist(*args, **kwargs)
        finally:
            self._reductions = reductions

    def _wrap_update(self, update: Callable) -> Callable:
        run = super()._wrap_update(full_precision(update))

        @functools.wraps(update)
        def all_or_nothing(*args: Any, **kwargs: Any) -> None:
            before = self._snapshot()
            try:
                with self._networks_in_eval():
                    run(*args, **kwargs)
            except BaseException:
                self._restore(before)
                raise

        return all_or_nothing

    def _wrap_compute(self, compute: Callable) -> Callable:
        run = super()._wrap_compute(full_precision(compute))

        @functools.wraps(compute)
        def copy_of_the_value(*args: Any, **kwargs: Any) -> Any:
            synced = self._is_synced
            try:
                # torchmetrics keeps the value for the next call, so the caller gets a copy.
                with self._networks_in_eval():
                    return _copy(run(*args, **kwargs))
            finally:
                # torchmetrics does not do this after an error.
                if self._is_synced and not synced and self._should_unsync:
                    self.unsync()

        return copy_of_the_value

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, nn.Module):
            # An attribute, but not a registered submodule.
            vars(self)[name] = value
            in_eval = [module for module in value.modules() if not module.training]
            vars(self)["_handed_in_eval"] = {**vars(self).get("_handed_in_eval", {}), name: in_eval}
        else:
            super().__setattr__(name, value)

    @contextlib.contextmanager
    def _networks_in_eval(self) -> Iterator[None]:
        """Puts modules that were in eval mode when they were handed in, and train now, into eval mode for a while."""
        handed_in = vars(self).get("_handed_in_eval", {}).values()
        trained = [module for modules in handed_in for module in modules if module.training]
        for module in trained:
            module.training = False
        try:
            yield
        finally:
            for module in trained:
                module.training = True

    def _apply(self, fn: Callable, exclude_state: Sequence[str] = "") -> nn.Module:
        super()._apply(lambda tensor: _without_narrowing(fn, tensor), exclude_state)
        for module in vars(self).values():
            if isinstance(module, nn.Module):
                module._apply(lambda tensor: tensor.to(_target(fn, tensor).device))
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        found = {name: state_dict[prefix + name] for name in self._defaults if prefix + name in state_dict}
        super()._load_from_state_dict(state_dict, prefix, *args)
        for name, state in found.items():
            setattr(self, name, self._copied(name, state))
        if found:
            self._computed, self._update_count = None, max(1, self._update_count)


class MeanMetric(Metric):
    """The mean of numbers [B] that `update` hands to `add`, float64; `counted` is the name of one of them."""

    counted = "example"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", default=torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def add(self, values: Tensor) -> None:
        """Add numbers [B] to the sum."""
        self.total = self.total + values.double().sum()
        self.count = self.count + len(values)

    def compute(self) -> Tensor:
        """The mean.

        Raises:
            ValueError: nothing was taken in.
        """
        self.check_enough(int(self.count), 1, self.counted)
        return self.total / self.count


def _check_shape(state: str, held: Tensor | list[Tensor], *new: Tensor) -> None:
    for rows in new:
        if len(held) and (known := (held if isinstance(held, Tensor) else held[0]).shape[1:]) != rows.shape[1:]:
            raise ValueError(f"{state}: expected rows of shape {list(known)} as before, got {list(rows.shape[1:])}")


def _copy(value: Any, of_tensor: Callable[[Tensor], Tensor] = torch.clone) -> Any:
    if isinstance(value, dict):
        return {name: _copy(part, of_tensor) for name, part in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_copy(part, of_tensor) for part in value)
    return of_tensor(value) if isinstance(value, Tensor) else value


def _target(fn: Callable, tensor: Tensor) -> Tensor:
    """An empty tensor of the device and dtype that `fn` converts to."""
    return fn(torch.empty(0, dtype=tensor.dtype, device=tensor.device))


def _without_narrowing(fn: Callable, tensor: Tensor) -> Tensor:
    """`fn` of a state, in the state's own dtype unless the new one is a wider float."""
    target = _target(fn, tensor)
    wider = tensor.is_floating_point() and torch.promote_types(target.dtype, tensor.dtype) == target.dtype
    return fn(tensor) if wider else tensor.to(target.device)
