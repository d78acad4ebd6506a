"""diffusers' UNet of the same sizes as one of ours, with the same weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastgen.models.unet import UNet


def diffusers_unet(ours: UNet, **sizes: Any) -> nn.Module:
    """diffusers' `UNet2DModel` that computes what `ours` computes.

    Args:
        ours: the network.
        sizes: what it was made with.
    """
    from diffusers import UNet2DModel

    channels, multipliers = sizes["channels"], sizes["channel_multipliers"]
    attends = [level in sizes["attention_levels"] for level in range(len(multipliers))]
    head = sizes.get("head_channels")
    theirs = UNet2DModel(
        in_channels=ours.in_channels,
        out_channels=ours.conv_out.out_channels,
        block_out_channels=[channels * multiplier for multiplier in multipliers],
        down_block_types=["AttnDownBlock2D" if at else "DownBlock2D" for at in attends],
        up_block_types=["AttnUpBlock2D" if at else "UpBlock2D" for at in reversed(attends)],
        layers_per_block=sizes["layers"],
        attention_head_dim=head,
        norm_num_groups=sizes["groups"],
        attn_norm_num_groups=sizes["groups"],
        resnet_time_scale_shift="scale_shift",
        add_attention=sizes.get("middle_attention", True),
        num_class_embeds=None if ours.num_classes is None else ours.num_classes + 1,
    )
    theirs.load_state_dict(weights_for_diffusers(ours))
    return theirs.eval()


def weights_for_diffusers(ours: UNet) -> dict[str, Tensor]:
    """The weights of `ours` under diffusers' names."""
    weights: dict[str, Tensor] = {}

    def put(name: str, module: nn.Module) -> None:
        weights.update({f"{name}.{key}": value for key, value in module.state_dict().items()})

    put("conv_in", ours.conv_in)
    put("conv_norm_out", ours.norm_out)
    put("conv_out", ours.conv_out)
    put("time_embedding.linear_1", ours.time_embedding.linear_1)
    put("time_embedding.linear_2", ours.time_embedding.linear_2)
    if ours.class_embedding is not None:
        put("class_embedding", ours.class_embedding)
    films = iter(zip(ours.film.weight.split(ours.film_sizes), ours.film.bias.split(ours.film_sizes), strict=True))
    rooms = [(f"down_blocks.{index}", level) for index, level in enumerate(ours.down)]
    rooms += [("mid_block", ours.middle)]
    rooms += [(f"up_blocks.{index}", level) for index, level in enumerate(ours.up)]
    for room, level in rooms:
        attentions = 0
        for index, stage in enumerate(level):
            block, name = stage.block, f"{room}.resnets.{index}"
            for theirs, mine in {"norm1": "norm_1", "conv1": "conv_1", "norm2": "norm_2", "conv2": "conv_2"}.items():
                put(f"{name}.{theirs}", getattr(block, mine))
            if block.shortcut is not None:
                put(f"{name}.conv_shortcut", block.shortcut)
            weights[f"{name}.time_emb_proj.weight"], weights[f"{name}.time_emb_proj.bias"] = next(films)
            if stage.attention is not None:
                _put_attention(weights, f"{room}.attentions.{attentions}", stage.attention)
                attentions += 1
    for index, convolution in enumerate(ours.downsample):
        put(f"down_blocks.{index}.downsamplers.0.conv", convolution)
    for index, convolution in enumerate(ours.upsample):
        put(f"up_blocks.{index}.upsamplers.0.conv", convolution)
    return {name: value.detach().clone() for name, value in weights.items()}


def _put_attention(weights: dict[str, Tensor], name: str, attention: nn.Module) -> None:
    weights |= {f"{name}.group_norm.{key}": value for key, value in attention.norm.state_dict().items()}
    for kind, weight, bias in zip("qkv", attention.qkv.weight.chunk(3), attention.qkv.bias.chunk(3), strict=True):
        weights |= {f"{name}.to_{kind}.weight": weight, f"{name}.to_{kind}.bias": bias}
    weights |= {f"{name}.to_out.0.{key}": value for key, value in attention.out.state_dict().items()}


def weights_from_diffusers(theirs: nn.Module, ours: UNet) -> dict[str, Tensor]:
    """The weights of diffusers' network under the names of `ours`, which has the same sizes."""
    # Each of our weights is one of theirs, or several of them in a row: numbers find out where each of them lies.
    source = theirs.state_dict()
    numbered, start = {}, 0
    for name, value in ours.state_dict().items():
        numbered[name] = torch.arange(start, start + value.numel(), dtype=torch.float64).view(value.shape)
        start += value.numel()
    flat = torch.empty(start, dtype=torch.float64)
    twin = _numbered_twin(ours, numbered)
    for name, places in weights_for_diffusers(twin).items():
        flat[places.long().flatten()] = source[name].double().flatten()
    return {name: flat[places.long()].to(ours.state_dict()[name].dtype) for name, places in numbered.items()}


def _numbered_twin(ours: UNet, numbered: dict[str, Tensor]) -> UNet:
    import copy

    twin = copy.deepcopy(ours).double()
    twin.load_state_dict(numbered)
    return twin
