"""Training: a run that is killed and resumed, or shared by processes, gives the numbers of one that is not."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image
from torch import nn
from torch.optim import SGD

from fastgen.train import Batch, Recipe, Settings, Trainer, TrainingDiverged, TrainingInterrupted, evaluate
from fastgen.train.checkpoint import Checkpoint
from tests.ranks import FORKSERVER
from tests.train import training
from tests.train.training import assert_same_numbers, numbers, toy_dataset, toy_trainer

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken")
    toy_trainer(out).fit()
    return out


def program(out, *, processes, **options):
    """The toy training as a program of its own, in several processes."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *launcher, training.__file__, str(out), json.dumps(options)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_training_learns_and_writes_what_it_promises(unbroken):
    metrics = json.loads((unbroken / "metrics.json").read_text())
    assert [record["epoch"] for record in metrics["history"]] == [1, 2, 3, 4]
    assert [record["step"] for record in metrics["history"]] == [10, 20, 30, 40]
    assert metrics["final"]["validation_bits_per_dim"] < metrics["history"][0]["validation_bits_per_dim"] < 2
    assert metrics["final"]["validation_bits_per_dim"] == metrics["best"]["validation_bits_per_dim"]
    assert Image.open(unbroken / "samples.png").size[0] > 8 * 4
    assert sorted(p.name for p in unbroken.iterdir()) == ["best", "last", "metrics.json", "samples.png"]


def test_reported_bits_are_those_of_the_averaged_weights(unbroken):
    trainer = toy_trainer(unbroken)
    trainer.model.load_state_dict(Checkpoint.load(unbroken / "best").ema)
    trainer.model.eval()
    final = json.loads((unbroken / "metrics.json").read_text())["final"]
    for part in ("train", "validation"):
        images = trainer.dataset.part(part).images
        expected = -trainer.model.log_prob(images).double().mean().item() / (16 * math.log(2))
        assert final[f"{part}_bits_per_dim"] == pytest.approx(expected, rel=1e-6)


def test_same_seed_same_numbers_other_seed_other_numbers(unbroken, tmp_path):
    toy_trainer(tmp_path / "same").fit()
    assert_same_numbers(unbroken, tmp_path / "same")
    toy_trainer(tmp_path / "other", seed=1).fit()
    assert numbers(unbroken)[0]["history"] != numbers(tmp_path / "other")[0]["history"]


class Stopping(Recipe):
    """Interrupts itself, as Ctrl-C would, in the middle of step `stop`."""

    stop = 0

    def step(self, step, batch, networks, optimizers, accelerator):
        if step + 1 == self.stop:
            os.kill(os.getpid(), signal.SIGINT)
        return super().step(step, batch, networks, optimizers, accelerator)


@pytest.mark.parametrize("at", [1, 5, 10, 31, 40])
def test_interrupted_and_resumed_equals_unbroken(unbroken, tmp_path, at):
    recipe = Stopping(lr=1e-2, weight_decay=0.1)
    recipe.stop = at
    with pytest.raises(TrainingInterrupted) as stop:
        toy_trainer(tmp_path, recipe=recipe).fit()
    assert stop.value.signum == signal.SIGINT
    assert Checkpoint.load(tmp_path / "last").state["step"] == at
    toy_trainer(tmp_path).fit(resume=True)
    assert_same_numbers(unbroken, tmp_path)


def test_signal_handlers_are_put_back(tmp_path):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    toy_trainer(tmp_path, epochs=1).fit()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_killed_at_random_moments_and_resumed_equals_unbroken(tmp_path):
    length = {"epochs": 25, "batch_size": 4, "save_every": 13}
    toy_trainer(tmp_path / "unbroken", **length).fit()
    wait = random.Random(0)
    kills = 0
    while True:
        running = FORKSERVER.Process(target=training.train, args=(tmp_path / "killed", length))
        running.start()
        deadline = time.monotonic() + 60
        # Kills during the imports prove nothing: wait for this process' first sign of life in the folder.
        seen = newest(tmp_path / "killed")
        while running.is_alive() and newest(tmp_path / "killed") == seen and time.monotonic() < deadline:
            time.sleep(0.005)
        if kills < 3:
            time.sleep(wait.uniform(0, 0.5))
            running.kill()
        running.join(60)
        if running.exitcode == 0:
            break
        assert running.exitcode == -signal.SIGKILL
        kills += 1
    assert kills > 0
    assert_same_numbers(tmp_path / "unbroken", tmp_path / "killed")


def newest(folder):
    return max((path.stat().st_mtime_ns for path in folder.glob("*")), default=0)


def test_two_processes_give_the_numbers_of_one(tmp_path):
    options = {"dropout": 0.0, "epochs": 2}
    toy_trainer(tmp_path / "one", **options).fit()
    running = program(tmp_path / "two", processes=2, **options)
    _, errors = running.communicate(timeout=120)
    assert running.returncode == 0, errors
    (one, tensors), (two, other_tensors) = numbers(tmp_path / "one"), numbers(tmp_path / "two")
    for record, other in zip([*one["history"], one["final"]], [*two["history"], two["final"]], strict=True):
        assert record == pytest.approx(other, rel=1e-5)
    for name, tensor in tensors.items():
        torch.testing.assert_close(tensor, other_tensors[name], rtol=1e-3, atol=1e-5, msg=name)


def test_batch_must_divide_by_the_processes(tmp_path):
    running = program(tmp_path, processes=2, batch_size=7)
    _, errors = running.communicate(timeout=120)
    assert running.returncode != 0
    assert "batch_size is 7, expected a multiple of the 2 processes" in errors


class Exploding(Recipe):
    """Its weights become NaN at the end of step `at`."""

    at = 25

    def step(self, step, batch, networks, optimizers, accelerator):
        scalars = super().step(step, batch, networks, optimizers, accelerator)
        if step + 1 == self.at:
            next(networks["model"].parameters()).data.fill_(math.nan)
        return scalars


def test_divergence_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    with pytest.raises(TrainingDiverged, match=r"train bits_per_dim is nan after step 26: .* checkpoint is .*last"):
        toy_trainer(tmp_path, recipe=Exploding(lr=1e-2), save_every=8).fit()
    checkpoint = Checkpoint.load(tmp_path / "last")
    assert checkpoint.state["step"] == 24
    assert all(tensor.isfinite().all() for tensor in (*checkpoint.model.values(), *checkpoint.ema.values()))


def test_divergence_in_the_last_step_of_an_epoch_is_not_saved(tmp_path):
    recipe = Exploding(lr=1e-2)
    recipe.at = 30
    with pytest.raises(TrainingDiverged, match="validation bits_per_dim is nan after step 30"):
        toy_trainer(tmp_path, recipe=recipe, save_every=9).fit()
    assert Checkpoint.load(tmp_path / "last").state["step"] == 27


@pytest.mark.parametrize("change", [{"batch_size": 10}, {"seed": 1}, {"ema_decay": 0.5}, {"recipe": Recipe(lr=0.5)}])
def test_resuming_with_other_settings_is_refused(unbroken, change):
    with pytest.raises(ValueError, match=r"last is of another run: its \w+\.\w+ is .*, this run's is"):
        toy_trainer(unbroken, **change).fit(resume=True)


def test_resuming_with_other_data_is_refused(unbroken):
    trainer = toy_trainer(unbroken)
    other = Trainer(
        trainer.model,
        toy_dataset(n=101),
        unbroken,
        recipe=trainer.recipe,
        settings=trainer.settings,
        config={"model": "toy"},
    )
    with pytest.raises(ValueError, match=r"its dataset\.crc32 is"):
        other.fit(resume=True)


def test_more_epochs_go_on_from_the_end(tmp_path):
    toy_trainer(tmp_path, epochs=2).fit()
    history = json.loads((tmp_path / "metrics.json").read_text())["history"]
    longer = toy_trainer(tmp_path, epochs=3).fit(resume=True)["history"]
    assert longer[:2] == history
    assert len(longer) == 3


def test_starting_over_forgets_the_former_best(tmp_path):
    toy_trainer(tmp_path).fit()
    recipe = Stopping(lr=1e-2)
    recipe.stop = 3
    with pytest.raises(TrainingInterrupted):
        toy_trainer(tmp_path, recipe=recipe).fit()
    assert not (tmp_path / "best").exists()
    assert Checkpoint.load(tmp_path / "last").state["step"] == 3


def test_output_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match=r"cannot write to the output folder .*file/run"):
        toy_trainer(tmp_path / "file" / "run").fit()


@pytest.mark.parametrize(
    "bad",
    [{"epochs": 0}, {"batch_size": 0}, {"warmup": -1}, {"seed": -1}, {"save_every": 0}, {"ema_decay": 1.0}],
)
def test_settings_are_checked(bad):
    with pytest.raises(ValueError, match=f"{next(iter(bad))} is {next(iter(bad.values()))}, expected"):
        Settings(**bad)


@pytest.mark.parametrize("bad", [{"lr": 0}, {"lr": math.nan}, {"weight_decay": -1}, {"max_grad_norm": 0}])
def test_recipe_is_checked(bad):
    with pytest.raises(ValueError, match=f"{next(iter(bad))} is {next(iter(bad.values()))}, expected"):
        Recipe(**bad)


def test_evaluate_weighs_every_image_alike():
    trainer = toy_trainer(Path("unused"))
    images = trainer.dataset.train
    whole = evaluate(trainer.model, images, batch_size=len(images))["bits_per_dim"]
    assert evaluate(trainer.model, images, batch_size=7)["bits_per_dim"] == pytest.approx(whole, rel=1e-6)
    assert trainer.model.training
    with pytest.raises(ValueError, match="batch_size is 0"):
        evaluate(trainer.model, images, batch_size=0)


@pytest.fixture
def no_accelerator():
    """Lets a test choose another precision than the process' first `Accelerator` did."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize(
    ("precision", "cpu", "dtype"),
    [("bf16", True, torch.bfloat16), pytest.param("fp16", False, torch.float16, marks=pytest.mark.gpu)],
)
def test_mixed_precision_learns_and_resumes(tmp_path, no_accelerator, precision, cpu, dtype):
    seen = set()

    def watch(module, _, y):
        if module.training:
            seen.add(y.dtype)

    def trainer(out, recipe):
        accelerator = Accelerator(cpu=cpu, mixed_precision=precision)
        trainer = toy_trainer(out, recipe=recipe, accelerator=accelerator)
        trainer.model.logits.register_forward_hook(watch)
        return trainer

    history = trainer(tmp_path / "whole", Recipe(lr=1e-2)).fit()["history"]
    assert seen == {dtype}
    assert history[-1]["validation_bits_per_dim"] < history[0]["validation_bits_per_dim"]
    stopping = Stopping(lr=1e-2)
    stopping.stop = 17
    with pytest.raises(TrainingInterrupted):
        trainer(tmp_path / "resumed", stopping).fit()
    resumed = trainer(tmp_path / "resumed", Recipe(lr=1e-2)).fit(resume=True)["history"]
    for record, other in zip(resumed, history, strict=True):
        assert record == (other if cpu else pytest.approx(other, rel=1e-3))


def test_fp16_on_a_cpu_is_refused(tmp_path, no_accelerator):
    with pytest.raises(ValueError, match="precision is fp16, expected no or bf16 on a CPU"):
        toy_trainer(tmp_path, accelerator=Accelerator(cpu=True, mixed_precision="fp16"))


class Adversaries(nn.Module):
    """A generator and a discriminator of 4x4 images."""

    def __init__(self):
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(4, 16), nn.Sigmoid())
        self.discriminator = nn.Linear(16, 1)


class Adversarial(Recipe):
    """Two networks, two optimisers, no score: what a GAN needs of the trainer."""

    def networks(self, model):
        return {"generator": model.generator, "discriminator": model.discriminator}

    def optimizers(self, model):
        return {name: SGD(part.parameters(), lr=self.lr, momentum=0.9) for name, part in self.networks(model).items()}

    def step(self, step, batch, networks, optimizers, accelerator):
        real = batch.x.flatten(1) / 3
        fake = networks["generator"]("forward", torch.randn(len(batch), 4))
        scores = networks["discriminator"]("forward", torch.cat((real, fake.detach()))).unflatten(0, (2, -1))
        critic = nn.functional.softplus(-scores[0]).mean() + nn.functional.softplus(scores[1]).mean()
        self.update(critic, networks["discriminator"], optimizers["discriminator"], accelerator)
        generator = nn.functional.softplus(-networks["discriminator"]("forward", fake)).mean()
        self.update(generator, networks["generator"], optimizers["generator"], accelerator)
        return {"critic": critic.detach(), "generator": generator.detach()}

    def evaluate(self, model, batch, generator):
        return {}

    def sample(self, model, n, generator):
        return (model.generator(torch.randn(n, 4, generator=generator)) * 3).round().view(n, 1, 4, 4).byte()


class StoppingAdversarial(Stopping, Adversarial):
    pass


def test_a_recipe_with_two_optimizers_resumes_too(tmp_path):
    def trainer(out, recipe):
        torch.manual_seed(0)
        settings = Settings(epochs=2, batch_size=8, save_every=3)
        return Trainer(Adversaries(), toy_dataset(), out, recipe=recipe, settings=settings, quiet=True)

    metrics = trainer(tmp_path / "unbroken", Adversarial(lr=0.1)).fit()
    assert set(metrics["history"][0]) == {"epoch", "step", "train_critic", "train_generator"}
    stopping = StoppingAdversarial(lr=0.1)
    stopping.stop = 14
    with pytest.raises(TrainingInterrupted):
        trainer(tmp_path / "resumed", stopping).fit()
    assert trainer(tmp_path / "resumed", Adversarial(lr=0.1)).fit(resume=True)["history"] == metrics["history"]
    states = [Checkpoint.load(tmp_path / name / "last").optimizers for name in ("unbroken", "resumed")]
    assert states[0].keys() == {"generator", "discriminator"}
    for name, state in states[0].items():
        for index, values in state["state"].items():
            assert torch.equal(values["momentum_buffer"], states[1][name]["state"][index]["momentum_buffer"])


def test_labels_are_needed_by_a_conditional_model():
    model = nn.Module()
    model.num_classes = 3
    with pytest.raises(ValueError, match="class-conditional"):
        Batch.of(toy_dataset().train, model, torch.device("cpu"))
