"""Commands run in an empty folder, with a cache that is not the user's."""

import pytest


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """Where the classifier of digits is kept, so that it is trained once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, cache):
    monkeypatch.setenv("FASTGEN_CACHE", str(cache))
