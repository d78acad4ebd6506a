"""What holds of every command of the command line, whatever it does."""

import ast
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

import fastgen
from fastgen import cli
from fastgen.cli.options import use_device
from tests.command_errors import fails

ROOT = Path(__file__).parents[2]
(COMMANDS,) = (action.choices for action in cli.parser()._actions if action.dest == "command")
# What they need to get past their own arguments.
NEEDED = {
    **{"sample": ["run"], "evaluate": ["run"], "restore": ["run", "0", "--task", "inpaint"], "interpolate": ["run"]},
    **{"fid": ["digits", "digits"], "score": ["digits", "digits"], "trilemma": ["run"], "density": ["x.csv"]},
    **{"train": ["pixelcnn", "--data", "digits"], "compare": ["pixelcnn", "--data", "digits"], "demo": []},
}
COMPUTE = sorted(COMMANDS.keys() - {"dynamics", "info"})


def test_version(run):
    assert run("--version") == (0, f"fastgen {fastgen.__version__}\n", "")


def test_every_command_is_a_file():
    files = {file.stem for file in (ROOT / "fastgen" / "cli").glob("*.py")}
    assert files == {*COMMANDS, "__init__", "options"}


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unknown_option_points_to_the_help_of_its_command(run, command):
    result = run(command, *NEEDED.get(command, []), "--no-such-option")
    assert fails(result, "--no-such-option", f"(see fastgen {command} --help)")


def test_an_option_that_is_nearly_right_is_guessed(run):
    assert fails(run("train", "pixelcnn", "--data", "digits", "--epoch", 3), "did you mean --epochs?")


@pytest.mark.parametrize("command", COMPUTE)
class TestDevice:
    def test_one_that_is_not_here(self, run, command, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        for name in ("cuda", "cuda:1"):
            result = run(command, *NEEDED.get(command, []), "--device", name)
            assert fails(result, f"--device {name}: there is no CUDA device here")
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
        assert fails(run(command, *NEEDED.get(command, []), "--device", "mps"), "there is no Metal device here")

    def test_a_number_too_high(self, run, command, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        result = run(command, *NEEDED.get(command, []), "--device", "cuda:2")
        assert fails(result, "--device cuda:2: expected cuda:0 to cuda:1")

    def test_no_name_of_a_device(self, run, command):
        result = run(command, *NEEDED.get(command, []), "--device", "tpu")
        assert fails(result, "invalid choice: 'tpu'", "cuda:N")


def test_a_numbered_device_becomes_the_current_one(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert use_device("cuda:1") == torch.device("cuda:1") and chosen == [1]
    assert use_device("cuda") == use_device("auto") == torch.device("cuda") and chosen == [1]
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ValueError, match="expected --device cuda"):
        use_device("cuda:1")


@pytest.mark.parametrize("command", COMMANDS)
def test_an_interruption_is_one_line(run, command, monkeypatch):
    def interrupted(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"fastgen.cli.{command}.run", interrupted)
    assert run(command, *NEEDED.get(command, [])) == (130, "", "fastgen: interrupted\n")


# Modules by the package that brings them, where it has another name.
PACKAGES = {"PIL": "pillow", "sklearn": "scikit-learn", "lightning_utilities": "torchmetrics", "yaml": "accelerate"}


def imported_modules():
    """Every module of others that a file of the package imports, wherever in it."""
    for file in (ROOT / "fastgen").rglob("*.py"):
        if "bench" in file.relative_to(ROOT).parts or "_triton" in file.relative_to(ROOT).parts:
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            yield from (name.partition(".")[0] for name in names)


def test_a_missing_package_is_to_be_had_from_the_extra_that_is_named():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    core = {"torch", "numpy", "triton", "fastgen", *sys.stdlib_module_names}
    modules = set(imported_modules()) - core
    assert {"timm", "torchvision", "torchmetrics", "sklearn"} <= modules
    for module in modules:
        said = cli.describe(ModuleNotFoundError(f"No module named '{module}'", name=module))
        extra = said.partition("fastgen[")[2].partition("]")[0]
        brought = [requirement.partition(">=")[0] for requirement in project["optional-dependencies"][extra]]
        assert PACKAGES.get(module, module) in brought, said


def test_features_of_a_library_that_is_missing(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    result = run("fid", "digits", "digits", "--features", "timm:resnet18")
    assert fails(result, "the package timm is missing: pip install 'fastgen[features]'")


class TestStandardOutput:
    """In a process of its own, for what Python says at its end."""

    def run(self, arguments, out, **environment):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
        environment.pop("TRITON_INTERPRET", None)
        return subprocess.Popen(
            [sys.executable, "-m", "fastgen", *arguments],
            env=environment,
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
        )

    def test_a_closed_pipe_is_no_error(self):
        running = self.run(["info"], subprocess.PIPE)
        running.stdout.close()
        assert running.stderr.read() == "" and running.wait(60) == 141

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is full")
    def test_a_full_disk_is_told_of(self):
        with open("/dev/full", "w") as full:
            running = self.run(["--help"], full)
            assert running.stderr.read() == "fastgen: error: standard output: No space left on device\n"
            assert running.wait(60) == 2

    def test_help_is_printed_where_the_terminal_knows_ascii_only(self):
        running = self.run(["fid", "--help"], subprocess.PIPE, PYTHONIOENCODING="ascii")
        output, errors = running.communicate(timeout=60)
        assert (running.returncode, errors) == (0, "") and "inception distance" in output
