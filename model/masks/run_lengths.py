"""Run lengths of the masks of Sec. 3 (the M x M mask of a RoI, seen at its box), without ever drawing an image.

A pixel belongs to the object where the mask, sampled bilinearly at the pixel's centre, is at least 0.5. Down one
image column a bilinear mask is linear between its own M rows, so the rows where it crosses 0.5 have a closed form:
column profiles -> sign changes -> crossing rows -> flat column-major positions -> run lengths. Sign changes are looked
for only in those cells between mask samples that see both sides of 0.5: a few in a column. Time and memory grow with
the width of the boxes, not with the area of the image.

Everything here runs on the device of its inputs and can be scripted by `torch.jit.script`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def mask_run_lengths(
    probabilities_DMM: Tensor, boxes: Tensor, height: int, width: int, max_elements: int = 4194304
) -> tuple[Tensor, Tensor]:
    """COCO run lengths of D masks, each as seen in an image of height x width pixels.

    As `run_lengths_of_images`, of a single image.

    Args:
        probabilities_DMM, boxes, max_elements: as there.
        height, width: size of the image in pixels, at least 1.

    Raises:
        ValueError: as there.
    """
    if height < 1 or width < 1:
        raise ValueError(f"the image is {height} x {width} pixels; expected at least 1 x 1")
    heights = torch.full([boxes.size(0)], height, dtype=torch.int64, device=boxes.device)
    sizes = torch.stack([heights, torch.full_like(heights, width)], dim=1)
    return run_lengths_of_images(probabilities_DMM, boxes, sizes, False, max_elements)


def run_lengths_of_images(
    probabilities_DMM: Tensor,
    boxes: Tensor,
    sizes_D2: Tensor,
    bounded: bool = False,
    max_elements: int = 4194304,
) -> tuple[Tensor, Tensor]:
    """COCO run lengths of D masks, each as seen in its own image.

    The definition: sample (x, y) of the mask at the centre (x + 0.5, y + 0.5) of a pixel is bilinear in the mask
    coordinates u = (x + 0.5 - x0) / (x1 - x0) * M - 0.5 and v alike, with zeros outside the M x M samples, which is
    `grid_sample(align_corners=False, padding_mode="zeros")` of the exact float box; the pixel belongs to the object
    where that is >= 0.5. A box is cut at the image's border, never moved.

    Args:
        probabilities_DMM: mask probabilities in [0, 1], any floating type (computed in float32). One that is not a
            number counts as 0.
        boxes: [D, 4] XYXY in pixels of the image, any floating type (computed in float32). A box without area, or
            with a coordinate that is not finite, has an empty mask.
        sizes_D2: int64, height and width in pixels of the image that each mask is in, at least 1.
        bounded: the way of a GPU: nothing whose size the device would have to tell but how many columns the boxes span
            and how many cells those cross, once for each chunk of columns. Then counts has a tail of no meaning.
        max_elements: bound of the largest intermediate tensor (columns x mask rows), which bounds the peak of memory.

    Returns:
        counts int64 [total]: the run lengths of all masks one after the other, each column-major and beginning with
            the run of zeros (perhaps 0), the last run never 0, as pycocotools writes them. Those of one mask sum to
            height * width; an empty mask is the single run [height * width].
        offsets int64 [D + 1]: mask d is counts[offsets[d]:offsets[d + 1]].

    Raises:
        ValueError: shapes that do not fit.
    """
    if probabilities_DMM.dim() != 3 or probabilities_DMM.size(1) != probabilities_DMM.size(2):
        raise ValueError(
            f"masks have shape {list(probabilities_DMM.shape)}; expected [detections, side, side]"
        )
    if boxes.dim() != 2 or boxes.size(0) != probabilities_DMM.size(0) or boxes.size(1) != 4:
        raise ValueError(f"boxes have shape {list(boxes.shape)}; expected [{probabilities_DMM.size(0)}, 4]")
    masks_DMM = probabilities_DMM.detach().to(torch.float32).nan_to_num(nan=0.0, posinf=1.0, neginf=0.0)
    boxes = boxes.detach().to(torch.float32)
    device = boxes.device
    sizes = boxes[:, 2:] - boxes[:, :2]
    # Coordinates are counted from the box's first pixel and whole pixels are added last, in int64: float32 has a
    # step of 0.001 pixels at 20 000, too coarse for the position of a small box's crossings.
    origins = boxes[:, :2].floor()
    fractions = boxes[:, :2] - origins
    origins_int = origins.clamp(-1e18, 1e18).to(torch.int64)

    height_D, width_D = sizes_D2[:, 0], sizes_D2[:, 1]
    ends = torch.stack([origins[:, 0], boxes[:, 2].ceil()]).clamp(min=0)
    first_D, last_D = torch.minimum(ends, width_D.to(torch.float32)).to(torch.int64).unbind(0)
    seen_D = torch.isfinite(boxes).all(1) & torch.isfinite(sizes).all(1) & (sizes > 0).all(1)
    seen_D = seen_D & (boxes[:, 1] < height_D) & (boxes[:, 3] > 0)
    columns_D = torch.where(seen_D, last_D - first_D, 0).clamp(min=0)
    end_D = columns_D.cumsum(0)
    begin_D = end_D - columns_D
    total = int(end_D[-1]) if boxes.size(0) > 0 else 0

    # Transposed, less 0.5 and with a ring of zero probability: a row is a mask column, ready to be a profile.
    levels = F.pad(masks_DMM.transpose(1, 2) - 0.5, [1, 1, 1, 1], value=-0.5).flatten(0, 1)
    knot_A, cells_L = _mixed_cells(levels, bounded)
    to_column_D = first_D - begin_D
    # A mask's positions run from 0 to height * width, both included.
    area_D = height_D * width_D
    base_D = (area_D + 1).cumsum(0) - (area_D + 1)
    to_position_D = to_column_D * height_D + base_D
    # Places in the profiles of one step are int32.
    step = max(1, min(max_elements, 1 << 30) // levels.size(1))
    positions = [torch.zeros([0], dtype=torch.int64, device=device)]
    for start in range(0, total, step):
        end = min(start + step, total)
        columns_of_D = end_D.clamp(start, end) - begin_D.clamp(start, end)
        detection_T = torch.repeat_interleave(columns_of_D.to(torch.int32), output_size=end - start)
        t_T = torch.arange(start, end, device=device)
        x_T = t_T + (to_column_D - origins_int[:, 0]).index_select(0, detection_T)
        crossing_C, t_C, real_C = _crossings(
            levels, knot_A, cells_L, x_T, detection_T, fractions[:, 0] - 0.5, sizes[:, 0], bounded
        )
        detection_C = detection_T.index_select(0, t_C)
        # In units of rows, 0 at the centre of the box's first pixel.
        row_of_sample = sizes[:, 1] / (levels.size(1) - 2)
        crossing_C = crossing_C * row_of_sample.index_select(0, detection_C)
        crossing_C += (fractions[:, 1] - 0.5).index_select(0, detection_C)
        crossing_C = crossing_C.clamp_(-1e18, 1e18)
        rows = crossing_C.ceil()
        rows[1::2] = crossing_C[1::2].floor() + 1
        row_C = rows.to(torch.int64)
        row_C += origins_int[:, 1].index_select(0, detection_C)
        row_C = torch.minimum(row_C.clamp_(min=0), height_D.index_select(0, detection_C))
        column_start_T = t_T * height_D.index_select(0, detection_T) + to_position_D.index_select(
            0, detection_T
        )
        position_C = row_C + column_start_T.index_select(0, t_C)
        positions.append(torch.where(real_C, position_C, 0) if bounded else position_C)
    return _counts_of_positions(torch.cat(positions), base_D, area_D, bounded)


def _places(true: Tensor, bounded: bool) -> Tensor:
    """Where a mask [N] is true, in order, int64; bounded: of as many as [N], those that are too many being N - 1."""
    if not bounded:
        return torch.nonzero(true).flatten()
    count = true.size(0)
    place = torch.where(true, true.cumsum(0) - 1, count)
    found = torch.full([count + 1], count - 1, dtype=torch.int64, device=true.device)
    return found.scatter_(0, place, torch.arange(count, device=true.device))[:count]


def _mixed_cells(levels: Tensor, bounded: bool) -> tuple[Tensor, Tensor]:
    """The cells between four samples of which some are inside (>= 0) and some outside: only there a profile crosses 0.

    Args:
        levels: [D * (M + 2), M + 2], every mask column between two outside ones, each beginning and ending outside.

    Returns:
        knot_A int32: the sample above each cell, sorted by mask column, then by sample.
        cells_L int32 [D * (M + 2)]: how many of them lie between each mask column and the next.
    """
    knots = levels.size(1)
    inside = (levels >= 0).flatten()
    # In the flat tensor a cell is the samples i, i + 1, i + knots, i + knots + 1. The ring makes every such four
    # that wraps into the next column or the next mask all outside.
    across = inside[knots:] != inside[:-knots]
    down = inside[1:] != inside[:-1]
    mixed = F.pad(across[:-1] | down[:-knots] | down[knots:], [0, knots + 1])[: inside.size(0)]
    cells_L = mixed.view(levels.size(0), knots).to(torch.float32).sum(1).to(torch.int32)
    return _places(mixed, bounded).remainder(knots).to(torch.int32), cells_L


def _crossings(
    levels: Tensor,
    knot_A: Tensor,
    cells_L: Tensor,
    x_T: Tensor,
    detection_T: Tensor,
    first_centre_D: Tensor,
    sizes_D: Tensor,
    bounded: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Where the profiles of T image columns cross 0: in, out, in, out, ..., sorted by column, then downwards.

    Args:
        levels: [D * (M + 2), M + 2] the masks' columns less 0.5, -0.5 around each mask.
        knot_A, cells_L: `_mixed_cells` of levels.
        x_T: int64, column of the image, from the first pixel of the box.
        detection_T: int32, sorted.
        first_centre_D: left border of the box less the centre of its first pixel; sizes_D: width of the box.

    Returns:
        crossing_C: in mask samples from the upper border of the box. Bounded: as many as there might be, an even
            number, those that are too many at its end.
        t_C: int32, column of each, 0..T-1.
        real_C: bool, bounded: whether it is none of those that are too many; else of no meaning.
    """
    knots = levels.size(1)
    offset_T = x_T.to(torch.float32) - first_centre_D.index_select(0, detection_T)
    u_T = offset_T / sizes_D.index_select(0, detection_T) * (knots - 2) + 0.5
    u_T = u_T.clamp_(0, knots - 1)
    left_T = u_T.floor().clamp_(max=knots - 2)
    fraction_T = u_T - left_T
    row_T = torch.add(left_T.to(torch.int32), detection_T, alpha=knots)
    # (1 - f) a + f b: of two levels inside it is inside, of two outside it is outside, in any rounding.
    profiles = F.embedding_bag(
        torch.stack([row_T, row_T + 1], dim=1),
        levels,
        mode="sum",
        per_sample_weights=torch.stack([1 - fraction_T, fraction_T], dim=1),
    ).flatten()

    cells_T = cells_L.index_select(0, row_T)
    end_T = cells_T.cumsum(0, dtype=torch.int32)
    pairs = int(end_T[-1])
    t_E = torch.repeat_interleave(cells_T, output_size=pairs)
    to_cell_T = (cells_L.cumsum(0, dtype=torch.int32) - cells_L).index_select(0, row_T) - end_T + cells_T
    cell_E = to_cell_T.index_select(0, t_E)
    cell_E += torch.arange(pairs, dtype=torch.int32, device=levels.device)
    place_E = torch.add(knot_A.index_select(0, cell_E), t_E, alpha=knots)
    above, below = profiles.index_select(0, place_E), profiles[1:].index_select(0, place_E)
    changes = (above >= 0) != (below >= 0)
    if bounded and pairs % 2 > 0:
        # Each profile begins and ends outside, so there is an even number of crossings.
        changes = F.pad(changes, [0, 1])
    change = _places(changes, bounded)
    real_C = changes
    if bounded:
        real_C = torch.arange(change.size(0), device=change.device) < changes.sum()
        change = change.clamp_(max=pairs - 1)
    above, below = above.index_select(0, change), below.index_select(0, change)
    t_C = t_E.index_select(0, change)
    knot_C = torch.add(place_E.index_select(0, change), t_C, alpha=-knots)
    return knot_C.to(torch.float32).sub_(0.5).add_(above / (above - below)), t_C, real_C


def _counts_of_positions(
    position: Tensor, base_D: Tensor, area_D: Tensor, bounded: bool
) -> tuple[Tensor, Tensor]:
    """Counts and offsets of `run_lengths_of_images`.

    Args:
        position: int64, first pixel of a run of object pixels, pixel after it, first pixel of the next, ...; sorted but
            for ties; those of mask d have base_D added. Bounded: with zeros in between, an even number together.
        base_D: int64, the areas of the masks before, and 1 for each.
        area_D: int64, pixels of the image that each mask is in.
    """
    detections = area_D.size(0)
    # Of a mask that does no more than touch 0.5 between two rows, the pixel there would be in two runs.
    if bounded:
        if position.size(0) > 0:  # what is not real comes in pairs, which go below
            position = position.cummax(0)[0]
    else:
        position[2::2] = torch.maximum(position[2::2], position[1:-1:2])
    # Equal positions cancel in pairs: a run without pixels, or a run to the bottom of a column and one from the top
    # of the next. What is left of each group of equals is its last if their number is odd.
    changes = F.pad(position[1:] != position[:-1], [0, 1], value=1.0)[: position.size(0)]
    real = changes
    if bounded:
        number = torch.arange(position.size(0), device=position.device)
        if position.size(0) > 0:
            last = F.pad(torch.where(changes, number, -1).cummax(0)[0], [1, 0], value=-1.0)
            changes = changes & ((last[1:] - last[:-1]) % 2 > 0)
        real = number < changes.sum()
        kept = position.index_select(0, _places(changes, True))
        position = torch.where(real, kept, 1 << 62)  # behind all that there are
    else:
        last = torch.nonzero(changes).flatten()
        odd = last.bitwise_and(1)
        keep = torch.nonzero(odd != F.pad(odd, [1, 0], value=1.0)[: odd.size(0)]).flatten()
        position = position.index_select(0, last.index_select(0, keep))

    end_D = torch.searchsorted(position, base_D + area_D, right=True)
    begin_D = F.pad(end_D, [1, 0])[:detections]
    some_D = end_D > begin_D
    bordered = F.pad(position, [1, 1])
    first_D = torch.where(some_D, bordered.index_select(0, begin_D + 1) - base_D, area_D)
    last_D = torch.where(some_D, bordered.index_select(0, end_D) - base_D, 0)
    # An object that reaches the last pixel has no zeros after it.
    zeros_D = (last_D < area_D).to(torch.int64)
    zeros_up_to_D = zeros_D.cumsum(0)
    offsets = F.pad(end_D + zeros_up_to_D, [1, 0])

    runs = position.size(0)
    counts = torch.empty([runs + detections + 1], dtype=torch.int64, device=position.device)
    slot = torch.arange(runs, device=position.device)
    zeros_before_D = zeros_up_to_D - zeros_D
    if bounded:
        of_mask = torch.searchsorted(end_D, slot, right=True).clamp_(max=detections - 1)
        slot = torch.where(real, slot + zeros_before_D.index_select(0, of_mask), runs + detections)
    else:
        slot += torch.repeat_interleave(zeros_before_D, end_D - begin_D, output_size=runs)
    counts.scatter_(0, slot, position - bordered[:runs])
    counts.scatter_(0, offsets[:-1], first_D)
    final = offsets[1:] - 1
    counts.scatter_(0, final, torch.where(zeros_D > 0, area_D - last_D, counts.index_select(0, final)))
    return (counts if bounded else counts[: int(offsets[-1])]), offsets
