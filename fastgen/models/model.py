"""The base of every model: it records how a model was made, and holds what a model declares of its training."""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, ClassVar, Self

import torch
from torch import Generator, Tensor, nn

from fastgen.nn.arguments import levels_of, pair, plain_numbers, positive, readable, without_effect

# The kinds of parameters that `*images` and `**options` hand on.
_HANDED_ON = {
    inspect.Parameter.VAR_POSITIONAL: (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD),
    inspect.Parameter.VAR_KEYWORD: (inspect.Parameter.KEYWORD_ONLY,),
}
# Whether `from_config` is at work.
_remaking: ContextVar[bool] = ContextVar("_remaking", default=False)


def _recording(cls: type[Model], without: tuple[str, ...]) -> Callable[..., None]:
    """The constructor of `cls`, which keeps its arguments as `config` where it is that of the model itself."""
    init = vars(cls)["__init__"]
    signature = _whole_signature(cls, without)

    @functools.wraps(init)
    def constructor(self: Model, *args: Any, **kwargs: Any) -> None:
        # The constructors of the classes above find it there, and leave it.
        if "config" not in vars(self):
            vars(self)["config"] = _config(signature.bind(self, *args, **kwargs))
        init(self, *args, **kwargs)

    constructor.__signature__ = signature
    return plain_numbers(constructor)


def _whole_signature(cls: type[Model], without: tuple[str, ...]) -> inspect.Signature:
    """The parameters of a constructor, with those of the class above where it takes `*images` or `**options`."""
    own = inspect.signature(vars(cls)["__init__"])
    kinds = {parameter.kind for parameter in own.parameters.values()}
    handed_on = {other for kind, others in _HANDED_ON.items() if kind in kinds for other in others}
    above = inspect.signature(super(cls, cls).__init__).parameters.values()
    inherited = [p for p in above if p.kind in handed_on and p.name not in {*own.parameters, *without}]
    mine = [p for p in own.parameters.values() if p.kind not in _HANDED_ON]
    positional = [p for p in mine if p.kind != p.KEYWORD_ONLY]
    keyword = [p for p in mine if p.kind == p.KEYWORD_ONLY]
    return own.replace(parameters=sorted([*positional, *inherited, *keyword], key=lambda p: p.kind))


def _config(given: inspect.BoundArguments) -> dict[str, Any] | None:
    """The arguments but for networks, JSON-able; None for a model that cannot be made without its networks."""
    given.apply_defaults()
    networks = {name for name, p in given.signature.parameters.items() if "Module" in str(p.annotation)}
    if any(given.signature.parameters[name].default is inspect.Parameter.empty for name in networks):
        return None
    return {name: _as_json(value) for name, value in list(given.arguments.items())[1:] if name not in networks}


def _as_json(value: Any) -> Any:
    """Sequences, tensors and arrays as lists."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return [_as_json(part) for part in value] if isinstance(value, list | tuple) else value


class Model(nn.Module):
    """A model that declares itself: a subclass says in its own file how it is made, trained and scored.

    What its constructor is given is kept, JSON-able, as `self.config`, with the defaults of what is not given and
    without the networks that are handed in; `from_config` makes the model again. A constructor that takes `*images` or
    `**options` only to hand them on takes the positional arguments, or those by keyword, of the class above it: its
    signature shows them, and another name is refused. `class Model(Base, without=("name",))` takes them but for those.

    What a family does otherwise than a density of images, it declares by these:

    Attributes:
        presets: defaults for data of these names, of `"points"` (any named points) and of `"other"` data: arguments of
            the constructor, of the recipe (`lr`, ...) and of the run (`epochs`, ...).
        recipe: arguments of the recipe that this model has other defaults for.
        players: the parts that learn against each other, where there are such.
        validation_score: which of the `validation_scores` chooses the best checkpoint: the lower the better.
        starts_from_data: `initialize` is to see a first batch before training.
    """

    config: dict[str, Any] | None
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    recipe: ClassVar[Mapping[str, Any]] = {}
    players: ClassVar[tuple[str, ...]] = ()
    validation_score: str = "bits_per_dim"
    starts_from_data: bool = False
    _example: ClassVar[str] = "image"

    def __init_subclass__(cls, *, without: tuple[str, ...] = (), **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__init__" in vars(cls):
            cls.__init__ = _recording(cls, without)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """The model, freshly initialised, from the `config` of another.

        Options without effect are let pass: the model that was saved may have been made before they were refused.
        """
        before = _remaking.set(True)
        try:
            return cls(**config)
        finally:
            _remaking.reset(before)

    def without_effect(self, why: str, *names: str) -> None:
        """Raises where one of these options, which have no effect as things are, is given and is not its default."""
        if not _remaking.get():
            without_effect(type(self), self.config, why, *(name for name in names if name in self.config))

    @property
    def device(self) -> torch.device:
        return first_parameter(self).device

    @property
    def dtype(self) -> torch.dtype:
        return first_parameter(self).dtype

    def training_scores(self, loss: Tensor, x: Tensor) -> dict[str, Tensor]:
        """The numbers that a training step logs of its loss on `x`: here nats per example, as bits per dimension."""
        return {"bits_per_dim": loss / (x[0].numel() * math.log(2))}

    def validation_scores(self, x: Tensor, labels: Tensor | None, generator: Generator) -> dict[str, Tensor]:
        """Scores [batch] of each example by their names; what is random in them is `generator`'s."""
        return {"bits_per_dim": -self.log_prob(x, labels) / (x[0].numel() * math.log(2))}

    def test_scores(self, x: Tensor, labels: Tensor | None, generator: Generator) -> dict[str, Tensor]:
        """As `validation_scores`, with those that take more time than training has after every epoch."""
        return declared(self, "validation_scores")(x, labels, generator)

    def end_epoch(self, x: Tensor) -> None:
        """Sets what is fitted to trained weights at once, from all examples `x` that they learned from."""

    def check_labels(self, labels: Tensor | None, batch: int) -> None:
        """Raises where `labels` are not classes of this model, one for each of `batch` examples.

        On an accelerator their values are not read: nothing waits.
        """
        if self.num_classes is None:
            if labels is not None:
                raise ValueError("labels: this model is unconditional (num_classes is None), expected None")
            return
        if labels is None:
            raise ValueError(
                f"labels: this model has {self.num_classes} classes, expected a tensor [{batch}], got None"
            )
        if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.dtype == torch.bool:
            raise TypeError(f"labels: expected integers, got {getattr(labels, 'dtype', type(labels).__name__)}")
        if labels.shape != (batch,):
            raise ValueError(f"labels: expected [{batch}], one class per {self._example}, got {list(labels.shape)}")
        if labels.device.type == "cpu":
            check_range("labels", "classes", labels, self.num_classes)

    def _check_examples(self, name: str, x: Tensor) -> None:
        """Raises where the argument `x` called `name` is not data of this model."""
        if not isinstance(x, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(x).__name__}")
        if x.is_floating_point() != (self.levels is None) or x.dtype == torch.bool or x.is_complex():
            wanted = "a floating dtype" if self.levels is None else "integer levels"
            raise TypeError(f"{name}: expected {wanted}, got {x.dtype}")
        if x.dim() != 1 + len(self.shape) or tuple(x.shape[1:]) != self.shape or x.shape[0] == 0:
            expected = ", ".join(map(str, self.shape))
            raise ValueError(f"{name}: expected [batch, {expected}], at least one {self._example}, got {list(x.shape)}")
        if x.device != self.device:
            raise ValueError(f"{name}: expected a tensor on {self.device}, where the model is, got {x.device}")
        if self.levels is not None and x.device.type == "cpu":
            check_range(name, "levels", x, self.levels)


class Bounded:
    """The part of a model of images that has a lower bound of the likelihood, `log_prob_bound`, in nats."""

    def bits_per_dim(self, images: Tensor, labels: Tensor | None = None, **options: Any) -> Tensor:
        """An upper bound of `-log2 p(images | labels) / (channels * height * width)`, [batch]; as `log_prob_bound`."""
        return self.log_prob_bound(images, labels, **options) / (-math.prod(self.shape) * math.log(2))


class ImageModel(Model):
    """A model of images of integer levels `0 .. levels - 1`, [batch, image_channels, height, width].

    Networks see levels spread evenly over [-1, 1]; with `levels` None, data are floating and taken as they are.

    Raises:
        ValueError: sizes that are not positive, levels that are not 2 to 256.
    """

    def __init__(
        self,
        image_size: int | Sequence[int],
        image_channels: int = 1,
        levels: int | None = 256,
        *,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        self.image_size = pair("image_size", image_size)
        self.image_channels, self.levels, self.num_classes = image_channels, levels, num_classes
        positive(image_channels=image_channels)
        levels_of(levels, or_none=True)
        if num_classes is not None:
            positive(num_classes=num_classes)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of an image: `(image_channels, height, width)`."""
        return (self.image_channels, *self.image_size)

    def normalize(self, images: Tensor) -> Tensor:
        """The images as the network sees them: levels spread over [-1, 1], in the dtype of the weights."""
        self.check_images(images)
        return images.to(self.dtype) if self.levels is None else normalize_levels(images, self.levels, self.dtype)

    def quantize(self, x: Tensor) -> Tensor:
        """The inverse of `normalize`: the nearest levels, uint8."""
        return x if self.levels is None else quantize_levels(x, self.levels)

    def check_images(self, images: Tensor) -> None:
        """Raises where `images` are not data of this model."""
        self._check_examples("images", images)


def declared(model: nn.Module, name: str) -> Any:
    """The declaration of this name of `Model` that a model makes; any other module is taken for a likelihood model."""
    if hasattr(model, name):
        return getattr(model, name)
    default = vars(Model)[name]
    return default.__get__(model) if callable(default) else default


def drawn(
    how: Callable[..., Tensor], shape: Sequence[int], like: Any, generator: Generator | Sequence[Generator] | None
) -> Tensor:
    """Random numbers in the dtype and on the device of `like`, drawn where the generator is; of a list, each of the
    batch has its own.

    Args:
        how: `torch.randn`, `torch.rand`, ...

    Raises:
        ValueError: a list that has not one for each.
    """
    if generator is not None and not isinstance(generator, Generator):
        if len(generator) != 1:
            if len(generator) != shape[0]:
                raise ValueError(f"generator: expected one, or {shape[0]}, one for each sample, got {len(generator)}")
            return torch.cat([drawn(how, (1, *shape[1:]), like, one) for one in generator])
        generator = generator[0]
    device = like.device if generator is None else generator.device
    return how(shape, generator=generator, device=device, dtype=like.dtype).to(like.device)


def normalize_levels(images: Tensor, levels: int, dtype: torch.dtype) -> Tensor:
    """Levels `0 .. levels - 1` as a network sees them: numbers evenly spaced from -1 to 1."""
    # Half precision would round the product of a large level before the subtraction that makes it small.
    x = images.to(torch.promote_types(dtype, torch.float32))
    return (x * (2 / (levels - 1)) - 1).to(dtype)


def quantize_levels(x: Tensor, levels: int) -> Tensor:
    """The inverse of `normalize_levels`: the nearest levels, uint8."""
    return ((x.float() + 1) * ((levels - 1) / 2)).round().clamp(0, levels - 1).to(torch.uint8)


def check_range(name: str, what: str, values: Tensor, count: int) -> None:
    """Raises where integers are not 0 to `count - 1`; those of a graph or of no memory are not read."""
    # uint8 holds nothing else than 0 to 255.
    if (values.dtype == torch.uint8 and count >= 256) or not readable(values):
        return
    low, high = (int(value) for value in values.aminmax())
    if low < 0 or high >= count:
        raise ValueError(f"{name}: expected {what} 0 to {count - 1}, got {low} to {high}")


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Puts every module in eval mode, and back to the mode that each had."""
    training = [module for module in model.modules() if module.training]
    if training:
        model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def first_parameter(module: nn.Module) -> nn.Parameter | None:
    """As `next(module.parameters())`, whose bookkeeping would show in a flow of one point; None without any."""
    for parameter in module._parameters.values():
        if parameter is not None:
            return parameter
    for child in module._modules.values():
        if child is not None and (found := first_parameter(child)) is not None:
            return found
    return None
