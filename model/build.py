"""The assembler: the one place that reads `ModelConfig` and hands plain numbers to the leaves."""

import math

import torch

from model.backbones import Backbone, build_backbone
from model.backbones.c4 import STRIDE, C4Backbone, build_c4
from model.backbones.timm_body import TimmBody
from model.boxes.anchors import anchor_generator
from model.boxes.head import BoxHead, BoxPredictor, ConvBoxHead, ConvFCBoxHead, FCBoxHead, xavier_filled
from model.boxes.pooling import PyramidBicubicRoIAlign, PyramidRoIAlign, PyramidRoIPool
from model.boxes.rois import Sampling
from model.boxes.rpn import CrowdAwareRPN, Float32RPNHead, RpnForm
from model.canvas import Canvas
from model.config import ModelConfig
from model.detector import Parts
from model.keypoints.head import KeypointBranch
from model.losses import Focal, HeadLosses
from model.masks.head import MaskBranch, MaskHead, MLPMaskHead, OfficialMaskMLP, SlimMaskMLP
from model.masks.hourglass import HourglassMaskHead, hourglass_20, hourglass_52
from model.masks.object_prior import BoxHeadWithPrior
from model.masks.weight_transfer import MaskWeights
from model.network import MaskXRCNN
from model.serving import norms_to_fold


def build_network(config: ModelConfig, *, num_classes: int) -> MaskXRCNN:
    """Mask^X R-CNN for `num_classes` classes (background not counted)."""
    if num_classes < 1:
        raise ValueError(f"num_classes is {num_classes}; at least one class is needed")
    if len(config.rpn.anchor_sizes) != 5 and not uses_c4(config):
        raise ValueError(
            f"rpn.anchor_sizes has {len(config.rpn.anchor_sizes)} sizes; the pyramid has 5 levels"
        )
    backbone, box_side = backbone_and_box_head(config)
    channels = backbone.out_channels
    box_focal, mask = config.box.focal, config.mask
    head = mask_head(config, channels)
    before = mask.width // 2 if isinstance(head, HourglassMaskHead) else mask.width
    if mask.head == "fcn" and mask.convolutions == 0:
        before = channels
    if mask.head == "res5":
        before = config.box.width
    mlp = {
        "none": lambda: None,
        "slim": lambda: SlimMaskMLP(width=before, roi_size=mask.roi_size),
        "official": lambda: OfficialMaskMLP(width=mask.width, mask_size=2 * mask.roi_size),
    }[mask.mlp]()
    parts = Parts(
        canvas=Canvas(
            min_size=config.input.min_size,
            max_size=config.input.max_size,
            step=config.input.canvas_step,
            round_down=config.input.rounding == "down",
            mean=list(backbone.pixel_mean),
            std=list(backbone.pixel_std),
        ),
        backbone=backbone,
        rpn=rpn(config, channels),
        box_pool=roi_pooling(
            config,
            form=config.box.pooling,
            size=config.box.roi_size,
            sampling_ratio=config.box.sampling_ratio,
        ),
        box_head=box_side,
        box_predictor=BoxPredictor(
            width=config.box.width,
            num_classes=num_classes,
            nms_iou=config.box.nms_iou,
            candidates_per_image=config.box.candidates_per_image,
            prior=box_focal.prior if config.box.loss == "focal" else None,
        ),
        mask_pool=roi_pooling(
            config,
            form=mask.pooling,
            size=mask.roi_size * box_side.crop_step,
            sampling_ratio=mask.sampling_ratio,
        ),
        mask_branch=MaskBranch(head=head, mlp=mlp),
    )
    return MaskXRCNN(
        parts,
        mask_weights=MaskWeights(
            config.transfer, num_classes=num_classes, box_width=config.box.width, mask_width=mask.width
        ),
        keypoint_branch=keypoint_branch(config, channels, num_classes),
        sampling=Sampling(
            rois_per_image=config.box.rois_per_image,
            positive_fraction=config.box.positive_fraction,
            foreground_iou=config.box.foreground_iou,
            masks_on_ground_truth=mask.train_on == "ground_truth",
            mask_box_jitter=mask.jitter,
            mask_stage_on_set_a=mask.stage_rois == "set_a",
        ),
        head_losses=HeadLosses(
            class_focal=Focal(box_focal.gamma, box_focal.alpha) if config.box.loss == "focal" else None,
            box_beta=config.box.smooth_l1_beta,
            mask_softmax=mask.loss == "softmax",
        ),
        score_threshold=config.box.score_threshold,
        detections_per_image=config.box.detections_per_image,
    )


def rpn(config: ModelConfig, channels: int) -> CrowdAwareRPN:
    """The RPN over as many levels as there are anchor sizes, or with all of them on the one level of the C4 form."""
    own = config.rpn
    of_level = (own.anchor_sizes,) if uses_c4(config) else tuple((size,) for size in own.anchor_sizes)
    anchors = anchor_generator(of_level, own.aspect_ratios, own.anchors, STRIDE if uses_c4(config) else 4)
    head = Float32RPNHead(channels, anchors.num_anchors_per_location()[0], own.convolutions)
    pre_nms_train, pre_nms_test = own.before_nms(one_level=uses_c4(config))
    focal = own.focal if own.loss == "focal" else None
    if focal is not None:
        torch.nn.init.constant_(head.cls_logits.bias, math.log(focal.prior / (1 - focal.prior)))
    return CrowdAwareRPN(
        anchors,
        head,
        own.foreground_iou,
        own.background_iou,
        own.batch_per_image,
        own.positive_fraction,
        {"training": pre_nms_train, "testing": pre_nms_test},
        {"training": own.post_nms_train, "testing": own.post_nms_test},
        own.nms_iou,
        focal=None if focal is None else Focal(focal.gamma, focal.alpha),
        form=RpnForm(
            straddle=own.straddle,
            images_together=own.images_together,
            frozen_proposals=own.post_nms_frozen,
            first_stride=(STRIDE if uses_c4(config) else 4) if own.spacing == "stride" else 0,
        ),
    )


def uses_c4(config: ModelConfig) -> bool:
    """Whether the network is of the C4 form (`model.backbones.c4`): one level, conv4."""
    return config.box.head == "res5"


def backbone_and_box_head(config: ModelConfig) -> tuple[Backbone | C4Backbone, BoxHead]:
    """The backbone and the box head of the configuration; in the C4 form both come from one ResNet.

    ValueError where a model of timm could not be exported, before it is trained.
    """
    own = config.backbone
    backbone = build_backbone(
        name=own.name,
        weights=own.weights,
        fpn_channels=own.fpn_channels,
        norm=own.norm,
        trainable_layers=own.trainable_layers,
        stride_in=own.stride_in,
        pixels=config.input.pixels,
    )
    if uses_c4(config):
        return build_c4(backbone, name=own.name, width=config.box.width, of_masks=config.mask.head == "res5")
    if isinstance(backbone.body, TimmBody):
        with torch.no_grad():
            norms_to_fold(backbone.eval(), torch.zeros(1, 3, 64, 64))
        backbone.train()
    return backbone, box_head(config, backbone.out_channels)


def roi_pooling(config: ModelConfig, *, form: str, size: int, sampling_ratio: int) -> PyramidRoIAlign:
    """Pooling of RoIs to `size` cells, over the levels of the pyramid or from conv4 alone."""
    if form == "bicubic" and sampling_ratio == 0:
        raise ValueError("sampling_ratio is 0, of pooling bicubic; give 1 or more, or take pooling align")
    pooling = {"align": PyramidRoIAlign, "bicubic": PyramidBicubicRoIAlign, "roi_pool": PyramidRoIPool}[form]
    return pooling(
        size=size,
        sampling_ratio=sampling_ratio,
        canonical_size=config.box.canonical_size,
        levels=1 if uses_c4(config) else 4,
        first_stride=STRIDE if uses_c4(config) else 4,
        aligned=config.box.aligned or form == "roi_pool",
        inclusive=config.box.inclusive,
    )


def box_head(config: ModelConfig, channels: int) -> BoxHead:
    """The box head of the configuration on `channels` pooled channels."""
    head = _box_head(config, channels)
    if config.box.init == "xavier":
        xavier_filled(head)
    return head


def _box_head(config: ModelConfig, channels: int) -> BoxHead:
    box = config.box
    if box.head == "conv":
        form = BoxHeadWithPrior if config.mask.prior == "cam" else ConvBoxHead
        return form(channels=channels, width=box.width)
    if box.head == "conv_fc":
        return ConvFCBoxHead(channels=channels, roi_size=box.roi_size, width=box.width)
    return FCBoxHead(channels=channels, roi_size=box.roi_size, width=box.width)


def mask_head(config: ModelConfig, channels: int) -> MaskHead | MLPMaskHead | HourglassMaskHead:
    """The mask head of the configuration on `channels` pooled channels."""
    mask = config.mask
    if mask.head.startswith("hourglass"):
        form = hourglass_20 if mask.head == "hourglass20" else hourglass_52
        return form(channels=channels, width=mask.width, roi_size=mask.roi_size)
    if mask.head == "mlp":
        return MLPMaskHead(
            channels=channels, roi_size=mask.roi_size, hidden=config.box.width, width=mask.width
        )
    if mask.head == "res5":
        return MaskHead(channels=config.box.width, width=mask.width, convolutions=0)
    return MaskHead(channels=channels, width=mask.width, convolutions=mask.convolutions)


def keypoint_branch(config: ModelConfig, channels: int, num_classes: int) -> KeypointBranch | None:
    """The keypoint branch of the configuration on levels of `channels` channels; None without keypoints."""
    keypoints = config.keypoints
    if not keypoints.used:
        return None
    return KeypointBranch(
        pool=roi_pooling(
            config, form="align", size=keypoints.roi_size, sampling_ratio=keypoints.sampling_ratio
        ),
        channels=channels,
        width=keypoints.width,
        convolutions=keypoints.convolutions,
        keypoints=len(keypoints.all_names),
        num_classes=num_classes,
    )
