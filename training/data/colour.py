"""Colour changes of a step's images where they lie, without a wait: those of `training.data.augment`."""

from collections.abc import Sequence

import torch
from torch import Tensor

from model.host import moved
from model.targets import Target
from training.data.augment_config import AugmentConfig

GREY = (0.2989, 0.587, 0.114)
"""Weights of red, green and blue (ITU-R BT.601), in torchvision's digits."""


def coloured(images: Sequence[Tensor], targets: Sequence[Target], config: AugmentConfig) -> list[Tensor]:
    """The images (uint8 [3, H, W], on one device) with the colours that their targets ask for (`Target.colours`).

    All pixels are one long row, each with its image's numbers, so that more images are no more operations. Values are
    cut to whole numbers after every change, as torchvision does.

    Args:
        config: which of the changes are on; each target has the numbers of all of them.
    """
    device = images[0].device
    counts = [image.shape[1] * image.shape[2] for image in images]
    numbers, sizes = moved([torch.tensor([t["colours"] for t in targets]), torch.tensor(counts)], device)
    of_pixel = torch.repeat_interleave(
        torch.arange(len(images), device=device), sizes, output_size=sum(counts)
    )
    brightness, contrast, saturation, hue = numbers[of_pixel].unbind(1)
    pixels = torch.cat([image.reshape(3, -1) for image in images], dim=1).to(torch.float32)
    if config.brightness:
        pixels = _whole(pixels * brightness)
    if config.contrast:
        means = torch.stack([grey.mean() for grey in _grey(pixels).split(counts)])
        pixels = _blended(pixels, means[of_pixel], contrast)
    if config.saturation:
        pixels = _blended(pixels, _grey(pixels), saturation)
    if config.hue:
        pixels = (turned(pixels / 255.0, hue) * 255.999).floor()
    parts = pixels.to(torch.uint8).split(counts, dim=1)
    return [part.reshape(image.shape) for part, image in zip(parts, images, strict=True)]


def turned(colours: Tensor, turn: Tensor) -> Tensor:
    """RGB colours [3, P] in [0, 1] with their hue in HSV turned by so many full circles [P]."""
    red, green, blue = colours.unbind(0)
    value, least = colours.amax(0), colours.amin(0)
    chroma = value - least
    by = chroma.clamp(min=1e-12)
    # In sixths of a circle; that of a grey is of no account.
    hue = torch.where(
        value == red,
        (green - blue) / by,
        torch.where(value == green, (blue - red) / by + 2.0, (red - green) / by + 4.0),
    )
    hue = hue + 6.0 * turn
    channels = []
    for start in (5.0, 3.0, 1.0):
        at = torch.remainder(hue + start, 6.0)
        channels.append(value - chroma * torch.minimum(at, 4.0 - at).clamp(0.0, 1.0))
    return torch.stack(channels).clamp(0.0, 1.0)


def _grey(pixels: Tensor) -> Tensor:
    red, green, blue = pixels.unbind(0)
    return (GREY[0] * red + GREY[1] * green + GREY[2] * blue).floor()


def _blended(pixels: Tensor, other: Tensor, share: Tensor) -> Tensor:
    return _whole(pixels * share + other * (1.0 - share))


def _whole(pixels: Tensor) -> Tensor:
    return pixels.clamp(0.0, 255.0).floor()
