"""The anchors of a cell (Faster R-CNN, Sec. 3.1.1), as torchvision, detectron2 and Detectron each have them.

torchvision and detectron2 put an anchor around the corner of its cell, the one with sides in whole pixels, the other as
they come out: up to half a pixel apart. Detectron puts it around the middle of the cell, 2 to 32 pixels away, and
brings a cell to each ratio in whole pixels before it is enlarged, so that sides are up to 6% longer. The weights of a
region proposal network count from the anchors that they were trained with.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator


def anchor_generator(
    sizes: Sequence[Sequence[float]], ratios: Sequence[float], form: str, first_stride: int
) -> AnchorGenerator:
    """torchvision's generator with the cell anchors of `form`: "rounded", "exact" or "detectron".

    Args:
        sizes: anchor sides of each level, in pixels.
        ratios: height by width; of a cell all sizes of the first come first, then those of the next.
        first_stride: of the first level in pixels, each next one's twice that.
    """
    generator = AnchorGenerator(tuple(tuple(level) for level in sizes), (tuple(ratios),) * len(sizes))
    if form == "exact":
        generator.cell_anchors = [exact_anchors(level, ratios) for level in sizes]
    elif form == "detectron":
        strides = [first_stride * 2**k for k in range(len(sizes))]
        generator.cell_anchors = [
            detectron_anchors(level, ratios, stride) for level, stride in zip(sizes, strides, strict=True)
        ]
    return generator


def exact_anchors(sizes: Sequence[float], ratios: Sequence[float]) -> Tensor:
    """XYXY [len(ratios) * len(sizes), 4] around the corner of a cell, each of the area size x size (detectron2)."""
    size = torch.tensor(sizes, dtype=torch.float64)[None, :]
    stretch = torch.tensor(ratios, dtype=torch.float64).sqrt()[:, None]
    width, height = (size / stretch).flatten(), (size * stretch).flatten()
    return (torch.stack([-width, -height, width, height], dim=1) / 2).float()


def detectron_anchors(sizes: Sequence[float], ratios: Sequence[float], stride: int) -> Tensor:
    """XYXY [len(ratios) * len(sizes), 4] around the middle of a cell of `stride` pixels, whose area is brought to each
    ratio in whole pixels, then enlarged to each size (Detectron, modeling/generate_anchors.py). Far sides, there the
    last pixel, are here where it ends."""
    ratio = torch.tensor(ratios, dtype=torch.float64)
    width = (stride**2 / ratio).sqrt().round()
    height = (width * ratio).round()
    scale = torch.tensor(sizes, dtype=torch.float64)[None, :] / stride
    half = torch.stack([(width[:, None] * scale).flatten(), (height[:, None] * scale).flatten()], dim=1) / 2
    return torch.cat([stride / 2 - half, stride / 2 + half], dim=1).float()
