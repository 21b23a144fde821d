"""What objects without masks (set B) teach the mask branch in a step: BoxInst's losses, a teacher's masks, or both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from model.boxes.ground_truth import GroundTruth
from model.boxes.rois import RoIs
from model.canvas import Canvas
from model.losses import Total
from model.masks.box_supervision import (
    cells_in_boxes,
    colours_of_rois,
    confidence,
    grown,
    pairwise_loss,
    positions_among,
    projection_loss,
    pseudo_mask_loss,
    seen_in_rois,
)


class Segmenter(Protocol):
    """What is asked of a network (`model.network.MaskXRCNN`)."""

    canvas: Canvas

    def mask_logits(self, features: dict[str, Tensor], rois: list[Tensor], labels: Tensor) -> Tensor:
        """Mask logits [R, M, M] of RoIs (per image, in pixels of the canvas), each for its own label [R]."""

    def object_masks(
        self, features: dict[str, Tensor] | None, canvas: Tensor, boxes: list[Tensor], labels: Tensor
    ) -> Tensor:
        """Mask probabilities [N, M, M] without gradients; features None: computed from the canvas."""


@dataclass(frozen=True, kw_only=True)
class BoxOnly:
    """Which losses; by default none."""

    colour_threshold: float | None = None
    """Of the projection and pairwise losses; None: neither."""
    margin: float = 0.0
    """How far the RoIs of these objects reach beyond themselves, as a fraction of their sides."""
    teacher: Segmenter | None = None
    """Whose masks of these objects become targets: in evaluation mode; None: no such targets."""
    mask_threshold: float = 0.5
    """Probability from which a pixel belongs to the teacher's mask."""


def box_only_losses(
    network: Segmenter,
    box_only: BoxOnly,
    *,
    features: dict[str, Tensor],
    same_features: bool,
    canvas: Tensor,
    rois: RoIs,
    truth: GroundTruth,
    total: Total,
) -> dict[str, Tensor]:
    """Losses over the foreground RoIs whose own object has no mask. No target's mask gets here.

    Args:
        network: under training; its `features` of `canvas` [N, 3, H, W].
        same_features: the teacher's features are these too, its detector being the same frozen one.
        rois: on that canvas.
        truth: the objects on it.
        total: see `model.losses.Total`.

    Returns:
        `loss_projection` and `loss_pairwise` where there is a colour threshold, `loss_pseudo_mask` where there is a
        teacher, who looks at the ground-truth boxes.
    """
    mine = rois.without_mask
    every = grown(rois.boxes[mine], box_only.margin)
    objects, images, label = rois.objects[mine], rois.images[mine], rois.labels[mine]
    own = truth.boxes.view(-1, 4)[objects]
    logits = network.mask_logits(features, list(every.split([b for _, b, _ in rois.counts])), label)
    side = logits.shape[-1]
    count = total(every.shape[0])
    losses: dict[str, Tensor] = {}
    if box_only.colour_threshold is not None:
        inside = cells_in_boxes(every, own, side)
        colours, visible = colours_of_rois(
            canvas, network.canvas.mean, network.canvas.std, every, images, truth.sizes, side
        )
        losses["loss_projection"] = projection_loss(logits, inside, count)
        losses["loss_pairwise"] = pairwise_loss(
            logits, colours, inside, visible, box_only.colour_threshold, total
        )
    if box_only.teacher is not None:
        seen = box_only.teacher.object_masks(
            features if same_features else None,
            canvas,
            list(truth.boxes.view(-1, 4)[truth.without].split(truth.without_mask)),
            truth.labels.view(-1)[truth.without],
        )
        theirs = seen[positions_among((truth.labels > 0) & ~truth.has_mask, objects)]
        targets = seen_in_rois(theirs, own, every) >= box_only.mask_threshold
        weights = confidence(theirs, box_only.mask_threshold)
        losses["loss_pseudo_mask"] = pseudo_mask_loss(logits, targets.to(logits.dtype), weights, count)
    return losses
