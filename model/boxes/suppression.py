"""Non-maximum suppression (Faster R-CNN, Sec. 3.3): box by box on a CPU, all boxes of a batch at once on a GPU.

Greedy suppression goes down the list of scores: a box stays where no better box that stays overlaps it too much. For
all boxes at once that reads keep = valid and not (keep @ overlaps), of which the greedy answer is the one solution:
whatever is put in for `keep`, the k-th pass has the first k boxes right, and a pass that changes nothing has all. Five
to ten passes settle a thousand boxes around some centres. The operator of torchvision walks over the boxes of all
groups one after the other; here the groups (images, levels) go side by side.
"""

import torch
from torch import Tensor
from torchvision.ops import nms


def kept_in_groups(
    boxes_GN4: Tensor,
    valid_GN: Tensor,
    iou: float,
    labels_GN: Tensor | None = None,
    passes: int = 12,
    largest: int = 2048,
) -> tuple[Tensor, list[int]]:
    """Greedy suppression within each of G groups of N boxes, all at once.

    Args:
        boxes_GN4: float32 XYXY, in each group the best first.
        valid_GN: bool; others are not kept and suppress nothing.
        iou: intersection over union above which the worse box goes.
        labels_GN: int64; boxes of different labels leave each other alone. None: all are of one.
        passes: after which the host looks whether the last one still changed something, and so waits.
        largest: up to which N the overlaps of all are computed, [G, N, N] numbers in several temporaries; above it the
            operator takes their place.

    Returns:
        keep, bool [G, N], and how many are kept in each group, on the host.
    """
    if boxes_GN4.shape[1] > largest:
        keep = kept_by_operator(boxes_GN4, valid_GN, iou, labels_GN)
        of_group: list[int] = keep.sum(1).tolist()
        return keep, of_group
    suppresses = suppressors(boxes_GN4, iou, labels_GN)
    valid = valid_GN.to(suppresses.dtype).unsqueeze(1)
    keep = valid
    counts: list[int] = []
    settled = False
    while not settled:
        before = keep
        for _ in range(passes):
            before = keep
            keep = passed(suppresses, valid, keep)
        figures = torch.cat([(keep != before).sum().view(1), (keep > 0).sum(2).flatten()])
        read: list[int] = figures.tolist()
        settled, counts = read[0] == 0, read[1:]
    return keep.squeeze(1) > 0, counts


def kept_by_rounds(boxes_GN4: Tensor, valid_GN: Tensor, iou: float, rounds: int = 11) -> Tensor:
    """`kept_in_groups` without a look at whether all is settled, so that the host never waits: bool [G, N].

    Boxes at the end of chains of more than `rounds` suppressions may be missing; after an odd number of rounds no two
    that stay overlap by more than `iou`. Of 2 000 boxes drawn around 12 objects 6 rounds left one undecided at most, 8
    none. For training, where proposals are drawn from anyway.
    """
    suppresses = suppressors(boxes_GN4, iou)
    valid = valid_GN.to(suppresses.dtype).unsqueeze(1)
    keep = valid
    for _ in range(rounds):
        keep = passed(suppresses, valid, keep)
    return keep.squeeze(1) > 0


def kept_one_by_one(boxes: Tensor, scores: Tensor, valid: Tensor, iou: float) -> Tensor:
    """Which boxes [N, K, 4] of `scores` [N, K] greedy suppression keeps in each image, bool [N, K], by torchvision's
    operator for each: the way of a CPU; a GPU would wait for each image. Those that are not `valid` neither are kept
    nor suppress."""
    kept = torch.zeros_like(valid)
    for i in range(boxes.shape[0]):
        mine = torch.where(valid[i])[0]
        kept[i, mine[nms(boxes[i, mine], scores[i, mine], iou)]] = True
    return kept


def suppressors(boxes_GN4: Tensor, iou: float, labels_GN: Tensor | None = None) -> Tensor:
    """[G, N, N] of ones where the first box, if it is kept, suppresses the second; float16, for sums of ones above zero
    are at least 1 however they are rounded."""
    suppresses = overlaps(boxes_GN4, iou)
    if labels_GN is not None:
        suppresses = suppresses & (labels_GN[:, :, None] == labels_GN[:, None, :])
    return suppresses.triu(1).to(torch.float16)


def passed(suppresses_GNN: Tensor, valid_G1N: Tensor, keep_G1N: Tensor) -> Tensor:
    """One pass: 1 for each valid box that no kept one suppresses, 0 for the others."""
    return torch.baddbmm(valid_G1N, keep_G1N, suppresses_GNN, alpha=-1.0).relu_()


def overlaps(boxes_GN4: Tensor, iou: float) -> Tensor:
    """Whether two boxes of a group overlap by more than `iou`, bool [G, N, N]; a box without area overlaps none."""
    x0, y0, x1, y1 = boxes_GN4.unbind(2)
    width = torch.minimum(x1[:, :, None], x1[:, None, :]) - torch.maximum(x0[:, :, None], x0[:, None, :])
    height = torch.minimum(y1[:, :, None], y1[:, None, :]) - torch.maximum(y0[:, :, None], y0[:, None, :])
    inter = width.clamp_(min=0) * height.clamp_(min=0)
    area = (x1 - x0) * (y1 - y0)
    return inter / (area[:, :, None] + area[:, None, :] - inter) > iou


def kept_by_operator(
    boxes_GN4: Tensor, valid_GN: Tensor, iou: float, labels_GN: Tensor | None = None
) -> Tensor:
    """The same by one call of torchvision's operator: keep, bool [G, N].

    Groups and labels are moved apart, in float64: in float32 the boxes of class 3 000 would stand on a grid of 0.25
    pixels.
    """
    groups, count = boxes_GN4.shape[0], boxes_GN4.shape[1]
    # Without area a box overlaps nothing; the order within a group is that of the places.
    boxes = torch.where(valid_GN.unsqueeze(2), boxes_GN4.to(torch.float64), 0.0)
    part = torch.arange(groups, device=boxes.device).unsqueeze(1).expand(groups, count)
    if labels_GN is not None:
        part = part * (labels_GN.max() + 1) + labels_GN
    boxes = boxes + (part * (boxes.max() + 1.0)).unsqueeze(2)
    scores = torch.arange(count, 0, -1, device=boxes.device).to(torch.float64).repeat(groups)
    kept = nms(boxes.view(-1, 4), scores, iou)
    keep = torch.zeros([groups * count], dtype=torch.bool, device=boxes.device).index_fill(0, kept, True)
    return keep.view(groups, count) & valid_GN


def nms_by_class(boxes: Tensor, scores: Tensor, labels: Tensor, iou: float) -> Tensor:
    """Suppression within each class, by the operator: indices of what is kept, the best first.

    Classes are moved apart, in float64: in float32 the boxes of class 3 000 would stand on a grid of 0.25 pixels.
    """
    if boxes.shape[0] == 0:
        return torch.zeros((0,), dtype=torch.int64, device=boxes.device)
    apart = labels.to(torch.float64) * (boxes.max().to(torch.float64) + 1.0)
    return nms(boxes.to(torch.float64) + apart[:, None], scores.to(torch.float64), iou)


def nms_by_level(boxes: list[Tensor], scores: list[Tensor], iou: float) -> Tensor:
    """Suppression within each level, by the operator: what is kept, as indices into all levels, the best first."""
    keep: list[Tensor] = []
    start = 0
    for k, box in enumerate(boxes):
        keep.append(nms(box, scores[k], iou) + start)
        start += box.shape[0]
    kept = torch.cat(keep)
    return kept[torch.cat(scores)[kept].sort(descending=True, stable=True)[1]]
