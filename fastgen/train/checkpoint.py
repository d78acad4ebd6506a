"""Checkpoints: a folder with safetensors for the numbers and JSON for the rest.

- `config.json`: what the model is: its name, its constructor's arguments, the data and settings of its run
- `model.safetensors`: weights
- `ema.safetensors`: averaged weights, which are the ones to evaluate and to sample
- `optimizers.safetensors`: the optimisers' tensors, named `<optimiser>.<parameter>.<name>`
- `state.json`: the rest: step, history, the optimisers' settings

A run keeps two: `last` to go on from, and `best` by its score on the validation part. Each is there in whole or not at
all, and one process alone writes to the folder of a run.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.optim import Optimizer

from fastgen.files import check_writable, locked, write_json

FORMAT = 1
LAST, BEST = "last", "best"


@dataclass
class Checkpoint:
    """Everything a run needs in order to go on, or a model to be used."""

    config: dict[str, Any]
    model: dict[str, Tensor]
    ema: dict[str, Tensor]
    optimizers: dict[str, dict[str, Any]] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        config: dict[str, Any],
        model: nn.Module,
        ema: nn.Module,
        optimizers: Mapping[str, Optimizer],
        state: dict[str, Any],
    ) -> Checkpoint:
        """The checkpoint of a running training. It shares memory with what it was made of: save it at once."""
        states = {name: optimizer.state_dict() for name, optimizer in optimizers.items()}
        return cls(config, dict(model.state_dict()), dict(ema.state_dict()), states, state)

    def save(self, folder: Path) -> None:
        """Write the checkpoint to `folder`, replacing the one there; a kill leaves one of the two, in whole."""
        tensors, plain = _split(self.optimizers)

        def fill(partial: Path) -> None:
            _save_tensors(self.model, partial / "model.safetensors")
            _save_tensors(self.ema, partial / "ema.safetensors")
            _save_tensors(tensors, partial / "optimizers.safetensors")
            write_json(partial / "state.json", {**self.state, "optimizers": plain})
            write_json(partial / "config.json", {"format": FORMAT, **self.config})

        swap_folder(folder, fill)

    @classmethod
    def load(cls, folder: Path) -> Checkpoint:
        """Read a checkpoint from its folder.

        Raises:
            ValueError: `folder` is not a checkpoint, or one of its files is missing, truncated or damaged.
        """
        folder = settled(folder)
        config = read_config(folder)
        state = _load_json(folder / "state.json")
        tensors = _load_tensors(folder / "optimizers.safetensors")
        try:
            optimizers = _join(tensors, state.pop("optimizers"))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{folder / 'state.json'} does not go with optimizers.safetensors beside it") from error
        return cls(
            config,
            _load_tensors(folder / "model.safetensors"),
            _load_tensors(folder / "ema.safetensors"),
            optimizers,
            state,
        )


def find(path: str | Path, prefer: str = BEST) -> Path:
    """The checkpoint's folder that `path` means: itself, or the `best` or `last` one in the folder of a run.

    Raises:
        ValueError: there is none.
    """
    path = Path(path)
    names = sorted((BEST, LAST), key=lambda name: name != prefer)
    for folder in (settled(path), *(settled(path / name) for name in names)):
        if (folder / "config.json").is_file():
            return folder
    what = "is not a checkpoint or a run that has one" if path.exists() else "does not exist"
    raise ValueError(f"{path} {what}: expected a folder with config.json, {LAST}/ or {BEST}/")


def read_config(folder: Path) -> dict[str, Any]:
    """A checkpoint's `config.json`.

    Raises:
        ValueError: it is missing, damaged, or of a format this version does not know.
    """
    config = _load_json(folder / "config.json")
    if (version := config.pop("format", None)) != FORMAT:
        raise ValueError(f"{folder / 'config.json'} has format {version}, expected {FORMAT}")
    return config


def load_weights(model: nn.Module, folder: Path, *, averaged: bool = True) -> None:
    """Put a checkpoint's weights into `model`.

    Raises:
        ValueError: the file is damaged, or its tensors are not this model's.
    """
    file = settled(folder) / ("ema.safetensors" if averaged else "model.safetensors")
    set_weights(model, _load_tensors(file), str(file))


def set_weights(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy `tensors` into `model`'s parameters and buffers.

    Raises:
        ValueError: a name is missing, unknown, or has another shape. `source` says where they came from.
    """
    wanted = model.state_dict()
    odd = sorted(tensors.keys() ^ wanted.keys())
    odd += [name for name in wanted if name in tensors and tensors[name].shape != wanted[name].shape]
    if odd:
        raise ValueError(
            f"{source} is of another model than this {type(model).__name__}: "
            f"{len(odd)} tensors differ, the first is {odd[0]}"
        )
    model.load_state_dict(tensors)


def _split(optimizers: Mapping[str, dict[str, Any]]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The optimisers' states as tensors by name, and as what is left without them."""
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {}
    for optimizer, state in optimizers.items():
        rest: dict[str, dict[str, Any]] = {}
        for index, values in state["state"].items():
            tensors |= {f"{optimizer}.{index}.{key}": v for key, v in values.items() if isinstance(v, Tensor)}
            rest[str(index)] = {key: v for key, v in values.items() if not isinstance(v, Tensor)}
        plain[optimizer] = {**state, "state": rest}
    return tensors, plain


def _join(tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The inverse of `_split`."""
    optimizers = {
        name: {**state, "state": {int(index): dict(values) for index, values in state["state"].items()}}
        for name, state in plain.items()
    }
    for name, tensor in tensors.items():
        optimizer, index, key = name.rsplit(".", 2)
        optimizers[optimizer]["state"][int(index)][key] = tensor
    return optimizers


def _save_tensors(tensors: Mapping[str, Tensor], file: Path) -> None:
    # Safetensors refuses tensors that share memory (tied weights), hence the clones; its own `save_file` would make the
    # file unreadable for others.
    file.write_bytes(save({name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}))


def _load_tensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is missing, truncated or damaged: {error}") from error


def _load_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} is missing, truncated or damaged: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds {type(content).__name__}, expected an object")
    return content


def swap_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Replace the folder `path` by one that `fill` writes, so that a kill leaves the old one or the new one.

    A folder cannot be renamed over a full one, so the old one steps aside for a moment, under the name that
    `settled` looks for.

    Raises:
        OSError: naming `path`, which stays as it was; what was written so far is removed.
    """
    partial, aside = path.with_name(f".{path.name}.partial"), _aside(path)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        fill(partial)
        for file in partial.iterdir():
            with open(file, "rb") as written:
                os.fsync(written.fileno())
        if path.exists():
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(path, aside)
        os.rename(partial, path)
    except (Exception, KeyboardInterrupt) as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError):
            # A failed write does not name its file, and people do not know the temporary folder.
            error.filename, error.filename2 = str(path), None
        raise
    shutil.rmtree(aside, ignore_errors=True)


# Folders of runs that this process holds.
_HELD: set[Path] = set()


@contextmanager
def held_run(folder: Path) -> Iterator[None]:
    """Hold the folder of a run, so that no other process starts or resumes one in it; within itself it may be nested.

    Of several processes that train together the first holds it. A process that is killed holds it no longer.

    Raises:
        ValueError: another run holds it, or it cannot be written.
    """
    key, lock = folder.resolve(), folder / ".lock"
    if key in _HELD or os.environ.get("RANK", "0") != "0":
        yield
        return
    check_writable(folder)
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(lock, wait=False))
        except BlockingIOError:
            raise ValueError(f"another run is training in {folder}: wait for it, or go elsewhere (--out)") from None
        _HELD.add(key)
        # Remove the unfinished files of a run that was killed.
        for left in folder.glob(".*.partial"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        try:
            yield
        finally:
            _HELD.remove(key)
            lock.unlink(missing_ok=True)


def remove_folder(path: Path) -> None:
    """Remove a folder that `swap_folder` wrote, if it is there."""
    for folder in (path, _aside(path)):
        shutil.rmtree(folder, ignore_errors=True)


def settled(path: Path) -> Path:
    """Where the folder `path` is: there, or aside if a kill came between the two renames of `swap_folder`."""
    return _aside(path) if not path.exists() and _aside(path).exists() else path


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")
