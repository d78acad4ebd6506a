"""Commands run in an empty folder, with a cache that is not the user's."""

import pytest

from fastgen.cli import main


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """Where the classifier of digits is kept, so that it is trained once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def run(capsys, tmp_path, monkeypatch, cache):
    """Runs a command in an empty folder; gives its status, its output and its errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FASTGEN_CACHE", str(cache))

    def run(*arguments):
        try:
            status = main(list(map(str, arguments)))
        except SystemExit as exit:
            status = exit.code
        return status, *capsys.readouterr()

    return run
