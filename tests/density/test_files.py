"""A saved estimator is whole, tells its configuration, and refuses what is no estimator."""

import builtins
import json
import os

import numpy as np
import pytest
from safetensors import safe_open

from fastgen.density import DensityEstimator, Gaussian, GaussianMixture
from fastgen.density.estimator import write_file


@pytest.fixture
def saved(tmp_path):
    Gaussian(0.25).fit(np.random.default_rng(0).standard_normal((50, 3))).save(tmp_path / "model")
    return tmp_path / "model"


def test_the_header_is_the_configuration(saved):
    with safe_open(saved, framework="pt") as file:
        config = json.loads(file.metadata()["config"])
    assert config["format"] == 1 and config["class"] == "Gaussian" and config["arguments"] == {"regularization": 0.25}
    assert config["learned"] == {"array_type_": "numpy", "dtype_": "float64", "n_features_in_": 3}


def test_a_failed_save_leaves_the_old_file(saved, monkeypatch):
    before = saved.read_bytes()

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        Gaussian().fit(np.random.default_rng(1).standard_normal((50, 3))).save(saved)
    assert saved.read_bytes() == before


def test_refuses_other_files(saved):
    with pytest.raises(ValueError, match="holds Gaussian, expected GaussianMixture"):
        GaussianMixture.load(saved)
    with pytest.raises(ValueError, match="nothing is missing, truncated or damaged"):
        Gaussian.load(saved.with_name("nothing"))
    content = saved.read_bytes()
    for wrong in (b"", b"{}", content[:100], content[:-1]):
        saved.write_bytes(wrong)
        with pytest.raises(ValueError, match="is missing, truncated or damaged"):
            Gaussian.load(saved)
    write_file(saved, {}, {"class": "Gaussian", "arguments": {"colour": 1}, "learned": {}})
    with pytest.raises(ValueError, match="does not describe a Gaussian"):
        Gaussian.load(saved)
    write_file(saved, {}, {"class": "Gaussian", "arguments": {}, "learned": {}})
    with pytest.raises(ValueError, match="does not describe a Gaussian"):
        Gaussian.load(saved)
    write_file(saved, {}, {"format": 2})
    with pytest.raises(ValueError, match="has format 2, expected 1"):
        DensityEstimator.load(saved)


def test_says_what_is_not_installed(saved, monkeypatch):
    whole = builtins.__import__

    def without_safetensors(name, *args, **kwargs):
        if name.startswith("safetensors"):
            raise ImportError(name)
        return whole(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_safetensors)
    with pytest.raises(ImportError, match="saving and loading need safetensors: pip install"):
        Gaussian.load(saved)
