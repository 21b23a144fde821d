"""Proposals and losses of the RPN in training (Faster R-CNN, Sec. 3.1), for all images of a batch at once."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from model.boxes.ground_truth import Batch, GroundTruth
from model.boxes.head import moved_boxes
from model.boxes.rpn import CrowdAwareRPN
from model.boxes.sampling import ANCHORS, inside, match_anchors, random_bits, sample
from model.boxes.suppression import kept_by_rounds, kept_one_by_one
from model.host import waiting
from model.losses import LossDivisor

OVERLAPS_AT_ONCE = 2**26
"""Anchors times objects of so many images are compared together, at least of one: 256 MiB a tensor."""


def proposals_and_losses(rpn: CrowdAwareRPN, batch: Batch) -> tuple[tuple[Tensor, Tensor], dict[str, Tensor]]:
    """Proposals as `proposed` has them, and `loss_objectness` and `loss_rpn_box`."""
    objectness, deltas, anchors = _answers(rpn, batch)
    proposals = _best(rpn, objectness, deltas, anchors, batch.truth.sizes)
    return proposals, rpn_losses(
        rpn, torch.cat(objectness, 1), torch.cat(deltas, 1), torch.cat(anchors), batch.truth, batch.total
    )


@torch.no_grad()
def proposed(rpn: CrowdAwareRPN, batch: Batch) -> tuple[Tensor, Tensor]:
    """Proposals XYXY [N, P, 4] of each image, the best first, and which of these places hold one, bool [N, P].

    P is the number of training or, of an RPN in evaluation mode, that of one held still (`RpnForm.frozen_proposals`).
    """
    return _best(rpn, *_answers(rpn, batch), batch.truth.sizes)


def _answers(rpn: CrowdAwareRPN, batch: Batch) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Of each level the head's answers [N, A_k] and [N, A_k, 4], and its anchors."""
    levels = list(batch.features.values())
    logits, deltas = rpn.head(levels)
    anchors = level_anchors(rpn, levels, batch.canvas.shape[2], batch.canvas.shape[3])
    return [_of_anchors(x, 1)[..., 0] for x in logits], [_of_anchors(x, 4) for x in deltas], anchors


def level_anchors(rpn: CrowdAwareRPN, levels: list[Tensor], height: int, width: int) -> list[Tensor]:
    """The anchors [A_k, 4] of each level, in the order of its cells, of a canvas of `height` and `width`."""
    generator = rpn.anchor_generator
    with waiting():  # they are moved once, and stay
        generator.set_cell_anchors(torch.float32, levels[0].device)
    grids = [[level.shape[2], level.shape[3]] for level in levels]
    strides = [[height // rows, width // columns] for rows, columns in grids]
    if rpn.first_stride:
        strides = [[rpn.first_stride << k] * 2 for k in range(len(grids))]
    anchors: list[Tensor] = generator.grid_anchors(grids, strides)
    return anchors


def _of_anchors(answers: Tensor, numbers: int) -> Tensor:
    """A level's answers [N, anchors * numbers, h, w] by anchor [N, A_k, numbers], in the order of `level_anchors`."""
    return answers.permute(0, 2, 3, 1).reshape(answers.shape[0], -1, numbers)


@torch.no_grad()
def _best(
    rpn: CrowdAwareRPN, objectness: list[Tensor], deltas: list[Tensor], anchors: list[Tensor], sizes: Tensor
) -> tuple[Tensor, Tensor]:
    """See `proposed`; of what the head answers for the anchors of each level [N, A_k] and [N, A_k, 4].

    Only the best anchors of each level are decoded.
    """
    ends = sizes.flip(1).repeat(1, 2)[:, None].to(deltas[0].dtype)
    boxes: list[Tensor] = []
    scores: list[Tensor] = []
    for logits, moves, of_level in zip(objectness, deltas, anchors, strict=True):
        score, index = logits.topk(min(rpn.pre_nms_top_n(), logits.shape[1]), dim=1)
        move = moves.gather(1, index[:, :, None].expand(-1, -1, 4))
        box = moved_boxes(move, of_level[index]).clamp(min=0).minimum(ends)
        # NaN, of weights that are not finite, is no proposal.
        valid = ((box[..., 2:] - box[..., :2]) >= rpn.min_size).all(2) & (score == score)
        if rpn.batched:
            kept = kept_by_rounds(box, valid, rpn.nms_thresh)
        else:
            kept = kept_one_by_one(box, score, valid, rpn.nms_thresh)
        boxes.append(box)
        scores.append(torch.where(kept, score, -math.inf))
    of_all = torch.cat(scores, 1)
    frozen = None if rpn.training else rpn.form.frozen_proposals
    most = rpn.post_nms_top_n() if frozen is None else frozen
    score, index = of_all.topk(min(most, of_all.shape[1]), dim=1)
    if rpn.training and rpn.form.images_together > 1:
        score = best_together(score, rpn.form.images_together, most)
    return torch.cat(boxes, 1).gather(1, index[:, :, None].expand(-1, -1, 4)), score > -math.inf


def best_together(scores: Tensor, images: int, most: int) -> Tensor:
    """Scores [N, P] with -inf for those that are not among the `most` best of their group of up to `images` rows.

    Of K groups row i is in group i modulo K. So the groups of a batch are the same where processes and parts share it
    evenly, each taking every n-th row.
    """
    count, places = scores.shape
    groups = -(-count // images)
    filled = scores.new_full((images * groups, places), -math.inf)
    filled[:count] = scores
    of_group = filled.view(images, groups, places).transpose(0, 1).flatten(1)
    score, index = of_group.topk(min(most, of_group.shape[1]), dim=1)
    best = torch.full_like(of_group, -math.inf).scatter(1, index, score)
    return best.view(groups, images, places).transpose(0, 1).flatten(0, 1)[:count]


@torch.no_grad()
def anchor_labels(rpn: CrowdAwareRPN, anchors: Tensor, truth: GroundTruth) -> tuple[Tensor, Tensor]:
    """`model.boxes.sampling.match_anchors` for anchors [A, 4]: labels and objects, int64 [N, A] both."""
    matcher, straddle = rpn.proposal_matcher, rpn.form.straddle
    at_once = max(OVERLAPS_AT_ONCE // (anchors.shape[0] * truth.boxes.shape[1]), 1)
    parts = [
        match_anchors(
            anchors,
            truth.boxes[i : i + at_once],
            truth.labels[i : i + at_once] > 0,
            truth.crowds[i : i + at_once],
            matcher.high_threshold,
            matcher.low_threshold,
            None if straddle < 0 else inside(anchors, truth.sizes[i : i + at_once], straddle),
        )
        for i in range(0, truth.images, at_once)
    ]
    labels, matched = zip(*parts, strict=True)
    return torch.cat(labels), torch.cat(matched)


def rpn_losses(
    rpn: CrowdAwareRPN,
    objectness: Tensor,
    deltas: Tensor,
    anchors: Tensor,
    truth: GroundTruth,
    total: LossDivisor,
) -> dict[str, Tensor]:
    """Of sampled anchors (Faster R-CNN, eq. 1), both divided by their number; or with the focal loss of all
    anchors, both divided by the number of foreground ones.

    Args:
        objectness: logits [N, A].
        deltas: [N, A, 4].
        anchors: [A, 4].
        truth: the objects on the canvas.
        total: see `model.losses.LossDivisor`.
    """
    labels, matched = anchor_labels(rpn, anchors, truth)
    if rpn.focal is not None:
        foreground = total((labels > 0).sum())
        of_object = rpn.focal.of_objects(objectness, labels, foreground)
        of_box = _box_loss(deltas, anchors, matched, labels > 0, truth) / foreground
        return {"loss_objectness": of_object, "loss_rpn_box": of_box}
    sampler = rpn.fg_bg_sampler
    numbers = torch.arange(anchors.shape[0], device=anchors.device)
    bits = random_bits(truth.seeds, ANCHORS, numbers)
    chosen, taken = sample(labels, bits, sampler.batch_size_per_image, sampler.positive_fraction)
    # The places for foreground, which come first, hold nothing else.
    most = min(int(sampler.batch_size_per_image * sampler.positive_fraction), chosen.shape[1])
    positive, is_positive = chosen[:, :most], taken[:, :most]
    sampled = total(taken.sum())
    of_box = _box_loss(
        deltas.gather(1, positive[:, :, None].expand(-1, -1, 4)),
        anchors[positive],
        matched.gather(1, positive),
        is_positive,
        truth,
    )
    goal = labels.gather(1, chosen).clamp(min=0).to(objectness.dtype)
    of_object = F.binary_cross_entropy_with_logits(objectness.gather(1, chosen), goal, reduction="none")
    return {"loss_objectness": (of_object * taken).sum() / sampled, "loss_rpn_box": of_box / sampled}


def _box_loss(
    deltas: Tensor, anchors: Tensor, matched: Tensor, counted: Tensor, truth: GroundTruth
) -> Tensor:
    """Smooth L1 (beta 1/9) summed over the anchors [N, K, 4] or [K, 4] that are `counted`, bool [N, K]."""
    goal = truth.boxes.gather(1, matched[:, :, None].expand(-1, -1, 4))
    size, wanted_size = anchors[..., 2:] - anchors[..., :2], goal[..., 2:] - goal[..., :2]
    middle, wanted_middle = anchors[..., :2] + 0.5 * size, goal[..., :2] + 0.5 * wanted_size
    wanted = torch.cat([(wanted_middle - middle) / size, torch.log(wanted_size / size)], dim=2)
    # Of an anchor without an object they are no numbers, and stay none when multiplied by 0.
    wanted = torch.where(counted[:, :, None], wanted, 0.0)
    of_anchor = F.smooth_l1_loss(deltas, wanted, beta=1 / 9, reduction="none").sum(2)
    return torch.where(counted, of_anchor, 0.0).sum()
