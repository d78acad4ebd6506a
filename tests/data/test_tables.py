"""Tables as people and programs write them, and that every command reads them alike."""

import gzip
import io
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from fastgen.data import load, read_rows
from fastgen.data.table import read_table
from fastgen.remark import Remark
from tests.command_errors import fails

NUMBERS = np.random.default_rng(0).normal(size=(30, 3)) * [10, 1, 0.1] + [100, 0.5, 5]
NAMES = ("height", "weight", "age")


def lines(rows=NUMBERS, delimiter=",", decimal="."):
    return [delimiter.join(repr(float(cell)).replace(".", decimal) for cell in row) for row in rows]


def written(*above, rows=NUMBERS, delimiter=",", decimal=".", end="\n"):
    return end.join((*above, *lines(rows, delimiter, decimal), ""))


def numbered(start=0, name="", delimiter=","):
    """As pandas writes a frame with its index."""
    rows = [f"{i}{delimiter}{line}" for i, line in enumerate(lines(delimiter=delimiter), start)]
    return "\n".join((delimiter.join((name, *NAMES)), *rows))


NO_NAMES = None
# What a file holds, the names of its columns, and what is said of a guess.
TABLES = {
    "names": (written("height,weight,age"), NAMES, None),
    "no names": (written(), NO_NAMES, None),
    "semicolons": (written("height;weight;age", delimiter=";"), NAMES, None),
    "tabs": (written("height\tweight\tage", delimiter="\t"), NAMES, None),
    "spaces": (written("height weight   age", delimiter="  "), NAMES, None),
    "bars": (written("height|weight|age", delimiter="|"), NAMES, None),
    "spaces after commas": (written("height, weight, age", delimiter=", "), NAMES, None),
    "quoted names": (written('"height", "weight", "age"'), NAMES, None),
    "quoted numbers": (
        "\n".join(("height,weight,age", *(",".join(f'"{c}"' for c in line.split(",")) for line in lines()))),
        NAMES,
        None,
    ),
    "a delimiter at the end": (written("height,weight,age,").replace("\n", ",\n").replace(",,", ","), NAMES, None),
    "a delimiter at the end of numbers only": (
        "height,weight,age\n" + "\n".join(f"{line}," for line in lines()),
        NAMES,
        None,
    ),
    "a delimiter at the end without names": ("\n".join(f"{line}," for line in lines()), NO_NAMES, None),
    "a byte-order mark and Windows' ends of lines": ("\ufeff" + written("height,weight,age", end="\r\n"), NAMES, None),
    "old ends of lines": (written("height,weight,age", end="\r"), NAMES, None),
    "empty lines": (written("", "height,weight,age", "  ", end="\n\n"), NAMES, None),
    "empty cells below": (written("height,weight,age") + ",,\n,,\n", NAMES, None),
    "comments": (written("# made by hand, on a Monday", "height,weight,age", "# in cm, kg and years"), NAMES, None),
    "savetxt's header": (
        written("# height weight age", delimiter=" "),
        NAMES,
        "the comment before the numbers (height, weight, age) is taken for the columns' names",
    ),
    "Excel's first line": (written("sep=;", "height;weight;age", delimiter=";"), NAMES, None),
    "decimal commas": (
        written("height;weight;age", delimiter=";", decimal=","),
        NAMES,
        "decimal commas: ",
    ),
    "decimal commas between tabs": (written(delimiter="\t", decimal=","), NO_NAMES, "decimal commas: "),
    "years": (
        written("2019,2020,2021"),
        ("2019", "2020", "2021"),
        "the first line (2019, 2020, 2021) is taken for the columns' names",
    ),
    "decades": (written("1990,2000,2010"), ("1990", "2000", "2010"), "is taken for the columns' names"),
    "pandas' own names": (written("0,1,2"), ("0", "1", "2"), "the first line (0, 1, 2) is taken for"),
    "names and years": (written("height,2020,2021"), ("height", "2020", "2021"), "is taken for the columns' names"),
    "pandas' index": (numbered(), NAMES, "column 1 has no name and numbers the rows: it is left out"),
    "pandas' index, shuffled": (numbered(7).replace("\n9,", "\n900,"), NAMES, "column 1 has no name"),
    "pandas' index, twice": (numbered(0, "Unnamed: 0"), NAMES, "column 1 has no name and numbers the rows"),
    "pandas' index, made a column": (numbered(0, "index"), NAMES, "column 1 (index) only counts the rows"),
    "pandas' index and names": (
        numbered().replace(",height,weight,age", ",0,1,2"),
        ("0", "1", "2"),
        "the first line (, 0, 1, 2) is taken for",
    ),
    "an index of names": (
        "\n".join((",height,weight,age", *(f"row {i},{line}" for i, line in enumerate(lines())))),
        NAMES,
        "column 1 has no name and names the rows: it is left out",
    ),
    "R's names of rows": (
        "\n".join(('"height" "weight" "age"', *(f'"{i}" {row}' for i, row in enumerate(lines(delimiter=" "), 1)))),
        NAMES,
        "column 1 has no name and numbers the rows: it is left out",
    ),
    "R's other names of rows": (numbered(1, '""'), NAMES, "column 1 has no name"),
}


@pytest.fixture
def told():
    """The guesses that were said, one line each."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", Remark)
        yield lambda: [str(warning.message) for warning in caught]


@pytest.mark.parametrize("case", TABLES)
def test_is_read_as_it_is_meant_and_guesses_are_said(tmp_path, told, case):
    text, names, said = TABLES[case]
    (tmp_path / "x.csv").write_bytes(text.encode())
    rows = read_rows(tmp_path / "x.csv")
    assert rows.columns == names
    assert torch.equal(rows.vectors, torch.from_numpy(NUMBERS)), "every bit"
    assert said is None or any(said in line for line in told()), told()
    assert said is not None or not told(), told()


@pytest.mark.parametrize("name", ["x.csv", "x.CSV", "x.Txt", "x.tsv", "x.dat", "x.data", "x.csv.gz", "X.TXT.GZ"])
def test_names_of_files(tmp_path, name):
    content = written("height,weight,age").encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.lower().endswith(".gz") else content)
    assert torch.equal(read_rows(tmp_path / name).vectors, torch.from_numpy(NUMBERS))
    assert load(tmp_path / name).train.columns == NAMES


def test_pandas_writes_what_is_read(tmp_path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(NUMBERS, columns=NAMES)
    for options in ({}, {"index": False}, {"sep": ";", "decimal": ","}, {"index": False, "quoting": 1}):
        frame.to_csv(tmp_path / "x.csv", **options)
        rows = read_table(tmp_path / "x.csv")
        assert rows.columns == NAMES and np.array_equal(rows.values, NUMBERS)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("x\n" + "1,5\n2,25\n" * 5, [[1.5], [2.25]] * 5),
        ("1,5\n2,25\n" * 5, [[1, 5], [2, 25]] * 5),
        ("1;5\n2;25\n" * 5, [[1, 5], [2, 25]] * 5),
        ("1e3,-2.5E-1\n+.5,4.\n" * 5, [[1000, -0.25], [0.5, 4]] * 5),
        ("2019,2020\n" + "2020,7\n2018,9\n" * 5, [[2019, 2020], *[[2020, 7], [2018, 9]] * 5]),
        ("1,2\n2,4\n3,6\n4,8\n5,10\n6,12\n", [[i, 2 * i] for i in range(1, 7)]),
        ("0,0.5\n1,0.7\n2,0.1\n", [[0, 0.5], [1, 0.7], [2, 0.1]]),
    ],
)
def test_numbers_stay_rows(tmp_path, text, values):
    (tmp_path / "x.csv").write_text(text)
    assert read_table(tmp_path / "x.csv").values.tolist() == values


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (written("height,weight,height"), "columns 1 and 3 are both named height"),
        (written("height,,age"), "column 2 has no name"),
        (written(",weight,age"), "column 1 has no name"),
        ("a,b\n" + "1,2\n1,2,3\n" * 10, "x.csv, line 3: 3 cells, expected 2 like the first line"),
        (written() + "1.0,1_000,2\n", "line 31, column 2: '1_000' is no finite number"),
        (written() + "1.0,1e999,2\n", "line 31, column 2: '1e999' is no finite number"),
        (written() + "1.0,NA,2\n", "line 31, column 2: 'NA' is no finite number"),
        ("NA,2,3\n" + written(), "line 1, column 1: 'NA' is no finite number"),
        (written() + "1.0,٣,2\n", "line 31, column 2: '٣' is no finite number"),
        (written("# one", "# two", "height,weight,age") + "\n\n1,2,x\n", "line 36, column 3 (age): 'x' is no"),
        (written() + '1,2,"3\n4,5,6\n', "'3 4,5,6' is no finite number"),
        (written(delimiter=";", decimal=",") + "1.000,5;2;3\n", "line 31, column 1: '1.000,5' is no finite number"),
        (written() + "1,2,3 # odd\n", "'3 # odd' is no finite number"),
        (written() + "a\0b,2,3\n", "is not a text file"),
    ],
)
def test_what_is_refused_is_named(tmp_path, text, said):
    (tmp_path / "x.csv").write_bytes(text.encode())
    with pytest.raises(ValueError) as error:
        read_rows(tmp_path / "x.csv")
    assert said in " ".join(str(error.value).split())


def test_names_that_are_not_in_utf_8(tmp_path, told):
    (tmp_path / "x.csv").write_bytes(written("größe;größer;alt", delimiter=";").encode("cp1252"))
    assert read_rows(tmp_path / "x.csv").columns == ("größe", "größer", "alt")
    assert "read as Windows-1252" in told()[0]
    (tmp_path / "x.csv").write_bytes(written().encode("utf-16"))
    with pytest.raises(ValueError, match="it looks like UTF-16: save it as UTF-8"):
        read_rows(tmp_path / "x.csv")


RECORDS = np.array([tuple(row) for row in NUMBERS], dtype=[(name, ">f8") for name in NAMES])
ARRAYS = {
    "floats": (NUMBERS, NUMBERS, None),
    "half": (NUMBERS.astype(np.float16), NUMBERS.astype(np.float16), None),
    "big-endian": (NUMBERS.astype(">f8"), NUMBERS, None),
    "integers": ((NUMBERS * 10).astype(np.int16), (NUMBERS * 10).astype(np.int16), None),
    "one dimension": (NUMBERS[:, 0], NUMBERS[:, :1], None),
    "integers of one dimension": (np.arange(30) ** 2, np.arange(30)[:, None] ** 2, None),
    "records": (RECORDS, NUMBERS, NAMES),
}


@pytest.mark.parametrize("case", ARRAYS)
@pytest.mark.parametrize("name", ["x.npy", "x.NPY", "x.npz", "x.npy.gz"])
def test_arrays(tmp_path, case, name):
    array, expected, names = ARRAYS[case]
    buffer = io.BytesIO()
    (np.savez if name.endswith("z") and "gz" not in name else np.save)(buffer, array)
    (tmp_path / name).write_bytes(gzip.compress(buffer.getvalue()) if name.endswith("gz") else buffer.getvalue())
    rows = read_rows(tmp_path / name)
    assert rows.columns == names and np.array_equal(rows.vectors, expected.astype(np.float64))
    parts = load(tmp_path / name)
    assert len(parts.train) + len(parts.validation) == 30 and parts.train.columns == names


def test_arrays_that_are_no_numbers(tmp_path):
    np.save(tmp_path / "x.npy", np.array([{}] * 20, dtype=object), allow_pickle=True)
    (tmp_path / "y.npy").write_bytes(b"\x80\x04K\x01.")
    for name in ("x.npy", "y.npy"):
        with pytest.raises(ValueError, match="holds Python objects, which are not read") as error:
            read_rows(tmp_path / name)
        assert "allow_pickle" not in str(error.value)


@pytest.mark.parametrize("shape", [(0, 3), (0,), (3, 0), (30, 0)])
def test_arrays_of_nothing(tmp_path, shape):
    np.save(tmp_path / "x.npy", np.zeros(shape))
    with pytest.raises(ValueError, match=r"x.npy.*(has \d rows of numbers|none of them 0)"):
        read_rows(tmp_path / "x.npy")


def test_several_arrays(tmp_path, told):
    np.savez(tmp_path / "x.npz", x=NUMBERS, x_test=NUMBERS[:5], y=np.arange(30))
    assert len(read_rows(tmp_path / "x.npz")) == 30
    assert told() == [f"{tmp_path / 'x.npz'}: of its arrays x is read, not x_test"]
    np.savez(tmp_path / "x.npz", a=NUMBERS, b=NUMBERS)
    with pytest.raises(ValueError, match="holds a, b, expected one of: images"):
        read_rows(tmp_path / "x.npz")


TINY = ["--transforms", 1, "--hidden-features", 4, "--epochs", 1, "--device", "cpu", "--quiet"]


@pytest.fixture
def model(run):
    """A run on a table of named columns."""
    Path("table.csv").write_text(written("height,weight,age"))
    assert run("train", "nsf", "--data", "table.csv", "--out", "model", *TINY)[0] == 0
    return "model"


class TestCommands:
    @pytest.mark.parametrize("case", ["years", "decimal commas", "pandas' index", "savetxt's header"])
    def test_all_read_a_table_alike_and_say_the_same(self, run, case):
        text, names, said = TABLES[case]
        Path("x.txt").write_text(text)
        commands = {
            "density": ["x.txt", "--method", "gaussian", "--folds", 2, "--json", "density.json"],
            "score": ["x.txt", "x.txt", "--metrics", "fid"],
            "train": ["nsf", "--data", "x.txt", "--out", "run", *TINY],
            "evaluate": ["run", "--data", "x.txt", "--device", "cpu"],
        }
        for command, arguments in commands.items():
            status, _, errors = run(command, *arguments)
            assert status == 0, errors
            lines = [line for line in errors.splitlines() if said in line]
            assert len(lines) == 1 and lines[0].startswith("fastgen: x.txt: "), (command, errors)
        assert json.loads(Path("density.json").read_text())["columns"] == list(names)
        config = json.loads(Path("run/last/config.json").read_text())
        assert config["dataset"]["columns"] == list(names)

    def test_evaluate_knows_columns_by_name(self, run, model):
        numbers = []
        columns = np.vstack([NUMBERS.T, NUMBERS[:, 0] ** 2])
        for order in ((0, 1, 2), (2, 0, 1), (1, 3, 2, 0)):
            names = [(*NAMES, "area")[i] for i in order]
            Path("other.csv").write_text(written(",".join(names), rows=columns[list(order)].T))
            status, output, errors = run("evaluate", model, "--data", "other.csv", "--json", "--device", "cpu")
            assert status == 0, errors
            numbers.append(json.loads(output)["nats"])
            assert ("other.csv: of its columns height, weight, age are taken" in errors) == (len(order) == 4)
        assert numbers[0] == numbers[1] == numbers[2]

    def test_evaluate_refuses_other_columns_and_none(self, run, model):
        Path("other.csv").write_text(written("height,weight,shoes"))
        assert fails(run("evaluate", model, "--data", "other.csv"), "other.csv: no column age among height, weight")
        Path("other.csv").write_text(written())
        said = "the columns have no names, expected height, weight, age"
        assert fails(run("evaluate", model, "--data", "other.csv"), f"other.csv: {said}")
        np.save("other.npy", NUMBERS)
        assert fails(run("evaluate", model, "--data", "other.npy"), f"other.npy: {said}")

    def test_a_model_without_names_takes_columns_in_their_order_and_says_so(self, run):
        np.save("x.npy", NUMBERS)
        assert run("train", "nsf", "--data", "x.npy", "--out", "run", *TINY)[0] == 0
        Path("x.csv").write_text(written("height,weight,age"))
        found = [run("evaluate", "run", "--data", name, "--json", "--device", "cpu") for name in ("x.npy", "x.csv")]
        assert json.loads(found[0][1])["nats"] == json.loads(found[1][1])["nats"]
        assert "x.csv: the model knows no names, and takes the columns in their order" in found[1][2]

    def test_a_refusal_is_one_line_with_what_was_guessed(self, run, model):
        Path("years.csv").write_text(written("2019,2020,2021"))
        result = run("evaluate", model, "--data", "years.csv")
        assert fails(
            result, "no column height among 2019", "(years.csv: the first line (2019, 2020, 2021) is taken for"
        )

    def test_score_knows_columns_by_name(self, run):
        Path("a.csv").write_text(written("height,weight,age"))
        Path("b.csv").write_text(written("age,height,weight", rows=NUMBERS[:, [2, 0, 1]]))
        for command in (["score", "--metrics", "fid"], ["fid"]):
            status, output, _ = run(command[0], "a.csv", "b.csv", *command[1:], "--json")
            assert status == 0 and abs(json.loads(output)["metrics"]["fid"]) < 1e-9
        Path("b.csv").write_text(written("age,height,mass"))
        assert fails(run("score", "a.csv", "b.csv"), "a.csv has the columns height, weight, age and b.csv")

    def test_samples_of_a_table_go_back_in(self, run, model):
        assert run("sample", model, "-n", 40, "--out", "new.csv", "--device", "cpu")[0] == 0
        status, output, errors = run("evaluate", model, "--data", "new.csv", "--device", "cpu")
        assert status == 0 and "new.csv, 4 validation vectors" in output
        assert "fastgen: new.csv" not in errors
