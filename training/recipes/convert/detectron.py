"""detectron2's and Detectron's Mask R-CNN become this network, and with them the paper's own, with T and MLP.

The configuration is read off names and shapes. What no weight shows is as the model zoos' configurations have it:

* Detectron: pixels blue, green, red less `PIXEL_MEANS`; boxes that end at their last pixel, anchors around the middle
  of a cell, RoIs pooled without half a cell taken away; two samples a bin (FPN) or as many as it has cells (C4).
* detectron2: pixels blue, green, red less ImageNet's mean; exact anchors, aligned pooling, as many samples as cells.
* Both: the stride in the first convolution of a bottleneck for ResNets (weights of He et al.), in the 3x3 one for
  ResNeXts.
"""

import re
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from model.backbones import DETECTRON_MEAN, DETECTRON_STD, IMAGENET_MEAN, IMAGENET_STD, Pixel
from model.backbones.torchvision_state import EPSILON, State, convolution, under
from model.build import build_network
from model.checkpoint import load_weights
from model.config import ModelConfig, model_config_from_dict
from model.network import MaskXRCNN
from training.recipes.convert.names import DETECTRON, DETECTRON2, NORM, in_c4_form, renamed
from training.recipes.convert.pickles import File
from training.recipes.convert.shapes import shown

PixelOrder = Literal["bgr", "bgr/std", "rgb/std"]
BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
EMPTY_MASK_BIAS = -30.0
"""Logit of every pixel where a file has no masks: none is inside."""
COCO_CLASSES = 80
VISUAL_GENOME_ROWS = 3002
"""Background and the 3 001 classes of the paper's Visual Genome (Sec. 5), COCO's 80 first."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """A network of others: its weights under our names, and what they and its configuration show."""

    state: State
    config: ModelConfig
    mean: Pixel
    """Of the pixels in red, green, blue that its weights were trained with."""
    std: Pixel
    reversed: bool
    """Whether its first convolution reads blue, green, red."""
    ratios_together: bool = False
    """Whether all ratios of an anchor's size come one after the other; else all sizes of a ratio, as here."""
    anchors: tuple[Tensor, ...] = ()
    """Cell anchors of each level, where the file brings them."""
    labels_with_masks: tuple[int, ...] | None = None
    """Labels of set A; None where nothing says which. Empty: the file has no masks."""

    @property
    def rows(self) -> int:
        """Rows of classes, background included."""
        return self.state["box_predictor.cls_score.weight"].shape[0]


def is_detectron2(state: State) -> bool:
    """Whether the names are detectron2's."""
    return any(
        name.startswith(("backbone.bottom_up.", "backbone.stem.", "proposal_generator.")) for name in state
    )


def is_detectron(state: State) -> bool:
    """Whether the names are Detectron's."""
    return "conv1_w" in state


def read_detectron2(file: File, pixels: PixelOrder | None = None) -> Found:
    """A network of detectron2.

    Args:
        pixels: their order, and whether they are divided by ImageNet's deviation; None: as the file says, else "bgr" of
            ResNets and "bgr/std" of ResNeXts, as in the model zoo.

    Raises:
        ValueError: a network that this one cannot be.
    """
    state = renamed(file.state, DETECTRON2)
    _require(state, "box_predictor.cls_score.weight", "box branch")
    if "backbone.body.bn1.running_var" not in state:
        raise ValueError(
            "backbone stem.conv1.norm.running_var is missing: the backbone is normalised by groups, not as here"
        )
    state = _folded(state)
    predictor = state["box_predictor.cls_score.weight"]
    classes = predictor.shape[0] - 1
    for part in ("weight", "bias"):
        scores = state[f"box_predictor.cls_score.{part}"]
        state[f"box_predictor.cls_score.{part}"] = torch.cat([scores[-1:], scores[:-1]])
        state[f"box_predictor.bbox_pred.{part}"] = _with_background(
            state[f"box_predictor.bbox_pred.{part}"], 4
        )
    if "mask_weights.specific" in state and (classes == 1 or state["mask_weights.specific"].shape[0] > 1):
        for name in ("mask_weights.specific", "mask_weights.bias"):
            state[name] = _with_background(state[name], 1)
    values = shown(state)
    cardinal = values["backbone"]["name"].startswith("resnext")
    order, mean, std = _pixels_of(
        file.state, pixels or ("bgr/std" if cardinal else "bgr"), given=pixels is not None
    )
    c4 = values["box"].get("head") == "res5"
    for branch in ("box", "mask", "keypoints"):
        values[branch] = values.get(branch, {}) | {"sampling_ratio": 0}
    values["rpn"] |= {"anchors": "exact", "spacing": "stride"}
    anchors = [v for k, v in sorted(file.state.items()) if ".cell_anchors." in k]
    return Found(
        state=in_c4_form(state) if c4 else state,
        config=model_config_from_dict(values),
        mean=mean,
        std=std,
        reversed=order == "bgr",
        ratios_together=c4,
        anchors=() if c4 else tuple(anchors),
        labels_with_masks=_labels_with_masks(state, values, ""),
    )


def read_detectron(file: File) -> Found:
    """A network of Detectron's model zoo or of the paper's authors (seg_every_thing).

    Raises:
        ValueError: a network that this one cannot be.
    """
    state = renamed(file.state, DETECTRON)
    _require(state, "box_predictor.cls_score.weight", "box branch")
    for name in [name for name in state if re.search(r"(\.bn\d|\.downsample\.1)\.weight$", name)]:
        # AffineChannel has scale and bias alone: x * scale + bias.
        state[name.replace("weight", "running_mean")] = torch.zeros_like(state[name])
        state[name.replace("weight", "running_var")] = torch.full_like(state[name], 1.0 - EPSILON)
    last = "mask_weights.transfer.layers.last."
    layers = sum(name.startswith("mask_weights.transfer.layers.") for name in state) // 2
    for part in ("weight", "bias") if f"{last}weight" in state else ():
        state[f"mask_weights.transfer.layers.{2 * layers - 2}.{part}"] = state.pop(f"{last}{part}")
    values = shown(state)
    told = file.configuration or ""
    if file.configuration is not None and "BBOX_REG_WEIGHTS" not in told:
        _weigh_boxes(state)
    cardinal = values["backbone"]["name"].startswith("resnext")
    if stride := re.search(r"\bSTRIDE_1X1: *(true|false)", told, flags=re.I):
        values["backbone"]["stride_in"] = "1x1" if stride[1].lower() == "true" else "3x3"
    else:
        values["backbone"]["stride_in"] = "3x3" if cardinal else "1x1"
    if re.search(r"\bUSE_LEAKYRELU: *false", told, flags=re.I) and values["transfer"]["kind"] == "transfer":
        values["transfer"]["activation"] = "relu"
    values["input"] = {"pixels": "detectron"}
    values["rpn"] |= {"anchors": "detectron", "spacing": "stride"}
    values["box"] |= {"aligned": False, "inclusive": True}
    c4 = values["box"].get("head") == "res5"
    if c4:
        for branch in ("box", "mask"):
            values[branch] |= {"sampling_ratio": 0}
    return Found(
        state=in_c4_form(state) if c4 else state,
        config=model_config_from_dict(values),
        mean=DETECTRON_MEAN,
        std=DETECTRON_STD,
        reversed=True,
        labels_with_masks=_labels_with_masks(state, values, told),
    )


def network_of(found: Found, config: ModelConfig) -> MaskXRCNN:
    """The network of `config` with the weights found, in evaluation mode.

    Args:
        config: that of `found`, perhaps with other sizes, anchors or thresholds.

    Raises:
        ValueError: weights that do not fit `config`, or other anchors or statistics of the input than they were trained
            with.
    """
    network = build_network(config, num_classes=found.rows - 1)
    own = network.state_dict()
    mean, std = network.canvas.mean.flatten(), network.canvas.std.flatten()
    if not torch.allclose(mean, torch.tensor(found.mean), atol=1e-3):
        raise ValueError(
            f"model.input.pixels is {config.input.pixels}, a mean of {_rounded(mean)}, and the weights were trained "
            f"with {_rounded(torch.tensor(found.mean))}; leave it as the file asks for"
        )
    if found.anchors:
        ours = network.rpn.anchor_generator.cell_anchors
        same = [
            a.shape == b.shape and torch.allclose(a, b, atol=0.02)
            for a, b in zip(ours, found.anchors, strict=False)
        ]
        if len(same) < len(ours) or not all(same):
            sides = [int(((a[0, 2:] - a[0, :2]).prod() ** 0.5).round()) for a in found.anchors]
            raise ValueError(
                f"the file's anchors are of other sides than {list(config.rpn.anchor_sizes)} or other shapes; give "
                f"model.rpn.anchor_sizes={sides} and the model.rpn.aspect_ratios that it was trained with"
            )
    state = dict(found.state)
    first = next(name for name in own if name.startswith("backbone.body.") and own[name].dim() == 4)
    weight = state[first].flip(1) if found.reversed else state[first]
    state[first] = weight * (std / torch.tensor(found.std)).view(1, 3, 1, 1)
    if found.ratios_together:
        sizes, ratios = len(config.rpn.anchor_sizes), len(config.rpn.aspect_ratios)
        for key in [key for key in state if re.match(r"rpn\.head\.(cls_logits|bbox_pred)\.", key)]:
            if (
                state[key].shape[0] % (sizes * ratios) == 0
            ):  # else it does not fit, and `load_weights` says so
                by_size = state[key].unflatten(0, (sizes, ratios, -1))
                state[key] = by_size.transpose(0, 1).flatten(0, 2)
    if found.labels_with_masks == ():
        state |= _without_masks(own)
    state |= {name: value for name, value in own.items() if name.endswith("num_batches_tracked")}
    load_weights(network, state, source="the file")
    return network.eval()


def _labels_with_masks(state: State, values: dict[str, Any], told: str) -> tuple[int, ...] | None:
    """See `Found`; `told` is Detectron's configuration."""
    rows = state["box_predictor.cls_score.weight"].shape[0]
    if "mask_branch.head.deconv.weight" not in state:
        return ()
    if values["transfer"]["kind"] == "class_specific":
        return tuple(range(1, rows))
    if kept := re.search(r"MRCNN_LABELS_TO_KEEP:((?:[\s(),\-!\[\]]|\d|python/tuple)+)", told):
        labels = {int(number) for number in re.findall(r"\d+", kept[1])} & set(range(1, rows))
        if labels:
            return tuple(sorted(labels))
    return tuple(range(1, COCO_CLASSES + 1)) if rows == VISUAL_GENOME_ROWS else None


def _without_masks(own: State) -> State:
    """Weights of a mask branch in whose masks no pixel is."""
    names = [name for name in own if name.startswith(("mask_branch.", "mask_weights."))]
    empty = {name: torch.zeros_like(own[name]) for name in names}
    empty["mask_weights.bias"].fill_(EMPTY_MASK_BIAS)
    return empty


def _weigh_boxes(state: State) -> None:
    """Files older than Detectron's `BBOX_REG_WEIGHTS` have offsets as they are: make them those times `BOX_WEIGHTS`,
    and have T read what it read before; in place."""
    for part in ("weight", "bias"):
        offsets = state[f"box_predictor.bbox_pred.{part}"]
        factor = offsets.new_tensor(BOX_WEIGHTS).repeat(offsets.shape[0] // 4)
        state[f"box_predictor.bbox_pred.{part}"] = offsets * factor.view(-1, *[1] * (offsets.dim() - 1))
    first = state.get("mask_weights.transfer.layers.0.weight")
    width = state["box_predictor.cls_score.weight"].shape[1]
    if first is not None and first.shape[1] >= 4 * width:
        scores, boxes = first[:, : first.shape[1] - 4 * width], first[:, first.shape[1] - 4 * width :]
        by_offset = boxes.unflatten(1, (4, width)) / boxes.new_tensor(BOX_WEIGHTS).view(1, 4, 1)
        state["mask_weights.transfer.layers.0.weight"] = torch.cat([scores, by_offset.flatten(1)], dim=1)


def _folded(state: State) -> State:
    """Normalisations after convolutions of the pyramid and the heads, folded into them."""
    answer = {name: value for name, value in state.items() if NORM not in name}
    for name in [name for name in state if name.endswith(f"{NORM}.running_var")]:
        own = name.removesuffix(f"{NORM}.running_var")
        block = {f"c.0.{key}": value for key, value in under(state, f"{own}.").items()}
        block |= {f"c.1.{key}": value for key, value in under(state, f"{own}{NORM}.").items()}
        answer[f"{own}.weight"], answer[f"{own}.bias"] = convolution(block, "c")
    return answer


def _pixels_of(state: State, order: str, *, given: bool) -> tuple[str, Pixel, Pixel]:
    """ "bgr" or "rgb", mean and deviation in red, green, blue: those of the file where it has them."""
    colours, _, divided = order.partition("/")
    std = IMAGENET_STD if divided else (1.0, 1.0, 1.0)
    if "pixel_mean" not in state or given:
        return colours, IMAGENET_MEAN, std
    mean = [float(v) for v in state["pixel_mean"].flatten()]
    deviation = [float(v) for v in state.get("pixel_std", torch.ones(3)).flatten()]
    colours = "rgb" if mean[0] > mean[2] else "bgr"
    if colours == "bgr":
        mean, deviation = mean[::-1], deviation[::-1]
    return colours, (mean[0], mean[1], mean[2]), (deviation[0], deviation[1], deviation[2])


def _with_background(rows: Tensor, each: int) -> Tensor:
    return torch.cat([torch.zeros_like(rows[:each]), rows])


def _require(state: State, name: str, what: str) -> None:
    if name not in state:
        raise ValueError(f"no {what}: not the weights of a Mask R-CNN, Faster R-CNN or Keypoint R-CNN")


def _rounded(values: Tensor) -> list[float]:
    return [round(float(value), 3) for value in values]
