"""The C++ executor against the Python one and against the networks themselves: outputs, draws, threads, bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastgen.sampling import CachedSampler, LogisticMixture, naive_sample, uniform_noise
from fastgen.sampling.program import POINTWISE, Node, Program, View
from fastgen.sampling.run import native as session_module
from fastgen.sampling.run.native import NativeSession, why_unavailable
from fastgen.sampling.run.reference import ReferenceSession
from tests.sampling.exactness import draw_of_levels
from tests.sampling.random_networks import RandomNetwork, causal_mask

pytestmark = pytest.mark.skipif(why_unavailable() is not None, reason=str(why_unavailable()))

CPU = torch.backends.cpu.get_cpu_capability()
ISAS = [isa for isa in ("AVX2", "AVX512") if isa <= CPU]
# Float32 outputs against float64, relative to the largest.
FLOAT32_TOLERANCE = 5e-6


@pytest.fixture(params=ISAS)
def isa(request, monkeypatch):
    monkeypatch.setenv("FASTGEN_CPU_CAPABILITY", request.param)
    return request.param


@pytest.fixture
def two_threads():
    """A pool of two, whatever the environment asks for."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


class Masked(nn.Conv2d):
    """A masked convolution whose mask also orders the colours at the centre."""

    def __init__(self, kind, in_channels, out_channels, kernel_size, colors=1):
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2, dtype=torch.float64)
        mask = causal_mask(kind if colors == 1 else "A", kernel_size, kernel_size).expand_as(self.weight).clone()
        if colors > 1:
            own = (torch.arange(out_channels) * colors // out_channels)[:, None]
            other = (torch.arange(in_channels) * colors // in_channels)[None]
            centre = other < own if kind == "A" else other <= own
            mask[:, :, kernel_size // 2, kernel_size // 2] = centre.double()
        self.register_buffer("mask", mask)

    def forward(self, x):
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=self.padding)


class Net(nn.Module):
    """A masked network with a gate, a residual, and (where asked) labels."""

    def __init__(self, parameters, channels=1, hidden=20, colors=1, classes=0):
        super().__init__()
        self.first = Masked("A", channels, hidden - hidden % colors, 5, colors)
        hidden = hidden - hidden % colors
        self.gates = nn.ModuleList(Masked("B", hidden, hidden, 3, colors) for _ in range(2))
        self.last = Masked("B", hidden, parameters, 1, colors)
        self.embedding = nn.Embedding(classes, hidden, dtype=torch.float64) if classes else None

    def forward(self, x, labels=None):
        h = self.first(x)
        if self.embedding is not None:
            h = h + self.embedding(labels)[:, :, None, None]
        h = h + torch.tanh(self.gates[0](h)) * torch.sigmoid(self.gates[1](h))
        return self.last(F.elu(h))


def program_of(net, shape, draw=None, **options):
    return CachedSampler(net, shape, draw=draw or draw_of_levels(), method="cpp", **options).program


def image(program, batch, dtype=torch.float64):
    return torch.randn(batch, program.channels, program.height, program.width, dtype=dtype)


def assert_close(got, expected, tolerance):
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=tolerance * float(expected.abs().max()))


@pytest.fixture(scope="module")
def small():
    """A network, its program for 5 x 6 images of 5 levels, and its draw."""
    torch.manual_seed(0)
    net, draw = Net(5), draw_of_levels()
    return net, program_of(net, (1, 5, 6), draw), draw


@pytest.mark.parametrize("seed", range(30))
def test_random_networks_draw_what_naive_sampling_draws(seed, monkeypatch):
    draw, batch, shape = draw_of_levels(9), 1 + seed * 7 % 30, (1, 4 + seed % 3, 5)
    net = RandomNetwork(seed).eval()
    program = program_of(net, shape, draw)
    x, noise = image(program, batch), uniform_noise(program.steps, batch, draw)
    with torch.no_grad():
        outputs = net(x)
    levels = naive_sample(net, shape, noise, draw=draw, dtype=torch.float64)
    for isa in ISAS:
        monkeypatch.setenv("FASTGEN_CPU_CAPABILITY", isa)
        session = NativeSession(program, batch, torch.float64, draw)
        assert_close(session.teacher_force(x), outputs, 1e-12)
        assert torch.equal(session.run(noise), levels)
        assert_close(NativeSession(program, batch, torch.float32).teacher_force(x.float()), outputs, FLOAT32_TOLERANCE)


@pytest.mark.parametrize("batch", [1, 2, 13, 30])
def test_every_batch_and_number_of_threads(small, isa, batch, two_threads):
    _, program, draw = small
    noise, x = uniform_noise(program.steps, batch, draw), image(program, batch)
    reference = ReferenceSession(program, batch, torch.float64, draw)
    outputs, levels = reference.teacher_force(x), reference.run(noise)
    for threads in (1, 2, 3):
        session = NativeSession(program, batch, torch.float64, draw, threads=threads)
        for _ in range(2):
            assert_close(session.teacher_force(x), outputs, 1e-13)
            assert torch.equal(session.run(noise), levels)
        single = NativeSession(program, batch, torch.float32, draw, threads=threads)
        assert_close(single.teacher_force(x.float()), outputs, FLOAT32_TOLERANCE)


def test_a_wide_network_shared_by_two_threads_and_in_many_chunks(isa, two_threads):
    """Convolutions large enough to be shared, with more columns than one block, and rows that fill several chunks."""
    draw = draw_of_levels(40)
    net = Net(40, hidden=100)
    program = program_of(net, (1, 3, 12), draw)
    for batch, threads in ((1, 2), (17, 1)):
        x, noise = image(program, batch), uniform_noise(program.steps, batch, draw)
        reference = ReferenceSession(program, batch, torch.float64, draw)
        session = NativeSession(program, batch, torch.float64, draw, threads=threads)
        assert_close(session.teacher_force(x), reference.teacher_force(x), 1e-13)
        assert torch.equal(session.run(noise), reference.run(noise))


def test_more_workers_than_the_pool_has_threads(small, two_threads):
    """Whoever is asked for more threads than torch gives still draws the same images."""
    _, program, draw = small
    noise = uniform_noise(program.steps, 2, draw)
    expected = ReferenceSession(program, 2, torch.float64, draw).run(noise)
    session = NativeSession(program, 2, torch.float64, draw, threads=8)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        assert torch.equal(session.run(noise), expected)


def test_ordered_colors(isa):
    draw = draw_of_levels()
    program = program_of(Net(15, channels=3, hidden=12, colors=3), (3, 4, 5), draw, colors=3)
    x, noise = image(program, 3), uniform_noise(program.steps, 3, draw)
    reference = ReferenceSession(program, 3, torch.float64, draw)
    session = NativeSession(program, 3, torch.float64, draw)
    assert_close(session.teacher_force(x), reference.teacher_force(x), 1e-13)
    assert torch.equal(session.run(noise), reference.run(noise))


@pytest.mark.parametrize("channels", [1, 3])
def test_logistic_mixture(isa, channels):
    draw = LogisticMixture(channels, num_mixtures=3, levels=64)
    program = program_of(Net(draw.num_parameters, channels=channels), (channels, 5, 4), draw)
    noise = uniform_noise(program.steps, 4, draw)
    noise[0, 0], noise[1, 0] = 0.0, 1 - 2**-53
    expected = ReferenceSession(program, 4, torch.float64, draw).run(noise)
    assert torch.equal(NativeSession(program, 4, torch.float64, draw).run(noise), expected)
    assert expected.unique().numel() > 10


def test_labels(small, isa):
    net, draw = Net(5, classes=4), draw_of_levels()
    labels = torch.tensor([3, 0, 1])
    sampler = CachedSampler(net, (1, 4, 5), draw=draw, condition=torch.tensor([0, 1]), method="cpp")
    noise = uniform_noise(sampler.steps, 3, draw)
    images = sampler.sample(3, noise=noise, labels=labels)
    for other in (labels, labels.flip(0)):
        expected = naive_sample(net, (1, 4, 5), noise, draw=draw, condition=other, dtype=torch.float64)
        assert torch.equal(sampler.sample(3, noise=noise, labels=other), expected)
    assert not torch.equal(images, expected)
    session = NativeSession(sampler.program, 3, torch.float64, draw)
    with pytest.raises(ValueError, match=r"constants: nodes .* depend on the condition"):
        session.run(noise)


@pytest.mark.parametrize("threads", [1, 2])
def test_partial_images(small, isa, threads):
    _, program, draw = small
    noise = uniform_noise(program.steps, 3, draw)
    given = torch.randint(0, 5, (3, 1, 5, 6))
    mask = torch.rand(3, 1, 5, 6) < 0.4
    # Levels that are not given are not looked at.
    given[~mask] = -7
    session = NativeSession(program, 3, torch.float64, draw, threads=threads)
    drawn = session.run(noise, given, mask)
    assert torch.equal(drawn, ReferenceSession(program, 3, torch.float64, draw).run(noise, given, mask))
    assert torch.equal(drawn[mask], given[mask])


def test_steps_are_the_outputs_of_a_known_image(small):
    _, program, draw = small
    x = image(program, 3)
    session = NativeSession(program, 3, torch.float64, draw)
    expected = session.teacher_force(x).flatten(2)
    for step in range(program.steps):
        assert torch.equal(session.step(step), expected[..., step])
        session.feed(step, x.flatten(2)[..., step])
    session.reset()
    assert torch.equal(session.step(0), expected[..., 0])


def test_other_draws_run_step_by_step(small):
    _, program, draw = small

    class Largest:
        """The most likely level, whatever the noise."""

        uniforms, channels, num_parameters, table = 1, 1, draw.num_parameters, draw.table

        def __call__(self, parameters, uniforms):
            return parameters.argmax(1, keepdim=True)

    noise = uniform_noise(program.steps, 2, draw)
    expected = ReferenceSession(program, 2, torch.float64, Largest()).run(noise)
    assert torch.equal(NativeSession(program, 2, torch.float64, Largest()).run(noise), expected)


def pointwise_program(function, scalars, channels, scale=None, shift=None):
    """One function of the pixel above, on an image one pixel wide; the output has `channels` of it."""
    operands = POINTWISE[function].operands
    above = View(0, -1, 0, (1, 2, 0, 1), 0, channels, 2, 1)
    other = View(1, -1, 0, (1, 2, 0, 1), 0, channels, 2, 1)
    made = 2 * channels if function == "concat_elu" else channels
    nodes = [
        Node("input", channels, 2, 1),
        Node("constant", channels, 2, 1, data=torch.randn(1, 1, 1, channels, dtype=torch.float64)),
        Node(
            "pointwise",
            made,
            2,
            1,
            operands=[above, other][:operands],
            function=function,
            scalars=scalars,
            scale=scale,
            shift=shift,
        ),
    ]
    events = np.array([[0, 2, 0, 0, 1], [1, 2, 1, 0, 1]], dtype=np.int32)
    return Program(
        height=2,
        width=1,
        colors=1,
        channels=channels,
        nodes=nodes,
        outputs=[View(2, 0, 0, (0, 2, 0, 1), 0, made, 2, 1)],
        inputs=[0],
        events=events,
        rings=[(2, 1), (1, 1), (2, 1)],
        grain=["input", "constant", "pixel"],
    )


SCALARS = {
    "elu": (0.7,),
    "leaky_relu": (0.1,),
    "softplus": (2.0, 20.0),
    "clamp": (-0.5, float("inf")),
    "pow": (3.0,),
}
# A sum that cancels: the error is relative to its terms.
CANCELLING = {"gelu", "gelu_tanh", "affine"}
SPECIAL = [0.0, -0.0, float("inf"), -float("inf"), float("nan"), 1e-40, -1e-40, 1e-30, 88.7, -103.0, 300.0, -300.0]
POINTS = torch.cat([torch.tensor(SPECIAL), torch.linspace(-30, 30, 301), torch.logspace(-8, 1, 60)]).double()


@pytest.mark.parametrize("function", POINTWISE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pointwise_functions(function, dtype, isa):
    x = torch.cat([POINTS, -POINTS]).to(dtype).double()
    scale, shift = (
        (torch.randn(len(x), dtype=torch.float64) for _ in range(2)) if function == "affine" else (None, None)
    )
    program = pointwise_program(function, SCALARS.get(function, ()), len(x), scale, shift)
    values = torch.stack([x, x], -1)[None, :, :, None]
    expected = ReferenceSession(program, 1, torch.float64).teacher_force(values)[0, :, 1, 0]
    got = NativeSession(program, 1, dtype).teacher_force(values)[0, :, 1, 0].double()
    in_torch = ReferenceSession(program, 1, dtype).teacher_force(values)[0, :, 1, 0].double()
    rounded = expected.to(dtype).double()
    finite = rounded.isfinite()
    torch.testing.assert_close(got[~finite], rounded[~finite], equal_nan=True)
    # A few units in the last place, or twice torch's own error; what is not a normal number counts as zero.
    scale = torch.maximum(expected.abs(), x.abs() if function in CANCELLING else torch.zeros(()))
    unit = torch.finfo(dtype).eps * scale[finite]
    error_in_torch = (in_torch - expected)[finite].abs().nan_to_num(0)
    allowed = 8 * unit + 2 * error_in_torch + torch.finfo(dtype).tiny
    error = (got[finite] - expected[finite]).abs()
    worst = (error - allowed).argmax()
    assert (error <= allowed).all(), f"{function}: {got[finite][worst]} in place of {expected[finite][worst]}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nan_comes_out_where_it_goes_in(small, isa, dtype):
    _, program, draw = small
    x = image(program, 2, dtype)
    x[1, 0, 2, 3] = float("nan")
    expected = ReferenceSession(program, 2, dtype).teacher_force(x).isnan()
    session = NativeSession(program, 2, dtype, draw)
    assert torch.equal(session.teacher_force(x).isnan(), expected)
    assert expected[1].any() and not expected[0].any()
    # Nothing of it is left in the next image.
    assert session.teacher_force(torch.zeros_like(x)).isfinite().all()


@pytest.mark.parametrize("kind", ["categorical", "logistic_mixture"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_distribution_is_an_error(kind, value):
    draw = draw_of_levels() if kind == "categorical" else LogisticMixture(1, num_mixtures=2)
    net = Net(draw.num_parameters)
    program = program_of(net, (1, 3, 4), draw)
    last = program.nodes[program.outputs[0].node]
    last.bias = last.bias.clone()
    last.bias[1] = value
    noise = uniform_noise(program.steps, 2, draw)
    for threads, batch in ((1, 2), (2, 1)):
        session = NativeSession(program, batch, torch.float32, draw, threads=threads)
        with pytest.raises(ValueError, match="not finite at row 0, column 0"):
            session.run(noise[:, :batch])


def test_a_level_of_probability_zero_is_never_drawn(small, isa):
    net, draw = Net(5), draw_of_levels()
    program = program_of(net, (1, 3, 4), draw)
    last = program.nodes[program.outputs[0].node]
    last.bias = torch.tensor([float("-inf"), 0, float("-inf"), 0, float("-inf")], dtype=torch.float64)
    noise = uniform_noise(program.steps, 8, draw)
    noise[:, 0], noise[:, 1] = 0.0, 1 - 2**-53
    for dtype in (torch.float32, torch.float64):
        levels = NativeSession(program, 8, dtype, draw).run(noise)
        assert set(levels.unique().tolist()) == {1, 3}


def test_explain_and_bytes(small):
    _, program, draw = small
    session = NativeSession(program, 4, torch.float32, draw, threads=2)
    rows = session.explain()
    assert [row["grain"] for row in rows] == program.grain
    assert sum(row["weight_bytes"] for row in rows) == 4 * sum(row["weights"] for row in rows) > 0
    # Rings are padded, and no smaller than what they hold; weights likewise.
    assert session.bytes >= 4 * sum(row["ring_bytes"] for row in rows if row["op"] not in ("input", "constant"))
    assert session.weight_bytes >= sum(row["weight_bytes"] for row in rows)


BAD_RUNS = {
    "noise of another batch": (lambda n, g, m: (n[:, :1], None, None), "noise: expected float64"),
    "noise of another dtype": (lambda n, g, m: (n.float(), None, None), "noise: expected float64"),
    "noise of one": (lambda n, g, m: (torch.ones_like(n), None, None), r"noise: expected numbers in \[0, 1\)"),
    "noise below zero": (lambda n, g, m: (n - 1.5, None, None), r"noise: expected numbers in \[0, 1\)"),
    "noise that is NaN": (lambda n, g, m: (n * float("nan"), None, None), r"noise: expected numbers in \[0, 1\)"),
    "given without mask": (lambda n, g, m: (n, g, None), "given, mask: expected both"),
    "given of another dtype": (lambda n, g, m: (n, g.double(), m), "given: expected int64"),
    "given of another shape": (lambda n, g, m: (n, g[:, :, :3], m), "given: expected int64"),
    "given beyond the levels": (lambda n, g, m: (n, g + 5, m), "given: expected levels 0..4"),
    "mask of another dtype": (lambda n, g, m: (n, g, m.int()), "mask: expected bool"),
}


@pytest.mark.parametrize("case", BAD_RUNS)
def test_bad_arguments_of_run(small, case):
    _, program, draw = small
    make, message = BAD_RUNS[case]
    noise, given, mask = make(
        uniform_noise(program.steps, 2, draw), torch.zeros(2, 1, 5, 6).long(), torch.ones(2, 1, 5, 6).bool()
    )
    with pytest.raises(ValueError, match=message):
        NativeSession(program, 2, torch.float64, draw).run(noise, given, mask)


def test_bad_arguments(small):
    _, program, draw = small
    with pytest.raises(ValueError, match="batch: expected at least 1, got 0"):
        NativeSession(program, 0)
    with pytest.raises(TypeError, match="dtype: expected float32 or float64"):
        NativeSession(program, 1, torch.float16)
    with pytest.raises(ValueError, match="threads: expected at least 1, got 0"):
        NativeSession(program, 1, threads=0)
    with pytest.raises(ValueError, match="draw: expects 9 parameters a step, the network makes 5"):
        NativeSession(program, 1, draw=draw_of_levels(9))
    session = NativeSession(program, 2)
    with pytest.raises(ValueError, match="draw: this session was made without one"):
        session.run(uniform_noise(program.steps, 2, draw))
    with pytest.raises(ValueError, match=r"x: expected \[2, 1, 5, 6\], got shape \(2, 5, 6\)"):
        session.teacher_force(torch.zeros(2, 5, 6))
    with pytest.raises(ValueError, match="step: expected 0 of 30, got 1"):
        session.step(1)
    with pytest.raises(ValueError, match=r"values: expected \[2, 1\], got shape \(2,\)"):
        session.feed(0, torch.zeros(2))
    with pytest.raises(ValueError, match="step: expected 0 of 30, got 3"):
        session.feed(3, torch.zeros(2, 1))
    with pytest.raises(ValueError, match="constants: node 0 "):
        session.set_constants({0: torch.zeros(1, 1, 1, 1)})


def broken(program, **changes):
    fields = {name: getattr(program, name) for name in Program.__dataclass_fields__}
    return Program(**{**fields, **changes})


def test_a_program_that_reads_or_writes_out_of_bounds_is_refused(small):
    _, program, _ = small
    for column, value, message in (
        (0, program.steps, "events: expected steps"),
        (1, len(program.nodes), "events: expected indices"),
        (1, 0, "events: inputs and constants"),
        (2, 99, "events: a row is outside"),
        (3, -1, "events: columns are outside"),
        (4, 99, "events: columns are outside"),
    ):
        events = program.events.copy()
        events[-1, column] = value
        with pytest.raises(ValueError, match=message):
            NativeSession(broken(program, events=events), 1)
    output = program.outputs[0]
    for view, message in (
        (View(99, 0, 0, output.rect, 0, 5, 5, 6), "outputs: reads a node that is not there"),
        (View(output.node, 1, 0, output.rect, 0, 5, 5, 6), "outputs: reads positions"),
        (View(output.node, 0, 0, output.rect, 1, 5, 5, 6), "outputs: reads channels"),
    ):
        with pytest.raises(ValueError, match=message):
            NativeSession(broken(program, outputs=[view]), 1)


def test_a_machine_that_cannot_run_it_says_why(small, monkeypatch):
    monkeypatch.setattr(session_module, "cpu_capability", lambda: "DEFAULT")
    assert why_unavailable() == "no kernels for this CPU (default)"
    with pytest.raises(RuntimeError, match="cannot run here: no kernels for this CPU"):
        NativeSession(small[1], 1)


def test_the_build_report():
    from fastgen import _host

    report = _host.report()
    assert report["isas"] == ["avx2", "avx512"]
    assert report["cpp_standard"] >= 201703
    assert report["compiler"]
