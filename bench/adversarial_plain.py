"""The discriminators of the adversarial suite as anyone would write them in PyTorch, with the weights of ours."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgen.models.dcgan import DCGANDiscriminator
from fastgen.models.stylegan2 import StyleDiscriminator
from fastgen.nn.stylegan import TAPS, EqualizedConv2d, EqualizedLinear


class PlainDCGANDiscriminator(nn.Module):
    """Convolutions, `nn.BatchNorm2d`, leaky ReLU; its parameters come in the order of ours."""

    def __init__(self, ours: DCGANDiscriminator) -> None:
        super().__init__()
        self.convolutions, self.norms = ours.convolutions, nn.ModuleList()
        for own in ours.norms:
            norm = nn.BatchNorm2d(len(own.weight)).to(own.weight)
            norm.load_state_dict(own.state_dict())
            self.norms.append(norm)
        self.last = ours.head.linear

    def forward(self, x: Tensor) -> Tensor:
        h = F.leaky_relu(self.convolutions[0](x), 0.2)
        for convolution, norm in zip(self.convolutions[1:], self.norms, strict=True):
            h = F.leaky_relu(norm(convolution(h)), 0.2)
        return self.last(h.flatten(1)).squeeze(1)


class PlainStyleDiscriminator(nn.Module):
    """Equalised convolutions, a depthwise convolution for the filter, leaky ReLU."""

    def __init__(self, ours: StyleDiscriminator) -> None:
        super().__init__()
        self.from_image = PlainConv2d(ours.from_image)
        self.blocks = nn.ModuleList(
            nn.ModuleList(PlainConv2d(layer) for layer in (block.convolution_1, block.convolution_2, block.shortcut))
            for block in ours.blocks
        )
        self.convolution = PlainConv2d(ours.convolution)
        self.dense, self.last = PlainLinear(ours.dense), PlainLinear(ours.last)

    def forward(self, x: Tensor) -> Tensor:
        h = self.from_image(x)
        for first, second, shortcut in self.blocks:
            h = (shortcut(h) + second(first(h))) * math.sqrt(0.5)
        groups = h.reshape(-1, 4, *h.shape[1:])
        deviation = (groups.var(1, correction=0) + 1e-8).sqrt().mean((1, 2, 3))
        deviation = deviation.repeat_interleave(4).view(-1, 1, 1, 1).expand(-1, 1, *h.shape[2:])
        h = self.convolution(torch.cat([h, deviation], 1))
        return self.last(self.dense(h.flatten(1))).squeeze(1)


class PlainConv2d(nn.Module):
    def __init__(self, ours: EqualizedConv2d) -> None:
        super().__init__()
        self.weight, self.bias, self.scale, self.down, self.act = (
            ours.weight,
            ours.bias,
            ours.scale,
            ours.down,
            ours.act,
        )
        taps = torch.tensor(TAPS) / sum(TAPS)
        self.register_buffer("filter", torch.outer(taps, taps).expand(self.weight.shape[1], 1, 4, 4).contiguous())

    def forward(self, x: Tensor) -> Tensor:
        weight, size, stride = self.weight * self.scale, self.weight.shape[2], 1
        padding = size // 2
        if self.down == 2 and size == 1:
            x = F.conv2d(x, self.filter, stride=2, padding=1, groups=x.shape[1])
        elif self.down == 2:
            x = F.conv2d(x, self.filter, padding=2, groups=x.shape[1])
            stride, padding = 2, 0
        h = F.conv2d(x, weight, self.bias, stride=stride, padding=padding)
        return h if self.act == "linear" else F.leaky_relu(h, 0.2) * math.sqrt(2)


class PlainLinear(nn.Module):
    def __init__(self, ours: EqualizedLinear) -> None:
        super().__init__()
        self.weight, self.bias, self.act = ours.weight, ours.bias, ours.act

    def forward(self, x: Tensor) -> Tensor:
        h = F.linear(x, self.weight / math.sqrt(x.shape[1]), self.bias)
        return h if self.act == "linear" else F.leaky_relu(h, 0.2) * math.sqrt(2)
