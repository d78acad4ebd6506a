"""Every command reads every format: what a table of readers names, `load`, `fid`, `score` and `density` read alike."""

import gzip
import struct

import numpy as np
import pytest

from fastgen.data import load, read_rows
from fastgen.data.formats import READERS, is_known
from fastgen.data.table import Table
from tests.command_errors import but_bias


@pytest.fixture
def rows():
    return np.random.default_rng(0).normal(size=(60, 2))


def test_a_format_is_one_line(run, rows, monkeypatch, tmp_path):
    """A reader of columns instead of rows, which nothing else knows of."""
    monkeypatch.setitem(READERS, ".columns", lambda path: Table(np.loadtxt(path).T, ("a", "b")))
    path = tmp_path / "x.columns"
    np.savetxt(path, rows.T)
    assert is_known(path) and is_known(tmp_path / "x.columns.gz") and not is_known(tmp_path / "x.row")
    assert np.array_equal(read_rows(path).vectors, rows) and read_rows(path).columns == ("a", "b")
    assert len(load(path).train) == 54
    assert run("density", path, "--method", "gaussian", "--folds", 2)[0] == 0
    status, output, errors = run("fid", path, path)
    assert status == 0 and output.startswith("fid 0  (features as given") and "60 rows" in output, errors
    assert run("score", path, path, "--metrics", "prdc")[0] == 0


def test_idx_files_and_folders_are_compared_too(run, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (40, 5, 4), dtype=np.uint8)
    np.save(tmp_path / "x.npy", images)
    content = bytes([0, 0, 8, 3]) + struct.pack(">3I", *images.shape) + images.tobytes()
    folder = tmp_path / "mnist"
    folder.mkdir()
    file = folder / "train-images-idx3-ubyte.gz"
    file.write_bytes(gzip.compress(content))
    for source in (file, folder):
        status, output, errors = run("fid", source, tmp_path / "x.npy", "--features", "pixels")
        assert (status, but_bias(errors)) == (0, "") and output.startswith("fid 0  (pixels"), errors
        assert "40 images" in output
