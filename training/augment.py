"""Augmentation of one image and its target: mirroring, as the paper has it, and colour jitter.

Everything random comes from one seed per sample, never from a worker's state: resumed training sees the
same pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from model.targets import Target


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
