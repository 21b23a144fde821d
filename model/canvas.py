"""From uint8 images of any size to one float canvas on the device: resize, normalise, pad."""

import torch
from torch import Tensor, nn


def resized_size(
    height: int, width: int, min_size: int, max_size: int, round_down: bool = False
) -> tuple[int, int]:
    """Height and width after the shorter side is brought to `min_size`, the longer kept within `max_size`."""
    scale = min(float(min_size) / float(min(height, width)), float(max_size) / float(max(height, width)))
    half = 0.0 if round_down else 0.5
    return max(int(height * scale + half), 1), max(int(width * scale + half), 1)


def canvas_side(side: int, step: int) -> int:
    """`side` rounded up to a multiple of `step`."""
    return (side + step - 1) // step * step


def scaled_boxes(boxes: Tensor, scale: Tensor, inclusive: bool) -> Tensor:
    """Boxes XYXY [..., 4] of an image as those of the same image `scale` times as large ([..., 4]).

    Where a box ends with its last pixel (`inclusive`, Detectron), the places of its first and last pixel are scaled,
    and the last one is a pixel wide before and after; a box of hardly a pixel keeps half of its side at least.
    """
    scaled = boxes * scale
    if inclusive:
        near, side = scaled[..., :2], scaled[..., 2:] - scaled[..., :2]
        side = torch.maximum(side + (1.0 - scale[..., 2:]), 0.5 * side)
        scaled = torch.cat([near, near + side], dim=-1)
    return scaled


def interpolated(image: Tensor, height: int, width: int) -> Tensor:
    """float32 [3, h, w] -> [3, height, width], bilinear, half-pixel centres; rounded alike by any number of threads.

    Of three channels together PyTorch (2.15, on a CPU) rounds otherwise with one thread than with more; of one it does
    not, and gives the numbers of three with more.
    """
    together = image[None] if image.is_cuda else image[:, None]
    parts: list[Tensor] = []
    for part in together.split(1):
        parts.append(
            nn.functional.interpolate(part, size=[height, width], mode="bilinear", align_corners=False)
        )
    return torch.cat(parts).view(3, height, width)


class Canvas(nn.Module):
    """Resizes (bilinear, half-pixel centres), normalises and pads images on the device of its statistics."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        *,
        min_size: int,
        max_size: int,
        step: int,
        mean: list[float],
        std: list[float],
        round_down: bool = False,
    ) -> None:
        super().__init__()
        self.min_size = min_size
        self.max_size = max_size
        self.step = step
        self.round_down = round_down
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def size_of(self, image: Tensor) -> tuple[int, int]:
        """Height and width of a [3, h, w] image after resizing."""
        return resized_size(image.shape[1], image.shape[2], self.min_size, self.max_size, self.round_down)

    def padded_size_of(self, image: Tensor) -> tuple[int, int]:
        """Height and width of the canvas that the image's own size asks for."""
        height, width = self.size_of(image)
        return canvas_side(height, self.step), canvas_side(width, self.step)

    def parts_of(self, images: list[Tensor], masks: list[bool], pixels_together: int) -> list[list[int]]:
        """Which images go through the network together: those of one canvas, those that want masks first.

        Args:
            images: uint8 [3, h, w].
            masks: whether each wants masks.
            pixels_together: of canvas that may go together, though at least one image goes; 0 for any number.
        """
        parts: list[list[int]] = []
        done: list[bool] = [False] * len(images)
        for first in range(len(images)):
            if not done[first]:
                height, width = self.padded_size_of(images[first])
                group: list[int] = []
                bare: list[int] = []
                for i in range(first, len(images)):
                    h, w = self.padded_size_of(images[i])
                    if not done[i] and h == height and w == width:
                        done[i] = True
                        if masks[i]:
                            group.append(i)
                        else:
                            bare.append(i)
                group += bare
                together = len(group)
                if pixels_together > 0:
                    together = max(pixels_together // (height * width), 1)
                for start in range(0, len(group), together):
                    parts.append(group[start : start + together])
        return parts

    def forward(self, images: list[Tensor], height: int, width: int) -> Tensor:
        """uint8 [3, h_i, w_i] images -> float32 [N, 3, height, width]; the padding holds zeros (the mean)."""
        sizes: list[tuple[int, int]] = []
        for image in images:
            sizes.append(self.size_of(image))
        return self.resized(images, sizes, height, width)

    def resized(self, images: list[Tensor], sizes: list[tuple[int, int]], height: int, width: int) -> Tensor:
        """`forward` with each image brought to the (height, width) that `sizes` gives it."""
        mean, std = self.mean, self.std
        canvas = mean.repeat(len(images), 1, height, width)
        for i, image in enumerate(images):
            h, w = sizes[i]
            x = image.to(mean.device).to(torch.float32)
            if h != image.shape[1] or w != image.shape[2]:
                x = interpolated(x, h, w)
            canvas[i, :, :h, :w] = x
        return canvas.sub_(mean).div_(std)
