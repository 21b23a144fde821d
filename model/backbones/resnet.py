"""ResNets (He et al. 2016) and ResNeXts (Xie et al. 2017) as torchvision has them, and a small one for CPUs."""

import torch.nn.functional as F
import torchvision.models as classifiers
from torch import Tensor, nn
from torchvision.models import WeightsEnum
from torchvision.models.resnet import Bottleneck

from model.backbones.convolution import he_initialised

RESNETS = {
    "resnet18": classifiers.resnet18,
    "resnet34": classifiers.resnet34,
    "resnet50": classifiers.resnet50,
    "resnet101": classifiers.resnet101,
    "resnext101_32x8d": classifiers.resnext101_32x8d,
    "resnext101_64x4d": classifiers.resnext101_64x4d,
}
IMAGENET_WEIGHTS: dict[str, WeightsEnum] = {
    "resnet18": classifiers.ResNet18_Weights.IMAGENET1K_V1,
    "resnet34": classifiers.ResNet34_Weights.IMAGENET1K_V1,
    "resnet50": classifiers.ResNet50_Weights.IMAGENET1K_V1,
    "resnet101": classifiers.ResNet101_Weights.IMAGENET1K_V1,
    "resnext101_32x8d": classifiers.ResNeXt101_32X8D_Weights.IMAGENET1K_V1,
    "resnext101_64x4d": classifiers.ResNeXt101_64X4D_Weights.IMAGENET1K_V1,
}
"""As torchvision's own detectors take them; of the 64x4d there are no others."""

SMALL_WIDTHS = (32, 64, 128, 192)
"""Channels of C2 to C5 of the small one, each stage one basic block."""


class ResNet(nn.Module):
    """torchvision's ResNet or ResNeXt `name` without its classifier, under torchvision's own parameter names.

    Args:
        stride_in: the convolution of a bottleneck that has the stride, "3x3" or, as He et al. have it, "1x1".
    """

    def __init__(self, name: str, stride_in: str = "3x3") -> None:
        super().__init__()
        whole = RESNETS[name](weights=None)
        if stride_in == "1x1":
            for stage in (whole.layer2, whole.layer3, whole.layer4):
                with_stride_in_1x1(stage[0], name)
        self.conv1 = whole.conv1
        self.bn1 = whole.bn1
        self.relu = whole.relu
        self.maxpool = whole.maxpool
        self.layer1 = whole.layer1
        self.layer2 = whole.layer2
        self.layer3 = whole.layer3
        self.layer4 = whole.layer4
        deepest = whole.fc.in_features
        self.channels = (deepest // 8, deepest // 4, deepest // 2, deepest)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """C2 to C5 of an image [N, 3, H, W], as "0" to "3"."""
        c2 = self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(x)))))
        c3 = self.layer2(c2)
        c4 = self.layer3(c3)
        c5 = self.layer4(c4)
        return {"0": c2, "1": c3, "2": c4, "3": c5}

    def stages(self) -> list[list[nn.Module]]:
        """Modules of the five stages, from the image on: stem, C2, C3, C4, C5."""
        return [[self.conv1, self.bn1], [self.layer1], [self.layer2], [self.layer3], [self.layer4]]

    def stem(self) -> nn.Sequential:
        """What comes before C2: [N, 3, H, W] -> [N, 64, H/4, W/4]."""
        return nn.Sequential(self.conv1, self.bn1, self.relu, self.maxpool)


def with_stride_in_1x1(block: nn.Module, name: str) -> None:
    """Moves the stride of a bottleneck to its first convolution, in place; ValueError where it is none."""
    if not isinstance(block, Bottleneck):
        raise ValueError(
            f"model.backbone.stride_in is 1x1, but {name} has no bottlenecks with 1x1 convolutions; take resnet50 or "
            "deeper, or 3x3"
        )
    block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut (He et al. 2016); the last normalisation starts at zero."""

    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            conv = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(outputs))
        nn.init.zeros_(self.bn2.weight)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class SmallResNet(nn.Module):
    """A ResNet of basic blocks that trains from nothing on a CPU within minutes.

    Meant for images of 128 to 160 pixels. Of the stems tried (one convolution, two, 4x4 or 7x7 with stride 4,
    pooling) none is more than a tenth faster than these two convolutions; blocks and pyramid cost the time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.channels = widths = SMALL_WIDTHS
        self.conv1 = nn.Conv2d(3, widths[0] // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0] // 2)
        self.conv2 = nn.Conv2d(widths[0] // 2, widths[0], 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(widths[0])
        layers: list[nn.Sequential] = []
        inputs = widths[0]
        for stage, width in enumerate(widths):
            layers.append(nn.Sequential(BasicBlock(inputs, width, stride=1 if stage == 0 else 2)))
            inputs = width
        self.layer1, self.layer2, self.layer3, self.layer4 = layers
        he_initialised(self, mode="fan_out")

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """C2 to C5 of an image [N, 3, H, W], as "0" to "3"."""
        stem = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        c2 = self.layer1(stem)
        c3 = self.layer2(c2)
        c4 = self.layer3(c3)
        c5 = self.layer4(c4)
        return {"0": c2, "1": c3, "2": c4, "3": c5}

    def stages(self) -> list[list[nn.Module]]:
        """Modules of the five stages, from the image on: stem, C2, C3, C4, C5."""
        stem: list[nn.Module] = [self.conv1, self.bn1, self.conv2, self.bn2]
        return [stem, [self.layer1], [self.layer2], [self.layer3], [self.layer4]]

    def stem(self) -> nn.Sequential:
        """What comes before C2: [N, 3, H, W] -> [N, widths[0], H/4, W/4]."""
        return nn.Sequential(
            self.conv1, self.bn1, nn.ReLU(inplace=True), self.conv2, self.bn2, nn.ReLU(inplace=True)
        )
