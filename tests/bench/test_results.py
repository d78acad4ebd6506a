"""The JSON file: its schema, and that it is never lost."""

from __future__ import annotations

import json

import pytest

from fastgen.bench import results
from fastgen.bench.results import KEY, Row

SCHEMA = {
    "op": str,
    "case": str,
    "pass": str,
    "device": str,
    "dtype": str,
    "backend": str,
    "median_s": float,
    "p20_s": float,
    "p80_s": float,
    "rounds": int,
    "baselines": dict,
    "ratios": dict,
    "limit_s": float,
    "limit_kind": str,
    "limit_fraction": float,
    "rel_err": float,
    "peak_bytes": int,
    "machine": str,
    "versions": dict,
    "commit": (str, type(None)),
    "threads": int,
    "malloc": dict,
    "date": str,
}


def row(case: str = "a", median_s: float = 1.0) -> dict:
    made = Row("op", case, "forward", "cpu", "float32", "cpp", median_s, 0.5, 2.0, 7, baselines={"eager": 3.0})
    return made.to_json()


def test_schema(make_op, bench, tmp_path):
    make_op(cases=2)
    file = tmp_path / "rows.json"
    status, out, _ = bench("test_tripling", "--against", "eager", "--json", str(file))
    rows = json.loads(file.read_text())
    assert status == 0
    assert [(r["case"], r["pass"]) for r in rows] == [
        (case, pass_) for case in ("case 0", "case 1") for pass_ in ("forward", "forward_backward")
    ]
    for r in rows:
        for name, type_ in SCHEMA.items():
            assert isinstance(r[name], type_), name
        assert r["p20_s"] <= r["median_s"] <= r["p80_s"] and r["rounds"] >= 7
        assert r["backend"] == "reference" and r["device"] == "cpu" and r["dtype"] == "float32"
        assert r["ratios"] == {"eager": r["baselines"]["eager"] / r["median_s"]}
        assert 0 <= r["rel_err"] < 1e-6 and r["malloc"]["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"
        assert f"{r['rel_err']:.1e}" in out
    # One output of 1000 floats, and for the gradient at least one more of them.
    assert 4000 <= rows[0]["peak_bytes"] < 4 * rows[1]["peak_bytes"]


def test_a_second_run_replaces_its_rows_and_keeps_the_others(make_op, bench, tmp_path):
    make_op()
    file = tmp_path / "rows.json"
    file.write_text(json.dumps([row()]))
    for _ in range(2):
        bench("test_tripling", "--against", "eager", "--quick", "--pass", "forward", "--json", str(file))
    assert [(r["op"], r["pass"]) for r in json.loads(file.read_text())] == [
        ("op", "forward"),
        ("test_tripling", "forward"),
    ]


def test_upsert_replaces_by_key(tmp_path):
    file = tmp_path / "rows.json"
    results.upsert(file, [row("a", 1.0), row("b", 1.0)])
    results.upsert(file, [row("b", 2.0), row("c", 3.0)])
    assert [(r["case"], r["median_s"]) for r in results.read(file)] == [("a", 1.0), ("b", 2.0), ("c", 3.0)]
    assert len({tuple(r[name] for name in KEY) for r in results.read(file)}) == 3


@pytest.mark.parametrize("bad", [float("nan"), object()])
def test_a_row_that_cannot_be_written_leaves_the_file_as_it_was(tmp_path, bad):
    file = tmp_path / "rows.json"
    results.upsert(file, [row()])
    before = file.read_bytes()
    with pytest.raises((ValueError, TypeError)):
        results.upsert(file, [{**row("b"), "median_s": bad}])
    assert file.read_bytes() == before and list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("content", ["", "[1, 2]", '{"op": "x"}', '[{"op": "x"}]', "[{", "\x00\xff"])
def test_a_file_that_is_no_result_file_is_refused_before_anything_is_timed(bench, tmp_path, content):
    file = tmp_path / "rows.json"
    file.write_bytes(content.encode("latin-1"))
    status, out, err = bench("gated_activation", "--json", str(file))
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "not a result file" in err and file.read_bytes() == content.encode("latin-1")


def test_a_folder_gets_a_file_named_after_the_machine(make_op, bench, tmp_path):
    make_op()
    bench("test_tripling", "--against", "eager", "--quick", "--json", str(tmp_path / "results"))
    (file,) = (tmp_path / "results").iterdir()
    assert file.name == f"{json.loads(file.read_text())[0]['machine']}.json"
