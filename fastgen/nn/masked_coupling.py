"""Coupling of images by a mask over pixels: the checkerboard of RealNVP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastgen.nn.arguments import floating, plain_numbers, positive, without_effect
from fastgen.nn.coupling import Coupling, check_scale_map, transformed_where, unused_of
from fastgen.nn.frozen import Kept
from fastgen.ops.affine_coupling import affine_coupling


def checkerboard_mask(channels: int, height: int, width: int, *, first: bool = False) -> Tensor:
    """Ones (transformed) and zeros (read) like the squares of a checkerboard, the same in all channels.

    Args:
        first: whether the first pixel is transformed; two couplings with either value transform every pixel.

    Returns:
        [channels, height, width], float, on the CPU.

    Raises:
        ValueError: sizes that are not positive ints.

    Source: Dinh et al., "Density estimation using Real NVP" (2017), section 3.4 and figure 3.
    """
    positive(channels=channels, height=height, width=width)
    rows, columns = torch.arange(height, device="cpu"), torch.arange(width, device="cpu")
    squares = (rows[:, None] + columns + first) % 2
    return squares.float().repeat(channels, 1, 1)


class MaskedAffineCoupling(Coupling):
    """Affine coupling of any part of an image: the conditioner sees the image with the transformed values set to zero.

        shift, raw = net(x * (1 - mask), context)
        y = x * (1 - mask) + (scale(raw) * x + shift) * mask

    Args:
        mask: [channels, height, width], more than 0 where a value is transformed, as `checkerboard_mask` makes it.
        transform_net_create_fn: makes the conditioner; called as `(channels, 2 * channels)`. All shifts come before
            all raw scales.
        scale_map, bound, min_scale: as in `AffineCoupling`.

    Attributes:
        transform_net: the conditioner, called as in `Coupling`.

    Shape: [batch, channels, height, width]; logabsdet [batch], nats, of the direction run.

    Raises:
        TypeError: in `forward` and `inverse`, a dtype that is not floating.
        ValueError: a mask of other dimensions, or one that leaves nothing to read or nothing to transform, another
            `scale_map`; in `forward` and `inverse`, an image of another shape than the mask, a context of another
            batch, a conditioner that gives another number of parameters than it was asked for.

    Source: Dinh et al., "Density estimation using Real NVP" (2017), equation 9.
    """

    @plain_numbers
    def __init__(
        self,
        mask: Tensor,
        transform_net_create_fn: Callable[[int, int], nn.Module],
        *,
        scale_map: str = "tanh",
        bound: float = 2.0,
        min_scale: float = 0.0,
    ) -> None:
        super().__init__()
        mask = torch.as_tensor(mask, device="cpu")
        if mask.dim() != 3:
            raise ValueError(f"mask: expected [channels, height, width], got shape {tuple(mask.shape)}")
        check_scale_map(scale_map, bound, min_scale)
        why = f"on the scale map {scale_map!r}"
        without_effect(MaskedAffineCoupling.__init__, locals(), why, *unused_of(scale_map))
        self.scale_map = scale_map
        self.bound = bound
        self.min_scale = min_scale
        transformed = transformed_where(mask)
        self.register_buffer("mask", transformed.to(torch.get_default_device()))
        self._parts = Kept(indices=True)
        self._count = int(transformed.sum())
        self._positions()
        self.transform_net = transform_net_create_fn(len(mask), 2 * len(mask))

    def _check_shape(self, x: Tensor) -> None:
        floating(x)
        if x.dim() != 4 or x.shape[1:] != self.mask.shape:
            raise ValueError(f"x: expected [batch, {', '.join(map(str, self.mask.shape))}], got {tuple(x.shape)}")

    def _num_params(self) -> int:
        return 2 * len(self.mask)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.masked_fill(self.mask, 0.0), x.flatten(1).index_select(1, self._positions())

    def _transform(self, transformed: Tensor, params: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        positions = self._positions()
        shift, raw_scale = (half.flatten(1).index_select(1, positions) for half in params.chunk(2, dim=1))
        return affine_coupling(
            transformed,
            shift,
            raw_scale,
            inverse=inverse,
            scale_map=self.scale_map,
            bound=self.bound,
            min_scale=self.min_scale,
        )

    def _merge(self, identity: Tensor, transformed: Tensor) -> Tensor:
        if identity.dtype != transformed.dtype:
            identity = identity.to(transformed.dtype)
        return identity.flatten(1).index_copy(1, self._positions(), transformed).view_as(identity)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        # A checkpoint brings its own mask, and torch.compile takes the positions that are there.
        self._positions()

    def _positions(self) -> Tensor:
        """The transformed values of a flattened image: the op runs on these alone."""
        positions = self._parts.get(self._find_positions, [self.mask])
        if positions is not None:
            return positions.to(self.mask.device)
        # A mask that cannot be looked at, as in torch.func.vmap over masks, marks as many values as the module's own.
        return (1 - self.mask.flatten().to(torch.uint8)).sort(stable=True).indices[: self._count]

    def _find_positions(self) -> Tensor:
        positions = self.mask.flatten().nonzero().flatten()
        self._count = len(positions)
        return positions

    def extra_repr(self) -> str:
        return f"shape={tuple(self.mask.shape)}, scale_map={self.scale_map!r}"
