"""The hourglass as mask head (DeepMAC: Birodkar et al., 2021, arXiv:2104.00613): wider context for unseen classes."""

from functools import partial

import torch
from torch import Tensor, nn

from model.backbones import with_nearest
from model.backbones.convolution import group_norm, he_initialised, with_winograd
from model.masks.head import deconvolved

LARGE_MAP = 8
"""From this side of the map on, Winograd's form pays: its tiles are 6 cells wide."""


class Residual(nn.Module):
    """Two 3x3 convolutions beside a shortcut; the first may halve the map."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm1 = group_norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = group_norm(outputs)
        same = inputs == outputs and stride == 1
        self.shortcut = (
            nn.Identity()
            if same
            else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), group_norm(outputs))
        )

    def forward(self, x: Tensor) -> Tensor:
        """[R, inputs, S, S] -> [R, outputs, S / stride, S / stride]."""
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


def residuals(
    count: int, inputs: int, outputs: int, *, stride: int = 1, change_last: bool = False
) -> nn.Sequential:
    """`count` blocks; the first (or, with `change_last`, the last) changes the channels, the first has the stride."""
    widths = [inputs] * count + [outputs] if change_last else [inputs] + [outputs] * count
    return nn.Sequential(*[Residual(widths[i], widths[i + 1], stride if i == 0 else 1) for i in range(count)])


class HourglassMaskHead(nn.Module):
    """One hourglass without a first halving, then the 2x2 deconvolution of stride 2.

    Where the original normalises over the batch, groups of channels are normalised here (Wu and He, 2018): a batch may
    have one RoI of set A or none, and at the bottom of hourglass-52 a RoI is a single cell. The kernel of the first
    convolution is our choice.

    Args:
        channels: of the pooled features.
        width: F, the mask features; the hourglass's base width is F / 4 (64 in the paper).
        roi_size: S; divisible by 2 to the number of halvings.
        multiples: channels of each stage as multiples of the base width; one halving between two stages.
        blocks: residual blocks of each stage: on the way down, beside, and on the way up.
    """

    def __init__(
        self, *, channels: int, width: int, roi_size: int, multiples: tuple[int, ...], blocks: tuple[int, ...]
    ) -> None:
        super().__init__()
        base = width // 4
        dims = [base * multiple for multiple in multiples]
        self.stem = nn.Sequential(
            nn.Conv2d(channels, base, 3, padding=1, bias=False),
            group_norm(base),
            nn.ReLU(inplace=True),
            Residual(base, dims[0]),
        )
        self.besides, self.downs, self.ups = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for i in range(len(dims) - 1):
            self.besides.append(residuals(blocks[i], dims[i], dims[i]))
            self.downs.append(residuals(blocks[i], dims[i], dims[i + 1], stride=2))
            self.ups.insert(0, residuals(blocks[i], dims[i + 1], dims[i], change_last=True))
        self.bottom = residuals(blocks[-1], dims[-1], dims[-1])
        self.out = nn.Sequential(
            nn.Conv2d(dims[0], dims[0], 3, padding=1, bias=False), group_norm(dims[0]), nn.ReLU(inplace=True)
        )
        self.deconv = nn.ConvTranspose2d(dims[0], width, 2, stride=2)
        self.deconv_norm = group_norm(width)
        he_initialised(self, mode="fan_in")
        with_winograd(self.stem, many=True)
        with_winograd(self.out, many=True)
        halvings = len(self.downs)
        for i in range(halvings):
            if roi_size >> i >= LARGE_MAP:
                with_winograd(self.besides[i], many=True)
            if roi_size >> (i + 1) >= LARGE_MAP:
                with_winograd(self.downs[i], many=True)
                with_winograd(self.ups[halvings - 1 - i], many=True)

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """As `model.masks.head.MaskHead.forward`; before the deconvolution there are F / 2 channels."""
        x = self.stem(pooled)
        beside: list[Tensor] = []
        for skip, down in zip(self.besides, self.downs):  # noqa: B905  (TorchScript knows no `strict`)
            beside.append(skip(x))
            x = down(x)
        x = self.bottom(x)
        for up in self.ups:
            x = with_nearest(beside.pop(), up(x))
        before = self.out(x)
        after = deconvolved(before, self.deconv.weight, self.deconv.bias)
        by_channel = after.flatten(1, 4).transpose(1, 2)  # where a cell stands is nothing to the norm
        return before, torch.relu(self.deconv_norm(by_channel)).transpose(1, 2).reshape(after.shape)


hourglass_20 = partial(HourglassMaskHead, multiples=(2, 2, 3), blocks=(1, 2, 2))
"""Hourglass-20: 20 convolutions one after the other, 2 halvings."""
hourglass_52 = partial(HourglassMaskHead, multiples=(2, 2, 3, 3, 3, 4), blocks=(2, 2, 2, 2, 2, 4))
"""Hourglass-52: 52 convolutions one after the other, 5 halvings."""
