"""Mask^X R-CNN (Fig. 2): backbone, RPN, box branch, and a mask branch whose weights are predicted.

Two methods, not two modes: `losses` for training and `forward` for answers.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from model.box_branch import BoxHead, BoxPredictor
from model.box_coding import encode_boxes
from model.canvas import Canvas, canvas_side
from model.inference import Inference
from model.losses import box_loss, class_loss, mask_loss, mask_targets
from model.mask_branch import MaskBranch
from model.pooling import PyramidRoIAlign
from model.rpn import CrowdAwareRPN
from model.sampling import match_to_objects, sample
from model.targets import Target, mask_windows
from model.weight_transfer import MaskWeights

Stage = Literal["end_to_end", "detector", "mask"]


class MaskXRCNN(nn.Module):
    """The network of Learning to Segment Every Thing; its parent Mask R-CNN is the class-agnostic form."""

    def __init__(
        self,
        *,
        canvas: Canvas,
        backbone: nn.Module,
        rpn: CrowdAwareRPN,
        box_pool: PyramidRoIAlign,
        box_head: BoxHead,
        box_predictor: BoxPredictor,
        mask_pool: PyramidRoIAlign,
        mask_branch: MaskBranch,
        mask_weights: MaskWeights,
        rois_per_image: int,
        positive_fraction: float,
        foreground_iou: float,
        masks_on_ground_truth: bool,
        mask_box_jitter: float,
        score_threshold: float,
        nms_iou: float,
        detections_per_image: int,
        candidates_per_image: int,
    ) -> None:
        super().__init__()
        self.canvas = canvas
        self.backbone = backbone
        self.rpn = rpn
        self.box_pool = box_pool
        self.box_head = box_head
        self.box_predictor = box_predictor
        self.mask_pool = mask_pool
        self.mask_branch = mask_branch
        self.mask_weights = mask_weights
        self.rois_per_image = rois_per_image
        self.positive_fraction = positive_fraction
        self.foreground_iou = foreground_iou
        self.masks_on_ground_truth = masks_on_ground_truth
        self.mask_box_jitter = mask_box_jitter
        self.score_threshold = score_threshold
        self.nms_iou = nms_iou
        self.detections_per_image = detections_per_image
        self.candidates_per_image = candidates_per_image
        self.stage: Stage = "end_to_end"
        self._trainable = {name for name, p in self.named_parameters() if p.requires_grad}

    # ---- stages (Sec. 3.3) ----

    def detector_modules(self) -> list[nn.Module]:
        """All but the mask branch and the transfer function."""
        return [self.backbone, self.rpn, self.box_head, self.box_predictor]

    def set_stage(self, stage: Stage) -> None:
        """Choose what `losses` trains.

        "end_to_end": everything at once. "detector": no mask loss. "mask": the stage-wise training of
        Sec. 3.3, all but the mask branch and T frozen (batch statistics too), only the mask loss.
        """
        if stage not in ("end_to_end", "detector", "mask"):
            raise ValueError(f"stage is {stage!r}; allowed are end_to_end, detector and mask")
        self.stage = stage
        mask_side = ("mask_branch.", "mask_weights.")
        for name, parameter in self.named_parameters():
            of_mask = name.startswith(mask_side)
            left_out = (stage == "mask" and not of_mask) or (stage == "detector" and of_mask)
            parameter.requires_grad_(name in self._trainable and not left_out)
        self.train(self.training)

    def train(self, mode: bool = True) -> MaskXRCNN:
        """As `nn.Module.train`, but a frozen detector stays in evaluation mode."""
        super().train(mode)
        if self.stage == "mask":
            for module in self.detector_modules():
                module.eval()
        return self

    # ---- training ----

    def losses(self, images: list[Tensor], targets: list[Target]) -> dict[str, Tensor]:
        """Losses of a batch, each a scalar to be added up.

        Args:
            images: uint8 [3, h, w], RGB.
            targets: see `model.targets.Target`; boxes in each image's own pixels.

        Returns:
            `loss_objectness`, `loss_rpn_box`, `loss_class`, `loss_box` and `loss_mask`; in stage
            "detector" without the last, in stage "mask" the last alone.
        """
        if len(images) != len(targets):
            raise ValueError(f"{len(images)} images came with {len(targets)} targets; one target an image")
        device = self.canvas.mean.device
        sizes = [self.canvas.size_of(image) for image in images]
        height = canvas_side(max(size[0] for size in sizes), self.canvas.step)
        width = canvas_side(max(size[1] for size in sizes), self.canvas.step)
        scales = [
            torch.tensor([w / image.shape[2], h / image.shape[1]] * 2, device=device)
            for image, (h, w) in zip(images, sizes, strict=True)
        ]
        boxes = [t["boxes"].to(device) * s for t, s in zip(targets, scales, strict=True)]
        labels = [t["labels"].to(device) for t in targets]
        crowds = [t["crowd_boxes"].to(device) * s for t, s in zip(targets, scales, strict=True)]

        losses: dict[str, Tensor] = {}
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.stage != "mask"):
            canvas = self.canvas(images, height, width)
            features = self.backbone(canvas)
            needs_proposals = self.stage != "mask" or not self.masks_on_ground_truth
            if needs_proposals:
                rpn_targets = [{"boxes": b, "crowd_boxes": c} for b, c in zip(boxes, crowds, strict=True)]
                proposals, rpn_losses = self.rpn(ImageList(canvas, sizes), features, rpn_targets)
                rois, roi_labels, roi_matched = self.sampled(proposals, boxes, labels, crowds)
        if self.stage != "mask":
            losses["loss_objectness"] = rpn_losses["loss_objectness"]
            losses["loss_rpn_box"] = rpn_losses["loss_rpn_box_reg"]
            losses |= self.box_losses(features, rois, roi_labels, roi_matched, boxes)
        if self.stage != "detector":
            if self.masks_on_ground_truth:
                rois = [self.jittered(b) for b in boxes]
                roi_labels = labels
                roi_matched = [torch.arange(b.shape[0], device=device) for b in boxes]
            losses["loss_mask"] = self.mask_loss(
                features, rois, roi_labels, roi_matched, scales, images, targets
            )
        return losses

    def sampled(
        self, proposals: list[Tensor], boxes: list[Tensor], labels: list[Tensor], crowds: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Sampled RoIs per image with their label (0 background) and the index of their object.

        Ground-truth boxes join the proposals, as in Detectron.
        """
        rois, roi_labels, roi_matched = [], [], []
        for proposal, box, label, crowd in zip(proposals, boxes, labels, crowds, strict=True):
            candidates = torch.cat([proposal.detach(), box])
            of_candidate, matched = match_to_objects(candidates, box, label, crowd, self.foreground_iou)
            chosen = sample(of_candidate, self.rois_per_image, self.positive_fraction)
            rois.append(candidates[chosen])
            roi_labels.append(of_candidate[chosen])
            roi_matched.append(matched[chosen])
        return rois, roi_labels, roi_matched

    def box_losses(
        self,
        features: dict[str, Tensor],
        rois: list[Tensor],
        labels: list[Tensor],
        matched: list[Tensor],
        boxes: list[Tensor],
    ) -> dict[str, Tensor]:
        """Class and box losses over the sampled RoIs; boxes are decoded for the RoI's own class alone."""
        hidden = self.box_head(self.box_pool(features, rois))
        label = torch.cat(labels)
        foreground = torch.where(label > 0)[0]
        deltas = self.box_predictor.deltas_of(hidden[foreground], label[foreground])
        goal = torch.cat([b[m[y > 0]] for b, m, y in zip(boxes, matched, labels, strict=True)])
        wanted = encode_boxes(goal, torch.cat(rois)[foreground])
        return {
            "loss_class": class_loss(self.box_predictor(hidden), label),
            "loss_box": box_loss(deltas, wanted, label.numel()),
        }

    def mask_loss(
        self,
        features: dict[str, Tensor],
        rois: list[Tensor],
        labels: list[Tensor],
        matched: list[Tensor],
        scales: list[Tensor],
        images: list[Tensor],
        targets: list[Target],
    ) -> Tensor:
        """Mask loss over the foreground RoIs whose own object has a mask (set A).

        An RoI's mask is that of the object it was matched to by the box branch: no object of set B
        can lend its mask to an RoI of set A.
        """
        of_a, of_a_labels, goals = [], [], []
        for roi, label, match, scale, image, target in zip(
            rois, labels, matched, scales, images, targets, strict=True
        ):
            mine = torch.where(label > 0)[0]
            mine = mine[target["has_mask"].to(mine.device)[match[mine]]]
            windows = mask_windows(target["boxes"], image.shape[1], image.shape[2])
            mask_size = 2 * self.mask_pool.size
            of_a.append(roi[mine])
            of_a_labels.append(label[mine])
            goals.append(mask_targets(roi[mine] / scale, match[mine], target["masks"], windows, mask_size))
        table, bias = self.mask_table()
        weights = table[torch.cat(of_a_labels)]
        logits = self.mask_branch(self.mask_pool(features, of_a), weights, bias)
        return mask_loss(logits, torch.cat(goals))

    def jittered(self, boxes: Tensor) -> Tensor:
        """Boxes whose corners moved by up to `mask_box_jitter` of their sides, each its own way."""
        if self.mask_box_jitter == 0 or boxes.shape[0] == 0:
            return boxes
        side = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
        return boxes + (torch.rand_like(boxes) * 2 - 1) * self.mask_box_jitter * side

    def mask_table(self) -> tuple[Tensor, Tensor]:
        """Mask weights [C+1, F] of every label, and the bias (`model.weight_transfer.MaskWeights`)."""
        table: tuple[Tensor, Tensor] = self.mask_weights(
            self.box_predictor.cls_score.weight, self.box_predictor.bbox_pred.weight
        )
        return table

    # ---- answers ----

    @torch.no_grad()
    def inference(self) -> Inference:
        """The network as it is served, in evaluation mode: shares the weights, T baked into a table."""
        was_training = self.training
        self.eval()
        table, bias = self.mask_table()
        served = Inference(
            canvas=self.canvas,
            backbone=self.backbone,
            rpn=self.rpn,
            box_pool=self.box_pool,
            box_head=self.box_head,
            box_predictor=self.box_predictor,
            mask_pool=self.mask_pool,
            mask_branch=self.mask_branch,
            mask_table=table,
            mask_bias=bias,
            nms_iou=self.nms_iou,
            candidates_per_image=self.candidates_per_image,
        ).eval()
        if was_training:
            self.train()
        return served

    @torch.no_grad()
    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        """Detections of each image in its own pixels, see `Inference.forward`; for use in evaluation mode."""
        classes = self.box_predictor.cls_score.weight.shape[0]
        count = len(images)
        answers: list[dict[str, Tensor]] = self.inference()(
            images,
            torch.tensor([[image.shape[1], image.shape[2]] for image in images]).reshape(-1, 2),
            torch.full((count,), self.score_threshold),
            torch.full((count,), self.detections_per_image),
            torch.ones((count, classes), dtype=torch.bool),
            torch.ones(count, dtype=torch.bool),
        )
        return answers

    @torch.no_grad()
    def masks_on_boxes(
        self, images: list[Tensor], boxes: list[Tensor], labels: list[Tensor]
    ) -> list[tuple[Tensor, Tensor]]:
        """Run lengths of the masks on given boxes and labels, see `Inference.masks_on_boxes`."""
        return self.inference().masks_on_boxes(images, boxes, labels)
