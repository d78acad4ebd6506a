"""What the README says is what the files say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fastgen.bench.readme import README, TABLES, SpeedTable
from fastgen.bench.results import read

TEXT = README.read_text()


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_the_tables_of_speeds_are_those_of_the_results(table: SpeedTable):
    rows = read(table.results)
    assert {(row["op"], row["case"], row["pass"]) for row in rows} >= set(table.shown)
    assert table.updated(TEXT) == TEXT


def test_every_file_that_the_readme_names_exists():
    named = [path for path in re.findall(r"\]\(([^)#]+)\)", TEXT) if not path.startswith("http")]
    assert named
    for path in named:
        assert (README.parent / Path(path)).exists(), path


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", TEXT, re.S), ids=lambda b: b.splitlines()[0][:40])
def test_the_examples_run(block: str):
    exec(compile(block, "README.md", "exec"), {})
