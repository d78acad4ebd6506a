"""The programs that `coupling_flow` runs: a whole flow as a vector of integers, with one flat tensor of weights.

`FlowProgram` writes them, and `steps_of` reads them back for the reference. The words are those of
`csrc/cpu/coupling_flow.h`: a header (features, context features, number of steps), the order of the columns, then
steps, each with its kind and its length in front. Permutations become that order and other column numbers: they move
no data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgen.ops.spline import DERIVATIVES, PARAMETERIZATIONS

# The names and the order are those of `csrc/cpu/coupling_flow.h`.
ELEMENTWISE, LINEAR, COUPLING = range(3)
TRANSFORMS = ("additive", "exp", "tanh", "sigmoid", "rational_quadratic")
TAILS = (None, "linear", "circular")
INPUT, RESIDUAL, ACTIVATED, HIDDEN, GATE, OUTPUT = range(6)
DENSE, GATED = range(2)
PANEL, PADDING = 64, 16
NO_COPY = -1

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "silu": F.silu,
    "gelu": F.gelu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "identity": lambda x: x,
}


class Dense(NamedTuple):
    """`target = weight @ source + bias`, plus what was in `target` where `add`; with a copy of it behind the
    activation.

    Attributes:
        weight: [out_features, in_features].
        offset: of the first feature that is read.
        copy: a buffer, also the target itself, or `NO_COPY`.
    """

    weight: Tensor
    bias: Tensor
    source: int
    target: int
    copy: int = NO_COPY
    add: bool = False
    offset: int = 0


class Gated(NamedTuple):
    """`target += source * sigmoid(GATE)`, with a copy of it behind the activation."""

    features: int
    source: int
    target: int
    copy: int = NO_COPY


class Affine(NamedTuple):
    """`y = x * scale + shift` with one of the scale maps of `affine_coupling`, or "additive"."""

    map: str
    constant: float = 0.0

    @property
    def params_per_feature(self) -> int:
        return 1 if self.map == "additive" else 2


class Spline(NamedTuple):
    """The settings of `rational_quadratic_spline`, and its softmax_scale."""

    num_bins: int
    tails: str
    tail_bound: float
    min_bin_width: float
    min_bin_height: float
    min_derivative: float
    parameterization: str = "nflows"
    softmax_scale: float = 1.0

    @property
    def params_per_feature(self) -> int:
        return 3 * self.num_bins + DERIVATIVES[self.tails]


def mlp_layers(layers: Sequence[tuple[Tensor, Tensor]]) -> list[Dense]:
    """Dense layers (weight, bias) with the activation between them, the last of which writes the parameters."""
    found, source = [], INPUT
    for i, (weight, bias) in enumerate(layers[:-1]):
        target = (HIDDEN, ACTIVATED)[i % 2]
        found.append(Dense(weight, bias, source, target, copy=target))
        source = target
    return [*found, Dense(*layers[-1], source, OUTPUT)]


def residual_layers(
    initial: tuple[Tensor, Tensor],
    blocks: Sequence[Sequence[tuple[Tensor, Tensor]]],
    final: tuple[Tensor, Tensor],
    num_identity: int,
) -> list[Dense | Gated]:
    """The layers of a `ResidualNet`; a block has two dense layers, and a third that makes its gate of the context."""
    found: list[Dense | Gated] = [Dense(*initial, INPUT, RESIDUAL, copy=ACTIVATED if blocks else NO_COPY)]
    for i, (first, second, *gates) in enumerate(blocks):
        copy = ACTIVATED if i + 1 < len(blocks) else NO_COPY
        found.append(Dense(*first, ACTIVATED, HIDDEN, copy=HIDDEN))
        if gates:
            found.append(Dense(*gates[0], INPUT, GATE, offset=num_identity))
            found.append(Dense(*second, HIDDEN, ACTIVATED))
            found.append(Gated(len(second[1]), ACTIVATED, RESIDUAL, copy=copy))
        else:
            found.append(Dense(*second, HIDDEN, RESIDUAL, copy=copy, add=True))
    return [*found, Dense(*final, RESIDUAL, OUTPUT)]


class FlowProgram:
    """Writes a program step by step, in the order of the flow's forward direction.

    Args:
        features: of the state.
        context_features: 0 where there is no context.
        dtype: of the packed weights.
    """

    def __init__(self, features: int, context_features: int = 0, dtype: torch.dtype = torch.float32) -> None:
        self.features = features
        self.context_features = context_features
        self.dtype = dtype
        self._order = list(range(features))
        self._steps: list[list[int]] = []
        self._weights: list[Tensor] = []
        self._size = 0

    def permutation(self, permutation: Sequence[int]) -> None:
        """`y[:, i] = x[:, permutation[i]]`."""
        self._order = [self._order[i] for i in permutation]

    def elementwise(self, scale: Tensor, shift: Tensor, logabsdet: Tensor) -> None:
        """`y = scale * x + shift`, [features] each, with the sum of log |scale|."""
        columns = self._columns()
        self._step(
            ELEMENTWISE, [self._pack(scale[columns]), self._pack(shift[columns]), self._pack(logabsdet.reshape(1))]
        )

    def linear(self, weight: Tensor, bias: Tensor, inverse: Tensor, logabsdet: Tensor) -> None:
        """`y = weight @ x + bias`, with the inverse of the weight and its log |det|."""
        columns = self._columns()
        words = []
        for matrix, offset in ((weight, bias), (inverse, -(inverse.double() @ bias.double()))):
            words += self._dense(matrix[columns][:, columns], offset[columns])
        self._step(LINEAR, [*words, self._pack(logabsdet.reshape(1))])

    def coupling(
        self,
        identity: Sequence[int],
        transformed: Sequence[int],
        layers: Sequence[Dense | Gated],
        transform: Affine | Spline,
        activation: str = "relu",
    ) -> None:
        """A coupling whose conditioner reads [identity features | context]; the last layer writes the parameters in
        the layout of the transform's op.
        """
        columns = [self._order[i] for i in (*identity, *transformed)]
        *others, last = layers
        weight, bias = (_by_parameter(rows, len(transformed), transform) for rows in (last.weight, last.bias))
        packed = [self._layer(layer) for layer in (*others, last._replace(weight=weight, bias=bias))]
        kind, constants, *spline = _words_of(transform)
        offset = self._pack(torch.tensor(constants, dtype=torch.float64))
        head = [kind, len(identity), len(transformed), len(layers), list(ACTIVATIONS).index(activation), offset]
        self._step(COUPLING, [*head, *spline, *columns, *(word for layer in packed for word in layer)])

    def finish(self) -> tuple[Tensor, Tensor]:
        """The weights [.], and the program, int64 on the CPU."""
        words = [self.features, self.context_features, len(self._steps), *self._order]
        words += [word for step in self._steps for word in step]
        weights = torch.cat(self._weights) if self._weights else torch.zeros(0, dtype=self.dtype)
        return weights, torch.tensor(words, dtype=torch.int64)

    def _columns(self) -> Tensor:
        """Which feature of the flow each column of the state is."""
        return torch.tensor(self._order).argsort()

    def _step(self, kind: int, words: list[int]) -> None:
        self._steps.append([kind, 2 + len(words), *words])

    def _layer(self, layer: Dense | Gated) -> list[int]:
        if isinstance(layer, Gated):
            return [GATED, layer.source, 0, layer.target, layer.copy, layer.features, layer.features, 0, 0, 0]
        out_features, in_features = layer.weight.shape
        packed = self._dense(layer.weight, layer.bias)
        sizes = [layer.source, layer.offset, layer.target, layer.copy, in_features, out_features]
        return [DENSE, *sizes, *packed, int(layer.add)]

    def _dense(self, weight: Tensor, bias: Tensor) -> list[int]:
        """Where the panels and the padded bias of a dense layer begin."""
        padding = -len(bias) % PADDING
        columns = F.pad(weight.detach().t(), (0, padding))
        panels = torch.cat([panel.flatten() for panel in columns.split(PANEL, 1)])
        return [self._pack(panels), self._pack(F.pad(bias.detach(), (0, padding)))]

    def _pack(self, values: Tensor) -> int:
        offset = self._size
        values = values.detach().to("cpu", self.dtype)
        # Everything that is packed begins at a cache line.
        self._weights.append(F.pad(values, (0, -len(values) % PADDING)))
        self._size += len(self._weights[-1])
        return offset


def _words_of(transform: Affine | Spline) -> list:
    """The transform, its constants, and its numbers of bins, tails and parameterization."""
    if isinstance(transform, Affine):
        return [TRANSFORMS.index(transform.map), [transform.constant], 0, 0, 0]
    constants = [transform.tail_bound, transform.min_bin_width, transform.min_bin_height, transform.min_derivative]
    choices = [TAILS.index(transform.tails), PARAMETERIZATIONS.index(transform.parameterization)]
    return [TRANSFORMS.index("rational_quadratic"), constants, transform.num_bins, *choices]


def _by_parameter(rows: Tensor, features: int, transform: Affine | Spline) -> Tensor:
    """The rows of a last layer with the features of each parameter beside each other, scaled as the op scales them."""
    if isinstance(transform, Affine):
        return rows
    by_feature = rows.detach().unflatten(0, (features, transform.params_per_feature)).double()
    factors = torch.ones(transform.params_per_feature, dtype=torch.float64, device=rows.device)
    factors[: 2 * transform.num_bins] = transform.softmax_scale
    scaled = by_feature * factors.view(-1, *(1,) * (rows.dim() - 1))
    return scaled.transpose(0, 1).flatten(0, 1).to(rows.dtype)


class Words:
    """Reads the words of a program from the first to the last."""

    def __init__(self, words: Sequence[int]) -> None:
        self.words, self.at = words, 0

    def take(self, count: int) -> Sequence[int]:
        self.at += count
        if self.at > len(self.words):
            raise ValueError(f"program: ends after {len(self.words)} words, within a step")
        return self.words[self.at - count : self.at]


class CouplingStep(NamedTuple):
    """A coupling that was read from a program; offsets count elements of the weights."""

    transform: str
    activation: str
    constants: int
    num_bins: int
    tails: str | None
    parameterization: str
    identity: Sequence[int]
    transformed: Sequence[int]
    layers: list[Sequence[int]]


def steps_of(words: Words, count: int) -> Iterator[tuple[int, Sequence[int] | CouplingStep]]:
    """The kind of each step, with its words; those of a coupling as a `CouplingStep`."""
    for _ in range(count):
        kind, length = words.take(2)
        step = Words(words.take(length - 2))
        if kind != COUPLING:
            yield kind, step.words
            continue
        transform, num_identity, num_transformed, num_layers, activation, *rest = step.take(9)
        constants, num_bins, tails, parameterization = rest
        identity, transformed = step.take(num_identity), step.take(num_transformed)
        yield (
            kind,
            CouplingStep(
                TRANSFORMS[transform],
                list(ACTIVATIONS)[activation],
                constants,
                num_bins,
                TAILS[tails],
                PARAMETERIZATIONS[parameterization],
                identity,
                transformed,
                [step.take(10) for _ in range(num_layers)],
            ),
        )
