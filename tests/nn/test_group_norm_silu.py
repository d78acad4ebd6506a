"""`GroupNormSiLU` stands in for `GroupNorm` and `SiLU`."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastgen.nn import GroupNormSiLU


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_drop_in_for_group_norm_and_silu(affine: bool, memory_format: torch.memory_format):
    layer = GroupNormSiLU(4, 8, eps=1e-3, affine=affine).double()
    plain = nn.GroupNorm(4, 8, eps=1e-3, affine=affine).double()
    for parameter in plain.parameters():
        nn.init.normal_(parameter)
    layer.load_state_dict(plain.state_dict())
    x = torch.randn(3, 8, 5, 7, dtype=torch.float64).to(memory_format=memory_format)
    torch.testing.assert_close(layer(x), nn.functional.silu(plain(x)), rtol=1e-12, atol=1e-12)
    scale, shift = torch.randn(2, 3, 8, dtype=torch.float64)
    expected = nn.functional.silu(plain(x) * (1 + scale[..., None, None]) + shift[..., None, None])
    torch.testing.assert_close(layer(x, scale, shift), expected, rtol=1e-12, atol=1e-12)


def test_under_autocast_and_compile():
    layer = GroupNormSiLU(2, 4)
    x = torch.randn(2, 4, 3, 3)
    expected = layer(x)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(layer(x.bfloat16()).float(), expected, rtol=2e-2, atol=2e-2)


def test_wrong_number_of_channels():
    with pytest.raises(ValueError, match=r"x: expected \[batch, 4, \.\.\.\], got \(2, 6\)"):
        GroupNormSiLU(2, 4)(torch.zeros(2, 6))
