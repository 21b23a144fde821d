"""What training and answers share of Mask^X R-CNN (Fig. 2): the parts, and how the mask branch comes to its logits."""

from dataclasses import dataclass

from torch import Tensor, nn

from model.boxes.head import BoxHead, BoxPredictor
from model.boxes.pooling import PyramidRoIAlign
from model.boxes.rpn import CrowdAwareRPN
from model.canvas import Canvas
from model.keypoints.head import KeypointBranch
from model.masks.head import MaskBranch


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The parts of a detector, as `model.build` makes them."""

    canvas: Canvas
    backbone: nn.Module
    rpn: CrowdAwareRPN
    box_pool: PyramidRoIAlign
    box_head: BoxHead
    box_predictor: BoxPredictor
    mask_pool: PyramidRoIAlign
    mask_branch: MaskBranch


class Detector(nn.Module):
    """The parts under the names that checkpoints have; TorchScript reads all of it but the constructor.

    Args:
        parts: or another detector, whose parts are shared.
    """

    def __init__(self, parts: "Parts | Detector") -> None:
        super().__init__()
        self.canvas: Canvas = parts.canvas
        self.backbone: nn.Module = parts.backbone
        self.rpn: CrowdAwareRPN = parts.rpn
        self.box_pool: PyramidRoIAlign = parts.box_pool
        self.box_head: BoxHead = parts.box_head
        self.box_predictor: BoxPredictor = parts.box_predictor
        self.mask_pool: PyramidRoIAlign = parts.mask_pool
        self.mask_branch: MaskBranch = parts.mask_branch
        self.keypoint_branch: KeypointBranch | None

    def mask_rows(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mask weights [R, F] of labels [R], and the bias: one for all [], or [R, 1, 1]."""
        raise NotImplementedError

    def mask_crops(self, features: dict[str, Tensor], rois: Tensor, labels: Tensor) -> Tensor:
        """Crops of RoIs [R, 5], each of its label [R], with the prior where there is one: [R, channels, S, S].

        In evaluation there may be more labels than RoIs; crops of zeros are added for those at the end.
        """
        rows = labels.shape[0]
        pooled: Tensor = self.mask_pool(features, rois, rows)
        if self.box_head.has_prior:
            of_box, w_cls = self.box_pool(features, rois, rows), self.box_predictor.cls_score.weight[labels]
            prior = self.box_head.prior(of_box, w_cls, self.mask_pool.size)
            pooled = pooled + prior.unsqueeze(1).to(pooled.dtype)
        return pooled

    def mask_features(self, features: dict[str, Tensor], rois: Tensor, labels: Tensor) -> Tensor:
        """What the mask head sees of RoIs [R, 5], each of its label [R]: [R, channels, S, S], see `mask_crops`."""
        return self.box_head.for_masks(self.mask_crops(features, rois, labels))

    def mask_logits(self, features: dict[str, Tensor], rois: Tensor, labels: Tensor) -> Tensor:
        """Mask logits [R, M, M] of RoIs [R, 5] (image, then XYXY in pixels of the canvas), each for its label [R]."""
        weights, bias = self.mask_rows(labels)
        logits: Tensor = self.mask_branch(self.mask_features(features, rois, labels), weights, bias)
        return logits
