"""Data sets of integer images: scikit-learn's digits, folders of pictures, NumPy files and MNIST's IDX files."""

from fastgen.data.images import Dataset, Images
from fastgen.data.load import DATASETS, load

__all__ = ["DATASETS", "Dataset", "Images", "load"]
