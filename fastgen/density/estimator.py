"""The base of the density estimators: scikit-learn's interface, checks, and files of fitted estimators."""

from __future__ import annotations

import inspect
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Generator, Tensor

from fastgen.density.arrays import Kind, as_given, as_points, check_training_points, column_names
from fastgen.density.random_state import RandomState, as_generator, number_of_samples
from fastgen.files import write_whole
from fastgen.nn.full_precision import full_precision

# The version of the file's layout.
FORMAT = 1


class DensityEstimator:
    """A density `p(x)` on R^d, learned from points.

    Tensors or NumPy arrays in, the same kind out; lists and DataFrames count as arrays.

    A subclass is a dataclass (`@dataclass(eq=False, repr=False)`) whose fields are the constructor's arguments, kept as
    they are given (scikit-learn's `clone` requires that). What it learned is in attributes that end with an underscore
    (scikit-learn's convention): tensors, lists of tensors, numbers, strings. Both together are the content of its file.

    It computes in the dtype and on the device of the points it was fitted to, in float32 where they are of half
    precision. Integers become floating numbers: PyTorch's default dtype for a tensor, float64 for an array.
    """

    n_features_in_: int

    def __post_init__(self) -> None:
        self._check_arguments()

    @full_precision
    def fit(self, X: Any, y: None = None) -> Self:
        """Learn the density of points.

        Args:
            X: tensor, NumPy array, DataFrame or lists: points [N, d]; [N] stands for [N, 1].
            y: ignored, for scikit-learn's pipelines.

        Raises:
            TypeError: neither tensor nor array, or not of a floating or integer dtype.
            ValueError: another shape, too few points, rows with NaN or infinity, arguments out of range, and what the
                estimator itself says.
        """
        # Where the rest raises, the estimator is not fitted: neither to half of this nor to the points before.
        self.__dict__ = {name: value for name, value in vars(self).items() if not _is_learned(name)}
        # `set_params` may have changed the arguments since the constructor checked them.
        self._check_arguments()
        x, kind = as_points(X)
        with torch.no_grad():
            x = x.detach()
            check_training_points(x, self._at_least(x.shape[1]))
            self._fit(x)
        self.array_type_, self.dtype_ = "numpy" if kind.numpy else "torch", str(kind.dtype).removeprefix("torch.")
        self.n_features_in_ = x.shape[1]
        if (names := column_names(X)) is not None:
            self.feature_names_in_ = names
        return self

    @full_precision
    def score_samples(self, X: Any) -> Any:
        """`log p(x)` in nats of every row, [M], in the dtype of `X` (of the fitted points where `X` is of integers).

        A row with NaN gives NaN, one with infinity `-inf`. Gradients flow to a tensor `X` that asks for them.

        Args:
            X: as for `fit`, points [M, d]; [M] stands for [M, 1]. No points give no numbers.

        Raises:
            TypeError: neither tensor nor array, or not of a floating or integer dtype.
            ValueError: another number of features, columns of other names, another device, not fitted yet
                (scikit-learn's NotFittedError, which is a ValueError, where that is in use).
        """
        log_density, kind = self._scores(X)
        return kind.restore(log_density)

    @full_precision
    @torch.no_grad()
    def score(self, X: Any, y: None = None) -> float:
        """The total log-likelihood of points in nats, the sum of `score_samples`; `y` is ignored."""
        # The sum of the unrounded log-densities, also where the points are of half precision.
        return self._scores(X)[0].double().sum().item()

    def _scores(self, X: Any) -> tuple[Tensor, Kind]:
        """The log-densities of `score_samples` in the dtype of the computation, and the kind to convert them to."""
        self._check_fitted()
        # Columns in another order are other features.
        names, known = column_names(X), getattr(self, "feature_names_in_", None)
        if names and known and names != known:
            raise ValueError(f"X: expected the columns {', '.join(known)}, got {', '.join(names)}")
        X = as_given(X)
        x, kind = as_points(X, features=self.n_features_in_, owner=type(self).__name__)
        if x.device != self._anchor.device:
            raise ValueError(f"X: expected a tensor on {self._anchor.device}, where the estimator is, got {x.device}")
        if not (X.is_floating_point() if isinstance(X, Tensor) else X.dtype.kind == "f"):
            kind = Kind(kind.numpy, self._kind.dtype)
        x = x.to(self._anchor.dtype)
        finite = x.isfinite().all(1)
        limit = torch.where(x.isnan().any(1), math.nan, -math.inf).to(x.dtype)
        if not len(x):
            return limit, kind
        return torch.where(finite, self._log_density(torch.where(finite[:, None], x, 0)), limit), kind

    @full_precision
    @torch.no_grad()
    def sample(self, n: int | None = None, random_state: RandomState = None, *, n_samples: int | None = None) -> Any:
        """Points [n, d] drawn from the density, of the kind and dtype of the points it was fitted to.

        Args:
            n: number of points; None for 1.
            random_state: a seed, a generator on the estimator's device or NumPy's, or None for PyTorch's own.
            n_samples: scikit-learn's name of `n`.

        Raises:
            TypeError: `random_state` is something else.
            ValueError: `n` is not a positive int, not fitted yet.
        """
        self._check_fitted()
        n = number_of_samples(n, n_samples)
        return self._kind.restore(self._sample(n, as_generator(random_state, self._anchor.device)))

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's arguments by name."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def set_params(self, **params: Any) -> Self:
        """Replace arguments of the constructor; `fit` checks them.

        Raises:
            ValueError: the constructor has no argument of that name.
        """
        known = inspect.signature(type(self)).parameters
        if unknown := [name for name in params if name not in known]:
            raise ValueError(f"{type(self).__name__} has no {', '.join(unknown)}, expected some of {', '.join(known)}")
        vars(self).update(params)
        return self

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import Tags, TargetTags

        return Tags(estimator_type="density_estimator", target_tags=TargetTags(required=False))

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "n_features_in_")

    def save(self, path: str | Path) -> None:
        """Write the fitted estimator to one file: safetensors, with its arguments as JSON in the header.

        It is written beside `path` and renamed: a process that is killed leaves the old file or the new one, complete.

        Raises:
            ImportError: safetensors is not installed.
            TypeError: an argument of the constructor is not JSON.
            ValueError: not fitted yet.
        """
        self._check_fitted()
        # JSON knows neither tensors nor arrays.
        given = self.get_params().items()
        arguments = {name: value.tolist() if hasattr(value, "tolist") else value for name, value in given}
        tensors, plain = _split(self._learned)
        write_file(Path(path), tensors, {"class": type(self).__name__, "arguments": arguments, "learned": plain})

    @classmethod
    def load(cls, path: str | Path, *, device: torch.device | str = "cpu") -> Self:
        """The estimator that `save` wrote: of this class, or of any class where called on `DensityEstimator`.

        Raises:
            ImportError: safetensors is not installed.
            ValueError: the file is missing, damaged, or of another estimator.
        """
        tensors, config = read_file(Path(path))
        name = config.get("class")
        known = {kind.__name__: kind for kind in _with_subclasses(cls)}
        if name not in known:
            raise ValueError(f"{path} holds {name}, expected {cls.__name__}")
        try:
            estimator = known[name](**config["arguments"])
            vars(estimator).update(_join({key: value.to(device) for key, value in tensors.items()}, config["learned"]))
            estimator._check_fitted()
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} does not describe a {name}: {error}") from error
        return estimator

    def __repr__(self) -> str:
        arguments = (f"{name}={value!r}" for name, value in self.get_params().items())
        return f"{type(self).__name__}({', '.join(arguments)})"

    def _check_arguments(self) -> None:
        """Raises ValueError for an argument of the constructor that is out of range."""

    def _at_least(self, features: int) -> int:
        """The least number of points [N, features] that can be fitted."""
        return 1

    def _fit(self, x: Tensor) -> None:
        """Learn from finite points [N, d], without gradients."""
        raise NotImplementedError

    def _log_density(self, x: Tensor) -> Tensor:
        """`log p` [M] of finite points [M, d], M at least 1."""
        raise NotImplementedError

    def _sample(self, n: int, generator: Generator | None) -> Tensor:
        """Points [n, d]."""
        raise NotImplementedError

    @property
    def _learned(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if _is_learned(name)}

    @property
    def _kind(self) -> Kind:
        return Kind(self.array_type_ == "numpy", getattr(torch, self.dtype_))

    @property
    def _anchor(self) -> Tensor:
        """A tensor that was learned, which has the dtype and the device to compute in."""
        return next(tensor for tensor in _split(self._learned)[0].values() if tensor.is_floating_point())

    def _check_fitted(self) -> None:
        if not hasattr(self, "n_features_in_"):
            # Code that catches scikit-learn's error has imported it.
            kind = getattr(sys.modules.get("sklearn.exceptions"), "NotFittedError", ValueError)
            raise kind(f"{type(self).__name__} is not fitted yet: call fit(X) first")


def write_file(path: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Write tensors as safetensors with a configuration as JSON in the header, all of the file or nothing.

    Raises:
        ImportError: safetensors is not installed.
        TypeError: the configuration is not JSON.
    """
    save = _safetensors().torch.save
    # safetensors refuses tensors that share memory, hence the clones.
    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    write_whole(path, save(copies, metadata={"config": json.dumps({"format": FORMAT, **config})}))


def read_file(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the configuration of a file that `write_file` wrote.

    Raises:
        ImportError: safetensors is not installed.
        ValueError: the file is missing, damaged, or not that of an estimator.
    """
    safetensors = _safetensors()
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            config = json.loads((file.metadata() or {})["config"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is not a mapping
        version = config.pop("format", None)
    except KeyError:
        raise ValueError(f"{path} is not a file of a fitted estimator") from None
    except (safetensors.SafetensorError, OSError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is missing, truncated or damaged: {error}") from error
    if version != FORMAT:
        raise ValueError(f"{path} has format {version}, expected {FORMAT}")
    return tensors, config


def _safetensors() -> Any:
    try:
        import safetensors
        import safetensors.torch
    except ImportError:
        raise ImportError("saving and loading need safetensors: pip install 'fastgen[train]'") from None
    return safetensors


def _is_learned(name: str) -> bool:
    return name.endswith("_") and not name.startswith("_")


def _split(learned: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors among the learned attributes and the rest; the tensors of a list are named `<name>.<index>`."""
    tensors, plain = {}, {}
    for name, value in learned.items():
        if isinstance(value, Tensor):
            tensors[name] = value
        elif isinstance(value, list) and any(isinstance(part, Tensor) for part in value):
            tensors |= {f"{name}.{index}": tensor for index, tensor in enumerate(value)}
        else:
            plain[name] = value
    return tensors, plain


def _join(tensors: dict[str, Tensor], plain: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `_split`."""
    learned = {**plain, **{name: tensor for name, tensor in tensors.items() if "." not in name}}
    for name in sorted({name.split(".")[0] for name in tensors if "." in name}):
        count = sum(key.startswith(f"{name}.") for key in tensors)
        learned[name] = [tensors[f"{name}.{index}"] for index in range(count)]
    return learned


def _with_subclasses(cls: type) -> list[type]:
    return [cls, *(below for kind in cls.__subclasses__() for below in _with_subclasses(kind))]
