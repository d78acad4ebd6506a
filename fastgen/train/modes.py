"""The watch on a GAN: which modes of the data its samples reach, and by how much the discriminator leads."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastgen.density.kmeans import nearest_centre, spread_centres
from fastgen.ops import knn

# A mode counts as reached where its share among samples is at least this part of its share in the data: one stray
# sample, or one that the nearest neighbour takes for another class, is no mode.
REACHED = 0.1
# Of the data, for the neighbours; clusters of data without classes, and rounds of k-means.
MOST_EXAMPLES = 2000
CLUSTERS, ROUNDS = 20, 30


@dataclass(frozen=True)
class Modes:
    """The modes of the data that samples reach.

    Attributes:
        covered: modes that they reach.
        total: modes that the data have.
        kl: `sum_k q_k log(q_k / p_k)` of the shares q among samples and p in the data, nats.
    """

    covered: int
    total: int
    kl: float


class ModeWatch:
    """Tells samples to modes of the data: classes where there are labels, else clusters.

    A sample is of the class of its nearest example, or of the cluster of the nearest centre (k-means, twenty centres
    spread by k-means++).

    Args:
        examples: [N, ...], real numbers or levels.
        labels: int64 [N], or None.
        seed: of the clusters, and of the choice among very many examples.

    Source: Metz et al., "Unrolled Generative Adversarial Networks" (2017), section 3.3, for modes and KL; Richardson
    and Weiss, "On GANs and GMMs" (2018), section 3, for clusters as modes.
    """

    def __init__(self, examples: Tensor, labels: Tensor | None = None, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(examples), generator=generator)[:MOST_EXAMPLES]
        points = examples.flatten(1)[chosen.to(examples.device)].cpu().float()
        if labels is None:
            points = _cluster(points, min(CLUSTERS, len(points)), generator)
            assigned = nearest_centre(examples.flatten(1)[chosen.to(examples.device)].cpu().float(), points[None])[0]
            labels = torch.arange(len(points))
        else:
            labels = assigned = labels.cpu()[chosen]
        self._points, self._labels = points, labels
        self._shares = torch.bincount(assigned, minlength=int(labels.max()) + 1).double() / len(assigned)

    def __call__(self, samples: Tensor) -> Modes:
        """Modes of samples [n, ...]; those that are not finite are of none."""
        flat = samples.flatten(1).cpu().float()
        flat = flat[flat.isfinite().all(1)]
        present = self._shares > 0
        shares = torch.zeros_like(self._shares)
        if len(flat):
            found = self._labels[knn(flat, self._points, 1)[1][:, 0]]
            shares = torch.bincount(found, minlength=len(shares)).double() / len(samples)
        covered = (present & (shares >= REACHED * self._shares)).sum()
        kl = torch.special.xlogy(shares[present], shares[present] / self._shares[present]).sum()
        return Modes(int(covered), int(present.sum()), kl.item())


def lead(real_outputs: Tensor, fake_outputs: Tensor) -> Tensor:
    """By how much the discriminator tells real from generated: `P(v_real > v_fake) - P(v_real < v_fake)`, in [-1, 1].

    0 where it cannot, 1 where every real example is above every generated one. Depends on the order of the outputs
    alone, so it means the same for every loss. (It is twice the area under the ROC curve, less one.)

    Args:
        real_outputs, fake_outputs: [N] and [M].
    """
    return (real_outputs.float().unsqueeze(1) - fake_outputs.float()).sign().mean()


def _cluster(points: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Centres [k, d] by Lloyd's algorithm from k-means++."""
    centres = spread_centres(points, k, 1, generator)
    for _ in range(ROUNDS):
        assigned = nearest_centre(points, centres)[0]
        counts = torch.bincount(assigned, minlength=k).float().unsqueeze(1)
        sums = torch.zeros_like(centres[0]).index_add_(0, assigned, points)
        # A centre that lost all its points stays where it is.
        centres = torch.where(counts > 0, sums / counts.clamp(min=1), centres[0])[None]
    return centres[0]
