"""Augmentation of one image and its target: mirroring, as the paper has it, and colour jitter.

Everything random comes from one seed per sample, never from a worker's state: resumed training sees the
same pixels. How large the network sees an image is drawn in `training.data.scales`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from model.targets import Colours, Target
from training.data.augment_config import AugmentConfig as AugmentConfig
from training.data.keypoints import mirrored_keypoints
from training.data.sides import Sides


def augment(
    image: Tensor, target: Target, seed: int, config: AugmentConfig, sides: Sides | None = None
) -> tuple[Tensor, Target]:
    """A changed copy of `image` (uint8 [3, H, W]) and `target`, a function of the arguments alone.

    Arguments are left as they are; tensors that do not change are shared with the result. With `augment.on_device` the
    colours stay as they are, and the target says what is to be done with them (`training.data.colour`). `sides` says
    which class an object has where the image is mirrored; None: its own.
    """
    generator = torch.Generator().manual_seed(seed)
    # every number is drawn whether it is used or not: switching one change on leaves the others as they were
    flip, *drawn = torch.rand(5, generator=generator, dtype=torch.float64).tolist()
    colours = drawn_colours(config, *drawn)
    if not config.on_device:
        image = _jitter(image, config, colours)
    if flip < config.horizontal_flip:
        image, target = flip_horizontally(image, target)
        if sides is not None:
            target = sides.mirrored(target)
    if config.on_device and config.changes_colour:
        target = {**target, "colours": colours}
    return image, target


def drawn_colours(
    config: AugmentConfig, brightness: float, contrast: float, saturation: float, hue: float
) -> Colours:
    """The factors of brightness, contrast and saturation, and the turn of the hue, of numbers drawn from [0, 1)."""
    return (
        1.0 + config.brightness * (2.0 * brightness - 1.0),
        1.0 + config.contrast * (2.0 * contrast - 1.0),
        1.0 + config.saturation * (2.0 * saturation - 1.0),
        config.hue * (2.0 * hue - 1.0),
    )


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


def _jitter(image: Tensor, config: AugmentConfig, colours: Colours) -> Tensor:
    """The colour changes that are on, by what was drawn for them."""
    brightness, contrast, saturation, hue = colours
    if config.brightness:
        image = F.adjust_brightness(image, brightness)
    if config.contrast:
        image = F.adjust_contrast(image, contrast)
    if config.saturation:
        image = F.adjust_saturation(image, saturation)
    if config.hue:
        image = F.adjust_hue(image, hue)
    return image
