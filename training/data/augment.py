"""Augmentation of an image and its target: mirroring, as the paper has it, colour jitter, and sizes.

Everything random comes from one seed per sample, never from a worker's state: resumed training sees the
same pixels. How large a training step sees its images (multi-scale training and large-scale jitter) is drawn by
`scaled`. No image is resized there: it is cut, at whole pixels, where it grows beyond its frame, and its target says
what size the network is to bring it to. Boxes and masks keep the own pixels of the data set: nothing is resampled.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from model.canvas import resized_size
from model.config import InputConfig
from model.targets import Colours, Target, mask_windows
from training.data.augment_config import AugmentConfig as AugmentConfig
from training.data.keypoints import mirrored_keypoints, shifted_keypoints
from training.data.sampler import scale_seed
from training.data.sides import Sides


def augment(
    image: Tensor, target: Target, seed: int, config: AugmentConfig, sides: Sides | None = None
) -> tuple[Tensor, Target]:
    """A changed copy of `image` (uint8 [3, H, W]) and `target`, a function of the arguments alone.

    Arguments are left as they are; tensors that do not change are shared with the result. With `augment.on_device` the
    colours stay as they are, and the target says what is to be done with them (`training.data.colour`). `sides` says
    which class an object has where the image is mirrored; None: its own.
    """
    mirrored, colours = drawn(seed, config)
    if not config.on_device:
        image = _jitter(image, config, colours)
    if mirrored:
        image = F.horizontal_flip(image).contiguous()
    return image, augmented_target(target, image.shape[-1], seed, config, sides)


def augmented_target(
    target: Target, width: int, seed: int, config: AugmentConfig, sides: Sides | None = None
) -> Target:
    """The target of `augment`, of an image of `width` that is not at hand."""
    mirrored, colours = drawn(seed, config)
    if mirrored:
        target = mirrored_target(target, width)
        if sides is not None:
            target = sides.mirrored(target)
    if config.on_device and config.changes_colour:
        target = {**target, "colours": colours}
    return target


def drawn(seed: int, config: AugmentConfig) -> tuple[bool, Colours]:
    """Whether the image of `seed` is mirrored, and how its colours are changed."""
    generator = torch.Generator().manual_seed(seed)
    # every number is drawn whether it is used or not: switching one change on leaves the others as they were
    flip, *of_colours = torch.rand(5, generator=generator, dtype=torch.float64).tolist()
    return flip < config.horizontal_flip, drawn_colours(config, *of_colours)


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
    return F.horizontal_flip(image).contiguous(), mirrored_target(target, image.shape[-1])


def mirrored_target(target: Target, width: int) -> Target:
    """The target of an image of `width` that is mirrored; see `flip_horizontally`."""
    flipped: Target = {
        "image_id": target["image_id"],
        "boxes": mirrored_boxes(target["boxes"], width),
        "labels": target["labels"],
        "has_mask": target["has_mask"],
        "masks": [mask.flip(1) for mask in target["masks"]],
        "crowd_boxes": mirrored_boxes(target["crowd_boxes"], width),
    }
    if "mask_weights" in target:
        flipped["mask_weights"] = target["mask_weights"]
    if "keypoints" in target:
        flipped["keypoints"] = mirrored_keypoints(target, width)
        flipped["mirrored"] = target["mirrored"]
    return flipped


def mirrored_boxes(boxes: Tensor, width: int) -> Tensor:
    """Boxes XYXY [N, 4] of the image mirrored left and right."""
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


def scaled(
    images: Sequence[Tensor],
    targets: Sequence[Target],
    config: AugmentConfig,
    input: InputConfig,
    *,
    seed: int,
    step: int,
) -> tuple[list[Tensor], list[Target]]:
    """The images (uint8 [3, H, W]) and targets of a step at the sizes drawn for them; the arguments stay as they are.

    What is drawn follows from the run's `seed`, the step, and the image's id (but for `min_sizes_per` "step"), so
    several processes and a resumed run see the same.
    """
    answers, of_answers = [], []
    for image, target in zip(images, targets, strict=True):
        one_for_all = bool(config.min_sizes) and config.min_sizes_per == "step"
        drawn = scale_seed(seed=seed, step=step, image_id=None if one_for_all else target["image_id"])
        generator = torch.Generator().manual_seed(drawn)
        if config.min_sizes:
            side = config.min_sizes[int(torch.randint(len(config.min_sizes), (), generator=generator))]
            target = with_size(target, _resized(image.shape[1], image.shape[2], side, input))
        else:
            image, target = jittered(image, target, config.scale_jitter, input, generator)
        answers.append(image)
        of_answers.append(target)
    return answers, of_answers


def jittered(
    image: Tensor,
    target: Target,
    factors: tuple[float, float],
    input: InputConfig,
    generator: torch.Generator,
) -> tuple[Tensor, Target]:
    """Large-scale jitter of one image: scaled by a factor drawn from `factors`, then cut to its frame.

    The frame is the size that the network brings the image to by itself. Ghiasi et al. fill up what has become smaller
    to that frame; here it stays small, which saves the time and shows the network the same, since padding is
    the canvas's own.
    """
    least, largest = factors
    factor, across, down = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
    factor = least + (largest - least) * factor
    height, width = image.shape[1:]
    frame = _resized(height, width, input.min_size, input)
    if factor > 1:
        h, w = max(round(height / factor), 1), max(round(width / factor), 1)
        y, x = int(down * (height - h + 1)), int(across * (width - w + 1))
        image, target = cropped(image, target, (x, y, x + w, y + h))
    grown = [
        factor * f * new / old for f, new, old in zip(frame, image.shape[1:], (height, width), strict=True)
    ]
    size = [min(max(round(side), 1), most) for side, most in zip(grown, frame, strict=True)]
    return image, with_size(target, (size[0], size[1]))


def cropped(image: Tensor, target: Target, window: tuple[int, int, int, int]) -> tuple[Tensor, Target]:
    """Image and target inside a window, XYXY in whole pixels, of positive area.

    Boxes are cut at its border. Left out are objects of which nothing remains: no area of their box, or no pixel of
    their mask, where that is known.
    """
    x0, y0, x1, y1 = window
    boxes, remains = _inside(target["boxes"], window)
    masks = []
    old = mask_windows(target["boxes"], *image.shape[1:]).tolist()
    for i, (mask, (left, top, right, bottom)) in enumerate(zip(target["masks"], old, strict=True)):
        if mask.numel() and remains[i]:
            mask = mask[max(y0 - top, 0) : min(y1, bottom) - top, max(x0 - left, 0) : min(x1, right) - left]
            remains[i] = bool(mask.any())
        masks.append(mask)
    crowds, crowds_remain = _inside(target["crowd_boxes"], window)
    inside: Target = {
        **target,
        "boxes": boxes[remains],
        "labels": target["labels"][remains],
        "has_mask": target["has_mask"][remains],
        "masks": [mask for mask, kept in zip(masks, remains.tolist(), strict=True) if kept],
        "crowd_boxes": crowds[crowds_remain],
    }
    if "mask_weights" in target:
        inside["mask_weights"] = target["mask_weights"][remains]
    if "keypoints" in target:
        inside["keypoints"] = shifted_keypoints(target["keypoints"][remains], x=-x0, y=-y0)
    return image[:, y0:y1, x0:x1], inside


def _resized(height: int, width: int, min_size: int, input: InputConfig) -> tuple[int, int]:
    """The size that the network's own canvas gives such an image where its shorter side becomes `min_size`."""
    return resized_size(height, width, min_size, input.max_size, input.rounding == "down")


def with_size(target: Target, size: tuple[int, int]) -> Target:
    """The target with the (height, width) that the network is to bring its image to."""
    return {**target, "size": size}


def _inside(boxes: Tensor, window: tuple[int, int, int, int]) -> tuple[Tensor, Tensor]:
    """Boxes [N, 4] cut at a window and in its pixels, and which of them, bool [N], have area there."""
    x0, y0, x1, y1 = window
    corner = torch.tensor([x0, y0, x0, y0], dtype=boxes.dtype)
    most = torch.tensor([x1 - x0, y1 - y0] * 2, dtype=boxes.dtype)
    moved = torch.minimum((boxes - corner).clamp(min=0), most)
    return moved, ((moved[:, 2:] - moved[:, :2]) > 0).all(1)
