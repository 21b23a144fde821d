"""Run lengths of the masks of Sec. 3 (the M x M mask of a RoI, seen at its box), without ever drawing an image.

A pixel belongs to the object where the mask, sampled bilinearly at the pixel's centre, is at least 0.5. Down one
image column a bilinear mask is linear between its own M rows, so the rows where it crosses 0.5 have a closed form:
column profiles -> sign changes -> crossing rows -> flat column-major positions -> run lengths. Time and memory grow
with the width of the boxes, not with the area of the image.

Everything here runs on the device of its inputs and can be scripted by `torch.jit.script`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def mask_run_lengths(
    probabilities_DMM: Tensor, boxes: Tensor, height: int, width: int, max_elements: int = 4194304
) -> tuple[Tensor, Tensor]:
    """COCO run lengths of D masks, each as seen in an image of height x width pixels.

    The definition: sample (x, y) of the mask at the centre (x + 0.5, y + 0.5) of a pixel is bilinear in the mask
    coordinates u = (x + 0.5 - x0) / (x1 - x0) * M - 0.5 and v alike, with zeros outside the M x M samples, which is
    `grid_sample(align_corners=False, padding_mode="zeros")` of the exact float box; the pixel belongs to the object
    where that is >= 0.5. A box is cut at the image's border, never moved.

    Args:
        probabilities_DMM: mask probabilities in [0, 1], any floating type (computed in float32).
        boxes: [D, 4] XYXY in pixels of the image, any floating type (computed in float32). A box without area, or
            with a coordinate that is not finite, has an empty mask.
        height, width: size of the image in pixels, at least 1.
        max_elements: bound of the largest intermediate tensor (columns x mask rows), which bounds the peak of memory.

    Returns:
        counts int64 [total]: the run lengths of all masks one after the other, each column-major and beginning with
            the run of zeros (perhaps 0), the last run never 0, as pycocotools writes them. Those of one mask sum to
            height * width; an empty mask is the single run [height * width].
        offsets int64 [D + 1]: mask d is counts[offsets[d]:offsets[d + 1]].

    Raises:
        ValueError: shapes that do not fit, or an image without pixels.
    """
    if probabilities_DMM.dim() != 3 or probabilities_DMM.size(1) != probabilities_DMM.size(2):
        raise ValueError(
            f"masks have shape {list(probabilities_DMM.shape)}; expected [detections, side, side]"
        )
    if boxes.dim() != 2 or boxes.size(0) != probabilities_DMM.size(0) or boxes.size(1) != 4:
        raise ValueError(f"boxes have shape {list(boxes.shape)}; expected [{probabilities_DMM.size(0)}, 4]")
    if height < 1 or width < 1:
        raise ValueError(f"the image is {height} x {width} pixels; expected at least 1 x 1")

    masks_DMM = probabilities_DMM.detach().to(torch.float32)
    boxes = boxes.detach().to(torch.float32)
    device = boxes.device
    sizes = boxes[:, 2:] - boxes[:, :2]
    # Coordinates are counted from the box's first pixel and whole pixels are added last, in int64: float32 has a
    # step of 0.001 pixels at 20 000, too coarse for the position of a small box's crossings.
    origins = boxes[:, :2].floor()
    fractions = boxes[:, :2] - origins
    origins_int = origins.clamp(-1e18, 1e18).to(torch.int64)

    first_D = origins[:, 0].clamp(0, width).to(torch.int64)
    last_D = boxes[:, 2].ceil().clamp(0, width).to(torch.int64)
    seen_D = torch.isfinite(boxes).all(1) & torch.isfinite(sizes).all(1) & (sizes > 0).all(1)
    seen_D = seen_D & (boxes[:, 1] < height) & (boxes[:, 3] > 0)
    columns_D = torch.where(seen_D, last_D - first_D, torch.zeros_like(first_D)).clamp(min=0)
    total = int(columns_D.sum())
    detections = torch.arange(boxes.size(0), device=device)
    detection_T = torch.repeat_interleave(detections, columns_D, output_size=total)
    begin_D = first_D - columns_D.cumsum(0) + columns_D
    column_T = torch.arange(total, device=device) + begin_D.index_select(0, detection_T)

    # Transposed and with a ring of zeros: a row is a mask column, ready to be a profile.
    padded = F.pad(masks_DMM.transpose(1, 2), [1, 1, 1, 1]).flatten(0, 1)
    step = max(1, max_elements // padded.size(1))
    runs = [torch.zeros([3, 0], dtype=torch.int64, device=device)]
    for start in range(0, total, step):
        detection_t = detection_T[start : start + step]
        column_t = column_T[start : start + step]
        runs.append(_column_runs(padded, detection_t, column_t, origins_int, fractions, sizes, height))
    return _counts_of_runs(torch.cat(runs, dim=1), boxes.size(0), height * width)


def run_lengths_area(counts: Tensor, offsets: Tensor) -> Tensor:
    """Pixels of each mask, int64 [D]: the sum of its every second run.

    Args:
        counts int64 [total], offsets int64 [D + 1]: as `mask_run_lengths` returns them.
    """
    detections = torch.arange(offsets.size(0) - 1, device=counts.device)
    detection = torch.repeat_interleave(detections, offsets[1:] - offsets[:-1], output_size=counts.size(0))
    is_object = (torch.arange(counts.size(0), device=counts.device) - offsets[detection]) % 2
    return torch.zeros_like(detections).index_add_(0, detection, counts * is_object)


def _column_runs(
    padded: Tensor,
    detection_T: Tensor,
    column_T: Tensor,
    origins_int: Tensor,
    fractions: Tensor,
    sizes: Tensor,
    height: int,
) -> Tensor:
    """Runs of object pixels in T image columns, int64 [3, R]: detection, first flat position, flat position after.

    Args:
        padded: [D * (M + 2), M + 2] the masks' columns with a zero at each end, a zero column at each side.
        detection_T, column_T: int64, which detection and which column of the image; sorted.
        origins_int, fractions, sizes: [D, 2] first pixel, place in it, and extent of each box, x before y.
    """
    side = padded.size(1) - 2
    origin_x = origins_int[:, 0].index_select(0, detection_T)
    fraction_x = fractions[:, 0].index_select(0, detection_T)
    size_x = sizes[:, 0].index_select(0, detection_T)
    u_T = ((column_T - origin_x).to(torch.float32) + 0.5 - fraction_x) / size_x * side - 0.5
    u_T = u_T.clamp(-1, side)
    left_T = u_T.floor().clamp(max=side - 1)
    row_T = detection_T * (side + 2) + 1 + left_T.to(torch.int64)
    # a + f (b - a), so that between equal samples the value is exactly theirs.
    left, right = padded.index_select(0, row_T), padded.index_select(0, row_T + 1)
    profiles = torch.lerp(left, right, (u_T - left_T)[:, None]).flatten()

    # Profiles begin and end with a zero, so that no change lies between two of them, and those of each alternate:
    # in, out, in, out.
    inside = profiles >= 0.5
    change = torch.nonzero(inside[1:] != inside[:-1]).flatten()
    above, below = profiles.index_select(0, change), profiles.index_select(0, change + 1)
    column = torch.div(change, side + 2, rounding_mode="floor")
    knot = (change - column * (side + 2)).to(torch.float32)
    detection, column = detection_T.index_select(0, column), column_T.index_select(0, column[0::2])
    from_mask_top = knot - 0.5 + ((0.5 - above) / (below - above)).clamp(0, 1)
    # In units of rows, 0 at the centre of the box's first pixel.
    row_of_sample, first_centre = (sizes[:, 1] / side), fractions[:, 1] - 0.5
    crossing = from_mask_top * row_of_sample.index_select(0, detection) + first_centre.index_select(
        0, detection
    )
    crossing = crossing.clamp(-1e18, 1e18)
    detection = detection[0::2]
    first_row = origins_int[:, 1].index_select(0, detection)
    top = (first_row + crossing[0::2].ceil().to(torch.int64)).clamp(0, height)
    bottom = (first_row + crossing[1::2].floor().to(torch.int64) + 1).clamp(0, height)
    runs = torch.stack([detection, column * height + top, column * height + bottom])
    return runs.index_select(1, torch.nonzero(bottom > top).flatten())


def _counts_of_runs(runs: Tensor, detections: int, area: int) -> tuple[Tensor, Tensor]:
    """Counts and offsets of `mask_run_lengths` from sorted runs int64 [3, R] of (detection, first, after)."""
    # A run to the bottom of a column and one from the top of the next are one run.
    joined = (runs[0, 1:] == runs[0, :-1]) & (runs[1, 1:] <= runs[2, :-1])
    starts = F.pad(~joined, [1, 0], value=True)[: runs.size(1)]
    first = torch.nonzero(starts).flatten()
    last = torch.cat([first[1:], torch.full_like(first[:1], runs.size(1))]) - 1
    detection, begin, end = (
        runs[0].index_select(0, first),
        runs[1].index_select(0, first),
        runs[2].index_select(0, last),
    )

    # Each mask has the ends of all its runs: zeros, ones, zeros, ..., the end of the image.
    each = torch.arange(detections + 1, device=runs.device)
    slots = 2 * torch.searchsorted(detection, each) + each
    position = torch.full([2 * begin.size(0) + detections], area, dtype=torch.int64, device=runs.device)
    begin_slot = 2 * torch.arange(begin.size(0), device=runs.device) + detection
    position[begin_slot] = begin
    position[begin_slot + 1] = end
    previous = F.pad(position, [1, 0])[: position.size(0)]
    previous[slots[:-1]] = 0
    counts = position - previous
    # An object that reaches the last pixel has no zeros after it.
    trailing = slots[1:] - 1
    empty_D = counts[trailing] == 0
    keep = torch.ones_like(counts, dtype=torch.bool)
    keep[trailing] = ~empty_D
    offsets = slots - F.pad(empty_D.to(torch.int64).cumsum(0), [1, 0])
    return counts.index_select(0, torch.nonzero(keep).flatten()), offsets
