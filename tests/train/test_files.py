"""Files and folders are whole whenever a process is killed, a disk fills up, or two write at a time."""

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fastgen.files import check_writable, write_json, write_whole
from fastgen.train.checkpoint import held_run, settled, swap_folder

ROOT = Path(__file__).parents[2]


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


class TestFullDisk:
    @pytest.mark.parametrize("module_and_name", [(os, "fsync"), (os, "replace")])
    def test_a_file_stays_as_it_was(self, tmp_path, monkeypatch, module_and_name):
        write_whole(tmp_path / "x", b"old")
        with monkeypatch.context() as patch:
            patch.setattr(*module_and_name, full)
            with pytest.raises(OSError, match="No space left on device") as caught:
                write_whole(tmp_path / "x", b"new")
        assert caught.value.filename == str(tmp_path / "x")
        assert [path.name for path in tmp_path.iterdir()] == ["x"] and (tmp_path / "x").read_bytes() == b"old"

    @pytest.mark.parametrize("module_and_name", [(os, "fsync"), (os, "rename")])
    def test_a_folder_stays_as_it_was(self, tmp_path, monkeypatch, module_and_name):
        swap_folder(tmp_path / "x", folder_of("old"))
        with monkeypatch.context() as patch:
            patch.setattr(*module_and_name, full)
            with pytest.raises(OSError, match="No space left on device") as caught:
                swap_folder(tmp_path / "x", folder_of("new"))
        assert caught.value.filename == str(tmp_path / "x")
        assert [path.name for path in tmp_path.iterdir()] == ["x"] and content(tmp_path / "x") == {"old"}

    def test_a_write_that_breaks_off(self, tmp_path):
        """The system's own limit on the size of a file stands for a disk that fills up in the middle of one."""
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        try:
            with pytest.raises(OSError, match="File too large"):
                write_whole(tmp_path / "x", bytes(3000))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert not list(tmp_path.iterdir())

    def test_an_interruption_leaves_nothing_beside(self, tmp_path, monkeypatch):
        def interrupted(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(os, "fsync", interrupted)
        for write in (lambda: write_whole(tmp_path / "x", b"new"), lambda: swap_folder(tmp_path / "x", folder_of("a"))):
            with pytest.raises(KeyboardInterrupt):
                write()
        assert not list(tmp_path.iterdir())


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def in_another_process(code, *arguments):
    """A process that runs `code`, and that has said that it is ready."""
    # The file alone: it needs no torch, which takes seconds to import.
    functions = f"import runpy; globals().update(runpy.run_path({str(ROOT / 'fastgen' / 'files.py')!r}))"
    source = f"import sys, time; from pathlib import Path; path = Path(sys.argv[1])\n{functions}\n{code}"
    command = [sys.executable, "-c", source, *map(str, arguments)]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert running.stdout.readline() == "ready\n"
    return running


def test_two_writers_of_one_file_take_turns(tmp_path):
    """Each writes its own letter twenty times: what is there is always of one of them, and nothing fails."""
    code = "print('ready', flush=True)\nfor _ in range(20): write_whole(path, sys.argv[2].encode() * 10_000)"
    writers = [in_another_process(code, tmp_path / "x", letter) for letter in "ab"]
    while any(writer.poll() is None for writer in writers):
        if (tmp_path / "x").exists():
            seen = (tmp_path / "x").read_bytes()
            assert len(seen) == 10_000 and len(set(seen)) == 1
    assert [writer.returncode for writer in writers] == [0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_run_is_held_until_its_process_ends(tmp_path, monkeypatch):
    code = "with locked(path / '.lock', wait=False):\n    print('ready', flush=True)\n    time.sleep(600)"
    (tmp_path / "run").mkdir()
    for stop in (lambda process: process.kill(), lambda process: process.terminate()):
        running = in_another_process(code, tmp_path / "run")
        with pytest.raises(ValueError, match=r"another run is training in .*run: wait for it, or go elsewhere"):
            held_run(tmp_path / "run").__enter__()
        with held_run(tmp_path / "other"):
            pass
        with monkeypatch.context() as patch:
            # One of several processes of the training that holds it.
            patch.setenv("RANK", "1")
            with held_run(tmp_path / "run"):
                pass
        stop(running)
        running.wait()
        with held_run(tmp_path / "run"), held_run(tmp_path / "run" / ".." / "run"):
            assert (tmp_path / "run" / ".lock").exists()
        assert not list((tmp_path / "run").iterdir())
