"""Which anchors and proposals are learnt from (Faster R-CNN, Sec. 3.1.2; Fast R-CNN, Sec. 2.3), N images at once.

Nothing here has a size that depends on values, so that a GPU never has to tell one.
"""

import torch
from torch import Tensor

ANCHORS, ROIS, JITTER = 1, 2, 3
"""Streams of `random_bits`: what is drawn of an image, each independent of the others."""

_GOLDEN = 0x9E3779B97F4A7C15
_ROUNDS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 0))


def random_bits(seeds_N: Tensor, stream: int, numbers_K: Tensor) -> Tensor:
    """Random whole numbers [N, K] from 0 to 2^63 - 1, a function of an image's seed, the stream and the number.

    So what is drawn of an image depends neither on its company nor on the device. The mixing is that of splitmix64
    (Steele, Lea and Flood, 2014).

    Args:
        seeds_N: int64 [N], of each image.
        stream: what is drawn.
        numbers_K: int64 [K], of the things among which is drawn.
    """
    start = _mixed(seeds_N + _signed(stream * _GOLDEN))
    state = _mixed(start[:, None] + (numbers_K + 1) * _signed(_GOLDEN))
    return state & 0x7FFFFFFFFFFFFFFF


def random_shares(seeds_N: Tensor, stream: int, numbers_K: Tensor) -> Tensor:
    """Random float32 numbers [N, K] in [0, 1), drawn as `random_bits` are."""
    return (random_bits(seeds_N, stream, numbers_K) >> 39).to(torch.float32) * 2.0**-24


def _mixed(state: Tensor) -> Tensor:
    for shift, factor in _ROUNDS:
        # Torch shifts the sign in from the left; the mask takes it away.
        state = state ^ ((state >> shift) & ((1 << (64 - shift)) - 1))
        if factor:
            state = state * _signed(factor)
    return state


def _signed(number: int) -> int:
    """The int64 of the same 64 bits."""
    number &= 0xFFFFFFFFFFFFFFFF
    return number - (1 << 64) if number >> 63 else number


def pairwise_iou(boxes: Tensor, objects: Tensor) -> Tensor:
    """IoU [..., R, G] of boxes [..., R, 4] and objects [..., G, 4], by the arithmetic of torchvision's `box_iou`."""
    low = torch.maximum(boxes[..., :, None, :2], objects[..., None, :, :2])
    high = torch.minimum(boxes[..., :, None, 2:], objects[..., None, :, 2:])
    side = (high - low).clamp(min=0)
    overlap = side[..., 0] * side[..., 1]
    return overlap / (_area(boxes)[..., :, None] + _area(objects)[..., None, :] - overlap)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def covered_by(boxes: Tensor, regions: Tensor) -> Tensor:
    """Largest fraction of each box's own area that one region covers, [..., R], of boxes [..., R, 4] and regions
    [..., M, 4]; zeros where there is no region."""
    if regions.shape[-2] == 0:
        return boxes.new_zeros(()).expand(
            torch.broadcast_shapes(boxes.shape[:-2], regions.shape[:-2]) + boxes.shape[-2:-1]
        )
    top_left = torch.maximum(boxes[..., :, None, :2], regions[..., None, :, :2])
    bottom_right = torch.minimum(boxes[..., :, None, 2:], regions[..., None, :, 2:])
    overlap = (bottom_right - top_left).clamp(min=0).prod(dim=-1)
    area = (boxes[..., 2:] - boxes[..., :2]).clamp(min=1e-6).prod(dim=-1)
    return (overlap / area[..., None]).amax(dim=-1)


def match_to_objects(
    proposals: Tensor, boxes: Tensor, labels: Tensor, crowd_boxes: Tensor, foreground_iou: float
) -> tuple[Tensor, Tensor]:
    """Label of each proposal (0 background, -1 left out) and the object it overlaps most, int64 [N, R] both.

    A proposal is foreground at an IoU of `foreground_iou` or more. Background that lies mostly in a
    crowd region is left out.

    Args:
        proposals: [N, R, 4].
        boxes, labels: of the objects [N, G, 4] and [N, G], G at least 1; label 0: no object.
        crowd_boxes: [N, M, 4].
        foreground_iou: above 0.
    """
    iou, matched = torch.where((labels > 0)[:, None], pairwise_iou(proposals, boxes), -1.0).max(dim=2)
    label = torch.where(iou >= foreground_iou, labels.gather(1, matched), 0)
    if crowd_boxes.shape[1] == 0:
        return label, matched
    in_crowd = covered_by(proposals, crowd_boxes) > 0.5
    return torch.where(in_crowd & (label == 0), -1, label), matched


def inside(anchors: Tensor, sizes: Tensor, straddle: int) -> Tensor:
    """Whether anchors [A, 4] reach out of images of `sizes` [N, 2], height and width, by at most `straddle` pixels:
    bool [N, A]."""
    ends = sizes.flip(1)[:, None] + straddle
    return (anchors[:, :2] >= -straddle).all(1) & (anchors[:, 2:] <= ends).all(2)


def match_anchors(
    anchors: Tensor,
    boxes: Tensor,
    present: Tensor,
    crowd_boxes: Tensor,
    foreground_iou: float,
    background_iou: float,
    taking_part: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Label of each anchor (1 foreground, 0 background, -1 left out) and the object it overlaps most, int64 [N, A].

    As torchvision has it (Faster R-CNN, Sec. 3.1.2): foreground from `foreground_iou` on, and every anchor that no
    other one surpasses in overlap with some object; background below `background_iou`, but not mostly in a crowd
    region.

    Args:
        anchors: [A, 4].
        boxes: of the objects [N, G, 4], G at least 1; those that are not `present`, bool [N, G], do not count.
        crowd_boxes: [N, M, 4].
        taking_part: bool [N, A]; other anchors are left out, and surpass none. None: all take part.
    """
    iou = torch.where(present[:, None], pairwise_iou(anchors, boxes), -1.0)
    if taking_part is not None:
        iou = torch.where(taking_part[:, :, None], iou, -1.0)
    highest, matched = iou.max(dim=2)
    best_of_object = iou.amax(dim=1, keepdim=True)
    unsurpassed = ((iou == best_of_object) & present[:, None]).any(dim=2)
    foreground = unsurpassed | (highest >= foreground_iou)
    label = torch.where(foreground, 1, torch.where(highest < background_iou, 0, -1))
    if taking_part is not None:
        label = torch.where(taking_part, label, -1)
    if crowd_boxes.shape[1] == 0:
        return label, matched
    in_crowd = covered_by(anchors, crowd_boxes) > 0.5
    return torch.where(in_crowd & (label == 0), -1, label), matched


def sample(labels: Tensor, bits: Tensor, count: int, positive_fraction: float) -> tuple[Tensor, Tensor]:
    """At most `count` candidates of each image, at most `positive_fraction` of them foreground, drawn at random.

    Args:
        labels: [N, K]; above 0 foreground, 0 background, others are left out.
        bits: random whole numbers [N, K], at least 0 (`random_bits`): of the foreground those with the largest are
            taken, and so of the background.

    Returns:
        Indices int64 [N, S], the places for foreground first, int(count * positive_fraction) or all candidates; and
        which places are taken, bool [N, S].
    """
    candidates = labels.shape[1]
    most = min(int(count * positive_fraction), candidates)
    of_foreground, foreground = torch.where(labels > 0, bits, -1).topk(most, dim=1)
    of_background, background = torch.where(labels == 0, bits, -1).topk(min(count, candidates), dim=1)
    positive = of_foreground >= 0
    room = count - positive.sum(dim=1, keepdim=True)
    places = torch.arange(background.shape[1], device=labels.device)
    negative = (of_background >= 0) & (places < room)
    return torch.cat([foreground, background], dim=1), torch.cat([positive, negative], dim=1)
