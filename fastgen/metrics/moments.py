"""Means and covariances of features: summed over batches and processes, and in files as pytorch-fid's."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from fastgen.files import write_whole
from fastgen.metrics.arguments import whole_number
from fastgen.nn.full_precision import full_precision
from fastgen.ops.moments import about_mean, add_chunk_, check_finite, mean_of_rows, rows_of_chunk


class Moments:
    """A streaming mean and covariance of features [N, d].

    Rows are kept until there is a chunk of some thousand, shifted by about their mean and multiplied in `dtype`, half
    of the products only; totals are in float64. So the batches' sizes do not matter: the same rows in the same order
    give the same bits, in batches of one or of a million. Reading the mean or the covariance changes nothing.

    With float32 products an entry of the covariance is off by about 1e-7 of its two deviations, and a Fréchet distance
    by 1e-8 (more rows than features) to 3e-5 (fewer, where many eigenvalues are zero and their roots are not); with
    float64 by 1e-12.

    Args:
        num_features: d.
        dtype: torch.float32 or torch.float64, in which rows are kept and multiplied; others are converted.
        device: where rows are, and totals.

    Raises:
        TypeError: another dtype.
        ValueError: no feature.

    Source: Chan, Golub and LeVeque, "Algorithms for computing the sample variance" (1983), equations 1.5 and 2.1.
    """

    def __init__(
        self, num_features: int, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> None:
        if dtype not in (torch.float32, torch.float64):
            raise TypeError(f"dtype: expected torch.float32 or torch.float64, got {dtype}")
        self.num_features = whole_number("num_features", num_features)
        self.dtype, self.device = dtype, torch.device(device)
        self.reset()

    def reset(self) -> None:
        """Forget all rows."""
        d = self.num_features
        self.count = 0
        # Of the chunks that are done: a shift near the mean of their rows, and sums and products about it.
        self._shift: Tensor | None = None
        self._sums = torch.zeros(d, dtype=torch.float64, device=self.device)
        self._products = torch.zeros(d, d, dtype=torch.float64, device=self.device)
        # The rows of the chunk that is not complete, less the shift where it is known.
        self._rows = torch.empty(rows_of_chunk(d), d, dtype=self.dtype, device=self.device)
        self._kept = 0

    @torch.no_grad()
    def update(self, x: Tensor) -> Moments:
        """Add rows.

        Args:
            x: features [N, d] on the device of this object; N may be zero.

        Raises:
            ValueError: another shape, or rows that are not finite, with their number; nothing is added then.
            TypeError: a dtype that is not floating, or another device.
        """
        if not x.is_floating_point():
            raise TypeError(f"x: expected a floating dtype, got {x.dtype}")
        if x.dim() != 2 or x.shape[1] != self.num_features:
            raise ValueError(f"x: expected features [N, {self.num_features}], got {tuple(x.shape)}")
        if x.device.type != self.device.type:
            raise TypeError(f"x: expected a tensor on {self.device}, got one on {x.device}")
        check_finite("x", x)
        done = 0
        while done < len(x):
            taken = min(len(x) - done, len(self._rows) - self._kept)
            space = self._rows[self._kept : self._kept + taken]
            if self._shift is None:
                space.copy_(x[done : done + taken])
            else:
                torch.sub(x[done : done + taken], self._shift, out=space)
            done, self._kept = done + taken, self._kept + taken
            if self._kept == len(self._rows):
                self._finish_chunk()
        self.count += len(x)
        return self

    @property
    def mean(self) -> Tensor:
        """[d] in float64; ValueError without a row."""
        if not self.count:
            raise ValueError("Moments: no rows, and so no mean")
        shift, sums, _ = self._about_shift(products=False)
        return shift + sums / self.count

    @property
    def covariance(self) -> Tensor:
        """[d, d] in float64, exactly symmetric, over N - 1; ValueError with fewer than two rows."""
        return self.mean_and_covariance()[1]

    def mean_and_covariance(self) -> tuple[Tensor, Tensor]:
        """Both, for the price of the covariance; ValueError with fewer than two rows."""
        if self.count < 2:
            raise ValueError(f"Moments: expected at least two rows for a covariance, got {self.count}")
        mean, scatter = about_mean(self.count, *self._about_shift())
        return mean, scatter.div_(self.count - 1)

    @torch.no_grad()
    def merge(self, other: Moments) -> Moments:
        """Add the rows that another one has seen.

        Raises:
            ValueError: another number of features.
            TypeError: another device.
        """
        if other.num_features != self.num_features:
            raise ValueError(f"other: expected {self.num_features} features, got {other.num_features}")
        if other.device.type != self.device.type:
            raise TypeError(f"other: expected moments on {self.device}, got them on {other.device}")
        if not other.count:
            return self
        if self._kept:
            self._finish_chunk()
        shift, sums, products = other._about_shift()
        if self._shift is None:
            self._shift = shift.to(self.dtype)
        _move(other.count, shift - self._shift.double(), sums, products)
        self._sums += sums
        self._products += products
        self.count += other.count
        return self

    @torch.no_grad()
    def all_reduce(self, group: dist.ProcessGroup | None = None) -> Moments:
        """The moments of all processes' rows, on every process; this object stays as it is.

        All processes of the group call it, also those without rows. Without a process group it is a copy.

        Args:
            group: processes; None for all. Where its backend is NCCL, the moments are on the GPU.

        Raises:
            ValueError: on every process, where they have different numbers of features.
        """
        total = Moments(self.num_features, dtype=self.dtype, device=self.device)
        if not (dist.is_available() and dist.is_initialized()):
            return total.merge(self)
        everyone: list[tuple[int, int]] = [(0, 0)] * dist.get_world_size(group)
        dist.all_gather_object(everyone, (self.num_features, self.count), group=group)
        if len(widths := {width for width, _ in everyone}) > 1:
            raise ValueError(f"Moments: expected the same number of features on every process, got {sorted(widths)}")
        total.count = sum(count for _, count in everyone)
        if not total.count:
            return total
        mean = self.mean if self.count else torch.zeros_like(self._sums)
        means = [torch.empty_like(mean) for _ in everyone]
        dist.all_gather(means, mean, group=group)
        weighted = (mean * (count / total.count) for (_, count), mean in zip(everyone, means, strict=True))
        total._shift = torch.stack(list(weighted)).sum(0).to(self.dtype)
        if self.count:
            shift, total._sums, total._products = self._about_shift()
            _move(self.count, shift - total._shift.double(), total._sums, total._products)
        dist.all_reduce(total._sums, group=group)
        dist.all_reduce(total._products, group=group)
        return total

    def state(self) -> dict[str, Tensor]:
        """The state to save: `count` (int64), `mean` [d] and `scatter` [d, d], the sum of the rows' products about
        their mean, both float64. Zeros where there are no rows.
        """
        count = torch.tensor(self.count, device=self.device)
        if not self.count:
            return {"count": count, "mean": self._sums.clone(), "scatter": self._products.clone()}
        mean, scatter = about_mean(self.count, *self._about_shift())
        return {"count": count, "mean": mean, "scatter": scatter}

    def load(self, state: Mapping[str, Tensor]) -> Moments:
        """Take up a `state`, in place of all rows so far.

        Raises:
            ValueError: a state without one of its tensors, with another shape, or a negative count.
        """
        d = self.num_features
        for name, shape in (("count", ()), ("mean", (d,)), ("scatter", (d, d))):
            if name not in state:
                raise ValueError(f"state: expected count, mean and scatter, got {', '.join(state) or 'nothing'}")
            if state[name].shape != shape:
                raise ValueError(f"state: expected {name} of shape {shape}, got {tuple(state[name].shape)}")
        if (count := int(state["count"])) < 0:
            raise ValueError(f"state: expected a count that is not negative, got {count}")
        self.reset()
        if count:
            mean = state["mean"].to(self.device, torch.float64)
            self.count, self._shift = count, mean.to(self.dtype)
            self._products += state["scatter"].to(self.device)
            # The shift is the mean rounded to the dtype of the rows.
            _move(count, mean - self._shift.double(), self._sums, self._products)
        return self

    @full_precision
    def _finish_chunk(self) -> None:
        """Add the kept rows to the totals."""
        rows = self._rows[: self._kept]
        if self._shift is None:
            self._shift = mean_of_rows(rows)
            rows.sub_(self._shift)
        add_chunk_(self._sums, self._products, rows)
        self._kept = 0

    @full_precision
    def _about_shift(self, products: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        """The shift, and copies of the sums and products of all rows about it, in float64."""
        rows, shift = self._rows[: self._kept], self._shift
        if shift is None:
            shift = mean_of_rows(rows)
            rows = rows - shift
        sums, totals = self._sums.clone(), self._products.clone() if products else self._products
        if not products:
            sums += rows.sum(0)
        elif len(rows):
            add_chunk_(sums, totals, rows)
        return shift.double(), sums, totals


def _move(n: int, offset: Tensor, sums: Tensor, products: Tensor) -> None:
    """From sums and products of n rows about a point to those about that point less `offset`, in place."""
    products.addr_(offset, sums).addr_(sums, offset).addr_(offset, offset, alpha=n)
    sums += n * offset


@dataclass(frozen=True)
class Statistics:
    """The mean and covariance of a set of features.

    Args:
        name: their origin, for errors.
        mu: the mean [d], float64.
        sigma: the covariance [d, d], float64.
    """

    name: str
    mu: Tensor
    sigma: Tensor


def read_statistics(path: str | os.PathLike) -> Statistics:
    """The statistics in the `.npz` file at `path`, of pytorch-fid, clean-fid or `write_statistics`.

    Raises:
        ValueError: no such file, no NumPy file, without `mu` or `sigma`, or these are not a mean and a covariance.
    """
    path = Path(path)
    try:
        content = np.load(path, allow_pickle=False)
        arrays = None if isinstance(content, np.ndarray) else dict(content)
    except FileNotFoundError as error:
        raise ValueError(f"no file {path}") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, KeyError) as error:
        raise ValueError(f"{path} is not a whole .npz file: {error}") from error
    if arrays is None:
        raise ValueError(f"{path} holds one array, expected mu and sigma")
    return statistics_of_arrays(arrays, str(path))


def statistics_of_arrays(arrays: Mapping[str, np.ndarray], name: str) -> Statistics:
    """The statistics in `arrays`; `name` is their origin, for errors.

    Raises:
        ValueError: as `read_statistics`.
    """
    if missing := [key for key in ("mu", "sigma") if key not in arrays]:
        held = ", ".join(arrays) or "nothing"
        raise ValueError(f"{name} holds no {' and no '.join(missing)}, expected mu and sigma, got {held}")
    mu, sigma = (np.array(arrays[key], dtype=np.float64) for key in ("mu", "sigma"))
    if mu.ndim != 1 or not mu.size or sigma.shape != (mu.size, mu.size):
        raise ValueError(f"{name}: expected mu [d] and sigma [d, d], got {list(mu.shape)} and {list(sigma.shape)}")
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise ValueError(f"{name}: mu or sigma holds NaN or infinity")
    return Statistics(name, torch.from_numpy(mu), torch.from_numpy(sigma))


def write_statistics(path: str | os.PathLike, mu: Tensor, sigma: Tensor) -> None:
    """Write statistics for pytorch-fid, clean-fid and `read_statistics`, all of the file or nothing.

    Args:
        path: of an `.npz` file.
        mu: the mean, [features].
        sigma: the covariance, [features, features].
    """
    buffer = io.BytesIO()
    np.savez_compressed(buffer, mu=mu.double().cpu().numpy(), sigma=sigma.double().cpu().numpy())
    write_whole(Path(path), buffer.getvalue())
