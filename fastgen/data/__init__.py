"""Data sets, held in memory: integer images and real vectors, by name, from folders and from files."""

from fastgen.data.dataset import Dataset
from fastgen.data.examples import Examples
from fastgen.data.images import Images
from fastgen.data.load import DATASETS, load, read_rows
from fastgen.data.points import POINTS, points
from fastgen.data.vectors import Vectors

__all__ = ["DATASETS", "POINTS", "Dataset", "Examples", "Images", "Vectors", "load", "points", "read_rows"]
