"""The RoIs that the heads learn from (Fast R-CNN, Sec. 2.3): drawn for all images at once, then put in order."""

from dataclasses import dataclass

import torch
from torch import Tensor

from model.boxes.ground_truth import GroundTruth
from model.boxes.sampling import JITTER, ROIS, match_to_objects, random_bits, random_shares, sample
from model.host import read

WITH_MASK, WITHOUT_MASK, BACKGROUND, NOTHING = 0, 1, 2, 3
"""Kinds of places for RoIs: of an object with a mask, of one without, of none, and not taken."""
OWN_BOXES = 2**40
"""From this number on ground-truth boxes are counted among the candidates; proposals are counted from 0."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Which RoIs the heads learn from."""

    rois_per_image: int
    positive_fraction: float  # of these at most, foreground
    foreground_iou: float  # with an object, from which a RoI is foreground
    masks_on_ground_truth: bool  # RoIs of the mask loss: the objects' own boxes, not what is sampled
    mask_box_jitter: float  # the fraction of their sides by which the corners of these move at most
    mask_stage_on_set_a: bool = False  # where masks are trained alone, no other object is known to `sampled`


@dataclass(frozen=True, kw_only=True)
class RoIs:
    """R RoIs, those of the first image first, and of each image those of objects with a mask, of objects without, and
    of the background in this order. A list has the indices of some, int64, in this order too."""

    boxes: Tensor  # [R, 4] XYXY in pixels of the canvas
    images: Tensor  # int64 [R]
    labels: Tensor  # int64 [R], 0 background
    objects: Tensor  # int64 [R], which of the N * G objects of the batch; of the background any of its image
    with_mask: Tensor  # list
    without_mask: Tensor  # list
    foreground: Tensor  # list of both together

    def on_images(self, which: Tensor | None = None) -> Tensor:
        """RoIs [R, 5] as they are pooled: the number of the image, then XYXY; those of a list alone."""
        images, boxes = (
            (self.images, self.boxes) if which is None else (self.images[which], self.boxes[which])
        )
        return torch.cat([images.to(boxes.dtype).unsqueeze(1), boxes], dim=1)


@torch.no_grad()
def sampled(proposals: Tensor, valid: Tensor, truth: GroundTruth, sampling: Sampling) -> RoIs:
    """RoIs drawn among proposals [N, P, 4], of which some places are not `valid`, bool [N, P].

    Ground-truth boxes join the proposals, as in Detectron.
    """
    candidates = torch.cat([proposals, truth.boxes], dim=1)
    labels, objects = match_to_objects(
        candidates, truth.boxes, truth.labels, truth.crowds, sampling.foreground_iou
    )
    labels = torch.where(torch.cat([valid, truth.labels > 0], dim=1), labels, -1)
    own = torch.arange(truth.boxes.shape[1], device=labels.device) + OWN_BOXES
    numbers = torch.cat([torch.arange(proposals.shape[1], device=labels.device), own])
    bits = random_bits(truth.seeds, ROIS, numbers)
    chosen, taken = sample(labels, bits, sampling.rois_per_image, sampling.positive_fraction)
    boxes = candidates.gather(1, chosen[:, :, None].expand(-1, -1, 4))
    return arranged(boxes, labels.gather(1, chosen), objects.gather(1, chosen), taken, truth)


@torch.no_grad()
def on_ground_truth(truth: GroundTruth, jitter: float) -> RoIs:
    """The boxes of all objects as RoIs, their corners moved by up to `jitter` of their sides, each its own way."""
    images, most = truth.labels.shape
    boxes = truth.boxes
    if jitter:
        numbers = torch.arange(4 * most, device=boxes.device)
        drawn = random_shares(truth.seeds, JITTER, numbers).view(images, most, 4)
        boxes = boxes + (drawn * 2 - 1) * jitter * (boxes[..., 2:] - boxes[..., :2]).repeat(1, 1, 2)
    objects = torch.arange(most, device=boxes.device).expand(images, -1)
    counts = [truth.with_mask, truth.without_mask, 0]
    return arranged(boxes, truth.labels, objects, truth.labels > 0, truth, counts)


def arranged(
    boxes: Tensor,
    labels: Tensor,
    objects: Tensor,
    taken: Tensor,
    truth: GroundTruth,
    counts: list[int] | None = None,
) -> RoIs:
    """RoIs in order, without the places [N, S] that are not taken.

    Args:
        boxes: [N, S, 4].
        labels: [N, S], 0 background.
        objects: [N, S], of those of its image.
        taken: bool [N, S].
        counts: of each kind, of all images, where the host knows them; else they are read, for which it waits.
    """
    images, most = truth.labels.shape
    has_mask = truth.has_mask.gather(1, objects)
    kinds = torch.where(labels > 0, torch.where(has_mask, WITH_MASK, WITHOUT_MASK), BACKGROUND)
    kinds = torch.where(taken, kinds, NOTHING)
    if counts is None:
        of_kind = torch.arange(NOTHING, device=kinds.device)
        counts = read((kinds[:, :, None] == of_kind).sum((0, 1)))
    with_mask, without, background = counts
    numbers = torch.arange(images, device=kinds.device)[:, None]
    rank = torch.where(taken, kinds + numbers * NOTHING, images * NOTHING)
    order = rank.flatten().argsort(stable=True)[: with_mask + without + background]
    kinds = kinds.flatten()[order]
    by_kind = kinds.argsort(stable=True)
    return RoIs(
        boxes=boxes.reshape(-1, 4)[order],
        images=torch.div(order, taken.shape[1], rounding_mode="floor"),
        labels=labels.reshape(-1)[order],
        objects=(objects + numbers * most).reshape(-1)[order],
        with_mask=by_kind[:with_mask],
        without_mask=by_kind[with_mask : with_mask + without],
        foreground=(kinds >= BACKGROUND).to(torch.uint8).argsort(stable=True)[: with_mask + without],
    )
