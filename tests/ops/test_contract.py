"""The contract of an op, for every op in the registry and every kernel that can run here."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import fastgen
from fastgen import conformance as c
from fastgen.ops.registry import REGISTRY, BackendError, Op, Sample

VARIANTS = c.variants("cpu")
# What does not depend on the instruction set is proved for one of them.
ONE_EACH = [(op, v) for op, v in VARIANTS if v != "cpp/AVX2" or c.best_capability() == "AVX2"]
COMPILED = [(op, v) for op, v in ONE_EACH if v.partition("/")[0] in op.call]
# Symbolic sizes of this one's convolutions take PyTorch half a minute; the slow tests take them.
SLOW_WITH_SYMBOLS = ("masked_conv2d", "library")
SMALL, LARGE = 400, 20_000


def with_dtypes(pairs: list) -> list:
    return [(op, v, dtype) for op, v in pairs for dtype in c.dtypes(op, v)]


def size(sample: Sample) -> int:
    return sum(t.numel() for t in c.floating(sample.args))


def by_size(op: Op, variant: str, dtype: torch.dtype) -> list[Sample]:
    """The samples that have elements, the smallest first."""
    found = [s for s in c.samples(op, variant, dtype) if all(t.numel() for t in c.floating(s.args))]
    return sorted(found, key=size)


def in_little_time(op: Op, variant: str, dtype: torch.dtype) -> list[Sample]:
    """All samples, but in Triton's interpreter, where each takes a second, only in float32. The two half types differ
    from it in loads, stores and overflow: they share the samples among them, short of the large ones, and both take
    the extreme ones.
    """
    every = c.samples(op, variant, dtype)
    if variant != "triton" or dtype == torch.float32:
        return every
    turn = [torch.bfloat16, torch.float16].index(dtype)
    return [s for i, s in enumerate(every) if "extreme" in s.name or (i % 2 == turn and size(s) < LARGE)]


def assert_values_and_gradients(op: Op, variant: str, dtype: torch.dtype, samples: list[Sample]) -> None:
    tolerance, gradient = op.tolerance[dtype], op.grad_order > 0
    for sample in samples:
        with c.running_on(variant):
            found = c.values_and_gradients(op.public, sample, dtype, gradient=gradient)
        truth = c.values_and_gradients(op.reference, sample, torch.float64, gradient=gradient)
        plain = c.values_and_gradients(op.reference, sample, dtype, gradient=gradient)
        for i, (value, true, usual) in enumerate(zip(found, truth, plain, strict=True)):
            what = f"{op.name} {variant} {dtype} {sample.name!r} result {i}"
            assert value.shape == true.shape and value.dtype == usual.dtype, what
            error = c.finite_error(value, true, usual)
            bound = tolerance.factor * c.finite_error(usual, true, usual) + tolerance.floor
            assert error <= bound, f"{what}: error {error:.2e}, bound {bound:.2e}"


@pytest.mark.parametrize(("op", "variant", "dtype"), with_dtypes(VARIANTS), ids=c.ids)
def test_values_and_gradients(op: Op, variant: str, dtype: torch.dtype, poisoned_memory):
    assert_values_and_gradients(op, variant, dtype, in_little_time(op, variant, dtype))


IN_TRITON = [t for t in with_dtypes(VARIANTS) if t[1] == "triton" and t[2].itemsize == 2]


@pytest.mark.slow
@pytest.mark.parametrize(("op", "variant", "dtype"), IN_TRITON, ids=c.ids)
def test_values_and_gradients_of_every_sample(op: Op, variant: str, dtype: torch.dtype, poisoned_memory):
    assert_values_and_gradients(op, variant, dtype, c.samples(op, variant, dtype))


@pytest.mark.parametrize(
    ("op", "variant"), [p for p in VARIANTS if p[0].grad_order and torch.float64 in c.dtypes(*p)], ids=c.ids
)
def test_gradcheck(op: Op, variant: str):
    checked = 0
    for sample in c.samples(op, variant, torch.float64):
        if (
            not 0 < sum(t.numel() for t in c.floating(sample.args)) <= SMALL
            or "extreme" in sample.name
            or "saturated" in sample.name
        ):
            continue
        # Finite differences move one element at a time, which an expanded tensor cannot.
        args = tuple(c.cast(a.contiguous() if isinstance(a, Tensor) else a, torch.float64, True) for a in sample.args)
        with c.running_on(variant):
            assert torch.autograd.gradcheck(lambda *a, s=sample: op.public(*a, **s.kwargs), args, fast_mode=checked > 0)
        checked += 1
    assert checked, f"{op.name}: no sample of at most {SMALL} elements"


SECOND = [p for p in VARIANTS if p[0].grad_order >= 2]


@pytest.mark.parametrize(("op", "variant"), [p for p in SECOND if torch.float64 in c.dtypes(*p)], ids=c.ids)
def test_gradgradcheck_of_kernels_of_second_order(op: Op, variant: str):
    checked = 0
    for sample in c.samples(op, variant, torch.float64):
        sizes = [t.numel() for t in c.floating(sample.args)]
        if not all(sizes) or sum(sizes) > SMALL or "extreme" in sample.name or "saturated" in sample.name:
            continue
        args = tuple(c.cast(a.contiguous() if isinstance(a, Tensor) else a, torch.float64, True) for a in sample.args)
        with c.running_on(variant):
            assert torch.autograd.gradgradcheck(lambda *a, s=sample: op.public(*a, **s.kwargs), args, fast_mode=True), (
                sample.name
            )
        checked += 1
    assert checked, f"{op.name}: no sample of at most {SMALL} elements"


@pytest.mark.parametrize(("op", "variant", "dtype"), with_dtypes(SECOND), ids=c.ids)
def test_gradient_penalty_and_who_computes_it(op: Op, variant: str, dtype: torch.dtype, poisoned_memory, monkeypatch):
    """The gradients of a penalty on gradients, against float64, and that kernels computed them."""
    backend = variant.partition("/")[0]
    called: list[str] = []
    for name, operator in list(op.call.get(backend, {}).items()):

        def record(*args, operator=operator, name=name):
            called.append(name)
            return operator(*args)

        monkeypatch.setitem(op.call[backend], name, record)
    tolerance, chosen = op.tolerance[dtype], in_little_time(op, variant, dtype)
    if backend == "triton":
        chosen = [s for s in chosen if size(s) < LARGE][: 12 if dtype == torch.float32 else 6]
    for sample in chosen:
        if "extreme" in sample.name and dtype.itemsize == 2:
            continue
        exact, _ = c.penalty_gradients(op.reference, sample, torch.float64)
        usual, _ = c.penalty_gradients(op.reference, sample, dtype)
        with c.running_on(variant):
            found, forward = c.penalty_gradients(op.public, sample, dtype, called)
        if backend in op.call and all(t.numel() for t in c.floating(sample.args)):
            assert len(called) > forward, f"{op.name} {variant} {sample.name!r}: no kernel in the double backward"
        for i, (value, true, reference) in enumerate(zip(found, exact, usual, strict=True)):
            what = f"{op.name} {variant} {dtype} {sample.name!r} result {i}"
            # Two derivatives in a row are two roundings to a dtype of 16 bits.
            error = c.finite_error(value, true, reference)
            bound = 2 * c.finite_error(reference, true, reference) + 4 * tolerance.floor
            assert error <= bound, f"{what}: {error:.2e}, {bound:.2e}"


@pytest.mark.parametrize("op", [op for op in c.EVERY_OP if op.grad_order], ids=c.ids)
def test_second_order_gradient(op: Op):
    sample = min(
        (s for s in op.samples("cpu", torch.float64) if all(t.numel() for t in c.floating(s.args))),
        key=lambda s: sum(t.numel() for t in c.floating(s.args)),
    )
    args = tuple(c.cast(a, torch.float64, True) for a in sample.args)
    assert torch.autograd.gradgradcheck(lambda *a: op.public(*a, **sample.kwargs), args, fast_mode=True)


@pytest.mark.parametrize(("op", "variant"), [p for p in VARIANTS if not p[0].random], ids=c.ids)
def test_nan_goes_where_the_reference_sends_it(op: Op, variant: str):
    sample = by_size(op, variant, torch.float32)[0]
    for i, argument in enumerate(sample.args):
        if not isinstance(argument, Tensor) or not argument.is_floating_point():
            continue
        poisoned = argument.clone()
        poisoned.view(-1)[0] = float("nan")
        args = (*sample.args[:i], poisoned, *sample.args[i + 1 :])
        try:
            with c.running_on(variant):
                found = c.as_tuple(op.public(*args, **sample.kwargs))
        except ValueError as error:
            # Where NaN makes the question meaningless, it is an error that says so.
            assert "nan" in str(error).lower(), f"argument {i}"
            continue
        for value, expected in zip(found, c.as_tuple(op.reference(*args, **sample.kwargs)), strict=True):
            assert torch.equal(value.isnan(), expected.isnan()), f"argument {i}"


@pytest.mark.parametrize(("op", "variant"), COMPILED, ids=c.ids)
def test_opcheck(op: Op, variant: str, monkeypatch):
    backend = variant.partition("/")[0]
    calls: list[tuple] = []
    for name, operator in list(op.call[backend].items()):

        def record(*args, operator=operator):
            calls.append((operator, args))
            return operator(*args)

        monkeypatch.setitem(op.call[backend], name, record)
    dtype = torch.float32
    chosen = by_size(op, variant, dtype)[:3] if backend == "triton" else c.samples(op, variant, dtype)
    calls.clear()
    for sample in chosen:
        with c.running_on(variant):
            c.values_and_gradients(op.public, sample, dtype, gradient=op.grad_order > 0)
    assert {str(operator) for operator, _ in calls} <= {str(o) for o in _operators(op, backend)}
    assert calls
    quick, traced = ("test_schema", "test_faketensor"), 2 if backend == "triton" else 4
    for number, (operator, args) in enumerate(calls):
        # Tracing it with symbolic sizes takes longest, and says the same of every sample.
        checks = (*quick, "test_autograd_registration", "test_aot_dispatch_dynamic") if number < traced else quick
        torch.library.opcheck(
            operator, tuple(a.detach() if isinstance(a, Tensor) else a for a in args), test_utils=checks
        )


def _operators(op: Op, backend: str) -> list:
    return [getattr(getattr(torch.ops.fastgen, schema.split("(")[0]), backend) for schema in op.schema]


IN_GRAPHS = [p for p in ONE_EACH if p[1] != "triton"]


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
@pytest.mark.parametrize(("op", "variant"), IN_GRAPHS, ids=c.ids)
def test_compiles_as_one_graph(op: Op, variant: str, compiler: str):
    # A second sample makes a graph of symbolic sizes.
    most = 1 if compiler == "inductor" or (op.name, variant) == SLOW_WITH_SYMBOLS else 2
    assert_compiles_as_one_graph(op, variant, compiler, most)


@pytest.mark.slow
@pytest.mark.parametrize(("op", "variant"), [p for p in IN_GRAPHS if (p[0].name, p[1]) == SLOW_WITH_SYMBOLS], ids=c.ids)
def test_compiles_as_one_graph_of_symbolic_sizes(op: Op, variant: str):
    assert_compiles_as_one_graph(op, variant, "aot_eager", 3)


def assert_compiles_as_one_graph(op: Op, variant: str, compiler: str, most: int) -> None:
    torch._dynamo.reset()
    gradient = op.grad_order > 0
    chosen = [s for s in c.samples(op, variant, torch.float32) if all(t.numel() > 1 for t in c.floating(s.args))]
    for sample in chosen[:most]:
        with c.running_on(variant):
            compiled = torch.compile(op.public, fullgraph=True, backend=compiler)
            found = c.values_and_gradients(compiled, sample, torch.float32, gradient=gradient)
            eager = c.values_and_gradients(op.public, sample, torch.float32, gradient=gradient)
        for value, usual in zip(found, eager, strict=True):
            torch.testing.assert_close(value, usual, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("op", [op for op in c.EVERY_OP if op.grad_order], ids=c.ids)
def test_torch_func_takes_the_reference(op: Op):
    sample = min(
        (s for s in op.samples("cpu", torch.float64) if all(t.numel() for t in c.floating(s.args))),
        key=lambda s: sum(t.numel() for t in c.floating(s.args)),
    )

    def scalar(first: Tensor) -> Tensor:
        outputs = c.as_tuple(op.public(first, *sample.args[1:], **sample.kwargs))
        return sum(output.square().sum() for output in outputs)

    leaf = sample.args[0].clone().requires_grad_()
    scalar(leaf).backward()
    torch.testing.assert_close(torch.func.grad(scalar)(sample.args[0]), leaf.grad)


@pytest.mark.parametrize("op", c.EVERY_OP, ids=c.ids)
def test_a_backend_that_cannot_run_says_why(op: Op):
    sample = next(iter(op.samples("cpu", torch.float32)))
    with fastgen.use_backend("cuda"), pytest.raises(BackendError, match=rf"{op.name}.*cuda was asked for"):
        op.public(*sample.args, **sample.kwargs)


@pytest.mark.parametrize("op", c.EVERY_OP, ids=c.ids)
def test_cost_counts_the_arguments(op: Op):
    for sample in op.cases("cpu", torch.float32):
        small = op.cost("forward", *sample.args, **sample.kwargs)
        assert small.bytes >= sum(t.numel() * t.element_size() for t in c.floating(sample.args)) and small.flops > 0
        break


@pytest.mark.parametrize("op", c.EVERY_OP, ids=c.ids)
def test_public_function_documents_itself(op: Op):
    text = op.public.__doc__ or ""
    assert "Args:" in text and "Raises:" in text and "Source:" in text, (
        f"{op.name}: docstring lacks Args, Raises or Source"
    )


def test_every_op_is_public():
    for name in REGISTRY:
        assert getattr(fastgen.ops, name) is REGISTRY[name].public
        assert callable(getattr(fastgen.ops, f"{name}_reference"))
