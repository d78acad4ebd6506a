"""The two sides of `fastgen fid` and `score`: pictures, arrays, statistics or named data, and their features."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from fastgen.cli.options import use_device
from fastgen.data import table
from fastgen.data.array import EXAMPLE_KEYS, channels_first
from fastgen.data.digits import digits
from fastgen.data.folder import Pictures, open_folder
from fastgen.data.formats import examples_of, is_known, read_file
from fastgen.data.idx import is_idx_folder, read_idx_folder
from fastgen.data.table import Table
from fastgen.metrics import FrechetInceptionDistance, feature_extractor
from fastgen.metrics.moments import Statistics, statistics_of_arrays
from fastgen.metrics.scores import FeatureSet, extract
from fastgen.remark import warn


@dataclass
class Array:
    """Images or rows of features that are in memory.

    Args:
        name: of the file.
        values: images, integers [N, C, H, W] or floats of the same shape in [0, 1]; or features [N, d].
        levels: how many intensities integers have.
        known_levels: whether the file says so.
        columns: the names of the features, or None.
    """

    name: str
    values: Tensor
    levels: int = 256
    known_levels: bool = False
    columns: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.values)

    @property
    def are_features(self) -> bool:
        return self.values.dim() == 2

    def batches(self, batch_size: int) -> Iterator[Tensor]:
        """Features as they are; images as uint8 of 256 levels, or floats in [0, 1]."""
        for batch in self.values.split(batch_size):
            scaled = not batch.is_floating_point() and self.levels != 256
            yield batch.float() / (self.levels - 1) if scaled else batch


Source = Pictures | Array | Statistics


def open_source(name: str, levels: int | None = None, **pictures: Any) -> Source:
    """What a person means by `name`: a folder of pictures, an `.npz` or `.npy` file, a table, or "digits".

    Args:
        name: the path.
        levels: how many intensities the integers of an array have; None takes what the file says, or 256.
        pictures: how a folder is read, see `open_folder`.

    Raises:
        ValueError: it is none of these; what each refuses.
    """
    path = Path(name)
    if name == "digits":
        images = digits()
        return Array(name, images.images, images.levels, True)
    if name and path.is_dir() and is_idx_folder(path):
        images, _ = read_idx_folder(path)
        return Array(name, images.images, images.levels, True)
    if name and path.is_dir():
        return open_folder(path, **pictures)
    if not (name and path.exists()):
        raise ValueError(f"no folder or file {name}")
    if not is_known(path):
        tables = ", ".join(table.SUFFIXES)
        raise ValueError(f"{name}: expected a folder of pictures, an .npz or .npy file, a table ({tables}), or digits")
    content = read_file(path)
    if not isinstance(content, Table) and ("mu" in content or "sigma" in content):
        return statistics_of_arrays(content, name)
    try:
        examples = examples_of(path, content)
    except ValueError as error:
        held, names = ", ".join(content) or "nothing", ", ".join(EXAMPLE_KEYS)
        raise ValueError(f"{path} holds {held}: expected statistics (mu and sigma), or one of: {names}") from error
    if isinstance(examples, Table):
        examples.check_enough(path, 1)
        return Array(name, torch.from_numpy(examples.values), columns=examples.columns)
    return _images(path, examples, content.get("levels"), levels)


def align_columns(a: Source, b: Source) -> None:
    """Bring the columns of tables that name them into one order.

    Raises:
        ValueError: other names.
    """
    if not (isinstance(a, Array) and isinstance(b, Array) and (a.columns or b.columns)):
        return
    if not (a.columns and b.columns):
        named, other = (a, b) if a.columns else (b, a)
        if other.are_features:
            warn(other.name, f"its columns have no names, and are taken in the order of {named.name}")
    elif set(a.columns) != set(b.columns):
        raise ValueError(f"{a.name} has the columns {', '.join(a.columns)} and {b.name} {', '.join(b.columns)}")
    else:
        b.values, b.columns = b.values[:, [b.columns.index(name) for name in a.columns]], a.columns


def align_levels(a: Source, b: Source) -> None:
    """An array that does not say its levels takes the other's where its values fit: samples go with their data."""
    for mine, other in ((a, b), (b, a)):
        fits = isinstance(mine, Array) and isinstance(other, Array) and not (mine.are_features or other.are_features)
        if not fits or mine.known_levels or mine.values.is_floating_point() or other.levels == 256:
            continue
        if int(mine.values.max()) < other.levels:
            mine.levels = other.levels


def _images(path: Path, values: np.ndarray, said: np.ndarray | None, levels: int | None) -> Array:
    """Images of as many levels as a person says, or else the file."""
    if values.dtype.kind not in "biuf":
        raise ValueError(
            f"{path} holds {values.dtype} {list(values.shape)}: expected features, numbers [N, d] or [N], or images, "
            "[N, H, W], [N, C, H, W] or [N, H, W, C], integers or floats in [0, 1]"
        )
    if values.dtype == np.bool_:
        values = values * np.uint8(255)
    try:
        tensor = torch.from_numpy(channels_first(values))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    known = levels if levels is not None else None if said is None else int(said)
    found = Array(str(path), tensor, known or 256, known is not None)
    if not tensor.is_floating_point() and tensor.numel() and int(tensor.max()) >= found.levels:
        raise ValueError(f"{path} holds the value {int(tensor.max())}, expected 0 to {found.levels - 1}")
    return found


@dataclass(frozen=True)
class Comparison:
    """A and perhaps B of the command line, and the network that they are looked at through.

    Args:
        args: of `fastgen fid` or `score`.
        sources: A, and B where there is one.
        extractor: the features' network, which for features that are there already does nothing.
    """

    args: Namespace
    sources: list[Source]
    extractor: nn.Module

    @classmethod
    def of(cls, args: Namespace) -> Comparison:
        """Open what `args` name.

        Raises:
            ValueError: what `open_source` refuses; images beside features, or columns of other names.
        """
        pictures = {"image_size": args.image_size, "background": args.background, "skip_bad": args.skip_bad}
        sources = [open_source(name, args.levels, **pictures) for name in (args.a, args.b) if name is not None]
        if len(sources) == 2:
            align_levels(*sources)
            align_columns(*sources)
        holding = {_holds_features(source) for source in sources if not isinstance(source, Statistics)}
        if len(holding) == 2:
            raise ValueError(f"{sources[0].name} and {sources[1].name}: one holds images and the other features")
        if holding <= {True}:
            return cls(args, sources, feature_extractor("given"))
        extractor = feature_extractor(args.features, weights=args.weights, preprocessing=args.resize)
        return cls(args, sources, extractor.to(use_device(args.device)))

    def statistics(self, source: Source) -> Statistics:
        """Mean and covariance of the features of a source, on the CPU."""
        if isinstance(source, Statistics):
            return source
        metric = FrechetInceptionDistance(self.extractor)
        for batch in self._batches(source):
            metric.update(batch.to(self._device), real=False)
        found = metric.statistics(real=False)
        return Statistics(source.name, found.mu.cpu(), found.sigma.cpu())

    def features_of(self, source: Source) -> FeatureSet:
        """All features of a source."""
        return extract(self.extractor, self._batches(source), self._device)

    @staticmethod
    def count(source: Source) -> int | None:
        """How many examples of a source were used; None for statistics, which do not say."""
        return None if isinstance(source, Statistics) else len(source) - len(getattr(source, "bad", ()))

    def facts(self) -> dict[str, object]:
        """What was compared by what, for JSON."""
        counts = map(self.count, self.sources)
        return {
            "reference": self.args.a,
            "samples": self.args.b,
            **dict(zip(("reference_count", "sample_count"), counts, strict=False)),
            "features": "given" if self._given else self.args.features,
            "resize": self.args.resize if self.args.features == "inception" and not self._given else None,
        }

    def __str__(self) -> str:
        resized = f", {self.args.resize} resize" if self.args.features == "inception" else ""
        features = "features as given" if self._given else f"{self.args.features} features{resized}"
        counts = []
        for source in self.sources:
            count, what = self.count(source), "rows" if _holds_features(source) else "images"
            counts.append(f"{source.name}: {'statistics' if count is None else f'{count} {what}'}")
        return f"{features}; {', '.join(counts)}"

    @property
    def _given(self) -> bool:
        """Whether features, or statistics of some, were there already."""
        return all(map(_holds_features, self.sources))

    @property
    def _device(self) -> torch.device:
        return next((p.device for p in self.extractor.parameters()), torch.device("cpu"))

    def _batches(self, source: Source) -> Iterator[Tensor]:
        """The batches of a source, with a bar on a terminal."""
        with tqdm(total=len(source), desc=Path(source.name).name, unit="image", disable=None, leave=False) as bar:
            for batch in source.batches(self.args.batch_size):
                yield batch
                bar.update(len(batch))


def _holds_features(source: Source) -> bool:
    return isinstance(source, Statistics) or (isinstance(source, Array) and source.are_features)
