"""The mean log-likelihood of a decoder model on a data set, by annealed importance sampling."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastgen.metrics.annealed_importance import annealed_importance_sampling
from fastgen.metrics.arguments import seed_of, whole_number
from fastgen.metrics.hamiltonian import LogLikelihood
from fastgen.metrics.metric import Metric
from fastgen.metrics.row_keys import row_keys


class AnnealedLogLikelihood(Metric):
    """The mean of `annealed_importance_sampling` over examples, nats: a lower bound in expectation.

    How far it is below is what `bidirectional_monte_carlo` says of data that the model makes itself.

    Args:
        log_likelihood: of data [n, ...] and latents [n, d], such as a `GaussianDecoder`'s.
        latent_dim: d.
        chains: as for `annealed_importance_sampling`.
        steps: as there.
        leapfrog_steps: as there.
        seed: of the chains; those of a batch depend on it and on the batch, whatever came before.
        kwargs: torchmetrics' own.
    """

    is_differentiable = False
    higher_is_better = True

    def __init__(
        self,
        log_likelihood: LogLikelihood,
        latent_dim: int,
        *,
        chains: int = 16,
        steps: int = 500,
        leapfrog_steps: int = 10,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not callable(log_likelihood):
            raise TypeError(f"log_likelihood: expected a function of x and z, got {type(log_likelihood).__name__}")
        self.log_likelihood, self.seed = log_likelihood, seed_of(seed)
        self.latent_dim = whole_number("latent_dim", latent_dim)
        settings = {"chains": chains, "steps": steps, "leapfrog_steps": leapfrog_steps}
        self.settings = {name: whole_number(name, value) for name, value in settings.items()}
        self.add_state("estimates", default=[], dist_reduce_fx="cat")

    def update(self, x: Tensor) -> None:
        """Take in examples [B, ...]."""
        if isinstance(x, Tensor) and x.dim() and not len(x):
            return
        # Unsigned, as a seed is.
        batch = int(row_keys(x).sum()) & (2**62 - 1)
        generator = torch.Generator().manual_seed(batch ^ (self.seed * 0x9E3779B97F4A7C15 & (2**62 - 1)))
        found = annealed_importance_sampling(
            self.log_likelihood, x, self.latent_dim, generator=generator, **self.settings
        )
        self.keep("estimates", found.log_likelihood)

    def compute(self) -> dict[str, Tensor]:
        """`log_likelihood` and its `standard_error` over the examples."""
        found = self.rows("estimates")
        if len(found) < 2:
            raise ValueError(f"AnnealedLogLikelihood: expected at least 2 examples, got {len(found)}")
        # Sorted, so that the sum does not depend on who computed what.
        found = found.sort().values
        return {"log_likelihood": found.mean(), "standard_error": found.std() / len(found) ** 0.5}
