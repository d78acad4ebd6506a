"""Progress is shown on a terminal, and nowhere else."""

import sys

from fastgen.density.neural_cdf import progress


def test_counts_with_and_without_tqdm_and_is_silent_where_nobody_looks(monkeypatch, capsys):
    assert list(progress(3, "fit")) == [0, 1, 2]
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert list(progress(3, "fit")) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")


def test_shows_a_bar_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert list(progress(3, "learning")) == [0, 1, 2]
    assert "learning" in capsys.readouterr().err
