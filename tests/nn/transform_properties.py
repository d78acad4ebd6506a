"""What every transform of a flow must satisfy; the tests of a layer run all of `PROPERTIES` on each of its cases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

BATCH = 3


@dataclass(frozen=True)
class Case:
    """A transform, the shape of one example, and the length of its context."""

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    context_features: int | None = None

    def __str__(self) -> str:
        return self.name

    def transform(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        """With random parameters, past any initialisation."""
        transform = self.make().to(dtype)
        for parameter in transform.parameters():
            nn.init.normal_(parameter, std=0.3)
        return transform.eval()

    def inputs(self, dtype: torch.dtype = torch.float64, batch: int = BATCH) -> tuple[Tensor, Tensor | None]:
        x = torch.randn(batch, *self.shape, dtype=dtype)
        context = None if self.context_features is None else torch.randn(batch, self.context_features, dtype=dtype)
        return x, context

    def directions(self, transform: nn.Module, x: Tensor, context: Tensor | None) -> list[tuple[Callable, Tensor]]:
        """Both, each with a random input of its shape."""
        with torch.no_grad():
            y = torch.randn_like(transform(x, context)[0])
        return [(transform.forward, x), (transform.inverse, y)]


def round_trip(case: Case) -> None:
    transform, (x, context) = case.transform(), case.inputs()
    y, logabsdet = transform(x, context)
    back, logabsdet_back = transform.inverse(y, context)
    torch.testing.assert_close(back, x, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(logabsdet_back, -logabsdet, rtol=1e-10, atol=1e-10)
    y = torch.randn_like(y)
    forth, _ = transform(transform.inverse(y, context)[0], context)
    torch.testing.assert_close(forth, y, rtol=1e-10, atol=1e-10)


def logabsdet_is_the_jacobians(case: Case) -> None:
    transform, (x, context) = case.transform(), case.inputs()
    for run, x in case.directions(transform, x, context):  # noqa: B020
        logabsdet = run(x, context)[1]
        assert logabsdet.shape == (BATCH,)
        for i in range(BATCH):
            one = None if context is None else context[i : i + 1]
            jacobian = torch.autograd.functional.jacobian(lambda x: run(x, one)[0], x[i : i + 1])  # noqa: B023
            expected = torch.linalg.slogdet(jacobian.reshape(x[0].numel(), -1)).logabsdet
            torch.testing.assert_close(logabsdet[i], expected, rtol=1e-9, atol=1e-9)


def gradients(case: Case) -> None:
    """Of both directions, in the input, the context and the parameters, against finite differences."""
    transform, (x, context) = case.transform(), case.inputs()
    parameters = dict(transform.named_parameters())
    names = list(parameters)

    def run(direction: str) -> Callable:
        bound = _Direction(transform, direction)

        def function(x: Tensor, *tensors: Tensor):
            given = {f"transform.{name}": t for name, t in zip(names, tensors, strict=False)}
            return functional_call(bound, given, (x, tensors[len(names)] if context is not None else None))

        return function

    for direction, (_, value) in zip(("forward", "inverse"), case.directions(transform, x, context), strict=True):
        tensors = [value, *parameters.values()] + ([] if context is None else [context])
        tensors = [t.detach().clone().requires_grad_() for t in tensors]
        assert torch.autograd.gradcheck(run(direction), tensors, fast_mode=True, rtol=1e-4, atol=1e-6)


class _Direction(nn.Module):
    def __init__(self, transform: nn.Module, direction: str) -> None:
        super().__init__()
        self.transform = transform
        self.direction = direction

    def forward(self, x: Tensor, context: Tensor | None):
        return getattr(self.transform, self.direction)(x, context)


def compiles_to_one_graph(case: Case) -> None:
    transform, (x, context) = case.transform(), case.inputs()
    for direction, (_, value) in zip(("forward", "inverse"), case.directions(transform, x, context), strict=True):
        run = _Direction(transform, direction)
        torch.compiler.reset()
        compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
        expected = _run_with_gradients(run, value, context)
        for found, wanted in zip(_run_with_gradients(compiled, value, context), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


def _run_with_gradients(run: Callable, x: Tensor, context: Tensor | None) -> list[Tensor]:
    x = x.detach().requires_grad_()
    y, logabsdet = run(x, context)
    wanted = [x, *(p for p in run.parameters())]
    found = torch.autograd.grad((y * y).sum() + logabsdet.sum(), wanted, allow_unused=True)
    return [y, logabsdet, *(g for g in found if g is not None)]


def nan_stays_in_its_row(case: Case) -> None:
    transform, (x, context) = case.transform(), case.inputs()
    for run, x in case.directions(transform, x, context):  # noqa: B020
        bad = x.clone()
        bad[1] = torch.nan
        good_y, good_logabsdet = run(x, context)
        y, logabsdet = run(bad, context)
        assert y[1].isnan().all()
        for i in (0, 2):
            torch.testing.assert_close(y[i], good_y[i], rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(logabsdet[i], good_logabsdet[i], rtol=1e-12, atol=1e-12)


def autocast_keeps_the_state_in_float32(case: Case) -> None:
    transform, (x, context) = case.transform(torch.float32), case.inputs(torch.float32)
    exact, logabsdet_exact = transform(x, context)
    with torch.autocast("cpu", torch.bfloat16):
        y, logabsdet = transform(x, context)
        back, logabsdet_back = transform.inverse(y, context)
    assert y.dtype == back.dtype == logabsdet.dtype == logabsdet_back.dtype == torch.float32
    # The conditioner's bfloat16 moves the numbers, but both directions alike.
    torch.testing.assert_close(y, exact, rtol=0.1, atol=0.1)
    torch.testing.assert_close(logabsdet, logabsdet_exact, rtol=0.1, atol=0.2)
    torch.testing.assert_close(back, x, rtol=1e-3, atol=1e-3)


def half_precision_runs(case: Case) -> None:
    transform, (x, context) = case.transform(torch.bfloat16), case.inputs(torch.bfloat16)
    exact = _in_float64(transform, x, context)
    y, logabsdet = transform(x, context)
    assert y.dtype == torch.bfloat16 and logabsdet.dtype == torch.float32
    torch.testing.assert_close(y.double(), exact, rtol=0.05, atol=0.1)
    back, logabsdet = transform.inverse(y, context)
    assert back.dtype == torch.bfloat16 and logabsdet.dtype == torch.float32


def _in_float64(transform: nn.Module, x: Tensor, context: Tensor | None) -> Tensor:
    state = {k: v.double() if v.is_floating_point() else v for k, v in transform.state_dict().items()}
    return functional_call(transform, state, (x.double(), None if context is None else context.double()))[0]


def an_empty_batch_is_a_batch(case: Case) -> None:
    transform, (x, context) = case.transform(), case.inputs(batch=0)
    for run, x in case.directions(transform, x, context):  # noqa: B020
        y, logabsdet = run(x, context)
        assert y.shape[0] == 0 and y.numel() == 0 and logabsdet.shape == (0,)


def has_shapes_on_the_meta_device(case: Case) -> None:
    transform, (x, context) = case.transform(), case.inputs()
    expected = transform(x, context)
    on_meta = transform.to("meta")(x.to("meta"), None if context is None else context.to("meta"))
    for found, like in zip(on_meta, expected, strict=True):
        assert found.is_meta and found.shape == like.shape and found.dtype == like.dtype


def waits_for_no_device(case: Case) -> None:
    transform, (x, context) = case.transform(), case.inputs()
    transform.train()
    with _Waits() as waits:
        transform.inverse(transform(x, context)[0], context)
    assert not waits.found


class _Waits(TorchDispatchMode):
    """Collects the operations that read a value, or a size that depends on values, back from a device."""

    READ_BACK = ("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "equal", "unique")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().removeprefix("aten::").split(".")[0]
        if name in self.READ_BACK:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


PROPERTIES = (
    round_trip,
    logabsdet_is_the_jacobians,
    gradients,
    compiles_to_one_graph,
    nan_stays_in_its_row,
    autocast_keeps_the_state_in_float32,
    half_precision_runs,
    an_empty_batch_is_a_batch,
    has_shapes_on_the_meta_device,
    waits_for_no_device,
)
