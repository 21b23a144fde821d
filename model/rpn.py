"""The region proposal network of Faster R-CNN on FPN: torchvision's, whose losses are those of `model.rpn_training`."""

import math
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import batched_nms, clip_boxes_to_image, nms

from model.box_coding import moved_boxes
from model.convolution import with_winograd


class Float32RPNHead(RPNHead):
    """torchvision's head with float32 answers: anchors are decoded in float32 whatever the features' type."""

    def __init__(self, channels: int, anchors: int, convolutions: int = 1) -> None:
        super().__init__(channels, anchors, conv_depth=convolutions)
        with_winograd(self.conv, many=False)

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Objectness and box deltas per level."""
        logits: list[Tensor] = []
        deltas: list[Tensor] = []
        for feature in x:
            hidden = self.conv(feature)
            logits.append(self.cls_logits(hidden).float())
            deltas.append(self.bbox_pred(hidden).float())
        return logits, deltas


class CrowdAwareRPN(RegionProposalNetwork):
    """An anchor that lies mostly in a crowd region is no negative: nobody knows what is in there.

    Args:
        settings: of torchvision's.
        focal: gamma and alpha of the focal loss over all anchors; None: the cross-entropy of sampled ones.
    """

    def __init__(self, *settings: Any, focal: tuple[float, float] | None = None) -> None:
        super().__init__(*settings)
        self.focal = focal
        self.batched = False
        """Whether training finds its proposals without a wait of the host, as a GPU wants it (`model.nms`)."""

    def proposals(
        self, features: list[Tensor], height: int, width: int, image_sizes: list[tuple[int, int]]
    ) -> list[Tensor]:
        """What `forward` proposes in evaluation, boxes XYXY [R_i, 4] per image, the best first.

        An anchor is placed and its box decoded only where it is among the best of its level; torchvision decodes
        all of them (257 000 at 800 x 1333).

        Args:
            features: the pyramid's levels [N, F, h_k, w_k].
            height, width: of the canvas the levels come from.
            image_sizes: height and width of each image on the canvas.
        """
        logits, deltas = self.head(features)
        images = len(image_sizes)
        boxes: list[list[Tensor]] = []
        scores: list[list[Tensor]] = []
        for _ in range(images):
            boxes.append([])
            scores.append([])
        for k, (logit, delta) in enumerate(zip(logits, deltas)):  # noqa: B905  (TorchScript knows no `strict`)
            rows, columns = logit.shape[2], logit.shape[3]
            cell_anchors = self.anchor_generator.cell_anchors[k].to(logit.device)
            score = logit.permute(0, 2, 3, 1).reshape(images, -1)
            score, index = score.topk(min(self._pre_nms_top_n["testing"], score.shape[1]), dim=1)
            cell = torch.div(index, cell_anchors.shape[0], rounding_mode="floor")
            row = torch.div(cell, columns, rounding_mode="floor")
            x = (cell - row * columns) * (width // columns)
            y = row * (height // rows)
            shift = torch.stack([x, y, x, y], dim=2)
            anchor = shift + cell_anchors[index - cell * cell_anchors.shape[0]]
            of_anchor = delta.permute(0, 2, 3, 1).reshape(images, -1, 4)
            of_anchor = of_anchor.gather(1, index[:, :, None].expand(-1, -1, 4))
            box = moved_boxes(of_anchor, anchor)
            for i in range(images):
                clipped = clip_boxes_to_image(box[i], image_sizes[i])
                size = clipped[:, 2:] - clipped[:, :2]
                # NaN, of weights that are not finite, is no proposal either.
                real = torch.where((size >= self.min_size).all(1) & (score[i] == score[i]))[0]
                boxes[i].append(clipped[real])
                scores[i].append(torch.sigmoid(score[i, real]))
        kept: list[Tensor] = []
        for i in range(images):
            box, score = torch.cat(boxes[i]), torch.cat(scores[i])
            keep = nms_by_level(boxes[i], scores[i], self.nms_thresh)
            kept.append(box[keep[: self._post_nms_top_n["testing"]]])
        return kept


def nms_by_level(boxes: list[Tensor], scores: list[Tensor], iou: float) -> Tensor:
    """Non-maximum suppression within each level: what is kept, as indices into all levels, the best first."""
    if boxes[0].device.type != "cpu":
        levels: list[Tensor] = []
        for k, score in enumerate(scores):
            levels.append(torch.full_like(score, float(k)))
        return batched_nms(torch.cat(boxes), torch.cat(scores), torch.cat(levels), iou)
    keep: list[Tensor] = []
    start = 0
    for k, box in enumerate(boxes):
        keep.append(nms(box, scores[k], iou) + start)
        start += box.shape[0]
    kept = torch.cat(keep)
    return kept[torch.cat(scores)[kept].sort(descending=True, stable=True)[1]]


def build_rpn(
    *,
    channels: int,
    anchor_sizes: tuple[int, ...],
    aspect_ratios: tuple[float, ...],
    foreground_iou: float,
    background_iou: float,
    batch_per_image: int,
    positive_fraction: float,
    pre_nms_train: int,
    pre_nms_test: int,
    post_nms_train: int,
    post_nms_test: int,
    nms_iou: float,
    convolutions: int = 1,
    one_level: bool = False,
    focal: tuple[float, float, float] | None = None,
) -> CrowdAwareRPN:
    """The RPN over as many levels as there are anchor sizes, or with all these sizes on one level.

    Args:
        focal: gamma and alpha of the focal loss, and the probability that anchors begin with; None: cross-entropy.
    """
    of_level = (anchor_sizes,) if one_level else tuple((size,) for size in anchor_sizes)
    anchors = AnchorGenerator(of_level, (aspect_ratios,) * len(of_level))
    head = Float32RPNHead(channels, anchors.num_anchors_per_location()[0], convolutions)
    if focal is not None:
        torch.nn.init.constant_(head.cls_logits.bias, math.log(focal[2] / (1 - focal[2])))
    return CrowdAwareRPN(
        anchors,
        head,
        foreground_iou,
        background_iou,
        batch_per_image,
        positive_fraction,
        {"training": pre_nms_train, "testing": pre_nms_test},
        {"training": post_nms_train, "testing": post_nms_test},
        nms_iou,
        focal=None if focal is None else focal[:2],
    )
