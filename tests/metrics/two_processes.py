"""Every metric of features on two processes, of which one has no generated example but many real ones."""

import pytest
import torch

from fastgen.metrics import (
    AnnealedLogLikelihood,
    BitsPerDimension,
    ClipMaximumMeanDiscrepancy,
    DensityCoverage,
    FeatureLikelihoodDivergence,
    FrechetInceptionDistance,
    GaussianDecoder,
    InceptionScore,
    KernelInceptionDistance,
    ModeCoverage,
    MultiscaleStructuralSimilarity,
    ParzenLogLikelihood,
    PerceptualPathLength,
    PrecisionRecall,
    SlicedWasserstein,
    StructuralSimilarity,
)

_generator = torch.Generator().manual_seed(5)
REAL = torch.randn(90, 6, generator=_generator)
FAKE = 0.3 + torch.randn(64, 6, generator=_generator)
BATCH = 16


def metrics():
    """A fresh one of each, by name."""
    decoder = GaussianDecoder(lambda z: torch.cat([z, z * z, z.sin()], 1), 0.5)
    return {
        "fid": FrechetInceptionDistance("given"),
        "kid": KernelInceptionDistance("given", subsets=4, subset_size=20),
        "cmmd": ClipMaximumMeanDiscrepancy("given"),
        "pr": PrecisionRecall("given"),
        "dc": DensityCoverage("given"),
        "swd": SlicedWasserstein("given", num_projections=32),
        "parzen": ParzenLogLikelihood("given"),
        "modes": ModeCoverage("given"),
        "is": InceptionScore("given", splits=4),
        "fld": FeatureLikelihoodDivergence("given"),
        "ssim": StructuralSimilarity(data_range=4.0),
        "ms_ssim": MultiscaleStructuralSimilarity(data_range=4.0, weights=(0.5, 0.5)),
        "bpd": BitsPerDimension(3),
        "ais": AnnealedLogLikelihood(decoder.log_likelihood, 2, chains=2, steps=5, leapfrog_steps=2),
        "ppl": PerceptualPathLength(lambda a, b: (a - b).square().sum(1), full=False, epsilon=1e-2),
    }


def feed(name, metric, batch, real):
    """Give a batch to a metric, in the way of its own."""
    if name == "fld":
        metric.update(batch, "generated" if not real else "train")
        if real:
            metric.update(batch + 0.1, "test")
    elif name == "is":
        if not real:
            metric.update(batch)
    elif name in ("ssim", "ms_ssim"):
        if real:
            images = batch.repeat(1, 54)[:, :324].view(-1, 1, 18, 18).repeat(1, 1, 2, 2)
            metric.update(images, images.flip(2))
    elif name == "bpd":
        metric.update(batch[:, 0])
    elif name == "ais":
        if not real:
            metric.update(batch.double())
    elif name == "ppl":
        if real:
            metric.update(torch.exp, batch.double(), batch.double().flip(1))
    else:
        metric.update(batch, real=real)


def numbers(of, real, fake, share=lambda i: True):
    """What the metrics say of the batches of `real` and `fake` that are this process' own."""
    found = {}
    for name, metric in of.items():
        for rows, is_real in ((real, True), (fake, False)):
            for i, batch in enumerate(rows.split(BATCH)):
                if share(i, is_real) if share.__code__.co_argcount == 2 else share(i):
                    feed(name, metric, batch, is_real)
        value = metric.compute()
        if isinstance(value, dict):
            found |= {f"{name}_{key}": number.item() for key, number in value.items()}
        elif isinstance(value, tuple):
            found |= {f"{name}_{i}": number.item() for i, number in enumerate(value)}
        else:
            found[name] = value.item()
    return found


def worker(rank, whole):
    """`whole` is what one process finds that has every batch."""
    # Every other real batch, and all generated ones on the first process.
    found = numbers(metrics(), REAL, FAKE, lambda i, real: i % 2 == rank if real else rank == 0)
    assert found.keys() == whole.keys() and len(found) > 15
    for name, value in whole.items():
        assert found[name] == pytest.approx(value, rel=1e-9, abs=1e-12), name
