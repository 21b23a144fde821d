"""The network's configuration: plain numbers and names, each default with its source.

Only `model.build` reads these classes; the leaves of the network take plain arguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from model.dataclass_io import from_plain, to_plain


@dataclass(frozen=True, kw_only=True)
class InputConfig:
    """How an image is brought to the network's size (Detectron: 800 / 1333)."""

    min_size: int = 800
    """Length of the shorter side, in pixels."""
    max_size: int = 1333
    """Upper bound of the longer side, in pixels."""
    canvas_step: int = 32
    """An image's canvas is its own resized size rounded up to a multiple of this (the deepest stride is 32)."""


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """Bottom-up network and its FPN (Lin et al., 2017)."""

    name: Literal["small", "efficientnet_lite0", "resnet50", "resnet101"] = "resnet50"
    weights: str = "imagenet"
    """"none", "imagenet", "coco" or the path of a state dict."""
    norm: Literal["batch", "frozen"] = "frozen"
    trainable_layers: int = 3
    """Stages trained, counted from the deepest (torchvision's default for a pretrained network)."""
    fpn_channels: int = 256


@dataclass(frozen=True, kw_only=True)
class RpnConfig:
    """Region proposal network on FPN levels (Detectron's settings)."""

    anchor_sizes: tuple[int, ...] = (32, 64, 128, 256, 512)
    """One anchor side per level, in pixels of the resized image."""
    aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    foreground_iou: float = 0.7
    background_iou: float = 0.3
    batch_per_image: int = 256
    positive_fraction: float = 0.5
    pre_nms_train: int = 2000
    pre_nms_test: int = 1000
    post_nms_train: int = 2000
    post_nms_test: int = 1000
    nms_iou: float = 0.7


@dataclass(frozen=True, kw_only=True)
class BoxConfig:
    """Box branch: RoIAlign 7x7, two fully connected layers, class scores and class-wise boxes."""

    head: Literal["fc", "conv"] = "fc"
    """Two fully connected layers (FPN), or four 3x3 convolutions and their mean over the cells (OPMask)."""
    width: int = 1024
    """D, the width of the detection weights w_cls that the transfer function reads."""
    roi_size: int = 7
    sampling_ratio: int = 2
    canonical_size: int = 224
    """Box side that is pooled from the level of stride 16 (FPN, eq. 1)."""
    rois_per_image: int = 512
    positive_fraction: float = 0.25
    foreground_iou: float = 0.5
    score_threshold: float = 0.05
    nms_iou: float = 0.5
    detections_per_image: int = 100
    candidates_per_image: int = 5000
    """K: at most this many (proposal, class) pairs are decoded per image."""


@dataclass(frozen=True, kw_only=True)
class MaskConfig:
    """Mask branch: an FCN, and beside it a class-agnostic MLP added to its logits (Sec. 3.4)."""

    head: Literal["fcn", "mlp", "hourglass20", "hourglass52"] = "fcn"
    """Before the mask weights: convolutions (Mask R-CNN, Fig. 4), fully connected layers as wide as the box branch's
    (Mask R-CNN, Table 2e), or an hourglass, deeper and with `roi_size` 32 (DeepMAC, arXiv:2104.00613)."""
    width: int = 256
    """F, the channels of the mask features, so the length of each class's mask weights; hourglasses begin with F/4."""
    convolutions: int = 4
    """Of the FCN. Four in Mask R-CNN, seven in OPMask, eight in ContrastMask."""
    roi_size: int = 14
    """Side of the crop; that of the mask is twice as much."""
    sampling_ratio: int = 2
    mlp: Literal["none", "slim", "official"] = "slim"
    """"official" is one layer of F*28*28 x 784 weights (157 M at F = 256), as the paper's own code has it."""
    train_on: Literal["proposals", "ground_truth"] = "proposals"
    """RoIs of the mask loss: sampled foreground proposals (the paper) or ground-truth boxes (DeepMAC)."""
    jitter: float = 0.0
    """Where the mask loss uses ground-truth boxes: corners move by up to this fraction of the side."""
    loss: Literal["sigmoid", "softmax"] = "sigmoid"
    """Each class's mask by itself, or classes that compete for each pixel (Mask R-CNN, Table 2b)."""
    prior: Literal["none", "cam"] = "none"
    """"cam": the class activation map of the box branch is added to the crop (the object mask prior of OPMask)."""

    def __post_init__(self) -> None:
        if self.width < 1 or self.roi_size < 1 or self.convolutions < 0:
            raise ValueError(
                f"width is {self.width}, roi_size {self.roi_size}, convolutions {self.convolutions}; "
                "give 1 or more, 1 or more, 0 or more"
            )
        step = {"hourglass20": 4, "hourglass52": 32}.get(self.head, 1)
        if self.roi_size % step:
            raise ValueError(
                f"roi_size is {self.roi_size}; head {self.head} halves its crop and wants a multiple of {step} "
                "(DeepMAC: 32)"
            )
        if self.head.startswith("hourglass") and self.width % 8:
            raise ValueError(f"width is {self.width}; head {self.head} wants a multiple of 8")
        if self.head.startswith("hourglass") and self.mlp == "official":
            raise ValueError(
                f"mlp official has {self.width} x {4 * self.roi_size**2} x {4 * self.roi_size**2} weights on the "
                f"crops of head {self.head}; take mlp slim or none"
            )
        if self.head == "mlp" and self.mlp != "none":
            raise ValueError(f"mlp is {self.mlp}, but head mlp is one already; set mlp to none")


@dataclass(frozen=True, kw_only=True)
class TransferConfig:
    """Where a class's mask weights come from (Sec. 3.2, Table 1)."""

    kind: Literal["transfer", "class_agnostic", "class_specific"] = "transfer"
    """T, or the same weights for all classes (the baseline), or each class's own, learned from its masks
    (Mask R-CNN): every class must have some."""
    input: Literal["cls", "box", "cls+box"] = "cls+box"
    layers: int = 2
    activation: Literal["leaky_relu", "relu"] = "leaky_relu"
    stop_gradient: bool = True
    """Hold w_det still for the mask loss (Table 1d)."""
    normalise: bool = False
    """Centre w_det over the foreground classes and scale each class to unit RMS before T (ours)."""
    residual: bool = False
    """w_seg = w_agnostic + T(w_det), T starting at zero (ours); false is the paper's w_seg = T(w_det)."""
    dropout: float = 0.0
    """Dropout on T's input (ours)."""
    noise: float = 0.0
    """Standard deviation of Gaussian noise on T's input, in units of the input's RMS (ours)."""
    mask_threshold: float = 0.5
    """Probability from which a pixel belongs to the mask of a class of set B, in answers; set A keeps 0.5, which all
    have in the paper. `training.calibrate_masks` chooses it (ours)."""

    def __post_init__(self) -> None:
        if not 0 < self.mask_threshold < 1:
            raise ValueError(f"mask_threshold is {self.mask_threshold}; it is above 0 and below 1")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything `model.build.build_network` needs beside the number of classes."""

    input: InputConfig = field(default_factory=InputConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    rpn: RpnConfig = field(default_factory=RpnConfig)
    box: BoxConfig = field(default_factory=BoxConfig)
    mask: MaskConfig = field(default_factory=MaskConfig)
    transfer: TransferConfig = field(default_factory=TransferConfig)

    def __post_init__(self) -> None:
        if self.mask.loss == "softmax" and self.transfer.kind != "class_specific":
            raise ValueError(
                f"model.mask.loss is softmax, whose classes compete with learned weights of their own, but "
                f"model.transfer.kind is {self.transfer.kind}; set it to class_specific, or the loss to sigmoid"
            )
        if self.mask.prior == "cam" and self.box.head != "conv":
            raise ValueError(
                f"model.mask.prior is cam, which reads class maps off convolutions, but model.box.head is "
                f"{self.box.head}; set it to conv"
            )


def to_dict(config: ModelConfig) -> dict[str, Any]:
    """Nested plain values, fit for a checkpoint read with `weights_only=True`."""
    return to_plain(config)


def model_config_from_dict(values: Mapping[str, Any]) -> ModelConfig:
    """Inverse of `to_dict`; a `ValueError` names an unknown key or a value that does not fit."""
    return from_plain(ModelConfig, values, "model")
