"""The base of all schedulers: one affine update for all, where a step stands in the schedule, and the checks."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
# One generator, or one for each sample of the batch.
Generators = Generator | Sequence[Generator] | None


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


@dataclass
class SchedulerOutput:
    """The result of a step.

    Attributes:
        prev_sample: the sample after the step, of the shape of the one before it.
        pred_original_sample: the `x0` that the network saw behind the noise.
    """

    prev_sample: Tensor
    pred_original_sample: Tensor


class Scheduler:
    """Takes a noisy sample along a schedule, `x_t -> x_{t-1}`, given what a network says about it.

        scheduler.set_timesteps(50, device)
        x = torch.randn(shape) * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            x = scheduler.step(network(scheduler.scale_model_input(x, t), t), t, x).prev_sample

    The interface and the numbers are those of diffusers' scheduler of the same name. All coefficients are computed
    ahead, by `set_timesteps`. An element of `timesteps` says by itself where it stands, so that on an accelerator no
    step waits for the device; a number, or another tensor, is looked up.

    One scheduler goes along one loop at a time, since some keep what the step before left. A step that does not follow
    on the one before begins a loop; loops that take turns have a `deepcopy` each.

    Attributes:
        config: the constructor's arguments, and what `from_config` was given besides.
        table: `Coefficients` of each step, float64 [steps, 7], on the device.
    """

    # Options that diffusers' class of this name has and ours has not, and the values that mean what ours does.
    fixed_options: ClassVar[dict[str, tuple[Any, ...]]] = {}
    # Whether a step's result has the dtype of the network's output, and not of output and sample together.
    returns_output_dtype: ClassVar[bool] = False
    _options: ClassVar[set[str]] = set()
    _known_options: ClassVar[set[str]] = set()
    config: Config
    table: Tensor

    @classmethod
    def from_config(cls, config: Mapping[str, Any], **changed: Any) -> Self:
        """A scheduler with the options of another, of ours or of diffusers', whichever of them it knows.

        As in diffusers: what the other's maker did not set is not handed on, and what this class does not know does
        nothing but stay in `config`, for the next class.

        Args:
            config: of a scheduler, or what was saved of it as JSON.
            changed: options to set beside it.

        Raises:
            ValueError: an option that diffusers' class of this name has and that would change the numbers.
            TypeError: `changed` has an option that is none of this class.
        """
        taken, carried = accepted(cls, config, changed, cls.fixed_options, Scheduler._known_options)
        scheduler = cls(**taken)
        scheduler.config.update(carried)
        return scheduler

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._options = set(inspect.signature(cls.__init__).parameters)
        Scheduler._known_options |= cls._options | cls.fixed_options.keys()

    def __len__(self) -> int:
        return self.config["num_train_timesteps"]

    @property
    def timesteps(self) -> Tensor:
        """The times to call the network with, in order, on the device.

        A run of the schedule may be assigned, such as its end, wherever it lies: each of its steps remains what it was.
        """
        return self._timesteps

    @timesteps.setter
    def timesteps(self, given: Tensor) -> None:
        self._assign(as_tensor(given).contiguous())

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
        """The network's input for `sample`: the sample itself, unless a scheduler says otherwise."""
        return sample

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        *,
        generator: Generators = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor, ...]:
        """`x_{t-1}` from `x_t` and the network's output for it.

        It is computed in float32 or more. Where the two differ in dtype, as under autocast, the result has the dtype
        that diffusers' has: both's together, or the output's.

        Args:
            model_output: [batch, ...], what the network said at `timestep`.
            timestep: of `timesteps`.
            sample: `x_t`, of the same shape.
            generator: of the noise, where the scheduler adds any, or a list of one for each sample: `torch.randn`'s
                numbers, as diffusers draws them. None draws in the pass that adds it, much quicker, other numbers that
                `torch.manual_seed` seeds too.
            variance_noise: taken instead of drawing.
            return_dict: False returns a tuple, `(prev_sample,)`, and leaves out `pred_original_sample`, which takes a
                pass that writes it.

        Raises:
            ValueError: shapes that differ, a timestep that is not in the schedule, both generator and noise.
        """
        index = self._locate(timestep, model_output, sample)
        noise = self._noise(index, model_output, sample, generator, variance_noise)
        said, x, noise = _together(model_output, sample, noise)
        self._move_tables(x.device)
        prev_sample, x0 = self._advance(index, said, x, noise, return_dict)
        return self._stepped(index, model_output, prev_sample, x0, return_dict)

    def _stepped(
        self, index: int, model_output: Tensor, prev_sample: Tensor, x0: Tensor | None, return_dict: bool
    ) -> SchedulerOutput | tuple[Tensor, ...]:
        self._next = index + 1
        if self.returns_output_dtype:
            prev_sample = prev_sample.to(model_output.dtype)
        return SchedulerOutput(prev_sample, x0) if return_dict else (prev_sample,)

    def _set_schedule(self, timesteps: Tensor, columns: Mapping[str, Tensor], device: Any) -> None:
        """Take the visited `timesteps` and the columns of `Coefficients`, [steps] each; what is left out is 0."""
        self._times: list[float] = timesteps.tolist()
        self._timesteps = self._schedule = timesteps.to(device)
        # A tensor whose elements say where they stand, and where its first one does.
        self._anchor = self._schedule, 0
        self._next, self._previous = 0, None
        self._set_rows(columns, device)

    def _assign(self, given: Tensor) -> None:
        times = given.tolist()
        runs = [i for i in range(len(self._times) - len(times) + 1) if self._times[i : i + len(times)] == times]
        if given.dim() != 1 or not times or not runs:
            raise ValueError(
                f"timesteps: expected a run of the {len(self._times)} of the schedule, got {times}; others are for "
                "set_timesteps"
            )
        place = self._place(given[:1])
        first = runs[0] if place is None else place
        self._timesteps, self._anchor = given, (given, first)
        self._next, self._previous = first, None

    def _set_rows(self, columns: Mapping[str, Tensor], device: Any) -> None:
        steps = len(self._times)
        zero = torch.zeros(steps, dtype=torch.float64, device="cpu")
        rows = torch.stack([columns.get(name, zero).double().expand(steps) for name in Coefficients._fields], 1)
        # Dynamic thresholding divides by its limit, which below 1 is no longer a quantile but a number.
        divisor = min(1.0, self._largest_value()) if self._option("thresholding") else 1.0
        rows[:, -2:] /= divisor
        if not self._limits():
            # Without `x0`, where nothing limits it.
            rows[:, :2] += rows[:, 4:5] * rows[:, 5:]
            rows[:, 4] = 0
        self._rows = [Coefficients._make(row) for row in rows.numpy().tolist()]
        self.table = rows.to(device)
        # The columns of steps that do not go through x0.
        self._linear = self.table[:, :4].contiguous()

    def _move_tables(self, device: torch.device) -> None:
        """The tables follow the samples, as in diffusers, where `set_timesteps` was not told where these are."""
        if self.table.device != device:
            self.table, self._linear = self.table.to(device), self._linear.to(device)

    def _advance(
        self, index: int, model_output: Tensor, sample: Tensor, noise: Noise, wants_x0: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The update of step `index`, x0 where it is wanted, and what the step leaves for the next."""
        return self._update(index, model_output, sample, noise=noise, wants_x0=wants_x0)

    def _update(
        self,
        index: int,
        model_output: Tensor,
        sample: Tensor,
        previous: Tensor | None = None,
        noise: Noise = NO_NOISE,
        wants_x0: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """`x_next` of the step's `Coefficients`, and x0.

        That is computed at once, where it costs the pass one more store: later the caller may have written into the
        sample, and to copy it would be another pass.
        """
        if wants_x0:
            options = {**noise, **self._bounds(), "return_x0": True}
            return diffusion_update(sample, model_output, self.table[index], previous, **options)
        if self._rows[index].x0 == 0:
            return diffusion_update(sample, model_output, self._linear[index], previous, **noise), None
        return diffusion_update(sample, model_output, self.table[index], previous, **noise, **self._bounds()), None

    def _carried(self, index: int) -> Tensor | None:
        """The tensor that the last step left for this one; None where the last step was not the one before `index`."""
        return self._previous if index == self._next else None

    def _noise(
        self, index: int, model_output: Tensor, sample: Tensor, generator: Generators, given: Tensor | None
    ) -> Noise:
        check_one_source(generator, given)
        if self._rows[index].noise == 0:
            return NO_NOISE
        if given is not None:
            return {"noise": given}
        # Nobody asks for numbers of a generator of theirs: the pass that adds the noise draws it.
        if generator is None:
            return {"seed": random_seed(sample.device)}
        return {"noise": randn_like(model_output, generator, self._noise_dtype(model_output))}

    def _noise_dtype(self, model_output: Tensor) -> torch.dtype:
        """The dtype in which noise is drawn, as in diffusers: a generator gives other numbers in another dtype."""
        return model_output.dtype

    def _option(self, name: str) -> Any:
        """An option of this class; of what `from_config` carried along besides, None."""
        return self.config[name] if name in self._options else None

    def _limits(self) -> bool:
        return bool(self._option("thresholding") or self._option("clip_sample"))

    def _largest_value(self) -> float:
        largest = self.config["sample_max_value"]
        if not largest > 0:
            raise ValueError(f"sample_max_value: expected a positive number, got {largest}")
        return largest

    def _bounds(self) -> dict[str, float]:
        """How `x0` is kept within what data can be: clipped, or by dynamic thresholding (Saharia et al. 2022)."""
        config = self.config
        if self._option("thresholding"):
            largest = self._largest_value()
            if largest <= 1:
                # Whatever the quantile is, the limit is that, and the table has divided by it.
                return {"clip": 1.0}
            return {"dynamic_threshold": config["dynamic_thresholding_ratio"], "sample_max_value": largest}
        return {"clip": config["clip_sample_range"]} if self._option("clip_sample") else {}

    def _locate(self, timestep: float | Tensor, model_output: Tensor | None, sample: Tensor) -> int:
        """The place of `timestep` in the schedule."""
        if model_output is not None and model_output.shape != sample.shape:
            expected, got = list(sample.shape), list(model_output.shape)
            raise ValueError(f"model_output: expected {expected}, the shape of sample, got {got}")
        if isinstance(timestep, Tensor):
            if timestep.numel() != 1:
                raise ValueError(f"timestep: expected one for the whole batch, got {list(timestep.shape)}")
            if (place := self._place(timestep)) is not None:
                return place
        value = float(timestep)
        # A schedule may hold a time more than once: the next in turn goes first.
        if self._next < len(self._times) and self._times[self._next] == value:
            return self._next
        places = [place for place, time in enumerate(self._times) if time == value]
        if not places:
            times = ", ".join(f"{time:g}" for time in self._times[:4])
            raise ValueError(
                f"timestep: expected one of the {len(self._times)} of the schedule ({times}, ...), got {value:g}"
            )
        # Where there are several, the second, as in diffusers: so a loop that begins in the middle misses no noise.
        return places[min(1, len(places) - 1)]

    def _place(self, timestep: Tensor) -> int | None:
        """Where `timestep` stands if it is an element of the schedule, by where it lies in memory."""
        anchor, first = self._anchor
        if timestep.dtype != anchor.dtype or not _same_storage(timestep, anchor):
            return None
        place = first + timestep.storage_offset() - anchor.storage_offset()
        if not 0 <= place < len(self._times):
            return None
        # What the host can read may have been written over.
        return None if timestep.device.type == "cpu" and timestep.item() != self._times[place] else place


def randn_like(sample: Tensor, generator: Generators, dtype: torch.dtype | None = None) -> Tensor:
    """Standard normal noise like `sample`, drawn where the generator is; of a list, each sample has its own.

    Raises:
        ValueError: a list that has not one for each sample.
    """
    dtype = sample.dtype if dtype is None else dtype
    if isinstance(generator, Sequence) and len(generator) == 1:
        generator = generator[0]
    if isinstance(generator, Sequence):
        if len(generator) != len(sample):
            raise ValueError(f"generator: expected one, or {len(sample)}, one for each sample, got {len(generator)}")
        return torch.cat([randn_like(sample[:1], one, dtype) for one in generator])
    device = sample.device if generator is None else generator.device
    return torch.randn(sample.shape, generator=generator, device=device, dtype=dtype).to(sample.device)


def check_one_source(generator: Generators, noise: Tensor | None) -> None:
    """Raises where noise is given and something to draw it with, too."""
    if noise is not None and generator is not None:
        raise ValueError("variance_noise: expected a generator or noise, got both")


def as_tensor(values: Any) -> Tensor:
    """A tensor as it is, anything else as one on the host, whatever device tensors are made on by default."""
    return values if isinstance(values, Tensor) else torch.as_tensor(values, device="cpu")


def random_seed(device: torch.device) -> int | Tensor:
    """A seed for a kernel on `device`, from the generator that `torch.manual_seed` seeds there.

    On a GPU it is a tensor, so that nothing waits, and a graph that is replayed draws another.
    """
    if device.type == "cuda":
        return torch.randint(2**63 - 1, (), device=device)
    return int(torch.randint(2**63 - 1, (), device="cpu"))


def check_prediction_type(prediction_type: str) -> None:
    """Raises unless it is one of `PREDICTION_TYPES`."""
    if prediction_type not in PREDICTION_TYPES:
        raise ValueError(f"prediction_type: expected one of {', '.join(PREDICTION_TYPES)}, got {prediction_type!r}")


def mixed(first: Tensor, first_factor: Tensor, second: Tensor, second_factor: Tensor) -> Tensor:
    """`a first + b second` with a factor for each of the batch, [batch, ...], rounded to the samples' dtype at the end.

    Factors are float32 or more: what is left of the signal after a little noise is 1 in half precision.
    """
    shape = (-1, *(1,) * (first.dim() - 1))
    factors = [factor.to(first.device).view(shape) for factor in (first_factor, second_factor)]
    result = factors[0] * first + factors[1] * second
    return result.to(torch.promote_types(first.dtype, second.dtype))


def _together(model_output: Tensor, sample: Tensor, noise: Noise) -> tuple[Tensor, Tensor, Noise]:
    """All in the one dtype that holds them, in which the kernel takes them."""
    given = noise.get("noise")
    tensors = [model_output, sample, *([] if given is None else [given])]
    if all(tensor.dtype == sample.dtype for tensor in tensors):
        return model_output, sample, noise
    dtype = sample.dtype
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    said, x, *drawn = (tensor.to(dtype) for tensor in tensors)
    return said, x, {"noise": drawn[0]} if drawn else noise


def _same_storage(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage()._cdata == other.untyped_storage()._cdata
