"""Augmentation of one image and its target: mirroring, as the paper has it, and colour jitter.

Everything random comes from one seed per sample, never from a worker's state: resumed training sees the
same pixels. How large the network sees an image is drawn in `training.scales`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from model.targets import Target
from training.keypoints import mirrored_keypoints


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How much to change. A jitter of s draws a factor from [1 - s, 1 + s]; 0, as in the paper, is off."""

    horizontal_flip: float = 0.5
    """Probability of mirroring left and right (Detectron's training: one half)."""
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    """Largest turn of the hue, in full circles, at most 0.5."""
    min_sizes: tuple[int, ...] = ()
    """Multi-scale training: the shorter side is drawn from these instead of being model.input.min_size; the longer
    stays within model.input.max_size (Detectron2: 640 to 800 in steps of 32; Mask R-CNN's pose: 640 to 800)."""
    min_sizes_per: Literal["image", "step"] = "image"
    """Each image its own draw, or one for all images of a step (no padding between them, less memory wasted)."""
    scale_jitter: tuple[float, float] = (1.0, 1.0)
    """Large-scale jitter: least and largest factor by which an image is scaled; of what grows beyond its frame, a part
    is cut out (0.1, 2.0 in Ghiasi et al., arXiv:2012.07177; 0.8, 1.25 is their standard one)."""

    @property
    def changes_size(self) -> bool:
        """Whether the network sees images at other sizes than in evaluation."""
        return bool(self.min_sizes) or self.scale_jitter != (1.0, 1.0)

    def __post_init__(self) -> None:
        for name, most in (
            ("horizontal_flip", 1.0),
            ("brightness", 1.0),
            ("contrast", 1.0),
            ("saturation", 1.0),
            ("hue", 0.5),
        ):
            value = getattr(self, name)
            if not 0.0 <= value <= most:
                raise ValueError(f"augment.{name} = {value}; expected a number from 0 to {most}")
        if any(side < 1 for side in self.min_sizes):
            raise ValueError(f"augment.min_sizes = {list(self.min_sizes)}; each must be 1 pixel or more")
        least, largest = self.scale_jitter
        if not 0 < least <= largest <= 10:
            raise ValueError(
                f"augment.scale_jitter = {list(self.scale_jitter)}; expected the least and the largest factor, "
                "above 0 and at most 10, such as [0.1, 2.0]"
            )
        if self.min_sizes and self.scale_jitter != (1.0, 1.0):
            raise ValueError(
                "augment.min_sizes and augment.scale_jitter both say how large an image is; set one of them"
            )


def augment(image: Tensor, target: Target, seed: int, config: AugmentConfig) -> tuple[Tensor, Target]:
    """A changed copy of `image` (uint8 [3, H, W]) and `target`, a function of the arguments alone.

    Arguments are left as they are; tensors that do not change are shared with the result.
    """
    generator = torch.Generator().manual_seed(seed)
    # every number is drawn whether it is used or not: switching one change on leaves the others as they were
    flip, brightness, contrast, saturation, hue = torch.rand(
        5, generator=generator, dtype=torch.float64
    ).tolist()
    image = _jitter(image, config, brightness, contrast, saturation, hue)
    if flip < config.horizontal_flip:
        image, target = flip_horizontally(image, target)
    return image, target


def flip_horizontally(image: Tensor, target: Target) -> tuple[Tensor, Target]:
    """Image and target mirrored left and right; done twice it is the identity.

    Boxes of the data set lie on a grid of 1/256 pixel, so that `width - x` is exact in float32 and the
    window of a mirrored box is the mirrored window.
    """
    width = image.shape[-1]
    flipped: Target = {
        "image_id": target["image_id"],
        "boxes": _flip_boxes(target["boxes"], width),
        "labels": target["labels"],
        "has_mask": target["has_mask"],
        "masks": [mask.flip(1) for mask in target["masks"]],
        "crowd_boxes": _flip_boxes(target["crowd_boxes"], width),
    }
    if "keypoints" in target:
        flipped["keypoints"] = mirrored_keypoints(target, width)
        flipped["mirrored"] = target["mirrored"]
    return F.horizontal_flip(image).contiguous(), flipped


def _flip_boxes(boxes: Tensor, width: int) -> Tensor:
    x0, y0, x1, y1 = boxes.unbind(1)
    return torch.stack([width - x1, y0, width - x0, y1], dim=1)


def _jitter(
    image: Tensor, config: AugmentConfig, brightness: float, contrast: float, saturation: float, hue: float
) -> Tensor:
    """Colour changes by numbers drawn from [0, 1)."""
    if config.brightness:
        image = F.adjust_brightness(image, 1.0 + config.brightness * (2.0 * brightness - 1.0))
    if config.contrast:
        image = F.adjust_contrast(image, 1.0 + config.contrast * (2.0 * contrast - 1.0))
    if config.saturation:
        image = F.adjust_saturation(image, 1.0 + config.saturation * (2.0 * saturation - 1.0))
    if config.hue:
        image = F.adjust_hue(image, config.hue * (2.0 * hue - 1.0))
    return image
