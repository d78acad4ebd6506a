"""Vector quantisation has the paper's gradients and averages, loses no code, and learns clusters."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastgen.nn import ResidualVectorQuantizer, VectorQuantizer
from tests.ranks import run_on_ranks


def clusters(k: int, d: int, n: int, spread: float = 0.05) -> torch.Tensor:
    centres = 3 * torch.randn(k, d)
    return centres[torch.randint(k, (n,))] + spread * torch.randn(n, d)


def test_shapes_and_values():
    layer = VectorQuantizer(8, 4).eval()
    x = torch.randn(2, 4, 5, 6)
    quantized, indices, loss, perplexity = layer(x)
    assert quantized.shape == x.shape and indices.shape == (2, 5, 6)
    assert torch.equal(quantized, layer.codebook[indices].movedim(-1, 1)) and torch.equal(
        layer.decode(indices), quantized
    )
    torch.testing.assert_close(loss, 0.25 * (x - quantized).square().mean())
    assert 1 <= float(perplexity) <= 8
    last = VectorQuantizer(8, 4, feature_dim=-1).eval()
    last.load_state_dict(layer.state_dict())
    assert torch.equal(last(x.movedim(1, -1)).quantized, quantized.movedim(1, -1))
    assert torch.equal(last.decode(indices), quantized.movedim(1, -1))


def test_gradient_is_straight_through_and_of_the_commitment():
    layer, x = VectorQuantizer(8, 4, commitment=0.5), torch.randn(6, 4, requires_grad=True)
    found = layer(x)
    grad = torch.randn(6, 4)
    assert torch.equal(*torch.autograd.grad(found.quantized, x, grad, retain_graph=True), grad)
    (of_loss,) = torch.autograd.grad(found.loss, x)
    torch.testing.assert_close(of_loss, 0.5 * 2 * (x - found.quantized).detach() / x.numel())


def test_moving_averages_are_the_papers():
    layer = VectorQuantizer(5, 3, decay=0.9, restart_below=0.0)
    x = torch.randn(40, 3)
    counts, sums = torch.ones(5), layer.codebook.clone()
    for _ in range(3):
        indices = torch.cdist(x, layer.codebook).argmin(1)
        counts = 0.9 * counts + 0.1 * torch.bincount(indices, minlength=5)
        sums = 0.9 * sums + 0.1 * torch.zeros(5, 3).index_add(0, indices, x)
        assert torch.equal(layer(x).indices, indices)
        torch.testing.assert_close(layer.codebook, sums / counts[:, None])


def test_evaluation_changes_nothing():
    layer = VectorQuantizer(5, 3).eval()
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    layer(torch.randn(20, 3))
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_the_first_batch_gives_the_codes():
    layer, x = VectorQuantizer(6, 3), clusters(6, 3, 500)
    layer(x + 100)
    # Far from where they were drawn, all of them are vectors of the batch.
    distances = torch.cdist(layer.codebook, x + 100).amin(1)
    assert bool(layer.started) and float(distances.max()) < 1e-4


def test_no_code_stays_dead():
    x = clusters(16, 4, 2000)
    used = {}
    for restart_below in (0.0, 0.05):
        torch.manual_seed(1)
        layer = VectorQuantizer(16, 4, decay=0.9, restart_below=restart_below)
        with torch.no_grad():
            layer.codebook.mul_(0.01).add_(10)
            layer.average_sums.copy_(layer.codebook)
            layer.started.fill_(True)
        for _ in range(120):
            layer(x)
        used[restart_below] = float(layer.eval()(x).perplexity)
    assert used[0.0] < 4 and used[0.05] > 10


def test_learns_clusters():
    x = clusters(10, 4, 3000)
    layer = VectorQuantizer(30, 4, decay=0.9)
    for _ in range(100):
        layer(x)
    error = (layer.eval()(x).quantized - x).square().sum(1).mean()
    # That of a code in every cluster is the spread's own.
    assert float(error) < 2 * 4 * 0.05**2


def test_a_learned_codebook():
    layer = VectorQuantizer(5, 3, decay=None, commitment=0.25)
    assert [name for name, _ in layer.named_parameters()] == ["codebook"] and not list(layer.buffers())
    x = torch.randn(40, 3)
    found = layer(x)
    found.loss.backward()
    expected = (
        torch.zeros(5, 3).index_add(0, found.indices, 2 * (layer.codebook[found.indices] - x).detach()) / x.numel()
    )
    torch.testing.assert_close(layer.codebook.grad, expected)
    torch.testing.assert_close(found.loss, 1.25 * (x - found.quantized).square().mean())


def test_nan_does_not_poison_the_codebook():
    layer = VectorQuantizer(5, 3)
    layer(torch.randn(40, 3))
    x = torch.randn(40, 3)
    x[3] = torch.nan
    found = layer(x)
    assert found.loss.isnan() and layer.codebook.isfinite().all() and layer.average_counts.isfinite().all()


def test_an_empty_batch_changes_no_code():
    layer = VectorQuantizer(5, 3)
    before = layer.codebook.clone()
    layer(torch.zeros(0, 3))
    torch.testing.assert_close(layer.codebook, before)
    assert not layer.started


def test_state_goes_with_the_checkpoint():
    layer, other = VectorQuantizer(5, 3), VectorQuantizer(5, 3)
    layer(torch.randn(40, 3))
    other.load_state_dict(layer.state_dict())
    x = torch.randn(40, 3)
    torch.manual_seed(5)
    first = layer(x)
    torch.manual_seed(5)
    second = other(x)
    assert torch.equal(first.quantized, second.quantized) and torch.equal(layer.codebook, other.codebook)


def test_compiles_and_runs_under_autocast():
    layer = VectorQuantizer(8, 4).eval()
    x = torch.randn(2, 4, 3, 3)
    expected = layer(x)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = layer(x.bfloat16())
    assert found.quantized.dtype == torch.bfloat16 and found.loss.dtype == torch.float32


def test_residual_stages_refine():
    x = torch.randn(4000, 4)
    errors = []
    for stages in (1, 2, 4):
        torch.manual_seed(2)
        layer = ResidualVectorQuantizer(stages, 16, 4, decay=0.8)
        for _ in range(40):
            layer(x)
        found = layer.eval()(x)
        assert found.indices.shape == (4000, stages) and found.perplexity.shape == (stages,)
        torch.testing.assert_close(layer.decode(found.indices), found.quantized)
        errors.append(float((found.quantized - x).square().mean()))
    assert errors[0] > 1.5 * errors[1] > 1.5**2 * errors[2]


def test_residual_gradient():
    layer, x = ResidualVectorQuantizer(3, 8, 4).eval(), torch.randn(6, 4, 5, requires_grad=True)
    found = layer(x)
    assert found.quantized.shape == x.shape and found.indices.shape == (6, 5, 3)
    (grad,) = torch.autograd.grad(found.quantized.sum(), x, retain_graph=True)
    assert torch.equal(grad, torch.ones_like(x))
    assert torch.autograd.grad(found.loss, x)[0].abs().sum() > 0


def test_trains_inside_a_model():
    """An autoencoder of two linear layers with a codebook between them: every part gets better together."""
    x = clusters(8, 6, 512, 0.01)
    encoder, layer, decoder = nn.Linear(6, 2), VectorQuantizer(16, 2, decay=0.9), nn.Linear(2, 6)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-2)
    losses = []
    for _ in range(200):
        found = layer(encoder(x))
        loss = (decoder(found.quantized) - x).square().mean() + found.loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_codes": 0}, "num_codes: expected a positive int, got 0"),
        ({"code_dim": 0}, "code_dim: expected a positive int, got 0"),
        ({"decay": 1.0}, r"decay: expected a number in \[0, 1\) or None, got 1.0"),
        ({"commitment": -1.0}, "commitment: expected at least 0, got -1.0"),
        ({"restart_below": 1.0}, r"restart_below: expected a share in \[0, 1\), got 1.0"),
    ],
)
def test_bad_options(arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        VectorQuantizer(**{"num_codes": 4, "code_dim": 2, **arguments})


def test_bad_inputs():
    with pytest.raises(ValueError, match=r"x: expected 2 features at 1, got \(4, 3\)"):
        VectorQuantizer(4, 2)(torch.zeros(4, 3))
    with pytest.raises(TypeError, match="x: expected a floating dtype"):
        VectorQuantizer(4, 2)(torch.zeros(4, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="num_quantizers: expected a positive int, got 0"):
        ResidualVectorQuantizer(0, 4, 2)


def test_two_processes_move_one_codebook():
    alone = seeded_layer(restart_below=0.0)
    for batch in three_batches():
        alone(batch)
    run_on_ranks(half_of_each_batch, alone.codebook.numpy())


def seeded_layer(**options) -> VectorQuantizer:
    torch.manual_seed(7)
    return VectorQuantizer(6, 3, decay=0.5, **options)


def three_batches() -> torch.Tensor:
    return torch.randn(3, 40, 3, generator=torch.Generator().manual_seed(1))


def half_of_each_batch(rank: int, codebook_of_one_process) -> None:
    shared, restarted = seeded_layer(restart_below=0.0), seeded_layer()
    torch.manual_seed(rank)
    for batch in three_batches():
        # Each process has half of the batch, of different size.
        half = batch[:15] if rank == 0 else batch[15:]
        shared(half)
        restarted(half)
    # Both have the codes of one process with the whole batch.
    torch.testing.assert_close(shared.codebook, torch.from_numpy(codebook_of_one_process))
    # And the same ones where codes start again from random rows.
    codebooks = [torch.empty_like(restarted.codebook) for _ in range(2)]
    torch.distributed.all_gather(codebooks, restarted.codebook)
    assert torch.equal(*codebooks) and codebooks[0].isfinite().all()
