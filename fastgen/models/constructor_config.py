"""What a checkpoint says of how its model is made."""

from __future__ import annotations

from typing import Any


def constructor_config(arguments: dict[str, Any], *networks: str) -> dict[str, Any]:
    """Of a constructor's `locals()`, taken in its first line, all arguments but the `networks` that were handed in."""
    return {name: value for name, value in arguments.items() if name not in ("self", "__class__", *networks)}
