"""EfficientNet-Lite0 as a feature extractor: EfficientNet-B0 (Tan and Le 2019) made simpler.

The "Lite" changes are those of the TensorFlow release: ReLU6 in place of swish, no squeeze-and-excitation.
Parameter names are those of the published PyTorch state dict (`_conv_stem`, `_bn0`,
`_blocks.i._expand_conv` ...), so that it loads strictly.
"""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from model.backbones.convolution import he_initialised

EPSILON = 1e-3
"""Batch normalisation of the TensorFlow release; PyTorch's own default is 1e-5."""

# (blocks, kernel, stride of the first block, expansion, output channels) of EfficientNet-B0's stages.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM_CHANNELS = 32

FIRST_BLOCK_OF_STRIDE = (1, 3, 5, 11)
"""Blocks at which strides 4, 8, 16 and 32 begin; block 0 has stride 2 and belongs to the stem."""
CLASSIFIER_PREFIXES = ("_conv_head.", "_bn1.", "_fc.")
"""What the published state dict has beyond the features."""


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's "SAME" padding (before, after) of a side of `size` pixels: ceil(size / stride) come out.

    The odd pixel goes after: with kernel 3 and stride 2 an even side gets (0, 1) and an odd side (1, 1).
    """
    outputs = (size + stride - 1) // stride
    total = max((outputs - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class SameConv2d(nn.Conv2d):
    """Convolution without bias, padded as TensorFlow's "SAME", which is symmetric at stride 1."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1) -> None:
        padding = (kernel - 1) // 2 if stride == 1 else 0
        super().__init__(inputs, outputs, kernel, stride=stride, padding=padding, groups=groups, bias=False)
        self.kernel = kernel
        self.step = stride

    def forward(self, input: Tensor) -> Tensor:
        if self.step > 1:
            top, bottom = same_padding(input.shape[2], self.kernel, self.step)
            left, right = same_padding(input.shape[3], self.kernel, self.step)
            input = F.pad(input, [left, right, top, bottom])
        return F.conv2d(input, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise kxk, project 1x1; the input is added where its shape fits (MobileNetV2)."""

    def __init__(self, inputs: int, outputs: int, *, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self._expand_conv: nn.Module = nn.Identity()
        self._bn0: nn.Module = nn.Identity()
        self.expands = expansion != 1
        if self.expands:
            self._expand_conv = SameConv2d(inputs, inner, 1)
            self._bn0 = nn.BatchNorm2d(inner, eps=EPSILON)
        self._depthwise_conv = SameConv2d(inner, inner, kernel, stride=stride, groups=inner)
        self._bn1 = nn.BatchNorm2d(inner, eps=EPSILON)
        self._project_conv = SameConv2d(inner, outputs, 1)
        self._bn2 = nn.BatchNorm2d(outputs, eps=EPSILON)
        self.adds_input = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = x
        if self.expands:
            y = F.relu6(self._bn0(self._expand_conv(y)))
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return y + x if self.adds_input else y


class EfficientNetLite0(nn.Module):
    """C2 to C5 (strides 4 to 32) of an image [N, 3, H, W] normalised as (x - 127) / 128."""

    channels = (24, 40, 112, 320)

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = SameConv2d(3, STEM_CHANNELS, 3, stride=2)
        self._bn0 = nn.BatchNorm2d(STEM_CHANNELS, eps=EPSILON)
        blocks: list[nn.Module] = []
        inputs = STEM_CHANNELS
        for count, kernel, stride, expansion, outputs in STAGES:
            for i in range(count):
                step = stride if i == 0 else 1
                blocks.append(
                    InvertedResidual(inputs, outputs, kernel=kernel, stride=step, expansion=expansion)
                )
                inputs = outputs
        self._blocks = nn.ModuleList(blocks)
        he_initialised(self, mode="fan_out")

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Features "0" to "3": [N, 24, H/4, W/4] to [N, 320, H/32, W/32], sides rounded up."""
        features: dict[str, Tensor] = {}
        x = F.relu6(self._bn0(self._conv_stem(x)))
        for i, block in enumerate(self._blocks):
            x = block(x)
            if i == 2:
                features["0"] = x
            elif i == 4:
                features["1"] = x
            elif i == 10:
                features["2"] = x
            elif i == 15:
                features["3"] = x
        return features

    def stages(self) -> list[list[nn.Module]]:
        """Modules of the five stages, from the image on: stem, C2, C3, C4, C5."""
        blocks = list(self._blocks)
        bounds = [*FIRST_BLOCK_OF_STRIDE, len(blocks)]
        stem = [self._conv_stem, self._bn0, blocks[0]]
        return [stem, *(blocks[a:b] for a, b in pairwise(bounds))]
