"""A checkpoint gives back what was saved, or says which file is damaged or of another model."""

import json
import shutil

import pytest
import torch
from torch import nn

from fastgen.train.checkpoint import Checkpoint, find, load_weights, read_config, set_weights

FILES = ["config.json", "ema.safetensors", "model.safetensors", "optimizers.safetensors", "state.json"]


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.conv = nn.Conv2d(2, 4, 3).to(memory_format=torch.channels_last)
        self.register_buffer("count", torch.tensor(7))


def trained():
    """A model and two optimisers with state: AdamW's tensors, and SGD's None where there is no momentum yet."""
    model = Tied()
    optimizers = {
        "adam": torch.optim.AdamW(model.first.parameters()),
        "sgd": torch.optim.SGD(model.conv.parameters(), 0.1),
    }
    (model.first(torch.randn(4, 3)).sum() + model.conv(torch.randn(1, 2, 5, 5)).sum()).backward()
    for optimizer in optimizers.values():
        optimizer.step()
    return model, optimizers


@pytest.fixture
def saved(tmp_path):
    model, optimizers = trained()
    checkpoint = Checkpoint.of({"model": "tied"}, model, Tied(), optimizers, {"step": 3, "loss": 0.1 + 0.2})
    checkpoint.save(tmp_path / "run" / "last")
    return checkpoint, tmp_path / "run" / "last"


def test_what_is_saved_comes_back(saved):
    checkpoint, folder = saved
    assert sorted(path.name for path in folder.iterdir()) == FILES
    back = Checkpoint.load(folder)
    assert (back.config, back.state) == (checkpoint.config, checkpoint.state)
    for mine, theirs in ((checkpoint.model, back.model), (checkpoint.ema, back.ema)):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())
    model, optimizers = trained()
    set_weights(model, back.model, "here")
    for name, optimizer in optimizers.items():
        optimizer.load_state_dict(back.optimizers[name])
        expected = checkpoint.optimizers[name]["state"]
        for index, values in optimizer.state_dict()["state"].items():
            assert values.keys() == expected[index].keys()
            for key, value in values.items():
                assert (
                    torch.equal(value, expected[index][key])
                    if torch.is_tensor(value)
                    else value == expected[index][key]
                )


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "garbage"])
def test_damage_is_told_by_the_file(saved, file, damage):
    _, folder = saved
    path = folder / file
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(
            {"empty": b"", "truncated": content[: len(content) * 3 // 4], "garbage": b"\xff" * 100}[damage]
        )
    with pytest.raises(ValueError, match=rf"{file}.* is missing, truncated or damaged"):
        Checkpoint.load(folder)


@pytest.mark.parametrize("state", ["[]", "{}", '{"optimizers": {"adam": {}}}', '{"optimizers": 3}'])
def test_state_that_does_not_go_with_the_tensors(saved, state):
    _, folder = saved
    (folder / "state.json").write_text(state)
    with pytest.raises(ValueError, match=r"state\.json"):
        Checkpoint.load(folder)


def test_other_formats_are_refused(saved):
    _, folder = saved
    (folder / "config.json").write_text(json.dumps({"format": 2}))
    with pytest.raises(ValueError, match=r"config\.json has format 2, expected 1"):
        read_config(folder)


def test_weights_of_another_model_are_refused(saved):
    _, folder = saved
    for model in (nn.Linear(3, 3), nn.ModuleDict({"first": nn.Linear(3, 3)})):
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        with pytest.raises(
            ValueError, match=rf"is of another model than this {type(model).__name__}: \d+ tensors differ"
        ):
            load_weights(model, folder)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    wider = Tied()
    wider.conv = nn.Conv2d(2, 5, 3)
    with pytest.raises(ValueError, match=r"2 tensors differ, the first is conv\."):
        load_weights(wider, folder)


def test_averaged_weights_are_the_default(saved):
    checkpoint, folder = saved
    model = Tied()
    load_weights(model, folder)
    assert torch.equal(model.conv.weight, checkpoint.ema["conv.weight"])
    load_weights(model, folder, averaged=False)
    assert torch.equal(model.conv.weight, checkpoint.model["conv.weight"])


def test_find(saved, tmp_path):
    _, last = saved
    run = last.parent
    assert find(last) == find(run) == last
    shutil.copytree(last, run / "best")
    assert find(run) == run / "best"
    assert find(run, "last") == last
    # What a kill between the two renames of a swap leaves.
    last.rename(run / ".last.old")
    assert find(run, "last") == find(last) == run / ".last.old"
    assert Checkpoint.load(last).state["step"] == 3
    with pytest.raises(ValueError, match="nowhere does not exist: expected a folder"):
        find(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file"):
        with pytest.raises(ValueError, match="is not a checkpoint or a run that has one"):
            find(path)
