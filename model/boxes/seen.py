"""What a frozen detector sees of an image (Sec. 3.3): features and proposals, which can be kept.

`MaskXRCNN.seen` computes them of the image alone, on a canvas of its own as in answers, so that they depend on nothing
else in a batch. They are a list of tensors, `Target.seen`: the levels of the pyramid that RoIs are pooled from, the
finest first, each [F, h_k, w_k], and last the proposals XYXY [P, 4] in pixels of the canvas, the best first.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def levels_together(seen: Sequence[list[Tensor]], device: torch.device) -> dict[str, Tensor]:
    """The levels of N images, each [N, F, H_k, W_k] of the largest of them, on `device`.

    Smaller ones are filled up by their outermost cells once more and then zeros, so that RoIAlign, for which a sample
    up to one cell outside has the value at the border, gives what it gives on the image's own levels.
    """
    of_images = [one[:-1] for one in seen]
    return {str(k): _stacked(level, device) for k, level in enumerate(zip(*of_images, strict=True))}


def proposals_together(seen: Sequence[list[Tensor]], device: torch.device) -> tuple[Tensor, Tensor]:
    """The proposals of N images as `model.boxes.rpn_training.proposed` has them: [N, P, 4] and bool [N, P]."""
    boxes = [one[-1] for one in seen]
    most = max(box.shape[0] for box in boxes)
    filled = torch.stack([F.pad(box, [0, 0, 0, most - box.shape[0]]) for box in boxes])
    counts = torch.tensor([box.shape[0] for box in boxes])
    valid = torch.arange(most) < counts[:, None]
    return filled.to(device, non_blocking=True), valid.to(device, non_blocking=True)


def _stacked(levels: Sequence[Tensor], device: torch.device) -> Tensor:
    """Maps [F, h_i, w_i] as one [N, F, H, W] on `device`."""
    height, width = max(x.shape[1] for x in levels), max(x.shape[2] for x in levels)
    if all(x.shape[1:] == (height, width) for x in levels):
        return torch.stack(list(levels)).to(device, non_blocking=True)
    together = levels[0].new_zeros((len(levels), levels[0].shape[0], height, width))
    for whole, level in zip(together, levels, strict=True):
        h, w = min(level.shape[1] + 1, height), min(level.shape[2] + 1, width)
        whole[:, :h, :w] = F.pad(level, [0, w - level.shape[2], 0, h - level.shape[1]], mode="replicate")
    return together.to(device, non_blocking=True)
