"""The schedule: every read after its write and before the next one, the coarsest grain, the smallest rings."""

import numpy as np
import pytest
import torch
from torch import nn

from fastgen.sampling.schedule import schedule
from fastgen.sampling.schedule.causality import output_read, output_times, reads
from fastgen.sampling.schedule.simplify import simplify
from fastgen.sampling.trace import trace
from tests.sampling.exactness import assert_same_outputs
from tests.sampling.random_networks import Masked, RandomNetwork
from tests.sampling.test_trace import TwoStacks

SHAPE = (1, 6, 7)


def program_of(model, shape=SHAPE, **options):
    return schedule(simplify(trace(model.eval(), shape).graph), **options)


def steps_of(program):
    """The step at which each position of each node is written, from the events alone; -1 where it never is."""
    steps = [np.full((node.height, node.width), -1) for node in program.nodes]
    for index in program.inputs:
        pixels = np.arange(program.height * program.width).reshape(program.height, program.width)
        # The draw of a step writes after everything of that step has run.
        steps[index] = pixels * program.colors + program.nodes[index].color + 0.5
    for step, node, row, begin, end in program.events:
        assert (steps[node][row, begin:end] == -1).all(), "computed twice"
        steps[node][row, begin:end] = step
    return steps


def pairs(read, target_steps, source_steps):
    """(step of the reader, step of the source) of every position that is read by one that is computed."""
    inside = (read.rows >= 0)[:, None] & (read.cols >= 0) & (target_steps >= 0)
    row, col = np.nonzero(inside)
    return target_steps[row, col], source_steps[read.rows[row], read.cols[col]], read.rows[row], read.cols[col]


@pytest.mark.parametrize("seed", range(10))
def test_everything_is_written_before_it_is_read_and_kept_until_then(seed):
    program = program_of(RandomNetwork(seed))
    steps = steps_of(program)
    last = [np.full(s.shape, -1.0) for s in steps]
    all_reads = [(read, steps[index]) for index, node in enumerate(program.nodes) for read in reads(node)]
    all_reads += [(output_read(program, 0), output_times(program, 0))]
    for read, reader_steps in all_reads:
        if program.nodes[read.node].op == "constant":
            continue
        at, source, row, col = pairs(read, reader_steps, steps[read.node])
        assert (source >= 0).all(), "read and never written"
        assert (source <= at).all(), "read before it is written"
        np.maximum.at(last[read.node], (row, col), at)
    for index, (rows, cols) in enumerate(program.rings):
        if program.nodes[index].op == "constant":
            continue
        for row, col in np.argwhere(steps[index] >= 0):
            same = (np.arange(steps[index].shape[0])[:, None] % rows == row % rows) & (
                np.arange(steps[index].shape[1]) % cols == col % cols
            )
            later = steps[index][same & (steps[index] > steps[index][row, col])]
            assert (later > last[index][row, col]).all(), "overwritten before its last read"


def test_events_are_sorted_by_step_and_then_by_node():
    events = program_of(RandomNetwork(3)).events
    keys = [tuple(event[:2]) for event in events.tolist()]
    assert keys == sorted(keys)
    assert events.dtype == np.int32


def test_the_vertical_stack_runs_by_rows_and_the_horizontal_one_by_pixels():
    program = program_of(TwoStacks())
    grain = {}
    for node, kind in zip(program.nodes, program.grain, strict=True):
        grain.setdefault(node.module, set()).add(kind)
    assert grain["vertical.1"] == {"row"}
    assert grain["out.1"] == {"pixel"}
    assert grain["head"] == {"pixel"}


def test_horizontal_layers_keep_two_pixels():
    program = program_of(TwoStacks(), (1, 12, 13))
    rings = {node.module: ring for node, ring in zip(program.nodes, program.rings, strict=True)}
    assert rings["out.0"] == (1, 2)
    assert all(rows <= 2 for ring in rings.values() for rows in [ring[0]] if ring != (12, 13))


def test_rows_are_split_off_convolutions_that_run_by_pixels():
    model = nn.Sequential(Masked("A", 1, 8, 3), nn.ReLU(), Masked("B", 8, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 1).double())
    split, together = program_of(model), program_of(model, split_rows=False)

    def pixel_weights(program):
        return sum(row["weights"] for row in program.explain() if row["grain"] == "pixel" and row["module"] == "2")

    # Of the five taps of kind B, only the two of the pixel's own row and what the row above knows too late stay.
    assert pixel_weights(split) == 2 * 64 and pixel_weights(together) == 5 * 64
    assert_same_outputs(split, model)
    assert_same_outputs(together, model)


def test_what_depends_on_no_pixel_runs_once():
    class Positional(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = Masked("A", 1, 4, 3)
            self.position = nn.Conv2d(1, 4, 1).double()
            nn.init.zeros_(self.position.weight)
            nn.init.normal_(self.position.bias)
            self.head = nn.Conv2d(4, 5, 1).double()

        def forward(self, x):
            # A weight of zero is no dependency, so this never waits for the image.
            return self.head(self.first(x) + torch.tanh(self.position(x)))

    model = Positional()
    program = program_of(model)
    assert {n.function: grain for n, grain in zip(program.nodes, program.grain, strict=True)}["tanh"] == "once"
    assert_same_outputs(program, model)


def test_dead_positions_have_no_events():
    program = program_of(TwoStacks())
    computed = np.zeros(len(program.nodes))
    np.add.at(computed, program.events[:, 1], program.events[:, 4] - program.events[:, 3])
    vertical = [i for i, node in enumerate(program.nodes) if node.module == "vertical.2"]
    # The last row of the vertical stack reaches no pixel.
    assert all(computed[i] == 5 * 7 for i in vertical)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 3), (1, 3, 1), (1, 2, 2)])
def test_images_smaller_than_the_kernels(shape):
    for model in (TwoStacks(), *(RandomNetwork(seed) for seed in range(6))):
        program = program_of(model, shape)
        assert_same_outputs(program, model)
        # Nothing is left that reads only padding.
        for node in program.nodes:
            assert node.op in ("input", "constant") or all(
                (r.rows >= 0).any() and (r.cols >= 0).any() for r in reads(node)
            )


def test_schedules_are_small_and_quick():
    layers = [module for _ in range(5) for module in (nn.ReLU(), Masked("B", 16, 16, 3))]
    program = program_of(nn.Sequential(Masked("A", 1, 16, 7), *layers, nn.Conv2d(16, 5, 1).double()), (1, 28, 28))
    kept = sum(node.channels * rows * cols for node, (rows, cols) in zip(program.nodes, program.rings, strict=True))
    whole = sum(node.channels * node.height * node.width for node in program.nodes)
    assert kept < whole / 10
