"""Mask^X R-CNN (Fig. 2): backbone, RPN, box branch, and a mask branch whose weights are predicted.

Two methods, not two modes: `losses` for training and `forward` for answers.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, Self

import torch
from torch import Tensor, nn

from model.boxes.ground_truth import Batch, ground_truth
from model.boxes.head import encode_boxes
from model.boxes.pooling import PyramidRoIAlign
from model.boxes.rois import RoIs, Sampling, on_ground_truth, sampled
from model.boxes.rpn import CrowdAwareRPN
from model.boxes.rpn_training import proposals_and_losses, proposed
from model.boxes.seen import levels_together, proposals_together
from model.canvas import canvas_side, scaled_boxes
from model.detector import Detector, Parts
from model.host import waiting
from model.inference import Inference
from model.keypoints.head import KeypointBranch
from model.losses import (
    HeadLosses,
    LossDivisor,
    box_loss,
    class_loss,
    mask_loss,
    mask_softmax_loss,
    own_total,
)
from model.masks.box_only import BoxOnly, box_only_losses
from model.masks.targets import mask_targets
from model.masks.weight_transfer import MaskWeights
from model.targets import Target, without_objects

Stage = Literal["end_to_end", "detector", "mask", "classes"]


class MaskXRCNN(Detector):
    """The network of Learning to Segment Every Thing; its parent Mask R-CNN is the class-agnostic form.

    Args:
        head_losses: of the box and mask branches.
        score_threshold, detections_per_image: of `forward`.
    """

    mask_shift: Tensor | None

    def __init__(
        self,
        parts: Parts,
        *,
        mask_weights: MaskWeights,
        keypoint_branch: KeypointBranch | None = None,
        sampling: Sampling,
        head_losses: HeadLosses = HeadLosses(),  # noqa: B008  (it is frozen)
        score_threshold: float,
        detections_per_image: int,
    ) -> None:
        super().__init__(parts)
        self.mask_weights = mask_weights
        self.keypoint_branch = keypoint_branch
        self.sampling = sampling
        self.head_losses = head_losses
        self.score_threshold = score_threshold
        self.detections_per_image = detections_per_image
        self.register_buffer("mask_shift", None, persistent=False)
        self.stage: Stage = "end_to_end"
        self._trainable = {name for name, p in self.named_parameters() if p.requires_grad}

    @property
    def mask_size(self) -> int:
        """M, the side of a mask: every head's is twice its crop's, which conv5 may have halved before."""
        return 2 * self.mask_pool.size // self.box_head.crop_step

    @property
    def mask_softmax(self) -> bool:
        """Whether classes compete for each pixel."""
        return self.head_losses.mask_softmax

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

    def train(self, mode: bool = True) -> Self:
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
        total: LossDivisor = own_total,
    ) -> dict[str, Tensor]:
        """Losses of a batch, each a scalar to be added up.

        Args:
            images: uint8 [3, h, w], RGB.
            targets: see `model.targets.Target`; boxes in each image's own pixels. What a frozen detector sees is
                not computed again where they have it.
            box_only: what objects without masks teach the mask branch; None, as in the paper: nothing.
            seeds: one per image, from which its anchors and RoIs are drawn, whatever else is in the batch.
                None: from torch's own generator.
            total: see `model.losses.LossDivisor`.

        Returns:
            `loss_objectness`, `loss_rpn_box`, `loss_class`, `loss_box` and `loss_mask`; in stage
            "detector" without the last, in stage "mask" the last alone, in stage "classes" the third and
            fourth. With `loss_mask` come
            `loss_keypoint` of a network with keypoints and the losses that `box_only` asks for.
        """
        if len(images) != len(targets):
            raise ValueError(f"{len(images)} images came with {len(targets)} targets; one target an image")
        losses: dict[str, Tensor] = {}
        frozen = self.stage in ("mask", "classes")
        on_objects = self.sampling.masks_on_ground_truth
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            batch = self.batch_of(images, targets, seeds, total)
            if self.stage != "mask" or not on_objects:
                if frozen:
                    places = batch.proposals or proposed(self.rpn, batch)
                else:
                    places, of_rpn = proposals_and_losses(self.rpn, batch)
                    losses |= of_rpn
                of_a = self.stage == "mask" and self.sampling.mask_stage_on_set_a
                rois = sampled(*places, batch.truth.of_set_a() if of_a else batch.truth, self.sampling)
        if self.stage != "mask":
            losses |= self.box_losses(batch, rois)
        if self.stage not in ("detector", "classes"):
            if on_objects:
                rois = on_ground_truth(batch.truth, self.sampling.mask_box_jitter)
            logits, goal, labels = self.masks_of_set_a(batch, rois)
            count, weights = total(labels.numel()), batch.truth.weights_of(rois.objects[rois.with_mask])
            if self.mask_softmax:
                losses["loss_mask"] = mask_softmax_loss(logits, goal, labels, count, weights)
            else:
                losses["loss_mask"] = mask_loss(logits, goal, count, weights)
            if self.keypoint_branch is not None:
                losses["loss_keypoint"] = self.keypoint_branch.loss(batch, rois)
            if box_only is not None:
                same = self.stage == "mask"
                losses |= box_only_losses(self, box_only, batch, rois, same_features=same)
        return losses

    def batch_of(
        self, images: list[Tensor], targets: list[Target], seeds: Sequence[int] | None, total: LossDivisor
    ) -> Batch:
        """The images on one canvas, its features, and the objects on it; see `losses`."""
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
        if self.box_pool.inclusive:
            own = (truth.labels > 0)[..., None]
            moved = scaled_boxes(truth.boxes / truth.scales[:, None], truth.scales[:, None], True)
            truth = replace(truth, boxes=torch.where(own, moved, truth.boxes))
        canvas = self.canvas.resized(images, sizes, height, width)
        seen = [target["seen"] for target in targets if "seen" in target]
        if not seen:
            return Batch(canvas=canvas, features=self.backbone(canvas), truth=truth, total=total)
        features, proposals = levels_together(seen, canvas.device), proposals_together(seen, canvas.device)
        return Batch(canvas=canvas, features=features, truth=truth, total=total, proposals=proposals)

    @torch.no_grad()
    def seen(self, image: Tensor, *, proposals: bool = True) -> list[Tensor]:
        """What the detector, held still, sees of one image uint8 [3, h, w]; see `model.boxes.seen`.

        Without `proposals` there are none in it, for who learns from the objects' own boxes.
        """
        batch = self.batch_of([image], [without_objects()], [0], own_total)
        levels = [batch.features[str(k)][0] for k in range(self.mask_pool.levels)]
        if not proposals:
            return [*levels, batch.truth.boxes.new_zeros((0, 4))]
        boxes, valid = proposed(self.rpn, batch)
        with waiting():
            return [*levels, boxes[0][valid[0]]]

    def box_losses(self, batch: Batch, rois: RoIs) -> dict[str, Tensor]:
        """Class and box losses over the sampled RoIs; boxes are decoded for the RoI's own class alone."""
        hidden = self.box_head(self.box_pool(batch.features, rois.on_images()))
        mine = rois.foreground
        deltas = self.box_predictor.deltas_of(hidden.index_select(0, mine), rois.labels[mine])
        wanted = encode_boxes(batch.truth.boxes.view(-1, 4)[rois.objects[mine]], rois.boxes[mine])
        sampled = batch.total(rois.labels.numel())
        logits, focal = self.box_predictor(hidden), self.head_losses.class_focal
        if focal is None:
            of_class = class_loss(logits, rois.labels, sampled)
        else:
            of_class = focal.of_classes(logits, rois.labels, batch.total)
        of_box = box_loss(deltas, wanted, sampled, self.head_losses.box_beta)
        return {"loss_class": of_class, "loss_box": of_box}

    def masks_of_set_a(self, batch: Batch, rois: RoIs) -> tuple[Tensor, Tensor, Tensor]:
        """Mask logits, targets [R, M, M] and labels [R] of the foreground RoIs whose own object has a mask (set A).

        An RoI's mask is that of the object it was matched to by the box branch: no object of set B
        can lend its mask to an RoI of set A. Logits are [R, M, M], or where classes compete [R, C+1, M, M].
        """
        mine, truth = rois.with_mask, batch.truth
        labels = rois.labels[mine]
        scales = truth.scales[rois.images[mine]]
        in_image = rois.boxes[mine] / scales
        if self.box_pool.inclusive:
            in_image = scaled_boxes(rois.boxes[mine], 1.0 / scales, True)
        goal = mask_targets(in_image, rois.objects[mine], truth.masks, self.mask_size)
        placed = rois.on_images(mine)
        if not self.mask_softmax:
            return self.mask_logits(batch.features, placed, labels), goal, labels
        features = self.mask_features(batch.features, placed, labels)
        return self.mask_branch.of_all_labels(features, *self.mask_weights_of_all()), goal, labels

    @torch.no_grad()
    def object_masks(
        self, features: dict[str, Tensor] | None, canvas: Tensor, rois: Tensor, labels: Tensor
    ) -> Tensor:
        """Mask probabilities [R, M, M] of RoIs [R, 5] (image, then XYXY in pixels of the canvas) for their labels [R].

        Without `features` they are computed from the canvas; for use in evaluation mode.
        """
        if features is None:
            features = self.backbone(canvas)
        return torch.sigmoid(self.mask_logits(features, rois, labels))

    def mask_rows(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mask weights [R, F] of labels [R], and the bias: one for all [], or [R, 1, 1]."""
        if self.mask_softmax:
            table, of_label = self.mask_table()
            return table[labels], of_label[labels].view(-1, 1, 1)
        box = self.box_predictor
        return self.mask_weights.of_labels(box.cls_score.weight, box.bbox_pred.weight, labels)

    def mask_weights_of_all(self) -> tuple[Tensor, Tensor]:
        """Mask weights [C+1, F] of every label, and the bias, [] or [C+1] (`model.masks.weight_transfer`)."""
        box = self.box_predictor
        weights: tuple[Tensor, Tensor] = self.mask_weights(box.cls_score.weight, box.bbox_pred.weight)
        return weights

    def mask_table(self) -> tuple[Tensor, Tensor]:
        """`mask_weights_of_all` as masks are made of them.

        Trained by a softmax over classes, a mask is that of its own class against the background: what the box
        branch has decided leaves these two, whose softmax is the sigmoid of their difference.
        """
        table, bias = self.mask_weights_of_all()
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
        bias = bias if self.mask_shift is None else bias + self.mask_shift
        served = Inference(self, self.keypoint_branch, table, bias).eval()
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
