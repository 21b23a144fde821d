"""RoIAlign over a pyramid by torchvision's operator, level by level; in training also without a wait: every level pools
all RoIs, those of others far outside of it."""

import torch
from torch import Tensor
from torchvision.ops import roi_align

OUTSIDE = -1e4
"""Pixels, at which a RoI of another level lies: the operator leaves a sample beyond the border by at once, at 0."""


def pooled_at_once(
    features: dict[str, Tensor],
    rois: Tensor,
    level: Tensor,
    levels: int,
    size: int,
    first_stride: int,
    sampling_ratio: int,
) -> Tensor:
    """RoIAlign (aligned) of RoIs [R, 5] from the `level` of each [R], float32 [R, F, size, size].

    The numbers of one call for the RoIs of each level, whose number a GPU would have to tell. See
    `model.boxes.pooling.PyramidRoIAlign` for the other arguments.
    """
    outside = rois.new_full((4,), OUTSIDE)
    pooled = rois.new_zeros(())
    for k in range(levels):
        placed = torch.where((level == k)[:, None], rois[:, 1:], outside)
        pooled = pooled + roi_align(
            features[str(k)].float(),
            torch.cat([rois[:, :1], placed], dim=1),
            (size, size),
            1.0 / float(first_stride * 2**k),
            sampling_ratio,
            aligned=True,
        )
    return pooled


def pooled_by_operator(
    features: dict[str, Tensor],
    rois: Tensor,
    level: Tensor,
    levels: int,
    size: int,
    first_stride: int,
    sampling_ratio: int,
    rows: int,
) -> Tensor:
    """The same, each level for its own RoIs; with `rows` above R zeros follow up to so many. A `sampling_ratio` of 0
    leaves the number of samples to the operator: the cells of a bin, rounded up."""
    shape = [max(rows, rois.shape[0]), features["0"].shape[1], size, size]
    pooled = torch.zeros(shape, dtype=torch.float32, device=rois.device)
    for k in range(levels):
        mine = torch.where(level == k)[0]
        if mine.numel() > 0:
            of_level = roi_align(
                features[str(k)].float(),
                rois[mine],
                (size, size),
                1.0 / float(first_stride * 2**k),
                sampling_ratio,
                aligned=True,
            )
            pooled = pooled.index_copy(0, mine, of_level)
    return pooled
