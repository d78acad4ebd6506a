"""A CUDA device that is not there: tensors that say they are on it and compute on the CPU, and graphs of them.

What a graph may not hold raises inside a capture, as CUDA does: a value read on the host, a copy between host and
device, an operator whose result's shape depends on values. What was captured is replayed from the operators alone, so
that whatever Python worked out meanwhile (a seed, a branch) is as it was.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only

CUDA = torch.device("cuda:0")
aten = torch.ops.aten
# Of operators that read values without being told to.
READERS = {
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.is_nonzero.default,
    aten.item.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.unique_dim.default,
    aten._unique2.default,
    aten.repeat_interleave.Tensor,
}
VALUES = (Tensor.__int__, Tensor.__float__, Tensor.__bool__, Tensor.__index__, Tensor.item, Tensor.tolist)


class OnDevice(Tensor):
    """`data` on the CPU, said to be on the device."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, data: Tensor) -> OnDevice:
        layout = {"strides": data.stride(), "storage_offset": data.storage_offset(), "dtype": data.dtype}
        return Tensor._make_wrapper_subclass(cls, data.size(), **layout, device=CUDA)

    def __init__(self, data: Tensor) -> None:
        self.on_cpu = data

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise NotImplementedError(f"{func} outside of pretend_cuda()")


class Graph:
    """`torch.cuda.CUDAGraph`: operators with their arguments and results, in order."""

    def __init__(self) -> None:
        self.tape: list[tuple] = []

    def replay(self) -> None:
        for func, args, kwargs, results in self.tape:
            again = func(*args, **kwargs)
            for old, new in zip(tree_iter(results), tree_iter(again), strict=True):
                # Views and what was written in place are where they were.
                if isinstance(old, Tensor) and old.untyped_storage()._cdata != new.untyped_storage()._cdata:
                    old.copy_(new)


class _Operators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.graph: Graph | None = None
        # While a tensor is being made on the device.
        self.making = False
        self.sync_debug_mode: int | str = 0

    def forbid(self, what: str) -> None:
        if self.graph is not None or self.sync_debug_mode == "error":
            raise RuntimeError(f"{what} while that is forbidden")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        given = [t for t in tree_iter((args, kwargs)) if isinstance(t, Tensor)]
        moved = [t for t in given if isinstance(t, OnDevice)]
        if not moved and not self.making and not _is_cuda(kwargs.get("device")):
            return func(*args, **kwargs)
        if func in READERS or any(index.dtype == torch.bool for index in _indices(func, args)):
            self.forbid(f"{func} reads the device")
        if len(moved) < len(given) and not self.making:
            self.forbid(f"{func} takes tensors of both host and device")
        if func is aten._fused_sdp_choice.default:
            # The attention that is made of other operators.
            return 0
        if kwargs.get("device") is not None:
            kwargs["device"] = torch.device("cpu")
        args, kwargs = tree_map_only(OnDevice, lambda t: t.on_cpu, (args, kwargs))
        results = func(*args, **kwargs)
        if self.graph is not None:
            self.graph.tape.append((func, args, kwargs, results))
        wrappers = {id(t.on_cpu): t for t in moved}
        if self.making:
            return results
        return tree_map_only(Tensor, lambda t: wrappers[id(t)] if id(t) in wrappers else OnDevice(t), results)


class _Functions(TorchFunctionMode):
    """What has to be caught before PyTorch looks for the device."""

    def __init__(self, operators: _Operators) -> None:
        super().__init__()
        self.operators = operators

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (Tensor.data_ptr, Tensor.untyped_storage) and isinstance(args[0], OnDevice):
            return func(args[0].on_cpu)
        if func is Tensor.to:
            return self._to(*args, **kwargs)
        if func is Tensor.cpu:
            return self._to(*args, torch.device("cpu"))
        # These switch to the device, which a build without CUDA cannot.
        if func in VALUES and isinstance(args[0], OnDevice):
            self.operators.forbid(f"{func.__name__} reads the device")
            return func(args[0].on_cpu)
        if func is Tensor.copy_:
            return aten.copy_(*args, **kwargs)
        if func is Tensor.contiguous and isinstance(args[0], OnDevice):
            layout = kwargs.get("memory_format", torch.contiguous_format)
            contiguous = args[0].is_contiguous(memory_format=layout)
            return args[0] if contiguous else aten.clone(args[0], memory_format=layout)
        if func in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[0], OnDevice):
            if any(type(index) is Tensor for index in tree_iter(args)):
                self.operators.forbid("an index or a value on the host")
            return self._make(func, *tree_map_only(OnDevice, lambda t: t.on_cpu, (args, kwargs)))
        if _is_cuda(kwargs.get("device")) and not any(isinstance(t, OnDevice) for t in tree_iter(args)):
            return self._make(func, args, {**kwargs, "device": torch.device("cpu")})
        return func(*args, **kwargs)

    def _make(self, func: Any, args: Any, kwargs: Any) -> OnDevice | None:
        if func is torch.tensor:
            self.operators.forbid("torch.tensor copies to the device")
        self.operators.making = True
        try:
            made = func(*args, **kwargs)
            return None if made is None else OnDevice(made)
        finally:
            self.operators.making = False

    def _to(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        given, copy = [*args, *kwargs.values()], kwargs.get("copy", False)
        like = next((t for t in given if isinstance(t, Tensor)), None)
        dtype = next((t for t in given if isinstance(t, torch.dtype)), tensor.dtype if like is None else like.dtype)
        device = next((t for t in given if isinstance(t, torch.device)), tensor.device if like is None else like.device)
        if device == tensor.device:
            return tensor.to(dtype, copy=copy)
        self.operators.forbid("a copy between host and device")
        return OnDevice(tensor.to(dtype, copy=True)) if _is_cuda(device) else tensor.on_cpu.to(dtype, copy=True)


def _is_cuda(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def _indices(func: Any, args: Any) -> list[Tensor]:
    if func not in (aten.index.Tensor, aten.index_put_.default, aten.index_put.default):
        return []
    return [index for index in args[1] if index is not None]


@contextlib.contextmanager
def pretend_cuda(monkeypatch: Any) -> Iterator[None]:
    """There is a device `cuda:0` inside the block, whose generator is the CPU's."""
    operators = _Operators()

    @contextlib.contextmanager
    def capturing(graph: Graph) -> Iterator[None]:
        operators.graph, before = graph, torch.get_rng_state()
        try:
            yield
        finally:
            operators.graph = None
            # A capture computes nothing.
            torch.set_rng_state(before)

    class Stream:
        def __init__(self, device: Any = None) -> None:
            pass

        def wait_stream(self, other: Stream) -> None:
            pass

    with monkeypatch.context() as patch, _Functions(operators), operators:
        patch.setattr(torch.cuda, "CUDAGraph", Graph)
        patch.setattr(torch.cuda, "graph", capturing)
        patch.setattr(torch.cuda, "Stream", Stream)
        patch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
        patch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
        patch.setattr(torch.cuda, "current_stream", Stream)
        patch.setattr(torch.cuda, "get_sync_debug_mode", lambda: operators.sync_debug_mode)
        patch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: setattr(operators, "sync_debug_mode", mode))
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: operators.graph is not None)
        patch.setattr(torch.cuda, "default_generators", (torch.default_generator,))
        yield


def to_cuda(module: nn.Module) -> nn.Module:
    """The module, moved, inside `pretend_cuda`."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                moved = OnDevice(parameter.detach().clone())
                part._parameters[name] = nn.Parameter(moved, requires_grad=parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = OnDevice(buffer.clone())
    return module


def on_cpu(tensor: Tensor) -> Tensor:
    assert tensor.device == CUDA
    return tensor.on_cpu
