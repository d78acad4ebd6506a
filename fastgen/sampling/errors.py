"""Why a network cannot be sampled from a cache."""

from __future__ import annotations

__all__ = ["NotCausalError", "UnsupportedModelError", "VerificationError"]


class UnsupportedModelError(ValueError):
    """The network does something that has no one-pixel rule: the message names the module and the operator."""

    def __init__(self, module: str, reason: str):
        self.module = module
        super().__init__(f"{module or '(model)'}: {reason}")


class NotCausalError(ValueError):
    """The network lets a pixel see itself or a later one.

    Attributes:
        module: the module to blame.
        path: modules from the output back to the input along which the pixel is seen, with their offsets in pixels.
    """

    def __init__(self, module: str, message: str, path: list[tuple[str, tuple[int, int]]]):
        self.module = module
        self.path = path
        super().__init__(message)


class VerificationError(ValueError):
    """The program does not compute what the network computes: its Python code may branch on values, or be random."""
