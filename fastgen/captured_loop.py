"""A diffusion model's whole sampling loop as one call: one CUDA graph on a GPU, the same operations elsewhere.

A step is a network's hundreds of small operations and a handful of the sampler's. Launched one by one from Python,
those of a small network or a small batch cost more than they compute. A graph launches those of all steps at once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Generator, Tensor, nn

from fastgen.nn.arguments import positive
from fastgen.nn.frozen import Copies, Originals, Structure
from fastgen.nn.reversible import Autocast

__all__ = ["CapturedLoop", "capture"]


def capture(
    model: nn.Module,
    n: int,
    *,
    sampler: str | None = None,
    steps: int | None = None,
    labels: Tensor | int | None = None,
    guidance: float | None = None,
    generator: Generator | None = None,
    **options: Any,
) -> CapturedLoop:
    """`model.sample(n, ...)` as a function to be called again and again, on a GPU one CUDA graph that is replayed.

        draw = capture(model.cuda(), 64, sampler="dpm++", steps=20, labels=3)
        images = draw()
        others = draw(labels=torch.arange(64) % 10)

    Each call draws new noise, on the device, from `generator` or from what `torch.manual_seed` seeds, and nothing waits
    for the device before the images are there. To capture, the loop runs twice first; the generator is left as it was.
    A graph holds every launch of every step, so that its size grows with their number; and it belongs to one batch
    size.

    On a CPU the same operations are called directly, and nothing is won but the tables: beside its network the loop
    costs 0.5 to 1 ms for each call of it, 5 to 8 % of one of 32 channels on a single image of 8 x 8, measured on two
    cores.

    Args:
        model: a diffusion model. Its weights are read where they are; where there are other weights, buffers, modules
            or attributes than at the capture, or PyTorch has counted a write, the next call captures again. Autocast
            stays as it was at the capture.
        labels: integer classes [n], or one class for all. A call may bring others.
        generator: of the noise, on the model's device.
        options: of the sampler; also `classifier` and `classifier_scale`.

    The other arguments are those of `model.sample`.

    Raises:
        TypeError, ValueError: as `model.sample`; a sampler that waits for the device (`"ode"`); a generator elsewhere.
        RuntimeError: the network waits for the GPU or copies from the host, which no graph can hold.
    """
    if not hasattr(model, "prepared"):
        raise TypeError(f"model: expected a diffusion model, got {type(model).__name__}")
    positive(n=n)
    sampler = model.samplers[0] if sampler is None else sampler
    if sampler in model.samplers and sampler not in model.capturable:
        raise ValueError(
            f"sampler: {sampler!r} waits for the device to choose its steps and cannot be captured, "
            f"expected one of {', '.join(model.capturable)}"
        )
    options |= {"sampler": sampler, "steps": steps, "guidance": guidance}
    return CapturedLoop(model, n, labels, generator, options)


class CapturedLoop:
    """The sampling loop that `capture` returns.

    The arguments are those of `capture`.

    Attributes:
        model: whose loop it is.
        n: images of a call, [n, channels, height, width].
    """

    def __init__(
        self,
        model: nn.Module,
        n: int,
        labels: Tensor | int | None,
        generator: Generator | None,
        options: dict[str, Any],
    ) -> None:
        self.model, self.n = model, n
        self._generator, self._options = generator, options
        self._autocast = Autocast(_device(model))
        self._labels = None if labels is None else self._checked(labels)
        self._prepare()

    @torch.no_grad()
    def __call__(self, labels: Tensor | int | None = None) -> Tensor:
        """Images as `model.sample` draws them; `labels`, where there are others, are taken from now on.

        Raises:
            TypeError, ValueError: labels that are not the model's, or that were not there at the capture.
            SamplingDiverged: the network said NaN; names the step and holds the last good state.
        """
        if labels is not None:
            self._set_labels(labels)
        if not self._is_current():
            self._prepare()
        if self._graph is None:
            self._run()
            return self._guard.finish(self._images)
        self._graph.replay()
        # The next replay writes over them.
        return self._guard.finish(self._images).clone()

    def _set_labels(self, labels: Tensor | int) -> None:
        if self._labels is None:
            raise ValueError("labels: this loop was captured without, expected None")
        # In place: a graph holds their address.
        self._labels.copy_(self._checked(labels))

    def _checked(self, labels: Tensor | int) -> Tensor:
        if isinstance(labels, int):
            labels = torch.full((self.n,), labels)
        # Without classes of its own, a model takes those of its classifier.
        if self.model.num_classes is not None or self._options.get("classifier") is None:
            self.model.check_labels(labels, self.n)
        return labels

    @torch.inference_mode(False)
    @torch.no_grad()
    def _prepare(self) -> None:
        """All that copies to the device or waits for it."""
        device = _device(self.model)
        self._loop = self.model.prepared(self.n, **self._options)
        if self._labels is not None:
            self._labels = self._labels.to(device, copy=True)
        self._graph: torch.cuda.CUDAGraph | None = None
        if device.type == "cuda":
            with torch.cuda.device(device):
                self._graph = self._capture(device)
        # Noted last, so that a capture that failed is tried again.
        self._structure = Structure([self.model])
        self._reads = Originals(self._structure.tensors([self.model]))
        # The sampler's tables may be made of them.
        self._buffers = Copies(list(self.model.buffers()))

    def _is_current(self) -> bool:
        """Whether the tables, and the graph where there is one, are of the model as it is now.

        A graph reads other weights in place, but not what a frozen layer has made of them.
        """
        tensors = self._structure.tensors([self.model])
        if tensors is None or not self._buffers.hold(list(self.model.buffers())):
            return False
        return self._graph is None or self._reads.can_be_read_in_place(tensors)

    def _run(self) -> None:
        with self._autocast.restored():
            self._images, self._guard = self._loop(self._labels, self._generator)

    def _capture(self, device: torch.device) -> torch.cuda.CUDAGraph:
        graph, generator = torch.cuda.CUDAGraph(), self._generator
        if generator is None:
            generator = torch.cuda.default_generators[device.index]
        elif generator.device != device:
            raise ValueError(f"generator: expected one on {device}, where the model is, got {generator.device}")
        else:
            graph.register_generator_state(generator)
        before = generator.get_state()
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            # A first run outside the capture makes libraries allocate, and layers cache, what they need.
            self._run()
        torch.cuda.current_stream(device).wait_stream(stream)
        try:
            # A rehearsal, since a capture that fails would leave the generator unusable.
            with _waiting_is_an_error():
                self._run()
            generator.set_state(before)
            with torch.cuda.graph(graph):
                self._run()
        except RuntimeError as error:
            raise RuntimeError(
                "model: its loop cannot be captured as a graph, most likely since its network waits for the GPU or "
                "copies from the host; model.sample runs it as it is"
            ) from error
        return graph


@contextlib.contextmanager
def _waiting_is_an_error() -> Iterator[None]:
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
