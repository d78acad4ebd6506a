"""The registry of ops, the choice of a kernel for each call, and how autograd records one.

An `Op` carries all that tests, benchmarks and `fastgen info` need to know, so that adding one edits none of them:
its operators and their fakes, its reference, samples, benchmark cases, tolerances and cost. It is also the only place
that knows about backends: `choose` picks one per call with plain `if`s on device, dtype and shape, which
`torch.compile(fullgraph=True)` traces through. `differentiable` makes kernels known to autograd.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C._functorch import maybe_current_level as _functorch_level
from torch.autograd import forward_ad as _forward_ad

from fastgen.ops.extensions import LIBRARY, UNUSABLE, triton_interprets

# In order of preference. `library` calls cuDNN, oneDNN or MKL in a way that beats the reference; `reference` can always
# run.
BACKENDS = ("cuda", "triton", "cpp", "library", "reference")

REGISTRY: dict[str, Op] = {}

# The dtypes that most kernels are compiled for.
CPU_DTYPES = (torch.float32, torch.float64, torch.bfloat16)
GPU_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
USUAL_DTYPES = {"cuda": GPU_DTYPES, "triton": GPU_DTYPES, "cpp": CPU_DTYPES}


class BackendError(RuntimeError):
    """A backend was asked for that cannot run this call; the message lists every backend's reason."""


class Sample(NamedTuple):
    """Arguments of one call of an op: a test input, or a benchmark case."""

    name: str
    args: tuple
    kwargs: Mapping[str, Any] = {}


class Tolerance(NamedTuple):
    """`error(kernel) <= factor * error(reference in the same dtype) + floor`, errors relative to the float64
    reference (L2).
    """

    factor: float
    floor: float


# The tolerance of kernels that compute in float32 or float64 and round once, at the end.
USUAL_TOLERANCE = {
    torch.float64: Tolerance(2, 1e-14),
    torch.float32: Tolerance(2, 2e-7),
    torch.bfloat16: Tolerance(1, 1e-4),
    torch.float16: Tolerance(1, 1e-5),
}


class Cost(NamedTuple):
    """The bytes that the ideal implementation of a call reads and writes, and the operations that it computes."""

    bytes: int
    flops: int


class Choice(NamedTuple):
    """Which backend a call took, and why it took none of those before it."""

    op: str
    backend: str
    reasons: Mapping[str, str]


class _State:
    """The state of all threads, in plain attributes, which torch.compile guards on and every call reads.

    Attributes:
        forced: the backends that `FASTGEN_BACKEND` names.
        asked: whether any thread is inside `use_backend` or `explain`. Only then the thread's own state is read, which
            takes longer.
    """

    forced: tuple[str, ...] = ()
    asked = False


class _Asked(threading.local):
    """The state of one thread, which `use_backend` and `explain` set."""

    def __init__(self) -> None:
        # Attributes of the object, since torch.compile guards on those and not on the class's.
        self.forced = _STATE.forced
        self.log: list[Choice] | None = None


_STATE = _State()
_ASKED = _Asked()
_BLOCKS = 0
_BLOCKS_LOCK = threading.Lock()


@contextlib.contextmanager
def _asking(name: str, value: Any) -> Iterator[None]:
    """Set an attribute of `_ASKED` inside the block."""
    previous = getattr(_ASKED, name)
    _count_blocks(1)
    setattr(_ASKED, name, value)
    try:
        yield
    finally:
        setattr(_ASKED, name, previous)
        _count_blocks(-1)


def _count_blocks(change: int) -> None:
    global _BLOCKS
    with _BLOCKS_LOCK:
        _BLOCKS += change
        _STATE.asked = _BLOCKS > 0


def _forced() -> tuple[str, ...]:
    """The backends that the calling thread is held to; empty where it may take any."""
    return _ASKED.forced if _STATE.asked else _STATE.forced


@dataclass(eq=False)
class Op:
    """One op: a public function, the operators behind it, and what proves and measures them.

    Attributes:
        name: of the public function, which is in the file of `reference` or in the `__init__` of its folder.
        schema: one operator each, `"name(Tensor x) -> Tensor"`: the forward first, then those its gradient calls.
            Each becomes one overload per compiled backend, `fastgen::name.cpp`, called as
            `OP.call[backend]["name"](...)`.
        fake: for each schema, a function of the same arguments that makes the outputs' shapes and strides; or, for
            each output, the name of an argument whose shape and dtype it has, contiguous. `"x[batch]"` is one number
            for each x[i], in float32 at least.
        reference: the specification: plain PyTorch, same signature as the public function.
        supports: for each backend the op has, a function of what `choose` is given that returns a reason against it,
            or ""; `always` has none.
        samples: test inputs for a device and a dtype: empty, size 1, odd, non-contiguous, expanded, extreme.
        cases: benchmark inputs for a device and a dtype; the first is the quick one.
        cost: cost of a call for a pass (`forward`, `forward_backward`, ...), from its arguments.
        dtypes: dtypes each backend takes; the others go to the reference.
        tolerance: by dtype.
        grad_order: orders of gradient that kernels compute; higher ones go through the reference. 0: not
            differentiable.
        passes: what to benchmark.
        draw: makes a call of any shape and settings from a `fastgen.ops.drawing.Drawing`, for
            `fastgen.conformance.fuzz`; None where variations of the samples reach them all.
        gate_part: the part of a benchmark case that the benchmark compares with the reference before it measures;
            the whole case unless the reference would take minutes for it.
        random: the op draws random numbers, so tests compare what is drawn and not its gradient.
        library: for each schema the function that backend `library` runs, where it branches on values (a matrix that
            has no Cholesky factor) and torch.compile must not look inside. Empty: the public function calls the
            library.
        call: by backend and name, the operators that torch.compile takes as they are.
        backends: those this op has, in order of preference; `reference` is always the last.
    """

    name: str
    schema: Sequence[str]
    fake: Sequence[Callable | tuple[str, ...]]
    reference: Callable
    supports: Mapping[str, Callable[..., str]]
    samples: Callable[[str, torch.dtype], Iterable[Sample]]
    cases: Callable[[str, torch.dtype], Iterable[Sample]]
    cost: Callable[..., Cost]
    dtypes: Mapping[str, tuple[torch.dtype, ...]] = field(default_factory=USUAL_DTYPES.copy)
    tolerance: Mapping[torch.dtype, Tolerance] = field(default_factory=USUAL_TOLERANCE.copy)
    grad_order: int = 1
    passes: tuple[str, ...] = ("forward", "forward_backward")
    draw: Callable[..., Sample] | None = None
    gate_part: Callable[[Sample], Sample] = lambda case: case
    random: bool = False
    library: Sequence[Callable] = ()
    call: dict[str, dict[str, Callable]] = field(default_factory=dict, init=False)
    backends: tuple[str, ...] = field(init=False)
    _cpu_backends: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        if self.name in REGISTRY:
            raise ValueError(f"op {self.name!r} is registered already")
        self.backends = tuple(b for b in BACKENDS if b in self.supports or b == "reference")
        self._cpu_backends = tuple(b for b in self.backends if b not in ("cuda", "triton"))
        for backend in self.compiled_backends:
            self.call[backend] = {}
            for i, (schema, fake) in enumerate(zip(self.schema, self.fake, strict=True)):
                name, signature = schema.split("(", 1)
                LIBRARY.define(f"{name}.{backend}({signature}")
                if isinstance(fake, tuple):
                    fake = _fake_like(signature, fake)
                torch.library.register_fake(f"fastgen::{name}.{backend}", fake, lib=LIBRARY)
                if backend == "triton":
                    launch = _lazy_launcher(self.family, name)
                    LIBRARY.impl(f"{name}.triton", launch, "CUDA")
                    LIBRARY.impl(f"{name}.triton", launch, "CPU")
                if backend == "library":
                    LIBRARY.impl(f"{name}.library", self.library[i], "CompositeExplicitAutograd")
                self.call[backend][name] = getattr(getattr(torch.ops.fastgen, name), backend)
        REGISTRY[self.name] = self

    @property
    def family(self) -> str:
        """The file or folder this op lives in, which is its name in every other room."""
        return self._module.rsplit(".", 1)[-1]

    @property
    def public(self) -> Callable:
        return getattr(sys.modules[self._module], self.name)

    @property
    def _module(self) -> str:
        """The module of the public function; the reference may be in a module inside that."""
        return ".".join(self.reference.__module__.split(".")[:3])

    @property
    def compiled_backends(self) -> tuple[str, ...]:
        """The backends whose operators torch.compile takes as they are."""
        opaque = ("library",) if self.library else ()
        return tuple(b for b in self.backends if b in ("cuda", "triton", "cpp", *opaque))

    def choose(self, tensors: tuple[Tensor | None, ...], *args: Any) -> str:
        """The backend for a call with these tensors; `args` are what the op's `supports` functions look at besides
        them.
        """
        if _STATE.asked:
            return self._choose_as_asked(tensors, args)
        # For tensors on a CPU the GPU's backends are not asked, which would cost tiny calls a measurable time.
        for backend in _STATE.forced or (self._cpu_backends if tensors[0].is_cpu else self.backends):
            if not self.refusal(backend, tensors, args):
                return backend
        raise self._refused_by_all(tensors, args)

    def refusal(self, backend: str, tensors: tuple[Tensor | None, ...], args: tuple) -> str:
        """Why `backend` cannot run this call; empty where it can."""
        if backend == "reference":
            return ""
        if backend not in self.supports:
            return f"{self.name} has no {backend} kernel"
        reason = _general_refusal(backend, self.dtypes[backend], tensors)
        if reason or self.supports[backend] is always:
            return reason
        return self.supports[backend](*tensors, *args)

    def _choose_as_asked(self, tensors: tuple[Tensor | None, ...], args: tuple) -> str:
        reasons = {}
        for backend in _ASKED.forced or self.backends:
            reason = self.refusal(backend, tensors, args)
            if not reason:
                if _ASKED.log is not None:
                    _ASKED.log.append(Choice(self.name, backend, reasons))
                return backend
            reasons[backend] = reason
        raise self._refused_by_all(tensors, args)

    def _refused_by_all(self, tensors: tuple[Tensor | None, ...], args: tuple) -> BackendError:
        reasons = [(b, self.refusal(b, tensors, args) or "can run") for b in self.backends]
        lines = "".join(f"\n  {backend}: {reason}" for backend, reason in reasons)
        return BackendError(f"{self.name}: {', '.join(_forced())} was asked for and cannot run this call{lines}")


def _general_refusal(backend: str, dtypes: tuple[torch.dtype, ...], tensors: tuple[Tensor | None, ...]) -> str:
    """The reasons against a backend that are the same for every op: its library, the tensors' device, dtype and
    kind.
    """
    first = tensors[0]
    if backend == "cpp":
        if not first.is_cpu:
            return _on_another_device(first)
    elif backend == "cuda":
        if not first.is_cuda:
            return _on_another_device(first)
    elif backend == "triton" and not first.is_cuda and not (first.is_cpu and _forced() and triton_interprets()):
        return _on_another_device(first)
    if backend != "library" and UNUSABLE[backend]:
        return UNUSABLE[backend]
    if first.dtype not in dtypes:
        return f"no kernel for {first.dtype}"
    for tensor in tensors:
        # A subclass may stand for anything (a fake, a distributed or a quantised tensor); only the reference is sure
        # to be right.
        if tensor is not None and type(tensor) is not Tensor and type(tensor) is not torch.nn.Parameter:
            return f"{type(tensor).__name__} is a tensor subclass"
    if torch.compiler.is_compiling():
        return ""
    if _functorch_level() is not None or _forward_ad._current_level >= 0:
        return "inside torch.func or forward-mode differentiation"
    # TorchScript tells overloads apart by their arguments alone, and the overloads of our backends have the same ones.
    if torch._C._is_tracing():
        return "inside torch.jit.trace"
    return ""


def _on_another_device(tensor: Tensor) -> str:
    return f"the tensors are on {tensor.device}"


def always(*args: Any) -> str:
    """No reason against a backend: what an op `supports` whose kernel takes every call."""
    return ""


def _fake_like(signature: str, outputs: tuple[str, ...]) -> Callable:
    """A fake of outputs that are like arguments, which `Op.fake` names."""
    arguments = [argument.split()[-1] for argument in signature.partition(")")[0].split(",")]
    places = [(arguments.index(name.removesuffix("[batch]")), name.endswith("[batch]")) for name in outputs]

    def fake(*args: Any) -> Any:
        made = []
        for place, per_sample in places:
            like = args[place]
            if per_sample:
                made.append(like.new_empty(like.shape[0], dtype=computing_dtype(like)))
            else:
                made.append(like.new_empty(like.shape))
        return tuple(made) if len(made) > 1 else made[0]

    return fake


def _lazy_launcher(family: str, name: str) -> Callable:
    """The launcher `name` of `fastgen._triton.<family>`, imported at its first call: importing fastgen never imports
    triton.
    """

    def launch(*args: Any) -> Any:
        return getattr(importlib.import_module(f"fastgen._triton.{family}"), name)(*args)

    return launch


def full_precision(function: Callable) -> Callable:
    """Switch autocast off inside a function of tensors, as it is inside kernels: for sums, roots and distances, whose
    matrix products are not layers.
    """

    @functools.wraps(function)
    def run(first: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not torch.amp.is_autocast_available(first.device.type):
            return function(first, *args, **kwargs)
        with torch.autocast(first.device.type, enabled=False):
            return function(first, *args, **kwargs)

    return run


def is_forced(backend: str) -> bool:
    """Whether `use_backend` or the environment names this backend: then an op takes it also where it does not pay."""
    return backend in _forced()


def autocast_arguments(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """The arguments of a convolution in the dtype that autocast gives those of PyTorch's."""
    device = tensors[0].device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(t.to(dtype) if t is not None and t.dtype != torch.float64 else t for t in tensors)


def computing_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype that an op computes in: what the tensors promote to, float32 at least."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def needs_gradient(*tensors: Tensor | None) -> bool:
    """Whether a call with these tensors must be recorded by autograd."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def differentiates_again() -> bool:
    """Inside a backward: whether its result will be differentiated (`create_graph=True`), for which kernels of first
    order are not enough.
    """
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


def differentiable(
    run: Callable,
    gradient: Callable,
    reference: Callable,
    *,
    inputs: int,
    settings: Sequence[str] = (),
    kept: int = 0,
    undefined_grads: bool = False,
) -> Callable:
    """`run`, which calls a kernel, recorded by autograd where one of its inputs needs a gradient.

    Args:
        run: takes `inputs` tensors (or None) and then settings, and returns the results. The last `kept` of them are
            only for the gradient, and are not handed on to the caller.
        gradient: of `(ctx, *grads)`, the gradients in the inputs by kernels, None where there is none.
            `ctx.saved_tensors` are the inputs and what was kept, `ctx.settings` is the rest of the arguments, and
            `ctx.needs_input_grad` says what is needed.
        reference: of the same tensors, the same results in differentiable PyTorch. It is differentiated in place of the
            kernels where the gradient will be differentiated (`create_graph=True`).
        settings: the names by which the reference takes the first of the settings; it does not get the others.
        undefined_grads: `gradient` takes None for a result that was not used; else it is given zeros.
    """

    def forward(ctx: Any, *args: Any) -> Any:
        ctx.settings = args[inputs:]
        if undefined_grads:
            ctx.set_materialize_grads(False)
        results = run(*args)
        if not kept:
            ctx.save_for_backward(*args[:inputs])
            return results
        ctx.save_for_backward(*args[:inputs], *results[-kept:])
        return results[0] if len(results) == kept + 1 else results[:-kept]

    def backward(ctx: Any, *grads: Tensor | None) -> tuple:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            plain = functools.partial(reference, **dict(zip(settings, ctx.settings, strict=False)))
            found = reference_gradient(plain, ctx.saved_tensors[:inputs], ctx.needs_input_grad[:inputs], grads)
        else:
            found = gradient(ctx, *grads)
        return *found, *(None,) * len(ctx.settings)

    methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    function = type(run.__name__.strip("_"), (torch.autograd.Function,), methods)
    apply = function.apply

    def call(*args: Any) -> Any:
        if torch.is_grad_enabled():
            for tensor in args[:inputs]:
                if tensor is not None and tensor.requires_grad:
                    return apply(*args)
        results = run(*args)
        if not kept:
            return results
        return results[0] if len(results) == kept + 1 else results[:-kept]

    return call


def reference_gradient(
    reference: Callable[..., Tensor | tuple[Tensor, ...]],
    inputs: Sequence[Any],
    needed: Sequence[bool],
    grad: Tensor | Sequence[Tensor | None],
) -> tuple[Tensor | None, ...]:
    """Gradients of `reference(*inputs)` in the inputs that need one, themselves differentiable to any order; `grad` is
    the output's, or one for each output, None where that output was not used.
    """
    # In fresh variables: one input may have been made of another, and a gradient through that path is not asked for.
    inputs = [fresh(t) if need else t for t, need in zip(inputs, needed, strict=True)]
    wanted = [t for t, need in zip(inputs, needed, strict=True) if need]
    outputs = reference(*inputs)
    outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
    grad = (grad,) if isinstance(grad, Tensor) else grad
    used = [(o, g) for o, g in zip(outputs, grad, strict=True) if g is not None and o.requires_grad]
    if not used:
        return tuple(torch.zeros_like(t) if need else None for t, need in zip(inputs, needed, strict=True))
    gradients = torch.autograd.grad(
        [o for o, _ in used], wanted, [g for _, g in used], create_graph=True, allow_unused=True
    )
    found = iter(gradients)
    return tuple(next(found) if need else None for need in needed)


def fresh(t: Tensor) -> Tensor:
    """A new variable with the numbers of `t`, whose gradient flows on to `t`."""
    return t.view_as(t) if t.requires_grad else t.detach().requires_grad_()


def no_view(t: Tensor) -> Tensor:
    """The same memory as no view: autograd forbids writing to views that an `autograd.Function` returns."""
    if torch.compiler.is_compiling() or not t._is_view():
        return t
    return torch.ops.aten._unsafe_view(t, t.shape)


def _checked_backends(names: Sequence[str]) -> tuple[str, ...]:
    for name in names:
        if name not in BACKENDS:
            raise ValueError(f"backend: expected one of {', '.join(BACKENDS)}, got {name!r}")
    return tuple(names)


@contextlib.contextmanager
def use_backend(*names: str) -> Iterator[None]:
    """Run every op inside the block on the first of these backends that can take it (`cuda`, `triton`, `cpp`,
    `library`, `reference`).

    A call that none of them can run raises `BackendError` with every backend's reason. The choice holds for the
    calling thread; on a GPU, PyTorch runs a backward pass in threads of its own. `FASTGEN_BACKEND=cpp,library` in the
    environment does the same for every thread from the start.
    """
    if not names:
        raise ValueError(f"use_backend: name at least one of {', '.join(BACKENDS)}")
    with _asking("forced", _checked_backends(names)):
        yield


class Explanation(list):
    """The `Choice` of every op call, in order; printed as a table."""

    def __str__(self) -> str:
        if not self:
            return "no fastgen op was called"
        lines = []
        for op, backend, reasons in self:
            why = "; ".join(f"not {name}: {reason}" for name, reason in reasons.items())
            lines.append(f"{op}: {backend}" + (f" ({why})" if why else ""))
        return "\n".join(lines)


def explain(fn: Callable, *args: Any, **kwargs: Any) -> Explanation:
    """Call `fn(*args, **kwargs)` and tell which kernel each fastgen op inside it took, and why not the ones before it.

    >>> print(fastgen.explain(fastgen.ops.gated_activation, torch.randn(2, 8)))
    gated_activation: cpp (not cuda: the tensors are on cpu; not triton: the tensors are on cpu)
    """
    told = Explanation()
    with _asking("log", told):
        fn(*args, **kwargs)
    return told


if _named := os.environ.get("FASTGEN_BACKEND"):
    _STATE.forced = _ASKED.forced = _checked_backends([name.strip() for name in _named.split(",")])
