"""The C4 form (Mask R-CNN, Sec. 3.1 and Fig. 4, left; Faster R-CNN of He et al. 2016): no pyramid.

Proposals and RoIs are read off conv4 alone, and conv5 is the head of each RoI. The mask branch of Fig. 4 goes on from
the same conv5, whose weights it shares with the box branch.
"""

import torch
from torch import Tensor, nn

from model.backbones import Backbone, Pixel
from model.backbones.resnet import ResNet, SmallResNet
from model.boxes.head import BoxHead

STRIDE = 16
"""Of conv4."""


class C4Backbone(nn.Module):
    """Conv4 of images float [N, 3, H, W], normalised as (uint8 value - pixel_mean) / pixel_std.

    `forward` gives it under "0": [N, out_channels, ceil(H / 16), ceil(W / 16)].
    """

    def __init__(self, body: ResNet | SmallResNet, *, pixel_mean: Pixel, pixel_std: Pixel) -> None:
        super().__init__()
        self.body = nn.Sequential(body.stem(), body.layer1, body.layer2, body.layer3)
        self.out_channels = body.channels[2]
        self.pixel_mean = pixel_mean
        self.pixel_std = pixel_std

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        c4: Tensor = self.body(x)
        return {"0": c4}


class Res5BoxHead(BoxHead):
    """Conv5 on the crops of conv4, and its mean over the cells (Fig. 4, left)."""

    def __init__(self, res5: nn.Sequential) -> None:
        super().__init__()
        self.res5 = res5

    def weight_type(self) -> torch.dtype:
        return self.res5[0].conv1.weight.dtype  # type: ignore

    def maps(self, pooled: Tensor) -> Tensor:
        """Pooled features [R, F, S, S] -> conv5 of each RoI [R, D, S/2, S/2], side rounded up."""
        maps: Tensor = self.res5(pooled)
        return maps

    def forward(self, pooled: Tensor) -> Tensor:
        """Pooled features [R, F, S, S] -> [R, D]."""
        return self.maps(pooled).mean(dim=[2, 3])


class Res5OfBoxesAndMasks(Res5BoxHead):
    """The same conv5 on the crops of the mask branch too (mask head "res5")."""

    crop_step = 2

    def for_masks(self, pooled: Tensor) -> Tensor:
        """Pooled features [R, F, S, S] -> conv5 of each RoI [R, D, S/2, S/2]."""
        return self.maps(pooled)


def build_c4(
    whole: Backbone, *, name: str, width: int, of_masks: bool = False
) -> tuple[C4Backbone, Res5BoxHead]:
    """Conv1 to conv4 of a ResNet, and its conv5 as the head of the RoIs.

    Args:
        whole: the backbone `name`, whose body is taken; conv5 counts as one of its five stages.
        width: D, that of the network around it.
        of_masks: whether the mask branch goes on from this conv5.

    Raises:
        ValueError: the backbone is no ResNet, or its conv5 has other channels than `width`.
    """
    body = whole.body
    if not isinstance(body, ResNet | SmallResNet):
        raise ValueError(
            f"backbone {name} has no conv5 to be the box head; take a ResNet, or another box.head"
        )
    if body.channels[3] != width:
        raise ValueError(
            f"box.width is {width}, and conv5 of {name}, the box head res5, gives {body.channels[3]} channels; "
            f"set box.width to {body.channels[3]}"
        )
    head = Res5OfBoxesAndMasks(body.layer4) if of_masks else Res5BoxHead(body.layer4)
    return C4Backbone(body, pixel_mean=whole.pixel_mean, pixel_std=whole.pixel_std), head
