"""The network's configuration: plain numbers and names, each default with its source.

`model.build` reads these classes; the leaves of the network take plain arguments, but for the weight transfer, which
takes its own section.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from model.dataclass_io import from_plain, require_at_least, to_plain
from model.files import did_you_mean
from model.keypoints.layout import KeypointsConfig


@dataclass(frozen=True, kw_only=True)
class InputConfig:
    """How an image is brought to the network's size (Detectron: 800 / 1333)."""

    min_size: int = 800
    """Length of the shorter side, in pixels."""
    max_size: int = 1333
    """Upper bound of the longer side, in pixels."""
    canvas_step: int = 32
    """An image's canvas is its own resized size rounded up to a multiple of this (the deepest stride is 32)."""
    rounding: Literal["nearest", "down"] = "nearest"
    """Of the resized sides, to whole pixels: Detectron's way, or torchvision's, for detectors that come from there."""
    pixels: Literal["backbone", "detectron"] = "backbone"
    """Statistics by which pixels are normalised: those of the backbone (ResNets: ImageNet's, as torchvision's and
    detectron2's), or Detectron's, a mean of 122.7717, 115.9465, 102.9801 and no deviation, for weights from there."""


BackboneName = Literal[
    "small", "efficientnet_lite0",
    "resnet18", "resnet34", "resnet50", "resnet101", "resnext101_32x8d", "resnext101_64x4d",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """Bottom-up network and its FPN (Lin et al., 2017)."""

    name: BackboneName | str = "resnet50"
    """Or timm:NAME, any model of timm that gives maps of strides 4 to 32 (requirements/timm.txt)."""
    weights: str = "imagenet"
    """"none", "imagenet", "coco" or "coco_v2" (body and pyramid of torchvision's Mask R-CNN on ResNet-50), or the path
    of a state dict, of a classifier or a whole detector of torchvision."""
    norm: Literal["batch", "frozen", "sync", "group"] = "frozen"
    """Of batches, held still (the paper), of the batches of all processes together (SyncBN; served as "batch"), or of
    groups of channels, in the pyramid too (Wu and He, 2018)."""
    trainable_layers: int = 3
    """Stages trained, counted from the deepest (torchvision's default for a pretrained network)."""
    fpn_channels: int = 256
    stride_in: Literal["3x3", "1x1"] = "3x3"
    """The convolution of a bottleneck that has the stage's stride: torchvision's ResNets, or those of He et al. (2016),
    whose weights Detectron starts from."""

    def __post_init__(self) -> None:
        known = get_args(BackboneName)
        if self.name not in known and not self.name.startswith("timm:"):
            raise ValueError(
                f"name is {self.name!r}; allowed are {', '.join(known)}, and timm:NAME"
                + did_you_mean(self.name, known, shown=repr)
            )


@dataclass(frozen=True, kw_only=True)
class FocalConfig:
    """Focal loss (Lin et al., 2017), where a `loss` is "focal"; the defaults are the paper's for RetinaNet."""

    gamma: float = 2.0
    """How much what is right already counts less; 0: not at all."""
    alpha: float = 0.25
    """Weight of foreground; that of background is 1 - alpha."""
    prior: float = 0.01
    """Probability of foreground that the biases begin with (Sec. 4.1 there)."""

    def __post_init__(self) -> None:
        if self.gamma < 0 or not 0 <= self.alpha <= 1 or not 0 < self.prior < 1:
            raise ValueError(
                f"gamma is {self.gamma}, alpha {self.alpha}, prior {self.prior}; give 0 or more, 0 to 1, and between "
                "0 and 1"
            )


@dataclass(frozen=True, kw_only=True)
class RpnConfig:
    """Region proposal network on FPN levels (Detectron's settings)."""

    anchor_sizes: tuple[int, ...] = (32, 64, 128, 256, 512)
    """One anchor side per level, in pixels of the resized image."""
    convolutions: int = 1
    """3x3 convolutions before the two 1x1 ones; torchvision's second detectors (v2) have two."""
    aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    anchors: Literal["rounded", "exact", "detectron"] = "rounded"
    """Around the corner of a cell with sides in whole pixels (torchvision) or as they come out (detectron2), or around
    its middle with sides in whole cells (Detectron): `model.boxes.anchors`."""
    foreground_iou: float = 0.7
    background_iou: float = 0.3
    batch_per_image: int = 256
    positive_fraction: float = 0.5
    straddle: int = -1
    """Pixels by which an anchor that is learnt from may reach out of its image; -1: any number (torchvision,
    detectron2). Detectron: 0."""
    spacing: Literal["canvas", "stride"] = "canvas"
    """Distance of neighbouring anchors: the canvas' side by the level's cells, rounded down (torchvision; 61 pixels on
    the coarsest level of a side of 800), or the level's stride, there 64 (Detectron, detectron2)."""
    pre_nms_train: int | None = None
    """The best anchors of each level and image that are looked at. Absent: 2 000, and 12 000 on the one level of the C4
    form (Detectron)."""
    pre_nms_test: int | None = None
    """As in training, in answers. Absent: 1 000, and 6 000."""
    post_nms_train: int = 2000
    post_nms_test: int = 1000
    images_together: int = 1
    """Images that share `post_nms_train` proposals, the best of all. Detectron: the 2 of a GPU. Which of a batch they
    are is the same for any number of processes and parts that divides it evenly."""
    post_nms_frozen: int | None = None
    """Proposals of an image where the mask branch is trained on a frozen detector. Absent: `post_nms_test`."""
    nms_iou: float = 0.7
    loss: Literal["cross_entropy", "focal"] = "cross_entropy"
    """Of sampled anchors (Faster R-CNN), or the focal loss of all, divided by the foreground ones, as their boxes'."""
    focal: FocalConfig = field(default_factory=FocalConfig)

    def __post_init__(self) -> None:
        require_at_least(
            1,
            convolutions=self.convolutions,
            pre_nms_train=self.pre_nms_train,
            pre_nms_test=self.pre_nms_test,
            images_together=self.images_together,
            post_nms_frozen=self.post_nms_frozen,
        )
        require_at_least(-1, straddle=self.straddle)

    def before_nms(self, *, one_level: bool) -> tuple[int, int]:
        """`pre_nms_train` and `pre_nms_test`, or what is usual on several levels or one."""
        train, test = (12_000, 6_000) if one_level else (2_000, 1_000)
        return self.pre_nms_train or train, self.pre_nms_test or test


@dataclass(frozen=True, kw_only=True)
class BoxConfig:
    """Box branch: RoIAlign 7x7, two fully connected layers, class scores and class-wise boxes."""

    head: Literal["fc", "conv", "conv_fc", "res5"] = "fc"
    """Two fully connected layers (FPN), or four 3x3 convolutions and their mean over the cells (OPMask), or four 3x3
    convolutions and one fully connected layer (torchvision's second detectors). "res5" is the C4 form (Mask R-CNN,
    Fig. 4, left): no pyramid, all is read off conv4 of a ResNet, whose conv5 is the head (roi_size 14, width 2048)."""
    pooling: Literal["align", "bicubic", "roi_pool"] = "align"
    """RoIAlign, bilinear or bicubic, or RoIPool (Mask R-CNN, Table 2c), for comparison."""
    width: int = 1024
    """D, the width of the detection weights w_cls that the transfer function reads."""
    roi_size: int = 7
    sampling_ratio: int = 2
    """Samples of a bin along each side; 0: as many as the RoI has cells to a bin, rounded up (detectron2, and
    Detectron's C4 form), by torchvision's operator."""
    canonical_size: int = 224
    """Box side that is pooled from the level of stride 16 (FPN, eq. 1)."""
    aligned: bool = True
    """Whether the pooling of boxes and masks takes half a cell away, as it must for a cell's centre to be its place
    (Detectron2). false: torchvision's detectors, which were trained without."""
    inclusive: bool = False
    """Whether a box ends with its last pixel, as in Detectron, where one from 3 to 5 is three pixels wide: pooled and
    enlarged it is by the places of its first and last pixel."""
    rois_per_image: int = 512
    positive_fraction: float = 0.25
    foreground_iou: float = 0.5
    init: Literal["torch", "xavier"] = "torch"
    """How the fully connected layers of the heads "fc" and "conv_fc" start: uniform in +-sqrt(1 / fan-in), biases too
    (torch's own), or by Caffe2's XavierFill, in +-sqrt(3 / fan-in), biases at 0 (Detectron)."""
    smooth_l1_beta: float = 1 / 9
    """Error of a box's delta from which its loss rises straight (torchvision). 1: Fast R-CNN, Detectron; small errors
    then count a ninth of it."""
    loss: Literal["cross_entropy", "focal"] = "cross_entropy"
    """Of the classes of the sampled RoIs; the focal loss is divided by the foreground ones."""
    focal: FocalConfig = field(default_factory=FocalConfig)
    score_threshold: float = 0.05
    nms_iou: float = 0.5
    detections_per_image: int = 100
    candidates_per_image: int = 5000
    """K: at most this many (proposal, class) pairs are decoded per image."""

    def __post_init__(self) -> None:
        if self.smooth_l1_beta < 0:
            raise ValueError(f"smooth_l1_beta is {self.smooth_l1_beta}; give 0 (the plain L1 loss) or more")


@dataclass(frozen=True, kw_only=True)
class MaskConfig:
    """Mask branch: an FCN, and beside it a class-agnostic MLP added to its logits (Sec. 3.4)."""

    head: Literal["fcn", "mlp", "hourglass20", "hourglass52", "res5"] = "fcn"
    """Before the mask weights: convolutions (Mask R-CNN, Fig. 4), fully connected layers as wide as the box branch's
    (Mask R-CNN, Table 2e), or an hourglass, deeper and with `roi_size` 32 (DeepMAC, arXiv:2104.00613); "res5" is the
    deconvolution alone, on what the box head "res5" makes of a crop of twice `roi_size`: 7 (Fig. 4, left)."""
    width: int = 256
    """F, the channels of the mask features, so the length of each class's mask weights; hourglasses begin with F/4."""
    convolutions: int = 4
    """Of the FCN. Four in Mask R-CNN, seven in OPMask, eight in ContrastMask."""
    roi_size: int = 14
    """Side of the crop; that of the mask is twice as much."""
    sampling_ratio: int = 2
    """As `model.box.sampling_ratio`, of the mask branch."""
    pooling: Literal["align", "bicubic", "roi_pool"] = "align"
    """As `model.box.pooling`, of the mask branch."""
    mlp: Literal["none", "slim", "official"] = "slim"
    """"official" is one layer of F*28*28 x 784 weights (157 M at F = 256), as the paper's own code has it."""
    train_on: Literal["proposals", "ground_truth"] = "proposals"
    """RoIs of the mask loss: sampled foreground proposals (the paper) or ground-truth boxes (DeepMAC)."""
    stage_rois: Literal["all", "set_a"] = "all"
    """Objects that RoIs are matched to where the mask branch is trained on a frozen detector: all, RoIs of set B being
    left out afterwards, or those of set A alone, as if the data had no others (the paper's code)."""
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
    input: Literal["cls", "box", "cls+box", "random", "words"] = "cls+box"
    """What T reads (Table 1a): detection weights, or for each class a fixed row that no detector has learned: random
    numbers, or the vectors of the words in its name."""
    word_vectors: str = ""
    """Of input "words": a file in GloVe's text format, read when a training starts; the checkpoint keeps the rows."""
    vector_width: int = 300
    """Numbers in a row of the inputs "random" and "words" (300 in the paper's code); as many as the file has."""
    random_rows: Literal["class", "word"] = "class"
    """Of input "random": each class has normal numbers of its own (ours), or the mean of a random vector of length 1
    for each word of its name, which other names with the word share (the paper's code)."""
    layers: int = 2
    activation: Literal["leaky_relu", "relu"] = "leaky_relu"
    init: Literal["fan_in", "fan_out"] = "fan_in"
    """T's weights start normal of variance 2 / fan-in (ours), or 2 / fan-out, Caffe2's MSRAFill (the paper's code);
    by it a layer from 5 120 to 256 starts 4.5 times as large. Class-specific weights start with deviation 0.001 (ours),
    or by MSRAFill too, their fan-out being the C + 1 classes."""
    stop_gradient: bool = True
    """Hold w_det still for the mask loss (Table 1d)."""
    normalise: bool = False
    """Centre w_det over the foreground classes and scale each class to unit RMS before T (ours)."""
    kept_mean: bool = False
    """Centre on the mean kept in the checkpoint, that of the classes T was trained on, so that classes added later
    change no mask of the others; `training.recipes.grow` and `training.recipes.two_stage` set it (ours)."""
    kept_rows: bool = False
    """Classes whose mask weights were learned from masks of their own keep them, each with its bias, beside T, which
    speaks for the others; `training.recipes.fit_transfer` sets it (ours)."""
    residual: bool = False
    """w_seg = w_agnostic + T(w_det), T starting at zero (ours); false is the paper's w_seg = T(w_det)."""
    dropout: float = 0.0
    """Dropout on T's input (ours)."""
    noise: float = 0.0
    """Standard deviation of Gaussian noise on T's input, in units of the input's RMS (ours)."""
    mask_threshold: float = 0.5
    """Probability from which a pixel belongs to the mask of a class of set B, in answers; set A keeps 0.5, which all
    have in the paper. `training.experiments.mask_threshold` chooses it (ours)."""

    def __post_init__(self) -> None:
        if not 0 < self.mask_threshold < 1:
            raise ValueError(f"mask_threshold is {self.mask_threshold}; it is above 0 and below 1")
        if (self.input == "words") != bool(self.word_vectors):
            raise ValueError(
                f"input is {self.input} and word_vectors {self.word_vectors!r}; the one wants the other: input=words "
                "and word_vectors=FILE in GloVe's text format, or neither"
            )
        if self.vector_width < 1:
            raise ValueError(f"vector_width is {self.vector_width}; give 1 or more, 300 in the paper's code")
        if self.input in ("random", "words") and not self.stop_gradient:
            raise ValueError(
                f"stop_gradient is false, but input {self.input} has fixed rows that no gradient reaches; leave it true"
            )
        if self.kept_mean and not self.normalise:
            raise ValueError("kept_mean is true, but nothing is centred: set normalise to true too")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything `model.build.build_network` needs beside the number of classes."""

    input: InputConfig = field(default_factory=InputConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    rpn: RpnConfig = field(default_factory=RpnConfig)
    box: BoxConfig = field(default_factory=BoxConfig)
    mask: MaskConfig = field(default_factory=MaskConfig)
    transfer: TransferConfig = field(default_factory=TransferConfig)
    keypoints: KeypointsConfig = field(default_factory=KeypointsConfig)

    def __post_init__(self) -> None:
        if self.mask.loss == "softmax" and self.transfer.kind != "class_specific":
            raise ValueError(
                f"model.mask.loss is softmax, whose classes compete with learned weights of their own, but "
                f"model.transfer.kind is {self.transfer.kind}; set it to class_specific, or the loss to sigmoid"
            )
        if self.box.head == "res5" and self.box.roi_size % 2:
            raise ValueError(
                f"model.box.roi_size is {self.box.roi_size}, and model.box.head res5 halves its crop; give an even "
                "one (Mask R-CNN: 14)"
            )
        if self.box.head == "res5" and self.backbone.norm in ("batch", "sync"):
            raise ValueError(
                f"model.backbone.norm is {self.backbone.norm}, but conv5 of model.box.head res5 sees RoIs, of which a "
                "batch may have none; set it to frozen (Mask R-CNN) or group"
            )
        if self.mask.head == "res5" and self.box.head != "res5":
            raise ValueError(
                f"model.mask.head is res5, that of the box branch, but model.box.head is {self.box.head}; set it to "
                "res5 too, or model.mask.head to another"
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
