"""A small Mask R-CNN of torchvision's own code, and its answers beside those of the network converted from it."""

from dataclasses import dataclass
from typing import Any

import torch
import torchvision.models as classifiers
from torch import Tensor
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign, box_iou

from model.inference import Inference
from tests.model.small_network import asked
from training.evaluate.precision import MAX_DETECTIONS
from training.evaluate.predictions import SCORE_THRESHOLD

WIDTH, BOX_WIDTH, MASK_CONVOLUTIONS = 64, 256, 2
CANONICAL_SIZE = 56
ANCHOR_SIZES = (16, 32, 64, 96, 128)
PROPOSALS = 200
TOLERANCE = 1e-4


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Detections of one image, the best first: boxes [D, 4] XYXY, scores [D], labels [D], masks [D, M, M] of
    probabilities."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor


@dataclass(frozen=True, kw_only=True)
class Differences:
    """The largest between two answers' detections of one label and place; `alone`: those of one answer alone."""

    detections: int = 0
    alone: int = 0
    boxes: float = 0.0
    scores: float = 0.0
    masks: float = 0.0

    @property
    def equal(self) -> bool:
        """Whether nothing differs by more than `TOLERANCE`."""
        return not self.alone and max(self.boxes, self.scores, self.masks) <= TOLERANCE


def small_peer(classes: int, *, side: int) -> MaskRCNN:
    """torchvision's Mask R-CNN with ResNet-18 and FPN, for images of `side` pixels and `classes` without background."""
    backbone = BackboneWithFPN(
        classifiers.resnet18(weights=None),
        {f"layer{k + 1}": str(k) for k in range(4)},
        in_channels_list=[64, 128, 256, 512],
        out_channels=WIDTH,
    )
    levels = ["0", "1", "2", "3"]
    return MaskRCNN(
        backbone,
        min_size=side,
        max_size=side,
        rpn_anchor_generator=AnchorGenerator(tuple((size,) for size in ANCHOR_SIZES), ((0.5, 1.0, 2.0),) * 5),
        rpn_pre_nms_top_n_test=PROPOSALS,
        rpn_post_nms_top_n_test=PROPOSALS,
        box_roi_pool=MultiScaleRoIAlign(levels, 7, 2, canonical_scale=CANONICAL_SIZE),
        box_head=TwoMLPHead(WIDTH * 7 * 7, BOX_WIDTH),
        box_predictor=FastRCNNPredictor(BOX_WIDTH, classes + 1),
        mask_roi_pool=MultiScaleRoIAlign(levels, 14, 2, canonical_scale=CANONICAL_SIZE),
        mask_head=MaskRCNNHeads(WIDTH, (WIDTH,) * MASK_CONVOLUTIONS, 1),
        mask_predictor=MaskRCNNPredictor(WIDTH, WIDTH, classes + 1),
    )


def conversion_overrides(side: int) -> list[str]:
    """What `training.recipes.convert_torchvision` cannot read off the weights of `small_peer`."""
    return [
        f"model.input.min_size={side}",
        f"model.input.max_size={side}",
        f"model.rpn.anchor_sizes={list(ANCHOR_SIZES)}",
        f"model.rpn.pre_nms_test={PROPOSALS}",
        f"model.rpn.post_nms_test={PROPOSALS}",
        f"model.box.canonical_size={CANONICAL_SIZE}",
    ]


@torch.no_grad()
def answer_of_peer(model: MaskRCNN, image: Tensor) -> Answer:
    """What torchvision answers to a uint8 [3, h, w] image, its masks taken before they are pasted."""
    masks: list[Tensor] = []
    paste = model.transform.postprocess

    def remember(result: list[dict[str, Tensor]], sizes: Any, originals: Any) -> list[dict[str, Tensor]]:
        masks.extend(one["masks"][:, 0] for one in result)
        pasted: list[dict[str, Tensor]] = paste(result, sizes, originals)
        return pasted

    model.transform.postprocess = remember  # type: ignore[method-assign]
    try:
        (answer,) = model([image / 255])
    finally:
        del model.transform.postprocess
    return Answer(boxes=answer["boxes"], scores=answer["scores"], labels=answer["labels"], masks=masks[0])


@torch.no_grad()
def answer_of_converted(network: Inference, image: Tensor, *, classes: int) -> Answer:
    """The same of the converted network, at torchvision's score threshold and number of detections."""
    masks: list[Tensor] = []
    mask_head = network.dense_mask_head

    def remember(crops: Tensor, rows: Tensor, bias: Tensor) -> Tensor:
        masks.append(mask_head(crops, rows, bias))
        return masks[0]

    network.dense_mask_head = remember  # type: ignore[method-assign]
    try:
        (answer,) = network(*asked([image], threshold=SCORE_THRESHOLD, most=MAX_DETECTIONS, classes=classes))
    finally:
        del network.dense_mask_head
    found = len(answer["labels"])  # crops of zeros may stand behind them
    return Answer(
        boxes=answer["boxes"], scores=answer["scores"], labels=answer["labels"], masks=masks[0][:found]
    )


def differences(one: Answer, other: Answer) -> Differences:
    """Of each detection of `one` to that of `other` with its label, at its place (an IoU above 0.99)."""
    if not one.labels.numel() or not other.labels.numel():
        return Differences(alone=one.labels.numel() + other.labels.numel())
    same = (one.labels[:, None] == other.labels) * box_iou(one.boxes, other.boxes)
    overlap, partner = same.max(dim=1)
    first = torch.where(overlap > 0.99)[0]
    second = partner[first]
    alone = abs(one.labels.numel() - other.labels.numel()) + one.labels.numel() - second.unique().numel()

    def largest(a: Tensor, b: Tensor) -> float:
        return float((a[first] - b[second]).abs().max()) if first.numel() else 0.0

    return Differences(
        detections=first.numel(),
        alone=alone,
        boxes=largest(one.boxes, other.boxes),
        scores=largest(one.scores, other.scores),
        masks=largest(one.masks, other.masks),
    )
