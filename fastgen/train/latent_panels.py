"""Pictures of a latent space: walks, arithmetic, classes, a map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from fastgen.data import Images
from fastgen.files import write_figure
from fastgen.models.latent import latent_map, latent_path, latent_plane
from fastgen.train.pictures import grid
from fastgen.train.recipe import num_classes

# Latents along a side of the map, and as many drawn where there are no data.
RESOLUTION, NUM_CODES = 14, 2000
# Points of data in the picture of a plane.
MOST_POINTS = 2000
# Width of a panel, in inches.
WIDTH = 5.6


@dataclass(frozen=True)
class Panel:
    """A part of the picture: images in rows of `columns`, or points [N, 2] with their labels [N]."""

    title: str
    images: Tensor | None = None
    columns: int = 1
    points: Tensor | None = None
    labels: Tensor | None = None

    @property
    def height(self) -> float:
        """For each unit of its width."""
        return 1.0 if self.images is None else -(-len(self.images) // self.columns) / self.columns


@dataclass(frozen=True)
class Ends:
    """Latents [N, *latent_shape] to walk between, the images that they are of, where there are such, and labels."""

    z: Tensor
    images: Tensor | None = None
    labels: Tensor | None = None

    def __getitem__(self, index: Sequence[int] | slice) -> Ends:
        return Ends(*(None if part is None else part[index] for part in (self.z, self.images, self.labels)))


def ends_of(model: nn.Module, examples: Images | None, chosen: Sequence[int], n: int, generator: Generator) -> Ends:
    """The latents of the chosen examples; of `n` random ones where none are; drawn ones where there are no examples.

    Those of a conditional model come in pairs of one class.
    """
    classes, device = num_classes(model), next(model.parameters()).device
    if examples is None:
        labels = None if classes is None else (torch.arange(n) // 2 % classes).to(device)
        return Ends(model.draw_latents(n, generator), None, labels)
    if not chosen:
        order = torch.randperm(len(examples), generator=generator)
        chosen = (_paired(order, examples.labels) if classes is not None else order.tolist())[:n]
    images = examples.values[list(chosen)].to(device)
    labels = None if classes is None else examples.labels[list(chosen)].to(device)
    with torch.no_grad():
        return Ends(model.encode(images, labels), images, labels)


def walks(model: nn.Module, ends: Ends, steps: int, how: str) -> Panel:
    """Rows of images between the first and the second end, the third and the fourth, and so on."""
    a, b = ends[0::2], ends[1::2]
    path = latent_path(a.z, b.z, steps, how)
    rows = torch.stack([model.render(z, a.labels) for z in path], 1)
    title = f"walks, {how}"
    if a.images is not None:
        rows = torch.cat([a.images[:, None].to(rows), rows, b.images[:, None].to(rows)], 1)
        title += ", between two images"
    return Panel(title, rows.flatten(0, 1), rows.shape[1])


def arithmetic(model: nn.Module, ends: Ends) -> Panel:
    """A row of images a, one of b, one of c, and one of `b - a + c`."""
    a, b, c = ends[0::3], ends[1::3], ends[2::3]
    parts = [part.images if part.images is not None else model.render(part.z, part.labels) for part in (a, b, c)]
    found = model.render(b.z - a.z + c.z, c.labels)
    return Panel("a, b, c,  b - a + c", torch.cat([*(part.to(found) for part in parts), found]), len(found))


def classes_of_latents(model: nn.Module, ends: Ends) -> Panel:
    """Of a conditional model: an image, and its latents as each class."""
    classes = num_classes(model)
    rows = [model.render(ends.z, torch.full((len(ends.z),), label, device=ends.z.device)) for label in range(classes)]
    shown = torch.stack(rows, 1)
    if ends.images is not None:
        shown = torch.cat([ends.images[:, None].to(shown), shown], 1)
    return Panel("the same latents as each class", shown.flatten(0, 1), shown.shape[1])


def class_directions(model: nn.Module, examples: Images, steps: int, n: int, generator: Generator) -> Panel:
    """Rows of images of one class, moved in steps by the attribute vector of another: its mean, less their own."""
    device, rows = next(model.parameters()).device, []
    values, labels = examples.values.to(device), examples.labels.to(device)
    present = labels.unique().tolist()
    chosen = torch.randperm(len(present), generator=generator).tolist()
    for row in range(n):
        source, target = present[chosen[row % len(chosen)]], present[chosen[(row + 1) % len(chosen)]]
        both = (labels == source) | (labels == target)
        vector = model.attribute_vector(values[both], labels[both] == target)
        x = values[(labels == source).nonzero()[:1, 0]]
        rows += [model.manipulate(x, vector, float(alpha)) for alpha in torch.linspace(0, 1.5, steps)]
    return Panel("an image, moved from its class to another", torch.cat(rows), steps)


def map_of(model: nn.Module, examples: Images | None, label: int, generator: Generator) -> list[Panel]:
    """Panels of the images that a plane of latents decodes to, and of where the data lie in that plane."""
    classes, device = num_classes(model), next(model.parameters()).device
    if examples is None:
        codes, of = model.draw_latents(NUM_CODES, generator), None
    else:
        shown = examples[:MOST_POINTS]
        of = shown.labels
        with torch.no_grad():
            codes = model.encode(shown.values.to(device), None if classes is None else of.to(device))
    z = latent_map(codes, RESOLUTION)
    labels = None if classes is None else torch.full((len(z),), label, device=device)
    flat = codes.flatten(1)
    mean, axes = latent_plane(codes)
    what = "the latent plane" if flat.shape[1] == 2 else f"the widest plane of {flat.shape[1]} dimensions"
    panels = [Panel(what + ("" if classes is None else f", class {label}"), model.render(z, labels), RESOLUTION)]
    if examples is not None:
        # In units of the codes' own deviations, as the map is.
        points = (flat - mean) @ (axes / axes.square().sum(1, keepdim=True)).T
        panels.append(Panel("data in that plane", points=points.cpu(), labels=of))
    return panels


def save_panels(path: Path, panels: Sequence[Panel], levels: int) -> None:
    """Write all panels as one PNG file, all of it or nothing."""
    from matplotlib.figure import Figure

    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    heights = [max(panel.height for panel in panels[row * columns : (row + 1) * columns]) for row in range(rows)]
    # Each row has a title.
    size = (WIDTH * columns, sum(WIDTH * height + 0.5 for height in heights))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, height_ratios=heights).flatten()
    for axis, panel in zip(axes, panels, strict=False):
        axis.set_title(panel.title, fontsize=11)
        if panel.images is None:
            _scatter(axis, panel)
            continue
        picture = grid(panel.images, levels, panel.columns)
        axis.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axis.set_axis_off()
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    write_figure(path, figure, dpi=110)


def _scatter(axis: Any, panel: Panel) -> None:
    labels = panel.labels
    colors = {} if labels is None else {"c": labels.numpy(), "cmap": "tab10" if int(labels.max()) < 10 else "viridis"}
    drawn = axis.scatter(*panel.points.T.numpy(), s=7, linewidths=0, alpha=0.8, **colors)
    if labels is not None and int(labels.max()) < 10:
        axis.legend(*drawn.legend_elements(), fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    axis.set(xlim=(-3, 3), ylim=(-3, 3), box_aspect=1)


def _paired(order: Tensor, labels: Tensor) -> list[int]:
    """The order, rearranged so that each two that follow one another are of one class."""
    waiting: dict[int, int] = {}
    paired: list[int] = []
    for index in order.tolist():
        label = int(labels[index])
        if label in waiting:
            paired += [waiting.pop(label), index]
        else:
            waiting[label] = index
    return paired
