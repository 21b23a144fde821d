"""A mask cut to its window, put back into the whole image."""

import torch
from torch import Tensor


def paste_crop(crop: Tensor, window: Tensor, height: int, width: int) -> Tensor:
    """The whole mask: `crop` [h, w] set into zeros [height, width] at `window` [4], whose size it has."""
    x0, y0, x1, y1 = (int(v) for v in window)
    assert tuple(crop.shape) == (y1 - y0, x1 - x0)
    pasted = torch.zeros((height, width), dtype=crop.dtype)
    pasted[y0:y1, x0:x1] = crop
    return pasted
