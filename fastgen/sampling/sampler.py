"""The sampler of a masked network: traced, scheduled, verified, and made again where the weights change."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fastgen.nn.frozen import KeptOfModules
from fastgen.sampling.draw import Draw, uniform_noise
from fastgen.sampling.program import Program
from fastgen.sampling.run.session import Session, check_draw
from fastgen.sampling.schedule import schedule
from fastgen.sampling.schedule.colors import split_colors
from fastgen.sampling.schedule.simplify import simplify
from fastgen.sampling.trace import Traced, trace
from fastgen.sampling.trace.recorder import Condition, condition_tensors, example_condition

METHODS = ("auto", "cpp", "captured", "reference")

# Largest error, relative to the largest output, between the program in float64 and the network in its own dtype.
VERIFICATION_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}


class VerificationError(ValueError):
    """The program does not compute what the network computes: its Python code may branch on values, or be random."""


class CachedSampler:
    """Draws images from any causal network for about the cost of one forward pass, exactly.

    The network is traced, proved causal, and scheduled so that every activation is computed once and kept only while
    it is needed. Before first use the program is compared with the network on a random image. All of that is done anew
    by a `sample` that finds other weights in the model, to the last bit, or other modules.

    Args:
        model: the network: images [B, channels, height, width] to the parameters of the draw [B, K, height, width];
            where it orders colours [B, K, colors, height, width] or [B, colors * K, height, width]. Run in eval mode.
        shape: (channels, height, width).
        draw: how a step is drawn from the network's output (`Categorical`, `LogisticMixture`).
        colors: steps per pixel: 1, or the number of channels where the network orders them.
        condition: an example of the labels or other conditioning, a tensor or a sequence of them with one row per
            image, passed on as `model(x, *condition)`.
        forward: what to call in place of `model`, for instance a bound method; the weights are those of `model`.
        method: `cpp` (on the CPU), `captured` (CUDA graphs, where the model is), `reference` (Python, slow), or `auto`:
            the first of these that suits the model's device and is built.
        dtype: float32 or float64 of the executor; the model's own where None.
        freeze: the sampler is of the weights as they are now, and does not look at them again. A plain function, whose
            weights it cannot see, is only taken so.

    Raises:
        UnsupportedModelError: an operator that has no rule for single pixels; the message names the module.
        NotCausalError: an output that sees its own pixel or a later one; the message names the module and the path.
        VerificationError: the program does not reproduce the network.
        ValueError, TypeError: arguments that do not fit.
    """

    def __init__(
        self,
        model: nn.Module | Callable,
        shape: Sequence[int],
        *,
        draw: Draw,
        colors: int = 1,
        condition: Condition = None,
        forward: Callable | None = None,
        method: str = "auto",
        dtype: torch.dtype | None = None,
        freeze: bool = False,
    ):
        if not freeze and not isinstance(model, nn.Module):
            raise ValueError("freeze: expected True for a function, whose weights cannot be seen to change")
        self.draw = draw
        self._conditional = condition is not None
        condition = example_condition(condition)

        def traced() -> _Executor:
            return _Executor(
                trace(model, shape, colors=colors, condition=condition, forward=forward), draw, method, dtype, condition
            )

        self._frozen = traced() if freeze else None
        if not freeze:
            self._model, self._trace, self._kept = model, traced, KeptOfModules(waits=True)
            self._executor()

    @property
    def program(self) -> Program:
        """The program that computes the images, made of the weights that the model has now."""
        return self._executor().program

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the executor computes in."""
        return self._executor().dtype

    @property
    def steps(self) -> int:
        """Draws per image."""
        return self.program.steps

    def sample(
        self,
        n: int,
        *,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        given: Tensor | None = None,
        mask: Tensor | None = None,
        labels: Condition = None,
    ) -> Tensor:
        """Draws `n` images: levels int64 [n, channels, height, width].

        Args:
            generator: source of the noise; the same seed gives the images of `naive_sample` with `uniform_noise`.
            noise: the noise itself, float64 [steps, n, draw.uniforms] in [0, 1), in place of a generator.
            given, mask: a partial image: levels int64 [n, channels, height, width], and bool [n, 1 or channels,
                height, width] that is true where the level is known.
            labels: the condition, one row per image, where the network has one.
        """
        if n < 1:
            raise ValueError(f"n: expected at least 1, got {n}")
        self._check_labels(labels, n)
        executor = self._executor()
        if noise is None:
            noise = uniform_noise(executor.program.steps, n, self.draw, generator)
        return executor.session(n, labels).run(noise, given, mask)

    def explain(self) -> list[dict[str, object]]:
        """One row per node of the program: grain, ring, weights and multiply-adds of one image."""
        return self.program.explain()

    def _executor(self) -> _Executor:
        """The executor of the weights as they are now: the last one, or a new one where they have changed since."""
        if self._frozen is not None:
            return self._frozen
        return self._kept.of(self._trace, [self._model]) or self._trace()

    def _check_labels(self, labels: Condition, n: int) -> None:
        if (labels is not None) != self._conditional:
            expected = "the condition that the network was traced with" if self._conditional else "none"
            raise ValueError(f"labels: expected {expected}")
        for tensor in condition_tensors(labels):
            if tensor.dim() == 0 or len(tensor) != n:
                raise ValueError(f"labels: expected {n} rows, one per image, got shape {tuple(tensor.shape)}")


class _Executor:
    """A traced and verified network, with the session of the last batch size."""

    def __init__(
        self, traced: Traced, draw: Draw, method: str, dtype: torch.dtype | None, condition: Condition
    ) -> None:
        self.program: Program = schedule(simplify(split_colors(traced.graph)))
        check_draw(self.program, draw)
        self.dtype = traced.dtype if dtype is None else dtype
        self._draw, self._tape = draw, traced.tape
        self._make_session = _session_maker(method, traced.device)
        self._session = None
        self._verify(traced, condition)

    def session(self, batch: int, labels: Condition) -> Session:
        """The last session where it is of this batch size, or a new one, which packs the weights again."""
        if self._session is None or self._session.batch != batch:
            self._session = self._make_session(self.program, batch, self.dtype, self._draw)
        self._session.set_constants(self._tape.constants(self.program, labels))
        return self._session

    def _verify(self, traced: Traced, condition: Condition) -> None:
        """Compares the program, in float64 and fed a random image, with the network itself."""
        # Other conditions than the traced ones, where the example has more than one row.
        rows = None if condition is None else [tensor.flip(0) for tensor in condition_tensors(condition)]
        x, expected = traced.run(rows, self._draw.table)
        session = self._make_session(self.program, len(x), torch.float64)
        session.set_constants(self._tape.constants(self.program, rows))
        got = session.teacher_force(x.to("cpu", torch.float64))
        error = (got - expected).abs().amax()
        limit = VERIFICATION_TOLERANCE[traced.dtype] * expected.abs().amax().clamp(min=1e-30)
        if not error <= limit:
            raise VerificationError(
                f"the program differs from the network by {error:.3g} on a random image (largest output "
                f"{expected.abs().amax():.3g}): does its code branch on values, or is it random?"
            )


def _session_maker(method: str, device: torch.device) -> Callable:
    """The function that makes a session from (program, batch, dtype, draw)."""
    if method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
    if method == "captured" or (method == "auto" and device.type == "cuda"):
        from fastgen.sampling.run.captured import CapturedSession

        return functools.partial(CapturedSession, device=device)
    if method != "reference":
        from fastgen.sampling.run.native import NativeSession, why_unavailable

        reason = why_unavailable()
        if reason is None:
            return NativeSession
        if method == "cpp":
            raise ValueError(f"method: 'cpp' cannot run here: {reason}")
    from fastgen.sampling.run.reference import ReferenceSession

    return ReferenceSession
