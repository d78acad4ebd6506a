"""What flows add to training: vectors in their own units, nats, dequantised scores."""

import json
import math
import os
import signal

import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from fastgen.data import Dataset, Vectors, load
from fastgen.models import Glow
from fastgen.models.model import declared
from fastgen.train import Recipe, Settings, Trainer, TrainingInterrupted, evaluate
from fastgen.train.settings import recipe_of
from tests.train.gaussian_flow import GaussianFlow, NoisyImages
from tests.train.tiny_model import TinyModel
from tests.train.training import assert_same_numbers, toy_dataset

# Far from zero, of very different spreads, and correlated.
COVARIANCE = torch.tensor([[1e4, 30.0], [30.0, 0.25]], dtype=torch.float64)
ENTROPY = (math.log(2 * math.pi * math.e) * 2 + COVARIANCE.logdet().item()) / 2


def normal_vectors(n=2000):
    noise = torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    vectors = Vectors(noise @ torch.linalg.cholesky(COVARIANCE).T + torch.tensor([5000.0, -3.0]), ("pressure", "tilt"))
    return Dataset("normal", *vectors.split(0.2))


def gaussian_trainer(out, *, recipe=None, dataset=None, **settings):
    torch.manual_seed(0)
    dataset = dataset or normal_vectors()
    mean, std = dataset.train.statistics()
    return Trainer(
        GaussianFlow(2, mean.tolist(), std.tolist()),
        dataset,
        out,
        recipe=recipe or Recipe(lr=2e-2),
        settings=Settings(**{**{"epochs": 6, "batch_size": 64, "warmup": 5, "ema_decay": 0.98}, **settings}),
        accelerator=Accelerator(cpu=True),
        quiet=True,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    trainer = gaussian_trainer(tmp_path_factory.mktemp("gaussian"))
    trainer.fit()
    return trainer


def test_nats_are_those_of_the_data_in_their_own_units(trained):
    final = json.loads((trained.out / "metrics.json").read_text())["final"]
    # The best any model can do on these rows is their mean under the true density.
    rows = trained.dataset.validation.vectors
    true = torch.distributions.MultivariateNormal(torch.tensor([5000.0, -3.0]).double(), COVARIANCE)
    best = -true.log_prob(rows).mean().item()
    assert best == pytest.approx(ENTROPY, abs=0.15)
    assert final["validation_nats"] == pytest.approx(best, abs=0.02)


def test_samples_come_in_units_of_the_data(trained):
    samples = trained.recipe.sample(trained.ema.model, 20_000, torch.Generator().manual_seed(0)).double()
    assert samples.mean(0).tolist() == pytest.approx([5000, -3], rel=0.02)
    torch.testing.assert_close(samples.T.cov(), COVARIANCE, rtol=0.15, atol=0)


def test_the_picture_shows_data_samples_and_density(trained):
    width, height = Image.open(trained.out / "samples.png").size
    assert width > 2.5 * height, "three panels"


def test_history_tells_nats_and_the_checkpoint_what_columns_there_were(trained):
    metrics = json.loads((trained.out / "metrics.json").read_text())
    assert set(metrics["history"][0]) == {"epoch", "step", "train_nats", "train_grad_norm", "validation_nats"}
    assert metrics["best"]["validation_nats"] == min(record["validation_nats"] for record in metrics["history"])
    assert metrics["config"]["dataset"]["columns"] == ["pressure", "tilt"]


class Stopping(Recipe):
    """Interrupts itself in the middle of step `stop`."""

    stop = 30

    def step(self, step, batch, networks, optimizers, accelerator):
        if step + 1 == self.stop:
            os.kill(os.getpid(), signal.SIGINT)
        return super().step(step, batch, networks, optimizers, accelerator)


def test_interrupted_and_resumed_equals_unbroken(trained, tmp_path):
    with pytest.raises(TrainingInterrupted):
        gaussian_trainer(tmp_path, recipe=Stopping(lr=2e-2)).fit()
    gaussian_trainer(tmp_path).fit(resume=True)
    assert_same_numbers(trained.out, tmp_path)


def test_glow_interrupted_and_resumed_equals_unbroken(tmp_path):
    """With layers that start from data, and noise in every step and every score."""

    def trainer(out, recipe=None):
        torch.manual_seed(0)
        model = Glow(image_size=4, image_channels=1, levels=4, scales=2, steps=1, channels=8)
        settings = Settings(epochs=3, batch_size=8, warmup=5, save_every=7)
        accelerator = Accelerator(cpu=True)
        return Trainer(model, toy_dataset(), out, recipe=recipe, settings=settings, accelerator=accelerator, quiet=True)

    history = trainer(tmp_path / "unbroken").fit()["history"]
    assert history[-1]["validation_bits_per_dim"] < history[0]["validation_bits_per_dim"]
    stopping = Stopping()
    stopping.stop = 13
    with pytest.raises(TrainingInterrupted):
        trainer(tmp_path / "resumed", stopping).fit()
    trainer(tmp_path / "resumed").fit(resume=True)
    assert_same_numbers(tmp_path / "unbroken", tmp_path / "resumed")


def test_layers_that_start_from_data_see_the_first_batch_before_training(tmp_path):
    trainer = gaussian_trainer(tmp_path)
    seen = []
    trainer.model.initialize = lambda x, context=None: seen.append(x)
    trainer._prepare()
    torch.testing.assert_close(seen, [trainer.dataset.train.vectors[:64].float()], rtol=0, atol=0)


def test_every_model_has_its_recipe():
    models = {"bits_per_dim": (TinyModel(), NoisyImages()), "nats": (GaussianFlow(2, [0, 0], [1, 1]),)}
    for score, scored_by_it in models.items():
        for model in scored_by_it:
            assert type(recipe_of(model)) is Recipe
            assert declared(model, "validation_score") == score


class TestDequantizedScores:
    def test_repeat_whatever_was_drawn_before(self):
        model, images = NoisyImages(), toy_dataset().train
        first = evaluate(model, images, batch_size=32)
        torch.manual_seed(99)
        torch.rand(7)
        assert evaluate(model, images, batch_size=32) == first
        assert evaluate(model, images, batch_size=16) != first, "the noise is that of the batch's place"

    def test_batches_do_not_share_their_noise(self):
        model = NoisyImages()
        images = toy_dataset().train[torch.zeros(2, dtype=torch.int64)]
        one = evaluate(model, images[:1], batch_size=1)["bits_per_dim"]
        assert evaluate(model, images, batch_size=1)["bits_per_dim"] != pytest.approx(one, rel=1e-6)

    def test_are_bits_of_the_levels(self):
        # Of a standard normal density at the level plus uniform noise, the mean over the noise is known.
        images = toy_dataset(2000).train
        values = images.images.double()
        squares = values.square() + values + 1 / 3
        expected = (math.log(2 * math.pi) + squares.mean().item()) / 2 / math.log(2)
        assert evaluate(NoisyImages(), images)["bits_per_dim"] == pytest.approx(expected, rel=5e-3)

    def test_train_and_validation_are_in_the_same_units(self, tmp_path):
        settings = Settings(epochs=5, batch_size=20)
        history = Trainer(
            NoisyImages(), toy_dataset(), tmp_path, settings=settings, accelerator=Accelerator(cpu=True), quiet=True
        ).fit()["history"]
        assert history[-1]["validation_bits_per_dim"] < history[0]["validation_bits_per_dim"]
        assert history[-1]["train_bits_per_dim"] == pytest.approx(history[-1]["validation_bits_per_dim"], rel=0.2)
        assert Image.open(tmp_path / "samples.png").size[0] > 8 * 4


def test_points_have_a_score_that_is_known():
    """A normal density of the mean and spread of the checkerboard scores what that says, whatever its shape."""
    data = load("checkerboard", size=4000)
    mean, std = data.train.statistics()
    model = GaussianFlow(2, mean.tolist(), std.tolist()).eval()
    spread = ((data.train.vectors - mean) / std).square().sum(1).mean().item()
    assert spread == pytest.approx(2, rel=1e-9)
    expected = math.log(2 * math.pi) + spread / 2 + std.log().sum().item()
    assert evaluate(model, data.train)["nats"] == pytest.approx(expected, rel=1e-5)
