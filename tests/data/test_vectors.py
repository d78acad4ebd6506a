"""Tables of vectors are checked, standardised, split, read from text and arrays, and drawn from known densities."""

import math

import numpy as np
import pytest
import torch

from fastgen.data import POINTS, Dataset, Vectors, load, points

TABLE = np.random.default_rng(0).normal(size=(40, 3)) * [1, 10, 1e-3] + [0, 5, 1]


def every_row(data):
    """The rows of all parts, in the order of the first column."""
    rows = torch.cat((data.train.vectors, data.validation.vectors))
    return rows[rows[:, 0].argsort()]


def write_table(path, rows=TABLE, header="a,b,c", delimiter=","):
    text = "\n".join(delimiter.join(map(repr, map(float, row))) for row in rows)
    path.write_text(f"{header}\n{text}\n" if header else text)
    return path


class TestVectors:
    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"vectors": torch.zeros(2, 2)}, TypeError, "vectors has dtype torch.float32, expected torch.float64"),
            ({"vectors": torch.zeros(2).double()}, ValueError, r"vectors has shape \[2\], expected \[N, D\]"),
            ({"vectors": torch.zeros(0, 2).double()}, ValueError, "none of them 0"),
            (
                {"vectors": torch.zeros(2, 2).double(), "columns": ("a",)},
                ValueError,
                "columns has 1 names, expected 2",
            ),
            (
                {"vectors": torch.tensor([[1.0, 2], [3, math.nan]]).double(), "columns": ("a", "b")},
                ValueError,
                r"holds nan in row 2, column 2 \(b\)",
            ),
            ({"vectors": torch.tensor([[1.0, -math.inf]]).double()}, ValueError, "holds -inf in row 1, column 2:"),
        ],
    )
    def test_are_checked(self, arguments, error, message):
        with pytest.raises(error, match=message):
            Vectors(**arguments)

    def test_statistics(self):
        mean, std = Vectors(torch.from_numpy(TABLE)).statistics()
        torch.testing.assert_close(mean, torch.from_numpy(TABLE.mean(0)), rtol=1e-14, atol=0)
        torch.testing.assert_close(std, torch.from_numpy(TABLE.std(0)), rtol=1e-12, atol=0)

    @pytest.mark.parametrize("value", [0.0, 0.1, -1e20])
    def test_a_constant_column_has_no_density(self, value):
        table = torch.from_numpy(TABLE).clone()
        table[:, 1] = value
        with pytest.raises(ValueError, match=r"column 2 \(b\) is always"):
            Vectors(table, ("a", "b", "c")).statistics()

    @pytest.mark.parametrize(
        ("scale", "shift", "message"),
        [(1e-3, 1e6, "subtract a constant"), (1e-32, 0, "give it another unit"), (1e32, 0, "give it another unit")],
    )
    def test_a_column_that_single_precision_does_not_hold(self, scale, shift, message):
        table = torch.from_numpy(TABLE).clone()
        table[:, 0] = table[:, 0] * scale + shift
        with pytest.raises(ValueError, match=rf"column 1 .*{message}"):
            Vectors(table).statistics()

    def test_split_divides_without_loss_and_keeps_names(self):
        vectors = Vectors(torch.from_numpy(TABLE), ("a", "b", "c"))
        parts = vectors.split(0.25, seed=1)
        assert [len(part) for part in parts] == [30, 10]
        assert all(part.columns == ("a", "b", "c") and part.shape == (3,) for part in parts)
        assert torch.equal(every_row(Dataset("x", *parts)), every_row(Dataset("x", vectors[:20], vectors[20:])))

    def test_summary_tells_data_sets_apart(self):
        vectors = Vectors(torch.from_numpy(TABLE), ("a", "b", "c"))
        summary = Dataset("x", *vectors.split(0.25)).summary()
        assert summary["shape"] == [3] and summary["columns"] == ["a", "b", "c"] and summary["train"] == 30
        assert summary == Dataset("x", *vectors.split(0.25)).summary()
        assert summary != Dataset("x", *vectors.split(0.25, seed=1)).summary()


class TestTables:
    @pytest.mark.parametrize("delimiter", [",", ";", "\t"])
    def test_with_names(self, tmp_path, delimiter):
        path = write_table(tmp_path / "x.csv", header=delimiter.join(("a", " b", "c")), delimiter=delimiter)
        data = load(path)
        assert data.kind == "vectors" and data.train.columns == ("a", "b", "c") and data.levels is None
        assert torch.equal(every_row(data), torch.from_numpy(TABLE[TABLE[:, 0].argsort()])), "every bit"

    def test_without_names_and_with_empty_lines(self, tmp_path):
        path = write_table(tmp_path / "x.csv", header="")
        path.write_text("\ufeff\n" + path.read_text().replace("\n", "\r\n\r\n") + "\n\n")
        data = load(path)
        assert data.train.columns is None
        assert torch.equal(every_row(data), torch.from_numpy(TABLE[TABLE[:, 0].argsort()]))

    @pytest.mark.parametrize(
        ("line", "text", "message"),
        [
            (3, "1,two,3", r"x\.csv, line 3, column 2 \(b\): 'two' is no finite number"),
            (5, "1,2,", r"x\.csv, line 5, column 3 \(c\): it is empty"),
            (2, "nan,2,3", r"line 2, column 1 \(a\): 'nan' is no finite number"),
            (41, "1,2,-inf", r"line 41, column 3 \(c\): '-inf' is no finite number"),
            (7, "1,2", r"line 7: 2 cells, expected 3"),
            (7, "1,2,3,4", r"line 7: 4 cells, expected 3"),
        ],
    )
    def test_a_bad_cell_is_named(self, tmp_path, line, text, message):
        path = write_table(tmp_path / "x.csv")
        lines = path.read_text().splitlines()
        lines[line - 1] = text
        path.write_text("\n".join(lines))
        with pytest.raises(ValueError, match=message):
            load(path)

    @pytest.mark.parametrize("content", ["", "\n\n", "a,b\n", "a,b\n1,2\n3,4\n"])
    def test_too_few_rows(self, tmp_path, content):
        (tmp_path / "x.csv").write_text(content)
        with pytest.raises(ValueError, match=r"x\.csv has \d rows of numbers, expected at least 10"):
            load(tmp_path / "x.csv")

    def test_a_file_that_is_no_text(self, tmp_path):
        (tmp_path / "x.csv").write_bytes(b"\xff\xfe\x00\x01" * 20)
        with pytest.raises(ValueError, match="is not a text file"):
            load(tmp_path / "x.csv")


class TestArrays:
    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
    def test_npy(self, tmp_path, dtype):
        table = TABLE[:, :2].astype(dtype)
        np.save(tmp_path / "x.npy", np.asfortranarray(table))
        rows = every_row(load(tmp_path / "x.npy"))
        assert torch.equal(rows, torch.from_numpy(table[table[:, 0].argsort(kind="stable")].astype(np.float64)))

    @pytest.mark.parametrize("key", ["vectors", "x", "x_train", "arr_0"])
    def test_npz(self, tmp_path, key):
        np.savez(tmp_path / "x.npz", **{key: TABLE})
        assert load(tmp_path / "x.npz").shape == (3,)

    def test_values_that_are_not_finite(self, tmp_path):
        table = TABLE.copy()
        table[3, 1] = np.nan
        np.save(tmp_path / "x.npy", table)
        with pytest.raises(ValueError, match=r"x\.npy: vectors holds nan in row 4, column 2:"):
            load(tmp_path / "x.npy")

    def test_too_few_rows(self, tmp_path):
        np.save(tmp_path / "x.npy", TABLE[:9])
        with pytest.raises(ValueError, match=r"x\.npy has 9 rows of numbers"):
            load(tmp_path / "x.npy")

    def test_options_of_images_are_refused(self, tmp_path):
        np.save(tmp_path / "x.npy", TABLE)
        with pytest.raises(ValueError, match=r"levels is for images, .*x\.npy holds vectors"):
            load(tmp_path / "x.npy", levels=4)


class TestPoints:
    @pytest.mark.parametrize("name", POINTS)
    def test_are_drawn_from_their_seed(self, name):
        drawn = points(name, size=501, seed=3)
        assert drawn.shape == (2,) and len(drawn) == 501
        assert torch.equal(drawn.vectors, points(name, size=501, seed=3).vectors)
        assert not torch.equal(drawn.vectors, points(name, size=501, seed=4).vectors)

    @pytest.mark.parametrize("name", POINTS)
    def test_loads_by_name(self, name):
        data = load(name, size=200, seed=1)
        assert (len(data.train), len(data.validation), data.train.columns) == (180, 20, ("x", "y"))
        assert torch.equal(every_row(data), every_row(load(name, size=200, seed=1)))

    def test_checkerboard_covers_the_black_squares_evenly(self):
        x = points("checkerboard", size=80_000).vectors + 2
        assert x.min() >= 0 and x.max() < 4
        squares = x.long()
        assert ((squares.sum(1) % 2) == 0).all()
        counts = torch.bincount(squares[:, 0] * 4 + squares[:, 1], minlength=16)
        # Binomial: a standard deviation of 94.
        assert (counts[counts > 0] - 10_000).abs().max() < 5 * 94 and (counts > 0).sum() == 8

    def test_eight_gaussians_have_the_entropy_they_say(self):
        x = points("eight-gaussians", size=50_000).vectors
        angles = torch.arange(8) * (math.pi / 4)
        centres = torch.stack((angles.cos(), angles.sin()), 1).double()
        log_density = (-torch.cdist(x, centres).square() / (2 * 0.1**2)).logsumexp(1) - math.log(
            8 * 2 * math.pi * 0.1**2
        )
        # One standard deviation of the mean is 0.0045.
        assert -log_density.mean() == pytest.approx(math.log(8) + math.log(2 * math.pi * math.e * 0.1**2), abs=0.02)

    def test_errors(self):
        with pytest.raises(ValueError, match="name is 'moons', expected one of: two-moons"):
            points("moons")
        with pytest.raises(ValueError, match="size is 9, expected at least 10"):
            load("two-moons", size=9)
        with pytest.raises(ValueError, match=r"size is for two-moons, .* not for digits"):
            load("digits", size=100)
        with pytest.raises(ValueError, match="levels is for images, two-moons holds vectors"):
            load("two-moons", levels=3)
