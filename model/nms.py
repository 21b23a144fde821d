"""Non-maximum suppression whose answer has a size known beforehand, so that a GPU does not have to tell it."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import nms

from model.sampling import pairwise_iou

ROUNDS = 11
"""Of 2 000 boxes drawn around 12 objects 6 rounds left one undecided at most, 8 none."""


def kept_one_by_one(boxes: Tensor, scores: Tensor, valid: Tensor, iou: float) -> Tensor:
    """Which boxes [N, K, 4] greedy suppression keeps in each image, bool [N, K], by torchvision's operator for each.

    The way of a CPU; a GPU would wait for each image.

    Args:
        scores: [N, K].
        valid: bool [N, K]; other boxes neither are kept nor suppress.
    """
    kept = torch.zeros_like(valid)
    for i in range(boxes.shape[0]):
        mine = torch.where(valid[i])[0]
        kept[i, mine[nms(boxes[i, mine], scores[i, mine], iou)]] = True
    return kept


def kept_by_rounds(boxes: Tensor, valid: Tensor, iou: float, rounds: int = ROUNDS) -> Tensor:
    """`kept_one_by_one` for all images at once, of boxes whose scores fall from the first to the last.

    In each round a box stays that no better box suppresses which stayed in the round before, beginning with all of
    them (Cluster-NMS: Zheng et al., 2021). What stays changes no more after as many rounds as the longest chain of
    suppressions, and then is the greedy answer; after an odd number of them no two boxes that stay overlap by more
    than `iou` either way, and boxes at the end of longer chains may be missing. The cost is K^2 whatever is found.

    Args:
        boxes: [N, K, 4].
        valid: bool [N, K]; other boxes neither are kept nor suppress.
    """
    better = torch.ones((boxes.shape[1], boxes.shape[1]), dtype=torch.bool, device=boxes.device).triu(1)
    # A product counts the suppressors of a box; sums of ones stay above 0 when they are rounded.
    suppresses = ((pairwise_iou(boxes, boxes) > iou) & better).to(torch.float16)
    staying = valid
    for _ in range(rounds):
        suppressors = torch.bmm(staying[:, None].to(suppresses.dtype), suppresses)[:, 0]
        staying = valid & (suppressors == 0)
    return staying
