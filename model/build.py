"""The assembler: the one place that reads `ModelConfig` and hands plain numbers to the leaves."""

from __future__ import annotations

from model.backbone import build_backbone
from model.box_branch import BoxHead, BoxPredictor, ConvBoxHead
from model.canvas import Canvas
from model.config import ModelConfig
from model.hourglass import HourglassMaskHead, hourglass_20, hourglass_52
from model.mask_branch import MaskBranch, MaskHead, MLPMaskHead, OfficialMaskMLP, SlimMaskMLP
from model.network import MaskXRCNN
from model.pooling import PyramidRoIAlign
from model.rpn import build_rpn
from model.weight_transfer import MaskWeights


def build_network(config: ModelConfig, *, num_classes: int) -> MaskXRCNN:
    """Mask^X R-CNN for `num_classes` classes (background not counted)."""
    if num_classes < 1:
        raise ValueError(f"num_classes is {num_classes}; at least one class is needed")
    if len(config.rpn.anchor_sizes) != 5:
        raise ValueError(
            f"rpn.anchor_sizes has {len(config.rpn.anchor_sizes)} sizes; the pyramid has 5 levels"
        )
    backbone = build_backbone(
        name=config.backbone.name,
        weights=config.backbone.weights,
        fpn_channels=config.backbone.fpn_channels,
        norm=config.backbone.norm,
        trainable_layers=config.backbone.trainable_layers,
    )
    channels = backbone.out_channels
    mask = config.mask
    head = mask_head(config, channels)
    before = mask.width // 2 if isinstance(head, HourglassMaskHead) else mask.width
    if mask.head == "fcn" and mask.convolutions == 0:
        before = channels
    mlp = {
        "none": lambda: None,
        "slim": lambda: SlimMaskMLP(width=before, roi_size=mask.roi_size),
        "official": lambda: OfficialMaskMLP(width=mask.width, mask_size=2 * mask.roi_size),
    }[mask.mlp]()
    return MaskXRCNN(
        canvas=Canvas(
            min_size=config.input.min_size,
            max_size=config.input.max_size,
            step=config.input.canvas_step,
            mean=list(backbone.pixel_mean),
            std=list(backbone.pixel_std),
        ),
        backbone=backbone,
        rpn=build_rpn(
            channels=channels,
            anchor_sizes=config.rpn.anchor_sizes,
            aspect_ratios=config.rpn.aspect_ratios,
            foreground_iou=config.rpn.foreground_iou,
            background_iou=config.rpn.background_iou,
            batch_per_image=config.rpn.batch_per_image,
            positive_fraction=config.rpn.positive_fraction,
            pre_nms_train=config.rpn.pre_nms_train,
            pre_nms_test=config.rpn.pre_nms_test,
            post_nms_train=config.rpn.post_nms_train,
            post_nms_test=config.rpn.post_nms_test,
            nms_iou=config.rpn.nms_iou,
        ),
        box_pool=PyramidRoIAlign(
            size=config.box.roi_size,
            sampling_ratio=config.box.sampling_ratio,
            canonical_size=config.box.canonical_size,
        ),
        box_head=ConvBoxHead(channels=channels, width=config.box.width)
        if config.box.head == "conv"
        else BoxHead(channels=channels, roi_size=config.box.roi_size, width=config.box.width),
        box_predictor=BoxPredictor(width=config.box.width, num_classes=num_classes),
        mask_pool=PyramidRoIAlign(
            size=mask.roi_size, sampling_ratio=mask.sampling_ratio, canonical_size=config.box.canonical_size
        ),
        mask_branch=MaskBranch(head=head, mlp=mlp),
        mask_weights=MaskWeights(
            kind=config.transfer.kind,
            num_classes=num_classes,
            input=config.transfer.input,
            box_width=config.box.width,
            mask_width=mask.width,
            layers=config.transfer.layers,
            relu=config.transfer.activation == "relu",
            stop_gradient=config.transfer.stop_gradient,
            normalise=config.transfer.normalise,
            residual=config.transfer.residual,
            dropout=config.transfer.dropout,
            noise=config.transfer.noise,
        ),
        mask_prior=mask.prior == "cam",
        mask_softmax=mask.loss == "softmax",
        rois_per_image=config.box.rois_per_image,
        positive_fraction=config.box.positive_fraction,
        foreground_iou=config.box.foreground_iou,
        masks_on_ground_truth=mask.train_on == "ground_truth",
        mask_box_jitter=mask.jitter,
        score_threshold=config.box.score_threshold,
        nms_iou=config.box.nms_iou,
        detections_per_image=config.box.detections_per_image,
        candidates_per_image=config.box.candidates_per_image,
    )


def mask_head(config: ModelConfig, channels: int) -> MaskHead | MLPMaskHead | HourglassMaskHead:
    """The mask head of the configuration on `channels` pooled channels."""
    mask = config.mask
    if mask.head == "hourglass20":
        return hourglass_20(channels=channels, width=mask.width, roi_size=mask.roi_size)
    if mask.head == "hourglass52":
        return hourglass_52(channels=channels, width=mask.width, roi_size=mask.roi_size)
    if mask.head == "mlp":
        return MLPMaskHead(
            channels=channels, roi_size=mask.roi_size, hidden=config.box.width, width=mask.width
        )
    return MaskHead(channels=channels, width=mask.width, convolutions=mask.convolutions)
