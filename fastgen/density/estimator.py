"""What the estimators share: scikit-learn's interface, checks, files. An estimator adds its mathematics."""

from __future__ import annotations

import inspect
import math
import sys
from pathlib import Path
from typing import Any, Self

import torch
from torch import Generator, Tensor

from fastgen.density import files
from fastgen.density.arrays import Kind, as_given, as_points, check_training_points, column_names
from fastgen.density.random_state import RandomState, as_generator, number_of_samples
from fastgen.nn.full_precision import full_precision


class DensityEstimator:
    """A density `p(x)` on R^d, learned from points.

    Tensors or NumPy arrays in, the same kind out; lists and DataFrames count as arrays. A subclass keeps its
    constructor's arguments in attributes of their names, as they are given (scikit-learn's `clone` holds it to that),
    and what it learned in attributes that end with an underscore (scikit-learn's convention): tensors, lists of
    tensors, numbers, strings. Those two make up its file.

    It computes in the dtype and on the device of the points it was fitted to, float32 where they are of half precision.
    Integers are taken as floating numbers: PyTorch's default dtype for a tensor, float64 for an array.
    """

    n_features_in_: int

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
        # Not half fitted, and not still fitted to other points, where the rest raises.
        self.__dict__ = {name: value for name, value in vars(self).items() if not _is_learned(name)}
        # They may have been set since.
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
        self._check_fitted()
        self._check_names(column_names(X))
        X = as_given(X)
        x, kind = as_points(X, features=self.n_features_in_, owner=type(self).__name__)
        if x.device != self._device:
            raise ValueError(f"X: expected a tensor on {self._device}, where the estimator is, got {x.device}")
        if not (X.is_floating_point() if isinstance(X, Tensor) else X.dtype.kind == "f"):
            kind = Kind(kind.numpy, self._kind.dtype)
        x = x.to(self._computing_dtype)
        finite = x.isfinite().all(1)
        limit = torch.where(x.isnan().any(1), math.nan, -math.inf).to(x.dtype)
        if not len(x):
            return kind.restore(limit)
        log_density = self._log_density(torch.where(finite[:, None], x, 0))
        return kind.restore(torch.where(finite, log_density, limit))

    def score(self, X: Any, y: None = None) -> float:
        """The total log-likelihood of points in nats, the sum of `score_samples`; `y` is ignored."""
        self._check_fitted()
        self._check_names(column_names(X))
        # Of points in half precision the log-densities are not rounded to it before they are added.
        x, _ = as_points(X, features=self.n_features_in_, owner=type(self).__name__)
        with torch.no_grad():
            return self.score_samples(x).double().sum().item()

    @full_precision
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
        with torch.no_grad():
            return self._kind.restore(self._sample(n, as_generator(random_state, self._device)))

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's arguments by name."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def set_params(self, **params: Any) -> Self:
        """Other arguments, which `fit` checks.

        Raises:
            ValueError: one that the constructor does not know.
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

        It is written beside `path` and renamed: a kill leaves the old file or the new one, in whole.

        Raises:
            ImportError: safetensors is not installed.
            TypeError: an argument of the constructor is not JSON.
            ValueError: not fitted yet.
        """
        self._check_fitted()
        tensors, plain = _split({name: value for name, value in vars(self).items() if _is_learned(name)})
        arguments = {name: _plain(value) for name, value in self.get_params().items()}
        files.write(Path(path), tensors, {"class": type(self).__name__, "arguments": arguments, "learned": plain})

    @classmethod
    def load(cls, path: str | Path, *, device: torch.device | str = "cpu") -> Self:
        """The estimator that `save` wrote: of this class, or of any where called on `DensityEstimator`.

        Raises:
            ImportError: safetensors is not installed.
            ValueError: the file is missing, damaged, or of another estimator.
        """
        tensors, config = files.read(Path(path))
        name = config.get("class")
        known = {kind.__name__: kind for kind in (cls, *_subclasses(cls))}
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
        """How many points [N, features] it takes at least."""
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
    def _kind(self) -> Kind:
        return Kind(self.array_type_ == "numpy", getattr(torch, self.dtype_))

    @property
    def _anchor(self) -> Tensor:
        """A tensor that was learned: its dtype and device are those to compute in."""
        tensors, _ = _split({name: value for name, value in vars(self).items() if _is_learned(name)})
        return next(tensor for tensor in tensors.values() if tensor.is_floating_point())

    @property
    def _device(self) -> torch.device:
        return self._anchor.device

    @property
    def _computing_dtype(self) -> torch.dtype:
        return self._anchor.dtype

    def _check_fitted(self) -> None:
        if not hasattr(self, "n_features_in_"):
            # Whoever catches scikit-learn's error has imported it.
            kind = getattr(sys.modules.get("sklearn.exceptions"), "NotFittedError", ValueError)
            raise kind(f"{type(self).__name__} is not fitted yet: call fit(X) first")

    def _check_names(self, names: list[str] | None) -> None:
        """Raises where both tables have names and these differ: columns in another order are other features."""
        known = getattr(self, "feature_names_in_", names)
        if names is not None and names != known:
            raise ValueError(f"X: expected the columns {', '.join(known)}, got {', '.join(names)}")


def _is_learned(name: str) -> bool:
    return name.endswith("_") and not name.startswith("_")


def _plain(argument: Any) -> Any:
    """A constructor's argument as JSON has it."""
    return argument.tolist() if hasattr(argument, "tolist") else argument


def _split(learned: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What was learned as tensors by name, and as what is left; a list's tensors are named `<name>.<index>`."""
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


def _subclasses(cls: type) -> list[type]:
    direct = cls.__subclasses__()
    return [*direct, *(below for kind in direct for below in _subclasses(kind))]
