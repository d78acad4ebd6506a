"""What the schedulers share: one affine update for all, where a step stands in the schedule, and the checks."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Generator, Tensor

from fastgen.ops.diffusion import diffusion_update
from fastgen.schedulers.config import Config, accepted

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")

# What `diffusion_update` takes of a step's noise: the noise, a seed, or nothing.
Noise = Mapping[str, Tensor | int]
NO_NOISE: Noise = MappingProxyType({})


class Coefficients(NamedTuple):
    """One step: `x0 = limit(x0_sample x + x0_output out)`, then
    `x_next = sample x + output out + previous prev + noise n + x0 x0`, in the order of `diffusion_update`'s
    coefficients.

    `out` is what the network said, `prev` what a scheduler of second order kept of the step before, `n` standard
    normal.
    """

    sample: float
    output: float
    previous: float
    noise: float
    x0: float
    x0_sample: float
    x0_output: float

    def merged(self) -> Coefficients:
        """The same update without `x0`, where nothing limits it."""
        sample, output = self.sample + self.x0 * self.x0_sample, self.output + self.x0 * self.x0_output
        return self._replace(sample=sample, output=output, x0=0.0)


@dataclass
class SchedulerOutput:
    """What `step` returns. `pred_original_sample` is computed when it is asked for."""

    prev_sample: Tensor
    _scheduler: Scheduler = field(repr=False)
    _index: int = field(repr=False)
    _model_output: Tensor = field(repr=False)
    _sample: Tensor = field(repr=False)

    @property
    def pred_original_sample(self) -> Tensor:
        """The `x0` that the network saw behind the noise."""
        return self._scheduler._x0(self._index, self._model_output, self._sample)


class Scheduler:
    """Takes a noisy sample along a schedule, `x_t -> x_{t-1}`, given what a network says about it.

        scheduler.set_timesteps(50, device)
        x = torch.randn(shape) * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            x = scheduler.step(network(scheduler.scale_model_input(x, t), t), t, x).prev_sample

    The interface and the numbers are those of diffusers' scheduler of the same name. All coefficients are computed
    ahead, by `set_timesteps`. An element of `timesteps` says by itself where it stands, so that on an accelerator no
    step waits for the device; a number, or a tensor of the host's, is looked up.

    Attributes:
        config: the constructor's arguments.
        timesteps: what to call the network with, in order, on the device.
        table: `Coefficients` of each step, float64 [steps, 7], on the device.
    """

    known_options: ClassVar[set[str]] = set()
    config: Config
    timesteps: Tensor
    table: Tensor

    @classmethod
    def from_config(cls, config: Mapping[str, Any], **changed: Any) -> Self:
        """A scheduler with the options of another, of ours or of diffusers', whichever of them it knows.

        Raises:
            ValueError: an option that is on, and that no scheduler of ours has.
        """
        return cls(**{**accepted(cls, config, Scheduler.known_options), **changed})

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Scheduler.known_options |= set(inspect.signature(cls.__init__).parameters)

    def __len__(self) -> int:
        return self.config["num_train_timesteps"]

    @property
    def init_noise_sigma(self) -> float:
        """The standard deviation of the noise that sampling starts from."""
        return 1.0

    @property
    def step_index(self) -> int | None:
        """Where the next step stands, counted from 0; None before the first."""
        return self._next if self._next else None

    def set_begin_index(self, begin_index: int = 0) -> None:
        """The next step is number `begin_index`, counted from 0."""
        if not 0 <= begin_index < len(self._times):
            raise ValueError(f"begin_index: expected 0 to {len(self._times) - 1}, got {begin_index}")
        self._next, self._previous = begin_index, None

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor | None = None) -> Tensor:
        """What the network takes for `sample`: itself, unless a scheduler says otherwise."""
        return sample

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        *,
        generator: Generator | None = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor, ...]:
        """`x_{t-1}` from `x_t` and the network's output for it.

        Args:
            model_output: [batch, ...], what the network said at `timestep`.
            timestep: of `timesteps`.
            sample: `x_t`, of the same shape.
            generator: of the noise, where the scheduler adds any: `torch.randn`'s numbers, as diffusers draws them.
                None draws in the pass that adds it, much quicker, other numbers that `torch.manual_seed` seeds too.
            variance_noise: taken instead of drawing.
            return_dict: False returns a tuple, `(prev_sample,)`.

        Raises:
            ValueError: shapes that differ, a timestep that is not in the schedule.
        """
        index = self._locate(timestep, model_output, sample)
        noise = self._noise(index, sample, generator, variance_noise)
        prev_sample = self._advance(index, model_output, sample, noise)
        self._next = index + 1
        if not return_dict:
            return (prev_sample,)
        return SchedulerOutput(prev_sample, self, index, model_output, sample)

    def _set_schedule(self, timesteps: Tensor, columns: Mapping[str, Tensor], device: Any) -> None:
        """Take the visited `timesteps` and the columns of `Coefficients`, [steps] each; what is left out is 0."""
        self._times: list[float] = timesteps.tolist()
        self.timesteps = timesteps.to(device)
        self._next, self._previous = 0, None
        self._set_rows(columns, device)

    def _set_rows(self, columns: Mapping[str, Tensor], device: Any) -> None:
        steps = len(self._times)
        zero = torch.zeros(steps, dtype=torch.float64)
        rows = torch.stack([columns.get(name, zero).double().expand(steps) for name in Coefficients._fields], 1)
        self._rows = [Coefficients(*row) for row in rows.tolist()]
        if not self._limits():
            self._rows = [row.merged() for row in self._rows]
        self.table = torch.tensor(self._rows, dtype=torch.float64).to(device)
        # Of the steps that do not go through x0.
        self._linear = self.table[:, :4].contiguous()

    def _advance(self, index: int, model_output: Tensor, sample: Tensor, noise: Noise) -> Tensor:
        """The update of step `index`, and what it leaves for the next."""
        return self._update(index, model_output, sample, noise=noise)

    def _update(
        self,
        index: int,
        model_output: Tensor,
        sample: Tensor,
        previous: Tensor | None = None,
        noise: Noise = NO_NOISE,
    ) -> Tensor:
        """`x_next` of the step's `Coefficients`."""
        if self._rows[index].x0 == 0:
            return diffusion_update(sample, model_output, self._linear[index], previous, **noise)
        return diffusion_update(sample, model_output, self.table[index], previous, **noise, **self._bounds())

    def _x0(self, index: int, model_output: Tensor, sample: Tensor) -> Tensor:
        return diffusion_update(sample, model_output, self.table[index], return_x0=True, **self._bounds())[1]

    def _noise(self, index: int, sample: Tensor, generator: Generator | None, given: Tensor | None) -> Noise:
        if self._rows[index].noise == 0:
            return NO_NOISE
        if given is not None:
            return {"noise": given}
        # Nobody asks for numbers of a generator of theirs: the pass that adds the noise draws it.
        return {"seed": random_seed(sample.device)} if generator is None else {"noise": randn_like(sample, generator)}

    def _limits(self) -> bool:
        return bool(self.config.get("thresholding") or self.config.get("clip_sample"))

    def _bounds(self) -> dict[str, float]:
        """How `x0` is kept within what data can be: clipped, or by dynamic thresholding (Saharia et al. 2022)."""
        config = self.config
        if config.get("thresholding"):
            largest = max(1.0, config["sample_max_value"])
            if largest == 1:
                # Whatever the quantile is, the limit is 1.
                return {"clip": 1.0}
            return {"dynamic_threshold": config["dynamic_thresholding_ratio"], "sample_max_value": largest}
        return {"clip": config["clip_sample_range"]} if config.get("clip_sample") else {}

    def _locate(self, timestep: float | Tensor, model_output: Tensor | None, sample: Tensor) -> int:
        """The place of `timestep` in the schedule."""
        if not hasattr(self, "_times"):
            raise ValueError(f"timesteps: call {type(self).__name__}.set_timesteps before step")
        if model_output is not None and model_output.shape != sample.shape:
            expected, got = list(sample.shape), list(model_output.shape)
            raise ValueError(f"model_output: expected {expected}, the shape of sample, got {got}")
        if isinstance(timestep, Tensor):
            if timestep.dim() == 0 and timestep.untyped_storage()._cdata == self.timesteps.untyped_storage()._cdata:
                return timestep.storage_offset() - self.timesteps.storage_offset()
            if timestep.numel() != 1:
                raise ValueError(f"timestep: expected one for the whole batch, got {list(timestep.shape)}")
        value = float(timestep)
        # A schedule may hold a time more than once: the next in turn goes first.
        if self._next < len(self._times) and self._times[self._next] == value:
            return self._next
        try:
            return self._times.index(value)
        except ValueError:
            times = ", ".join(f"{time:g}" for time in self._times[:4])
            raise ValueError(
                f"timestep: expected one of the {len(self._times)} of the schedule ({times}, ...), got {value:g}"
            ) from None


def randn_like(sample: Tensor, generator: Generator | None) -> Tensor:
    """Standard normal noise like `sample`, drawn where the generator is."""
    device = sample.device if generator is None else generator.device
    return torch.randn(sample.shape, generator=generator, device=device, dtype=sample.dtype).to(sample.device)


def random_seed(device: torch.device) -> int | Tensor:
    """A seed for a kernel on `device`, from the generator that `torch.manual_seed` seeds there.

    On a GPU it is a tensor, so that nothing waits, and a graph that is replayed draws another.
    """
    if device.type == "cuda":
        return torch.randint(2**63 - 1, (), device=device)
    return int(torch.randint(2**63 - 1, ()))


def check_prediction_type(prediction_type: str) -> None:
    """Raises unless it is one of `PREDICTION_TYPES`."""
    if prediction_type not in PREDICTION_TYPES:
        raise ValueError(f"prediction_type: expected one of {', '.join(PREDICTION_TYPES)}, got {prediction_type!r}")


def broadcast(values: Tensor, like: Tensor) -> Tensor:
    """`values` [batch] as [batch, 1, ...], in the dtype and on the device of `like`."""
    return values.to(like).view(-1, *(1,) * (like.dim() - 1))
