"""`fastgen density` as a person meets it: what it prints, what it writes, how it fails."""

import functools
import json
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastgen.cli.density import EXAMPLES
from fastgen.cli.reports.densities import METHODS, choose_methods
from tests.command_errors import fails
from tests.density.estimator_cases import two_hills

QUICK = ("--method", "gaussian", "kde", "histogram", "--bandwidth", "silverman", "--folds", "3")


@pytest.fixture
def run(run):
    """Runs `fastgen density` in an empty folder; gives its status, its output and its errors."""
    return functools.partial(run, "density")


@pytest.fixture
def hills(run):
    """A file of two hills in one column."""
    np.save("hills.npy", two_hills(400, 1)[:, 0])
    return "hills.npy"


def cells(output, table, method):
    """The words of a method's line in the first or second table."""
    lines = [line for line in output.splitlines() if re.match(rf"{method} ", line)]
    return lines[table].split()


def test_prints_the_ranking_and_the_convergence(run, hills):
    status, output, errors = run(hills, *QUICK)
    assert (status, errors) == (0, "")
    assert "hills.npy: 400 rows, 1 column; 3 folds" in output
    names = re.findall(r"^(kde|histogram|gaussian) ", output, re.M)
    assert names[0] == "kde" and names[:3] == names[3:] and sorted(set(names)) == ["gaussian", "histogram", "kde"]
    assert cells(output, 1, "kde")[-1] == "n^-2/5" and cells(output, 1, "histogram")[-1] == "n^-1/3"
    assert cells(output, 1, "gaussian")[-1] == "n^-1/2"
    # What the largest size reached is what the ranking says.
    first, last = cells(output, 0, "gaussian"), cells(output, 1, "gaussian")
    assert first[1] == last[5] and first[2] == "+-"


def test_writes_json_that_agrees_with_the_estimator(run, hills):
    assert run(hills, *QUICK, "--json", "x.json", "--seed", 3)[0] == 0
    found = json.loads(Path("x.json").read_text())
    assert (found["rows"], found["columns"], found["folds"], found["seed"]) == (400, 1, 3, 3)
    by_name = {method["method"]: method for method in found["methods"]}
    gaussian = by_name["gaussian"]
    x = two_hills(400, 1)
    in_sample = -0.5 * np.log(2 * np.pi * np.e * x.var())
    assert in_sample - 0.03 < gaussian["log_likelihood"] < in_sample
    assert gaussian["convergence"][-1]["log_likelihood"] == gaussian["log_likelihood"]
    assert found["methods"][0]["behind_best"] == {"mean": 0, "standard_error": 0}
    assert by_name["kde"]["textbook_rate"] == 0.4
    assert (gaussian["rate"] is None) != (gaussian["rate_unknown_because"] is None)
    assert sorted(path.name for path in Path().iterdir()) == ["hills.npy", "x.json"]


def test_units_only_shift_the_log_likelihood(run):
    x = two_hills(200, 2)
    np.save("a.npy", x)
    np.save("b.npy", x * [1e4, 1e-6] + [1e5, 0])
    likelihoods = []
    for name in ("a", "b"):
        status, _, errors = run(f"{name}.npy", "--method", "mixture", "kde", "--folds", 2, "--json", "x.json")
        assert status == 0, errors
        methods = json.loads(Path("x.json").read_text())["methods"]
        likelihoods.append({method["method"]: method["log_likelihood"] for method in methods})
    for method, value in likelihoods[0].items():
        assert likelihoods[1][method] == pytest.approx(value - np.log(1e4 * 1e-6), abs=1e-4)


def test_a_bandwidth_is_in_units_of_the_data(run):
    from fastgen.density import KernelDensity

    x = 100 * two_hills(60, 1)
    np.savetxt("x.csv", x)
    assert run("x.csv", "--method", "kde", "--bandwidth", 30, "--folds", 30, "--json", "x.json")[0] == 0
    found = json.loads(Path("x.json").read_text())["methods"][0]["log_likelihood"]
    # Nearly every other row is learned from: close to leaving one out.
    own = [KernelDensity(30.0).fit(np.delete(x, i, 0)).score_samples(x[i : i + 1])[0] for i in range(60)]
    assert found == pytest.approx(np.mean(own), abs=0.02)


def test_same_seed_same_words(run, hills):
    command = (hills, "--method", "mixture", "--folds", "2")
    assert run(*command) == run(*command)
    assert run(*command)[1] != run(*command, "--seed", "1")[1]


def test_many_rows_are_drawn_from(run, hills):
    status, output, _ = run(hills, *QUICK, "--max-rows", 100)
    assert status == 0 and "400 rows, 100 of them drawn (--max-rows)" in output


@pytest.mark.parametrize(("columns", "width"), [(1, 1625), (2, 1625), (3, 975)])
def test_draws_a_picture(run, columns, width):
    names = ["height", "weight", "age"][:columns]
    np.savetxt("x.csv", two_hills(150, columns), delimiter=",", header=",".join(names), comments="")
    status, output, errors = run("x.csv", *QUICK, "--picture", "x.png")
    assert (status, errors) == (0, "") and "picture   x.png" in output
    picture = np.asarray(Image.open("x.png").convert("RGB"), dtype=int)
    assert picture.shape[1] == width and picture.std() > 10
    assert sorted(path.name for path in Path().iterdir()) == ["x.csv", "x.png"]


def test_writes_the_unlikeliest_rows(run):
    x = two_hills(200, 2)
    x[[17, 120]] = [[9.0, -9.0], [-12.0, 3.0]]
    np.save("x.npy", x)
    command = ("x.npy", "--method", "kde", "--bandwidth", "scott", "--folds", 2)
    assert run(*command, "--outliers", 0.01, "--output", "odd.txt")[0] == 0
    assert Path("odd.txt").read_text() == "18\n121\n", "counted from 1"
    # Also those that were not drawn for the comparison.
    assert run(*command, "--outliers", 0.01, "--output", "odd.txt", "--max-rows", 100)[0] == 0
    assert Path("odd.txt").read_text() == "18\n121\n"


def test_a_method_that_cannot_learn_the_rows_is_told_of_unless_it_was_asked_for(run, monkeypatch):
    # Every row forty times: all fourteen neighbours coincide.
    np.save("x.npy", np.repeat(np.random.default_rng(0).standard_normal(10), 40))
    monkeypatch.delitem(METHODS, "neural")
    status, output, errors = run("x.npy", "--folds", 2, "--bandwidth", "scott")
    assert status == 0, errors
    assert "kde-adaptive could not learn these rows: " in output and "coincide" in output
    assert fails(run("x.npy", "--method", "kde-adaptive", "--bandwidth", "scott"), "kde-adaptive: X: ", "coincide")


def test_methods_by_the_number_of_columns():
    assert choose_methods(None, 1) == list(METHODS)
    assert choose_methods(None, 9) == ["gaussian", "mixture", "kde", "kde-adaptive", "kde-debiased"]
    assert choose_methods(["kde", "gaussian", "kde"], 9) == ["kde", "gaussian"]
    assert METHODS["kde"].rate(2) == Fraction(1, 3) and METHODS["histogram"].rate(2) == Fraction(1, 4)


def test_the_help_lists_every_method(run):
    status, output, _ = run("--help")
    assert status == 0
    for name in METHODS:
        assert re.search(rf"^  {name} ", EXAMPLES, re.M) and name in output


class TestErrors:
    @pytest.mark.parametrize(
        ("content", "said"),
        [
            ("a,b\n" + "1,2\n3,four\n" * 10, "x.csv, line 3, column 2 (b): 'four' is no finite number"),
            ("1,nan\n3,4\n" * 10, "x.csv, line 1, column 2: 'nan' is no finite number (and 9 more of 20 rows"),
            ("".join(f"{i},7\n" for i in range(40)), "column 2 is always 7, so it has no density"),
            ("1\n2\n3\n", "has 3 rows of numbers, expected at least 10"),
            ("".join(f"{i}\n" for i in range(11)), "11 rows in 5 folds leave 8 to learn from, expected at least 10"),
            ("", "has 0 rows"),
            ("1,2\n3\n" * 10, "line 2: 1 cells, expected 2"),
        ],
    )
    def test_tables(self, run, content, said):
        Path("x.csv").write_text(content)
        assert fails(run("x.csv"), said)

    @pytest.mark.parametrize(
        ("array", "said"),
        [
            (np.where(np.arange(40) % 8 == 3, np.nan, np.arange(40.0)), "5 of 40 rows hold NaN or infinity"),
            (np.array(["a"] * 20), "expected floats or integers [N, D] or [N]"),
            (np.zeros((20, 2, 2)), "float64 [20, 2, 2], expected floats or integers"),
            (np.zeros(20, complex), "complex128 [20], expected"),
            (np.zeros((20, 0)), "none of them 0"),
            (np.ones(20), "column 1 is always 1"),
        ],
    )
    def test_arrays(self, run, array, said):
        np.save("x.npy", array)
        assert fails(run("x.npy"), said)

    def test_files(self, run):
        assert fails(run("x.csv"), "x.csv: No such file or directory")
        assert fails(run("x.npy"), "x.npy: No such file or directory")
        assert fails(run("x.doc"), "x.doc: expected a file that ends with one of: .csv, .tsv, .txt")
        assert fails(run(), "FILE")
        Path("x.npy").write_bytes(b"\x93NUMPY\x01\x00v\x00 truncated")
        assert fails(run("x.npy"), "x.npy is not a whole NumPy file")
        Path("x.csv").write_bytes(b"\xff\xfe\x00\x01")
        assert fails(run("x.csv"), "not a text file")

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (["--method", "kdee"], "no method 'kdee': expected some of: gaussian, mixture"),
            (["--bandwidth", "scot"], "--bandwidth scot: expected a positive number or one of: cv, scott"),
            (["--bandwidth", "0"], "--bandwidth 0: expected a positive number"),
            (["--bandwidth", "-1"], "--bandwidth -1: expected a positive number"),
            (["--bandwidth", "nan"], "--bandwidth nan: expected a positive number"),
            (["--folds", "1"], "folds: expected 2 to 200 for 400 rows, got 1"),
            (["--folds", "two"], "invalid int value: 'two'"),
            (["--max-rows", "0"], "--max-rows 0"),
            (["--picture", "x.doc"], "--picture x.doc: expected a file that ends with one of: .png"),
            (["--picture", "no/x.png"], "no/x.png: no is not a folder to write to"),
            (["--json", "no/x.json"], "no/x.json: no is not a folder to write to"),
            (["--outliers", "0.1"], "--outliers and --output go together"),
            (["--outliers", "0.7", "--output", "x"], "--outliers 0.7: expected a share"),
        ],
    )
    def test_options(self, run, hills, options, said):
        assert fails(run(hills, *options), said)

    def test_a_rule_for_one_column(self, run):
        np.save("x.npy", two_hills(100, 2))
        assert fails(run("x.npy", "--bandwidth", "isj"), "--bandwidth isj is for one column, not for 2")
