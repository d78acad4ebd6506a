"""Named sets of points of the plane, from densities that are hard to learn: flows are usually tried on them first."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.random import Generator

from fastgen.data.vectors import Vectors


def two_moons(n: int, rng: Generator) -> np.ndarray:
    """Two interleaved half circles of radius 1, noise 0.05 (scikit-learn's)."""
    from sklearn.datasets import make_moons

    return make_moons(n, noise=0.05, random_state=_seed(rng))[0]


def circles(n: int, rng: Generator) -> np.ndarray:
    """Two circles of radius 1 and 0.5, noise 0.04 (scikit-learn's)."""
    from sklearn.datasets import make_circles

    return make_circles(n, noise=0.04, factor=0.5, random_state=_seed(rng))[0]


def s_curve(n: int, rng: Generator) -> np.ndarray:
    """The letter S, noise 0.05 (scikit-learn's, seen from the side)."""
    from sklearn.datasets import make_s_curve

    return make_s_curve(n, noise=0.05, random_state=_seed(rng))[0][:, [0, 2]]


def swiss_roll(n: int, rng: Generator) -> np.ndarray:
    """One arm of a spiral, noise 0.4 at a radius of up to 14 (scikit-learn's, seen from the side)."""
    from sklearn.datasets import make_swiss_roll

    return make_swiss_roll(n, noise=0.4, random_state=_seed(rng))[0][:, [0, 2]]


def checkerboard(n: int, rng: Generator) -> np.ndarray:
    """Uniform on the black squares of a 4 x 4 board over [-2, 2]^2. Its entropy is `ln 8`."""
    row = rng.integers(0, 4, n)
    column = 2 * rng.integers(0, 2, n) + row % 2
    return np.stack((column, row), 1) - 2 + rng.random((n, 2))


def eight_gaussians(n: int, rng: Generator) -> np.ndarray:
    """Eight normal densities of standard deviation 0.1, evenly on the unit circle.

    They hardly overlap: the entropy is `ln 8 + ln(2 pi e 0.1^2)`.
    """
    angle = rng.integers(0, 8, n) * (math.pi / 4)
    return np.stack((np.cos(angle), np.sin(angle)), 1) + 0.1 * rng.standard_normal((n, 2))


def spirals(n: int, rng: Generator) -> np.ndarray:
    """Two arms that wind one and a half times around the middle, noise 0.1 at a radius of up to 3."""
    # The square root makes the points even along the arm, whose length grows with the square of the angle.
    turn = np.sqrt(rng.random(n))
    angle = 3 * math.pi * turn + math.pi * rng.integers(0, 2, n)
    arm = 3 * turn[:, None] * np.stack((np.cos(angle), np.sin(angle)), 1)
    return arm + 0.1 * rng.standard_normal((n, 2))


def pinwheel(n: int, rng: Generator) -> np.ndarray:
    """Five normal densities, stretched outwards and bent sideways the more the further out they reach.

    Source: M. Johnson et al., "Composing graphical models with neural networks for structured representations and fast
    inference", 2016, figure 1.
    """
    outward, sideways = 1 + 0.3 * rng.standard_normal(n), 0.1 * rng.standard_normal(n)
    angle = rng.integers(0, 5, n) * (2 * math.pi / 5) + 0.25 * np.exp(outward)
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack((outward * cos - sideways * sin, outward * sin + sideways * cos), 1)


POINTS: dict[str, Callable[[int, Generator], np.ndarray]] = {
    "two-moons": two_moons,
    "circles": circles,
    "s-curve": s_curve,
    "swiss-roll": swiss_roll,
    "checkerboard": checkerboard,
    "eight-gaussians": eight_gaussians,
    "spirals": spirals,
    "pinwheel": pinwheel,
}


def points(name: str, size: int = 20_000, seed: int = 0) -> Vectors:
    """`size` points of the set called `name`, one of `POINTS`; the same `seed` gives the same points.

    Raises:
        ValueError: there is no such set, or `size` is below 10.
    """
    if name not in POINTS:
        raise ValueError(f"name is '{name}', expected one of: {', '.join(POINTS)}")
    if size < 10:
        raise ValueError(f"size is {size}, expected at least 10")
    return Vectors(torch.from_numpy(POINTS[name](size, np.random.default_rng(seed)).astype(np.float64)), ("x", "y"))


def _seed(rng: Generator) -> int:
    """A seed for scikit-learn, which takes 32 bits."""
    return int(rng.integers(2**32))
