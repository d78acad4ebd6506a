import json
import os
import shutil

import pytest

from fastgen.train.files import check_writable, settled, swap_folder, write_json
from fastgen.whole_file import write_whole


class Kill(BaseException):
    """Stands for SIGKILL: nothing after it runs."""


def killing(monkeypatch, module, name, at):
    """Let the call number `at` of `module.name`, and all after it, be the end."""
    original, calls = getattr(module, name), 0

    def dying(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls >= at:
            raise Kill
        return original(*args, **kwargs)

    monkeypatch.setattr(module, name, dying)


def folder_of(text):
    def fill(folder):
        (folder / "a").write_text(text)
        (folder / "b").write_text(text)

    return fill


def content(folder):
    return {(settled(folder) / name).read_text() for name in "ab"}


@pytest.mark.parametrize(
    ("module", "name", "at", "kept"),
    [
        (os, "fsync", 1, "old"),
        (os, "fsync", 2, "old"),
        (os, "rename", 1, "old"),
        (os, "rename", 2, "old"),
        (shutil, "rmtree", 3, "new"),
    ],
)
def test_a_kill_leaves_the_old_folder_or_the_new_one(tmp_path, monkeypatch, module, name, at, kept):
    swap_folder(tmp_path / "x", folder_of("old"))
    with monkeypatch.context() as patch:
        killing(patch, module, name, at)
        with pytest.raises(Kill):
            swap_folder(tmp_path / "x", folder_of("new"))
    assert content(tmp_path / "x") == {kept}
    # And whatever it left behind is not in the way of the next one.
    swap_folder(tmp_path / "x", folder_of("newer"))
    assert content(tmp_path / "x") == {"newer"}
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_kill_leaves_the_old_file(tmp_path, monkeypatch):
    write_whole(tmp_path / "x", b"old")
    with monkeypatch.context() as patch:
        killing(patch, os, "replace", 1)
        with pytest.raises(Kill):
            write_whole(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_bytes() == b"old"
    write_json(tmp_path / "x", {"a": [1, 2.5]})
    assert json.loads((tmp_path / "x").read_text()) == {"a": [1, 2.5]}
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_check_writable(tmp_path):
    check_writable(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match="cannot write to the output folder"):
            check_writable(folder)
