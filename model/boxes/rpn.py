"""The region proposal network of Faster R-CNN on FPN: torchvision's, with the losses of `rpn_training`."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead

from model.backbones.convolution import with_winograd
from model.boxes.head import fewer, moved_boxes, within
from model.boxes.suppression import kept_by_operator, kept_in_groups, nms_by_level
from model.losses import Focal


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


@dataclass(frozen=True, kw_only=True)
class RpnForm:
    """Where RPNs differ that are the same otherwise: torchvision's, by default, and Detectron's.

    Args:
        straddle, images_together: see `model.config.RpnConfig`.
        frozen_proposals: how many an image has of an RPN that is held still in training; None: as many as in answers.
        first_stride: distance of anchors on the first level in pixels, each next one's twice that; 0: the canvas' side
            divided by the cells of the level, rounded down.
    """

    straddle: int = -1
    images_together: int = 1
    frozen_proposals: int | None = None
    first_stride: int = 0


class CrowdAwareRPN(RegionProposalNetwork):
    """An anchor that lies mostly in a crowd region is no negative: nobody knows what is in there.

    Args:
        settings: of torchvision's.
        focal: over all anchors; None: the cross-entropy of sampled ones.
        form: other differences from torchvision's.
    """

    def __init__(self, *settings: Any, focal: Focal | None = None, form: RpnForm = RpnForm()) -> None:
        super().__init__(*settings)
        self.focal = focal
        self.form = form
        self.first_stride = form.first_stride
        self.batched = False
        """Whether training finds its proposals without a wait of the host, as a GPU wants it (`suppression`)."""

    def proposals(
        self, features: list[Tensor], height: int, width: int, sizes_N2: Tensor, together: bool = False
    ) -> tuple[Tensor, list[int]]:
        """What `forward` proposes in evaluation: boxes XYXY [R, 4] image after image, the best first, and how many
        are each image's, or one number where all have as many.

        An anchor is placed and its box decoded only where it is among the best of its level; torchvision decodes
        all of them (257 000 at 800 x 1333).

        Args:
            features: the pyramid's levels [N, F, h_k, w_k].
            height, width: of the canvas the levels come from.
            sizes_N2: float32, height and width of each image on the canvas.
            together: all images and levels in one computation, for which the host waits once, the way of a GPU. Then
                each image has as many proposals; those that are too many, at its end, are boxes of zeros.
        """
        logits, deltas = self.head(features)
        return self.proposals_of(logits, deltas, height, width, sizes_N2, together)

    def proposals_of(
        self,
        logits: list[Tensor],
        deltas: list[Tensor],
        height: int,
        width: int,
        sizes_N2: Tensor,
        together: bool,
    ) -> tuple[Tensor, list[int]]:
        """`proposals` from what the head says of the levels."""
        boxes, scores, lengths = self.best_anchors(logits, deltas, height, width, sizes_N2)
        most = fewer(self._post_nms_top_n["testing"], scores.shape[1])
        if together:
            keep = self.kept_together(boxes, scores, lengths)
            return self.best_of(boxes, torch.where(keep, scores, -1.0), most)
        kept: list[Tensor] = []
        counts: list[int] = []
        for box, score in zip(boxes.unbind(0), scores.unbind(0)):  # noqa: B905  (TorchScript knows no `strict`)
            box_of_level: list[Tensor] = []
            score_of_level: list[Tensor] = []
            for its_box, its_score in zip(box.split(lengths), score.split(lengths)):  # noqa: B905
                real = torch.where(its_score >= 0)[0]
                box_of_level.append(its_box[real])
                score_of_level.append(its_score[real])
            keep = nms_by_level(box_of_level, score_of_level, self.nms_thresh)[:most]
            kept.append(torch.cat(box_of_level)[keep])
            counts.append(keep.shape[0])
        return torch.cat(kept), counts

    def best_anchors(
        self, logits: list[Tensor], deltas: list[Tensor], height: int, width: int, sizes_N2: Tensor
    ) -> tuple[Tensor, Tensor, list[int]]:
        """The best anchors of each level with their boxes decoded and cut at the image's border.

        Returns:
            boxes XYXY [N, T, 4], level after level, each level's best first; scores [N, T] after the sigmoid, -1 where
            a box is too small or not a number; how many of the T are of each level.
        """
        images = logits[0].shape[0]
        anchors: list[Tensor] = []
        moves: list[Tensor] = []
        scores: list[Tensor] = []
        lengths: list[int] = []
        for k, (logit, delta) in enumerate(zip(logits, deltas)):  # noqa: B905  (TorchScript knows no `strict`)
            rows, columns = logit.shape[2], logit.shape[3]
            cell_anchors = self.anchor_generator.cell_anchors[k].to(logit.device, non_blocking=True)
            of_cell = cell_anchors.shape[0]
            score = logit.permute(0, 2, 3, 1).reshape(images, -1)
            best = fewer(self._pre_nms_top_n["testing"], score.shape[1])
            score, index = score.topk(best, dim=1)
            cell = torch.div(index, of_cell, rounding_mode="floor")
            stride = self.first_stride << k
            x = cell.remainder(columns) * (stride if stride > 0 else width // columns)
            y = torch.div(cell, columns, rounding_mode="floor") * (stride if stride > 0 else height // rows)
            anchors.append(torch.stack([x, y, x, y], dim=2) + cell_anchors[index.remainder(of_cell)])
            of_anchor = delta.permute(0, 2, 3, 1).reshape(images, -1, 4)
            moves.append(of_anchor.gather(1, index[:, :, None].expand(-1, -1, 4)))
            scores.append(score)
            lengths.append(best)
        score = torch.cat(scores, dim=1)
        boxes = moved_boxes(torch.cat(moves, dim=1), torch.cat(anchors, dim=1))
        boxes = within(boxes, sizes_N2.unsqueeze(1))
        # NaN, of weights that are not finite, is no proposal either.
        real = ((boxes[:, :, 2:] - boxes[:, :, :2]) >= self.min_size).all(2) & (score == score)
        return boxes, torch.where(real, torch.sigmoid(score), -1.0), lengths

    def kept_together(self, boxes: Tensor, scores: Tensor, lengths: list[int]) -> Tensor:
        """Suppression within each level of each image, all at once: bool [N, T] of the answer of `best_anchors`."""
        if not torch.jit.is_scripting():  # noqa: SIM102  (TorchScript leaves out a branch by this condition alone)
            if torch.compiler.is_exporting():  # which has no loop until nothing changes
                of_level = [torch.full((length,), k, device=boxes.device) for k, length in enumerate(lengths)]
                level = torch.cat(of_level).expand(boxes.shape[0], -1)
                return kept_by_operator(boxes, scores >= 0, self.nms_thresh, level)
        images, longest = boxes.shape[0], max(lengths)
        box_of_level: list[Tensor] = []
        score_of_level: list[Tensor] = []
        for box, score in zip(boxes.split(lengths, dim=1), scores.split(lengths, dim=1)):  # noqa: B905
            missing = longest - score.shape[1]
            if missing > 0:
                box, score = F.pad(box, [0, 0, 0, missing]), F.pad(score, [0, missing], value=-1.0)
            box_of_level.append(box)
            score_of_level.append(score)
        groups = images * len(lengths)
        box = torch.stack(box_of_level, dim=1).view(groups, longest, 4)
        score = torch.stack(score_of_level, dim=1).view(groups, longest)
        keep, _ = kept_in_groups(box, score >= 0, self.nms_thresh)
        keep = keep.view(images, len(lengths), longest)
        own: list[Tensor] = []
        for k, length in enumerate(lengths):
            own.append(keep[:, k, :length])
        return torch.cat(own, dim=1)

    def best_of(self, boxes: Tensor, scores: Tensor, most: int) -> tuple[Tensor, list[int]]:
        """The `most` best boxes of each image, [N * most, 4], and `most`; zeros in the places of scores below 0."""
        score, index = scores.sort(dim=1, descending=True, stable=True)
        score, index = score[:, :most], index[:, :most]
        best = boxes.gather(1, index[:, :, None].expand(-1, -1, 4))
        best = torch.where((score >= 0).unsqueeze(2), best, 0.0)
        return best.view(-1, 4), [most]
