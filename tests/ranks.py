"""Runs a function on every rank of a process group. One server imports PyTorch, and each rank is forked from it."""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed

ROOT = Path(__file__).parents[1]
FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(
    ["pytest", "torch.distributed", "fastgen.nn", "fastgen.density", "fastgen.metrics", "fastgen.train"]
)
# A rank finds its function by the name of the function's module. Last, so that fastgen is the one under test.
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))


def run_on_ranks(function: Callable[..., None], *arguments: Any, world_size: int = 2) -> None:
    """Call `function(rank, *arguments)` on every rank; where one fails, its traceback is on stderr."""
    with tempfile.TemporaryDirectory() as folder:
        meeting = (Path(folder) / "meeting").as_uri()
        ranks = [
            FORKSERVER.Process(target=_rank, args=(function, rank, world_size, meeting, arguments))
            for rank in range(world_size)
        ]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join(120)
            rank.kill()
    assert [rank.exitcode for rank in ranks] == [0] * world_size


def _rank(function: Callable[..., None], rank: int, world_size: int, meeting: str, arguments: tuple) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world_size)
    function(rank, *arguments)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
