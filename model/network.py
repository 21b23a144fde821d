"""Mask^X R-CNN (Fig. 2): backbone, RPN, box branch, and a mask branch whose weights are predicted.

Two methods, not two modes: `losses` for training and `forward` for answers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from model.backbones.c4 import Res5BoxHead
from model.boxes.ground_truth import GroundTruth, ground_truth
from model.boxes.head import BoxHead, BoxPredictor, ConvBoxHead, ConvFCBoxHead, encode_boxes
from model.boxes.pooling import PyramidRoIAlign
from model.boxes.rois import RoIs, on_ground_truth, sampled
from model.boxes.rpn import CrowdAwareRPN
from model.boxes.rpn_training import proposals_and_losses, proposed
from model.canvas import Canvas, canvas_side
from model.inference import Inference
from model.keypoints.head import KeypointBranch
from model.losses import Focal, Total, box_loss, class_loss, mask_loss, mask_softmax_loss, own_total
from model.masks.box_only import BoxOnly, box_only_losses
from model.masks.head import MaskBranch
from model.masks.object_prior import object_prior
from model.masks.targets import mask_targets
from model.masks.weight_transfer import MaskWeights
from model.targets import Target

Stage = Literal["end_to_end", "detector", "mask", "classes"]


class MaskXRCNN(nn.Module):
    """The network of Learning to Segment Every Thing; its parent Mask R-CNN is the class-agnostic form."""

    mask_shift: Tensor | None

    def __init__(
        self,
        *,
        canvas: Canvas,
        backbone: nn.Module,
        rpn: CrowdAwareRPN,
        box_pool: PyramidRoIAlign,
        box_head: BoxHead | ConvBoxHead | ConvFCBoxHead | Res5BoxHead,
        box_predictor: BoxPredictor,
        mask_pool: PyramidRoIAlign,
        mask_branch: MaskBranch,
        mask_weights: MaskWeights,
        keypoint_branch: KeypointBranch | None = None,
        mask_prior: bool,
        mask_on_res5: bool = False,
        class_focal: Focal | None = None,
        mask_softmax: bool,
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
        self.keypoint_branch = keypoint_branch
        self.mask_prior = mask_prior
        self.mask_on_res5 = mask_on_res5
        self.class_focal = class_focal
        self.mask_softmax = mask_softmax
        self.rois_per_image = rois_per_image
        self.positive_fraction = positive_fraction
        self.foreground_iou = foreground_iou
        self.masks_on_ground_truth = masks_on_ground_truth
        self.mask_box_jitter = mask_box_jitter
        self.score_threshold = score_threshold
        self.nms_iou = nms_iou
        self.detections_per_image = detections_per_image
        self.candidates_per_image = candidates_per_image
        self.register_buffer("mask_shift", None, persistent=False)
        self.stage: Stage = "end_to_end"
        self._trainable = {name for name, p in self.named_parameters() if p.requires_grad}

    @property
    def mask_size(self) -> int:
        """M, the side of a mask: every head's is twice its crop's, which conv5 has halved before."""
        return self.mask_pool.size if self.mask_on_res5 else 2 * self.mask_pool.size

    @property
    def batched(self) -> bool:
        """Whether training works on all images at once where a CPU is faster one by one (NMS, RoIAlign): so a GPU,
        which then waits for no image. Whoever puts the network on a device sets it; the losses are the same."""
        return self.rpn.batched

    @batched.setter
    def batched(self, batched: bool) -> None:
        for module in self.modules():
            if isinstance(module, CrowdAwareRPN | PyramidRoIAlign):
                module.batched = batched

    # ---- stages (Sec. 3.3) ----

    def detector_modules(self) -> list[nn.Module]:
        """All but the mask branch, the transfer function and the keypoint branch."""
        return [self.backbone, self.rpn, self.box_head, self.box_predictor]

    def set_stage(self, stage: Stage) -> None:
        """Choose what `losses` trains.

        "end_to_end": everything at once. "detector": no mask loss. "mask": the stage-wise training of
        Sec. 3.3, all but the mask branch and T frozen (batch statistics too), only the mask loss. A keypoint
        branch is trained where the mask branch is. "classes": the last layer of the box branch alone, by the class
        and box losses, so that w_det of further classes is learned; which rows stay is up to the caller.
        """
        if stage not in ("end_to_end", "detector", "mask", "classes"):
            raise ValueError(f"stage is {stage!r}; allowed are end_to_end, detector, mask and classes")
        self.stage = stage
        mask_side = ("mask_branch.", "mask_weights.", "keypoint_branch.")
        for name, parameter in self.named_parameters():
            of_mask = name.startswith(mask_side)
            left_out = (stage == "mask" and not of_mask) or (stage == "detector" and of_mask)
            left_out |= stage == "classes" and not name.startswith("box_predictor.")
            parameter.requires_grad_(name in self._trainable and not left_out)
        self.train(self.training)

    def train(self, mode: bool = True) -> MaskXRCNN:
        """As `nn.Module.train`, but a frozen detector stays in evaluation mode."""
        super().train(mode)
        if self.stage in ("mask", "classes"):
            for module in self.detector_modules():
                module.eval()
        return self

    # ---- training ----

    def losses(
        self,
        images: list[Tensor],
        targets: list[Target],
        box_only: BoxOnly | None = None,
        *,
        seeds: Sequence[int] | None = None,
        total: Total = own_total,
    ) -> dict[str, Tensor]:
        """Losses of a batch, each a scalar to be added up.

        Args:
            images: uint8 [3, h, w], RGB.
            targets: see `model.targets.Target`; boxes in each image's own pixels.
            box_only: what objects without masks teach the mask branch; None, as in the paper: nothing.
            seeds: one per image, from which its anchors and RoIs are drawn, whatever else is in the batch.
                None: from torch's own generator.
            total: see `model.losses.Total`.

        Returns:
            `loss_objectness`, `loss_rpn_box`, `loss_class`, `loss_box` and `loss_mask`; in stage
            "detector" without the last, in stage "mask" the last alone, in stage "classes" the third and
            fourth. With `loss_mask` come
            `loss_keypoint` of a network with keypoints and the losses that `box_only` asks for.
        """
        if len(images) != len(targets):
            raise ValueError(f"{len(images)} images came with {len(targets)} targets; one target an image")
        sizes = [t.get("size") or self.canvas.size_of(x) for x, t in zip(images, targets, strict=True)]
        height = canvas_side(max(size[0] for size in sizes), self.canvas.step)
        width = canvas_side(max(size[1] for size in sizes), self.canvas.step)
        truth = ground_truth(
            targets,
            shapes=[(image.shape[1], image.shape[2]) for image in images],
            sizes=sizes,
            seeds=torch.randint(2**63 - 1, (len(images),)).tolist() if seeds is None else seeds,
            device=self.canvas.mean.device,
        )

        losses: dict[str, Tensor] = {}
        frozen = self.stage in ("mask", "classes")
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            canvas = self.canvas.resized(images, sizes, height, width)
            features = self.backbone(canvas)
            if self.stage != "mask" or not self.masks_on_ground_truth:
                if frozen:
                    places = proposed(self.rpn, features, height, width, truth.sizes)
                else:
                    places, of_rpn = proposals_and_losses(self.rpn, features, height, width, truth, total)
                    losses |= of_rpn
                rois = sampled(
                    *places,
                    truth,
                    rois_per_image=self.rois_per_image,
                    positive_fraction=self.positive_fraction,
                    foreground_iou=self.foreground_iou,
                )
        if self.stage != "mask":
            losses |= self.box_losses(features, rois, truth, total)
        if self.stage not in ("detector", "classes"):
            if self.masks_on_ground_truth:
                rois = on_ground_truth(truth, self.mask_box_jitter)
            losses["loss_mask"] = self.mask_loss(features, rois, truth, total)
            if self.keypoint_branch is not None:
                losses["loss_keypoint"] = self.keypoint_branch.loss(features, rois, truth, total)
            if box_only is not None:
                losses |= box_only_losses(
                    self,
                    box_only,
                    features=features,
                    same_features=self.stage == "mask",
                    canvas=canvas,
                    rois=rois,
                    truth=truth,
                    total=total,
                )
        return losses

    def box_losses(
        self, features: dict[str, Tensor], rois: RoIs, truth: GroundTruth, total: Total
    ) -> dict[str, Tensor]:
        """Class and box losses over the sampled RoIs; boxes are decoded for the RoI's own class alone."""
        hidden = self.box_head(self.box_pool(features, rois.by_image()))
        mine = rois.foreground
        deltas = self.box_predictor.deltas_of(hidden.index_select(0, mine), rois.labels[mine])
        wanted = encode_boxes(truth.boxes.view(-1, 4)[rois.objects[mine]], rois.boxes[mine])
        sampled = total(rois.labels.numel())
        logits, focal = self.box_predictor(hidden), self.class_focal
        if focal is None:
            of_class = class_loss(logits, rois.labels, sampled)
        else:
            of_class = focal.of_classes(logits, rois.labels, total)
        return {"loss_class": of_class, "loss_box": box_loss(deltas, wanted, sampled)}

    def mask_loss(self, features: dict[str, Tensor], rois: RoIs, truth: GroundTruth, total: Total) -> Tensor:
        """Mask loss over the foreground RoIs whose own object has a mask (set A).

        An RoI's mask is that of the object it was matched to by the box branch: no object of set B
        can lend its mask to an RoI of set A.
        """
        mine = rois.with_mask
        label = rois.labels[mine]
        in_image = rois.boxes[mine] / truth.scales[rois.images[mine]]
        goal = mask_targets(in_image, rois.objects[mine], truth.masks, self.mask_size)
        of_a, count = rois.with_mask_by_image(), total(label.numel())
        if not self.mask_softmax:
            return mask_loss(self.mask_logits(features, of_a, label), goal, count)
        table, bias = self.mask_weights(
            self.box_predictor.cls_score.weight, self.box_predictor.bbox_pred.weight
        )
        logits = self.mask_branch.of_all_labels(self.mask_features(features, of_a, label), table, bias)
        return mask_softmax_loss(logits, goal, label, count)

    @torch.no_grad()
    def object_masks(
        self, features: dict[str, Tensor] | None, canvas: Tensor, boxes: list[Tensor], labels: Tensor
    ) -> Tensor:
        """Mask probabilities [N, M, M] on boxes (per image, in pixels of the canvas) for their labels [N].

        Without `features` they are computed from the canvas; for use in evaluation mode.
        """
        if features is None:
            features = self.backbone(canvas)
        return torch.sigmoid(self.mask_logits(features, boxes, labels))

    def mask_logits(self, features: dict[str, Tensor], rois: list[Tensor], labels: Tensor) -> Tensor:
        """Mask logits [R, M, M] of RoIs (per image, in pixels of the canvas), each for its own label [R]."""
        if self.mask_softmax:
            table, of_label = self.mask_table()
            weights, bias = table[labels], of_label[labels].view(-1, 1, 1)
        else:
            box = self.box_predictor
            weights, bias = self.mask_weights.of_labels(box.cls_score.weight, box.bbox_pred.weight, labels)
        logits: Tensor = self.mask_branch(self.mask_features(features, rois, labels), weights, bias)
        return logits

    def mask_features(self, features: dict[str, Tensor], rois: list[Tensor], labels: Tensor) -> Tensor:
        """What the mask head sees of RoIs [R, channels, S, S]: pooled, and with the prior of their labels [R] added, or
        after conv5 of the box head."""
        pooled: Tensor = self.mask_pool(features, rois)
        if self.mask_on_res5:
            assert isinstance(self.box_head, Res5BoxHead)
            return self.box_head.maps(pooled)
        if not self.mask_prior:
            return pooled
        assert isinstance(self.box_head, ConvBoxHead)
        maps = self.box_head.maps(self.box_pool(features, rois))
        prior = object_prior(maps, self.box_predictor.cls_score.weight[labels], self.mask_pool.size)
        return pooled + prior.unsqueeze(1).to(pooled.dtype)

    def mask_table(self) -> tuple[Tensor, Tensor]:
        """Mask weights [C+1, F] of every label, and the bias, [] or [C+1] (`model.masks.weight_transfer.MaskWeights`).

        Trained by a softmax over classes, a mask is that of its own class against the background: what the box
        branch has decided leaves these two, whose softmax is the sigmoid of their difference.
        """
        table, bias = self.mask_weights(
            self.box_predictor.cls_score.weight, self.box_predictor.bbox_pred.weight
        )
        return (table - table[:1], bias - bias[:1]) if self.mask_softmax else (table, bias)

    # ---- answers ----

    def set_mask_threshold(self, threshold: float, labels: Sequence[int]) -> None:
        """Let masks of `labels` take pixels from `threshold` on, in (0, 1), and others from 0.5 on; in answers alone.

        What is served keeps its 0.5: the logits of these labels are shifted, p >= threshold being
        logit(p) - logit(threshold) >= 0.
        """
        self.mask_shift = None
        if threshold != 0.5 and labels:
            weight = self.box_predictor.cls_score.weight
            self.mask_shift = torch.zeros(weight.shape[0], device=weight.device)
            self.mask_shift[list(labels)] = math.log((1 - threshold) / threshold)

    def set_keypoint_labels(self, labels: Sequence[int]) -> None:
        """Let objects of `labels` have keypoints, in answers, and no others."""
        if self.keypoint_branch is not None:
            self.keypoint_branch.of_label.fill_(False)
            self.keypoint_branch.of_label[list(labels)] = True

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
            keypoint_branch=self.keypoint_branch,
            mask_table=table,
            mask_bias=bias if self.mask_shift is None else bias + self.mask_shift,
            mask_prior=self.mask_prior,
            mask_on_res5=self.mask_on_res5,
            nms_iou=self.nms_iou,
            candidates_per_image=self.candidates_per_image,
        ).eval()
        served.batched = table.device.type != "cpu"
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
