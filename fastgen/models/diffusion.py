"""The base of diffusion models: a path from data to noise, a network that sees through it, guidance, sampling."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor, nn

from fastgen.models.loop import Draw, Generators, Guard, Loop, Progress
from fastgen.models.model import ImageModel, drawn, evaluating, normalize_levels
from fastgen.models.unet import UNet
from fastgen.nn.arguments import is_int, is_number, positive, probability

# What the network predicts from `x = alpha x0 + sigma noise`.
PREDICTIONS = ("epsilon", "sample", "v_prediction", "velocity")
# Draws of time and noise for each image that is scored: with one, noise would hide the change from epoch to epoch.
VALIDATION_DRAWS = 2


class Diffusion(ImageModel):
    """A model of data by the noise that hides them: `x = alpha(t) x0 + sigma(t) noise`, undone by a network.

    A family adds its path (`alpha_sigma`), what its network says (`prediction_type`), its loss and its samplers.

    Args:
        image_size: height and width, or one number for both.
        image_channels: 1 or 3, or of a latent space.
        levels: of integer images; None for floating data.
        num_classes: takes labels.
        label_dropout: share of labels left out in training, which classifier-free guidance needs.
        channels, channel_multipliers, layers, attention_levels, head_channels, dropout, groups: of the `UNet`.
        network: takes `(x, time, labels)`, in place of a `UNet`.

    Attributes:
        prediction_type: what the network says: `"epsilon"` (the noise), `"sample"` (x0), `"v_prediction"`
            (`alpha noise - sigma x0`) or `"velocity"` (`noise - x0`).
        outputs_per_channel: of the network, for each of the image's channels.
        samplers: that `sample` takes, the default first.

    Raises:
        ValueError: sizes that are not positive, another prediction type.
    """

    prediction_type: str
    outputs_per_channel: int = 1
    samplers: ClassVar[tuple[str, ...]] = ()
    default_steps: ClassVar[int] = 50
    validation_score = "loss"
    # What `bits_per_dim` takes where a trained model is scored.
    bound_options: ClassVar[Mapping[str, Any]] = {}
    # 8x8 takes two resolutions. A million weights see the digits sixty times in about six minutes of one core.
    digits: ClassVar = {
        **{"channels": 32, "channel_multipliers": [1, 2], "layers": 2, "groups": 8, "dropout": 0.1},
        **{"lr": 2e-3, "epochs": 60, "batch_size": 64, "ema_decay": 0.998},
    }

    def __init__(
        self,
        image_size: int | Sequence[int],
        image_channels: int = 1,
        levels: int | None = 256,
        *,
        num_classes: int | None = None,
        label_dropout: float = 0.1,
        channels: int = 128,
        channel_multipliers: Sequence[int] = (1, 2, 2, 2),
        layers: int = 2,
        attention_levels: Sequence[int] = (1,),
        head_channels: int | None = None,
        dropout: float = 0.0,
        groups: int = 32,
        network: nn.Module | None = None,
    ) -> None:
        super().__init__(image_size, image_channels, levels, num_classes=num_classes)
        probability(label_dropout=label_dropout)
        if num_classes is None:
            self.without_effect("without num_classes", "label_dropout")
        self.label_dropout = label_dropout
        if self.prediction_type not in PREDICTIONS:
            raise ValueError(f"prediction_type: expected one of {', '.join(PREDICTIONS)}, got {self.prediction_type!r}")
        if network is None:
            network = UNet(
                image_channels,
                self.outputs_per_channel * image_channels,
                channels=channels,
                channel_multipliers=channel_multipliers,
                layers=layers,
                attention_levels=attention_levels,
                head_channels=head_channels,
                num_classes=num_classes,
                dropout=dropout,
                groups=groups,
            )
            # Convolutions and normalisations of this size are quicker so, on a CPU and on a GPU.
            network = network.to(memory_format=torch.channels_last)
        self.network = network

    def training_scores(self, loss: Tensor, x: Tensor) -> dict[str, Tensor]:
        return {"loss": loss}

    def validation_scores(self, x: Tensor, labels: Tensor | None, generator: Generator) -> dict[str, Tensor]:
        return {"loss": self.validation_errors(x, labels, generator=generator)}

    def test_scores(self, x: Tensor, labels: Tensor | None, generator: Generator) -> dict[str, Tensor]:
        # The bound takes many more calls of the network. It comes first, with the generator's first draws.
        bits = self.bits_per_dim(x, labels, generator=generator, **self.bound_options)
        return {**self.validation_scores(x, labels, generator), "bits_per_dim": bits}

    def alpha_sigma(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """`alpha` and `sigma`, like `time`, in float64 where that is."""
        raise NotImplementedError

    def times(self, steps: int) -> Tensor:
        """Times [steps] at falling levels of noise, the first that of pure noise, for samplers of other rooms."""
        raise NotImplementedError

    def network_time(self, time: Tensor) -> Tensor:
        """The time as the network takes it, in units that it should tell apart."""
        return time

    @property
    def exact_dtype(self) -> torch.dtype:
        """Of everything but the network: float32 or more, since half precision has no number for a little noise."""
        return torch.promote_types(self.dtype, torch.float32)

    def normalize(self, images: Tensor) -> Tensor:
        """The images as the model sees them: levels spread over [-1, 1], in `exact_dtype`."""
        self.check_images(images)
        dtype = self.exact_dtype
        return images.to(dtype) if self.levels is None else normalize_levels(images, self.levels, dtype)

    def quantize(self, x: Tensor) -> Tensor:
        """The inverse of `normalize`: the nearest levels, uint8, or data in the dtype of the weights."""
        return x.to(self.dtype) if self.levels is None else super().quantize(x)

    def output(self, x: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        """The network's output for `x` [batch, ...] at `time` ([1] or [batch], in the model's own units).

        In the dtype of `x`, whatever the network computes in.
        """
        return self.ask(x, time, labels)

    def ask(self, x: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        """The network's answer to `x` as it is, in the dtype of that."""
        return self.network(x.to(self.dtype), self.network_time(time), labels).to(x.dtype)

    def drawn(self, how: Callable[..., Tensor], shape: Sequence[int], generator: Generators = None) -> Tensor:
        """Random numbers on the model's device, in `exact_dtype`."""
        return drawn(how, shape, torch.empty((), dtype=self.exact_dtype, device=self.device), generator)

    def predict_x0(self, x: Tensor, time: Tensor, output: Tensor) -> Tensor:
        """`E[x0 | x]`, from the network's output."""
        alpha, sigma = (along(value, x) for value in self.alpha_sigma(time))
        if self.prediction_type == "epsilon":
            x0 = (x - sigma * output) / alpha
        elif self.prediction_type == "sample":
            x0 = output
        elif self.prediction_type == "v_prediction":
            x0 = alpha * x - sigma * output
        else:
            x0 = x - sigma * output
        return x0.to(torch.promote_types(x.dtype, output.dtype))

    def denoise(self, x: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        """`E[x0 | x]`, the network's guess of the data behind the noise; arguments as `output`'s."""
        return self.predict_x0(x, time, self.output(x, time, labels))

    def score(self, x: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        """`grad log p_t(x) = (alpha E[x0 | x] - x) / sigma^2`, arguments as `output`'s.

        Source: Efron, "Tweedie's Formula and Selection Bias" (2011), equation 2.8.
        """
        alpha, sigma = (along(value, x) for value in self.alpha_sigma(time))
        return ((alpha * self.denoise(x, time, labels) - x) / sigma**2).to(x.dtype)

    def target(self, x0: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """The output that the network is trained towards."""
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "sample":
            return x0
        if self.prediction_type == "velocity":
            return noise - x0
        alpha, sigma = (along(value, x0) for value in self.alpha_sigma(time))
        return (alpha * noise - sigma * x0).to(x0.dtype)

    def noised(self, x0: Tensor, time: Tensor, noise: Tensor) -> Tensor:
        """`alpha x0 + sigma noise`."""
        alpha, sigma = (along(value, x0) for value in self.alpha_sigma(time))
        return (alpha * x0 + sigma * noise).to(x0.dtype)

    def corrupt(self, x0: Tensor, time: Tensor, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        """`x0` behind noise that is drawn, and what the network should say of it."""
        noise = drawn(torch.randn, x0.shape, x0, generator)
        return self.noised(x0, time, noise), self.target(x0, noise, time)

    def draw_times(self, n: int, generator: Generator | None = None) -> Tensor:
        """Times [n] to train at."""
        raise NotImplementedError

    def weights(self, time: Tensor) -> Tensor:
        """Weights of the squared errors at `time` in the loss, [n]."""
        return torch.ones_like(time, dtype=self.exact_dtype)

    def errors(self, images: Tensor, labels: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        """The weighted squared error of each image at one drawn time, its mean over pixels, [batch].

        Args:
            images: integer levels [batch, image_channels, height, width], or floating data where `levels` is None.
            labels: integer classes [batch], where the model has `num_classes`; None where it has not.
            generator: of times and noise.

        Raises:
            TypeError, ValueError: images or labels that are not this model's.
        """
        x0 = self.normalize(images)
        self.check_labels(labels, len(images))
        time = self.draw_times(len(x0), generator)
        x, target = self.corrupt(x0, time, generator)
        output = self.output(x, time, self._some_dropped(labels, generator))
        error = (output - target).square().flatten(1).mean(1)
        return error * self.weights(time)

    def validation_errors(
        self, images: Tensor, labels: Tensor | None = None, *, generator: Generator | None = None
    ) -> Tensor:
        """`errors`, of enough draws for each image to tell one epoch of training from the next, [batch]."""
        draws = [self.errors(images, labels, generator=generator) for _ in range(VALIDATION_DRAWS)]
        return torch.stack(draws).mean(0)

    def loss(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """The mean of `errors`, a scalar."""
        return self.errors(images, labels).mean()

    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        sampler: str | None = None,
        steps: int | None = None,
        labels: Tensor | int | None = None,
        guidance: float | None = None,
        classifier: Callable[[Tensor, Tensor], Tensor] | None = None,
        classifier_scale: float = 1.0,
        generator: Generators = None,
        progress: Progress | None = None,
        **options: Any,
    ) -> Tensor:
        """Draws `n` images: uint8 levels [n, image_channels, height, width], or floating data where `levels` is None.

        Args:
            sampler: one of `samplers`; None takes the first.
            steps: of the sampler; None takes what suits it.
            labels: integer classes [n], or one class for all, where the model has `num_classes`; None for no class.
            guidance: classifier-free guidance, `out = out_none + guidance (out_label - out_none)`: 1 is the class as
                learnt, more exaggerates it. Needs labels, and a model that learnt with `label_dropout`.
            classifier: takes noisy data and times to logits [n, classes]; its gradient pulls samples towards `labels`.
            classifier_scale: strength of that.
            generator: of the noise, on any device, which is where it is drawn; or a list of one for each image.
            progress: called as `progress(done, total)`.
            options: of the sampler.

        Raises:
            TypeError, ValueError: `n`, steps or labels that are not such, another sampler, guidance without labels.
            SamplingDiverged: the network said NaN; names the step and holds the last good state.

        Source: Ho and Salimans, "Classifier-Free Diffusion Guidance" (2022), equation 6; Dhariwal and Nichol (2021),
        algorithm 1.
        """
        draw = self.prepared(
            n,
            sampler=sampler,
            steps=steps,
            guidance=guidance,
            classifier=classifier,
            classifier_scale=classifier_scale,
            **options,
        )
        x, guard = draw(labels, generator, progress)
        return guard.finish(x)

    @torch.no_grad()
    def prepared(
        self,
        n: int,
        *,
        sampler: str | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        classifier: Callable[[Tensor, Tensor], Tensor] | None = None,
        classifier_scale: float = 1.0,
        **options: Any,
    ) -> Draw:
        """The first part of `sample`, which makes the sampler's tables; what it returns is the rest.

        That takes `(labels, generator, progress)`, all optional, and returns the images and a guard, whose
        `finish(images)` raises where sampling diverged. On an accelerator it neither copies from the host nor waits,
        given labels that are there: it can be captured as a graph, except for the samplers that are not in
        `capturable`. Arguments and errors are as in `sample`.
        """
        positive(n=n)
        sampler = self.samplers[0] if sampler is None else sampler
        if sampler not in self.samplers:
            raise ValueError(f"sampler: expected one of {', '.join(self.samplers)}, got {sampler!r}")
        steps = self._default_steps(sampler) if steps is None else steps
        positive(steps=steps)
        make_loop = getattr(self, f"_sample_{sampler.replace('+', 'p')}")
        try:
            inspect.signature(make_loop).bind(steps, **options)
        except TypeError as error:
            raise TypeError(f"sampler '{sampler}' {error}") from None
        loop: Loop = make_loop(steps, **options)

        @torch.no_grad()
        def draw(
            labels: Tensor | int | None = None, generator: Generators = None, progress: Progress | None = None
        ) -> tuple[Tensor, Guard]:
            guard = Guard(loop.steps, progress)
            with evaluating(self):
                output = self.guided(n, labels, guidance, classifier, classifier_scale)
                noise = self.drawn(torch.randn, (n, *self.shape), generator)
                return self.quantize(loop.run(output, noise, generator, guard)), guard

        return draw

    @property
    def capturable(self) -> tuple[str, ...]:
        """The samplers whose steps do not wait for the device: those of `fastgen.sampling.capture`."""
        return tuple(sampler for sampler in self.samplers if sampler != "ode")

    def guided(
        self,
        n: int,
        labels: Tensor | int | None = None,
        guidance: float | None = None,
        classifier: Callable[[Tensor, Tensor], Tensor] | None = None,
        classifier_scale: float = 1.0,
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """`output` with labels and guidance put in: takes `(x, time)`. Arguments and errors as in `sample`."""
        if is_int(labels):
            labels = torch.full((n,), labels, device=self.device)
        if labels is None and (guidance is not None or classifier is not None):
            raise ValueError("guidance: expected labels to guide towards, got None")
        if labels is not None and (self.num_classes is not None or classifier is None):
            self.check_labels(labels, n)
        known = labels if self.num_classes is not None else None
        if guidance is not None:
            _check_guidance(guidance, self)
        plain = self._without_or_with(known, guidance)
        if classifier is None:
            return plain

        def pulled(x: Tensor, time: Tensor) -> Tensor:
            gradient = classifier_gradient(lambda x, time: classifier(x.to(self.dtype), time), x, time, labels)
            return plain(x, time) + along(self._pull(time), x) * (classifier_scale * gradient)

        return pulled

    def _without_or_with(self, labels: Tensor | None, guidance: float | None) -> Callable[[Tensor, Tensor], Tensor]:
        if guidance is None or guidance == 1:
            return lambda x, time: self.output(x, time, labels)
        both = torch.cat([labels, torch.full_like(labels, self.num_classes)])

        def extrapolated(x: Tensor, time: Tensor) -> Tensor:
            times = time if len(time) == 1 else torch.cat([time, time])
            with_label, without = self.output(torch.cat([x, x]), times, both).chunk(2)
            return torch.lerp(without, with_label, guidance)

        return extrapolated

    def _pull(self, time: Tensor) -> Tensor:
        """How far the output moves for each unit that is added to the score: x0 moves by `sigma^2 / alpha`."""
        alpha, sigma = self.alpha_sigma(time)
        # At alpha = 0, x is pure noise and says nothing of the label: the classifier has no pull.
        ratio = torch.where(alpha > 0, sigma / alpha, 0)
        moves = {"epsilon": -sigma, "sample": sigma * ratio, "v_prediction": -ratio, "velocity": -ratio}
        return moves[self.prediction_type]

    def _default_steps(self, sampler: str) -> int:
        return self.default_steps

    def _some_dropped(self, labels: Tensor | None, generator: Generator | None) -> Tensor | None:
        """Labels, some of them replaced by the label of none, in training."""
        if labels is None or not self.label_dropout or not self.training:
            return labels
        dropped = self.drawn(torch.rand, labels.shape, generator) < self.label_dropout
        return torch.where(dropped, torch.full_like(labels, self.num_classes), labels)


def along(values: Tensor, like: Tensor) -> Tensor:
    """`values` [n] as [n, 1, ...], in the dtype of `like`, or float32 where that is less."""
    return values.to(torch.promote_types(like.dtype, torch.float32)).view(-1, *(1,) * (like.dim() - 1))


def classifier_gradient(
    classifier: Callable[[Tensor, Tensor], Tensor], x: Tensor, time: Tensor, labels: Tensor
) -> Tensor:
    """`grad_x log p(labels | x)` at `time`, [batch, ...].

    Raises:
        ValueError: the classifier's logits are not [batch, classes], or labels are none of them.

    Source: Dhariwal and Nichol, "Diffusion Models Beat GANs on Image Synthesis" (2021), section 4.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        logits = classifier(x, time.expand(len(x)))
        if logits.dim() != 2 or len(logits) != len(x):
            raise ValueError(f"classifier: expected logits [{len(x)}, classes], got {list(logits.shape)}")
        if labels.device.type == "cpu" and int(labels.max()) >= logits.shape[1]:
            raise ValueError(f"labels: expected classes of the classifier's {logits.shape[1]}, got {int(labels.max())}")
        chosen = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(1).gather(1, labels[:, None])
        return torch.autograd.grad(chosen.sum(), x)[0]


def _check_guidance(guidance: float, model: Diffusion) -> None:
    if not (is_number(guidance) and math.isfinite(guidance)):
        raise ValueError(f"guidance: expected a number, got {guidance!r}")
    if model.num_classes is None:
        raise ValueError("guidance: this model is unconditional (num_classes is None), expected None")
    if guidance != 1 and not model.label_dropout:
        raise ValueError("guidance: this model learnt without label_dropout, it does not know images of no class")
