"""Two processes move one codebook as one process does."""

from __future__ import annotations

import subprocess
import sys

import torch

from fastgen.nn import VectorQuantizer


def test_two_processes_move_one_codebook(tmp_path):
    meeting = (tmp_path / "meeting").as_uri()
    workers = [subprocess.Popen([sys.executable, __file__, str(rank), meeting]) for rank in range(2)]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]


def layer(**options) -> VectorQuantizer:
    torch.manual_seed(7)
    return VectorQuantizer(6, 3, decay=0.5, **options)


def worker(rank: int, meeting: str) -> None:
    torch.set_num_threads(1)
    x = torch.randn(3, 40, 3, generator=torch.Generator().manual_seed(1))
    alone = layer(restart_below=0.0)
    for batch in x:
        alone(batch)
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    shared, restarted = layer(restart_below=0.0), layer()
    torch.manual_seed(rank)
    for batch in x:
        # Each process has half of the batch, of different size.
        half = batch[:15] if rank == 0 else batch[15:]
        shared(half)
        restarted(half)
    # Both have the codes of one process with the whole batch.
    torch.testing.assert_close(shared.codebook, alone.codebook)
    # And the same ones where codes start again from random rows.
    codebooks = [torch.empty_like(restarted.codebook) for _ in range(2)]
    torch.distributed.all_gather(codebooks, restarted.codebook)
    assert torch.equal(*codebooks) and codebooks[0].isfinite().all()
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    worker(int(sys.argv[1]), sys.argv[2])
