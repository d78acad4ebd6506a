"""The index of models says of each what its class says, and can be read without importing torch."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastgen.models
from fastgen.models.index import INDEX

README = (Path(__file__).parents[2] / "README.md").read_text()


@pytest.mark.parametrize("name", INDEX)
def test_an_entry_is_of_its_class(name):
    entry = INDEX[name]
    kind = entry.load()
    assert issubclass(kind, torch.nn.Module)
    assert fastgen.models.MODELS[name] is getattr(fastgen.models, entry.kind) is kind
    arguments = {"images": "image_size", "vectors": "features"}
    accepted = inspect.signature(kind).parameters
    assert entry.learns == ", ".join(what for what, argument in arguments.items() if argument in accepted)


def test_the_readme_names_none_that_is_not_there():
    named = set()
    for model, comment in re.findall(r"^fastgen train (\S+) --data [^#\n]*(?:#(.*))?", README, re.M):
        also = re.match(r".*?\balso ((?:[\w-]+, )*[\w-]+)", comment)
        named |= {model, *(also[1].replace(", and", "").split(", ") if also else [])}
    assert {"pixelcnn", "gated-pixelcnn", "nsf", "iaf", "vae", "vqvae", "stylegan2"} <= named <= INDEX.keys()


def test_all_that_is_public_is_there():
    for name in fastgen.models.__all__:
        assert getattr(fastgen.models, name) is not None
    with pytest.raises(AttributeError, match=r"'fastgen\.models' has no attribute 'VEA'"):
        _ = fastgen.models.VEA


def test_reading_the_index_imports_no_torch():
    file = fastgen.models.index.__file__
    program = f"import runpy, sys; runpy.run_path({file!r}); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
