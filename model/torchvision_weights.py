"""torchvision's Mask R-CNN becomes this network: the configuration read off its weights, and the weights renamed.

The answers are torchvision's: boxes pooled without half a cell taken away, sides rounded down, class-specific masks.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from model.backbones.resnet import RESNETS, ResNet
from model.backbones.torchvision_state import State, convolution, count_of_blocks, under
from model.build import build_network
from model.checkpoint import load_weights
from model.config import ModelConfig, model_config_from_dict
from model.network import MaskXRCNN

_BOX_HEAD, _MASK_HEAD = "roi_heads.box_head", "roi_heads.mask_head"
_MASK_LOGITS = "roi_heads.mask_predictor.mask_fcn_logits"
_CLASS_SCORES = "roi_heads.box_predictor.cls_score.weight"
_RPN_LOGITS = "rpn.head.cls_logits.weight"
BOX_CONVOLUTIONS = 4


def torchvision_config(state: State) -> ModelConfig:
    """The configuration that `state` shows; what no weight shows (sizes, anchors, thresholds) as torchvision's
    `maskrcnn_resnet50_fpn` has it.

    Args:
        state: under torchvision's present names.

    Raises:
        ValueError: not the weights of torchvision's Mask R-CNN on a ResNet and a pyramid of five levels.
    """
    for key, what in (
        ("backbone.fpn.inner_blocks.3.0.weight", "feature pyramid on four stages of a ResNet"),
        (_RPN_LOGITS, "region proposal network"),
        (_CLASS_SCORES, "box branch with one layer of class scores"),
        (f"{_MASK_LOGITS}.weight", "mask branch (a Faster R-CNN has none)"),
        ("roi_heads.mask_predictor.conv5_mask.weight", "deconvolution before the mask logits"),
    ):
        if key not in state:
            raise ValueError(f"no {key}: not the weights of torchvision's Mask R-CNN, which has a {what}")
    channels = state["backbone.fpn.inner_blocks.3.0.weight"].shape[0]
    anchors = state[_RPN_LOGITS].shape[0]
    if anchors != len(ModelConfig().rpn.aspect_ratios):
        raise ValueError(
            f"{anchors} anchors at each place; expected 3, one size at each level and three shapes"
        )
    trained_norms = "backbone.body.bn1.num_batches_tracked" in state
    values: dict[str, Any] = {
        "input": {"rounding": "down"},
        "backbone": {
            "name": body_name(under(state, "backbone.body.")),
            "weights": "none",
            "norm": "batch" if trained_norms else "frozen",
            "trainable_layers": 5 if trained_norms else 3,
            "fpn_channels": channels,
        },
        "rpn": {"convolutions": count_of_blocks(state, "rpn.head.conv")},
        "box": {"aligned": False, **_box_head(state, channels)},
        "mask": {"mlp": "none", **_mask_head(state)},
        "transfer": {"kind": "class_specific"},
    }
    return model_config_from_dict(values)


def body_name(body: State) -> str:
    """Which of torchvision's ResNets has weights of these names and shapes; ValueError where none has."""
    shapes = {key: value.shape for key, value in body.items() if not key.endswith("num_batches_tracked")}
    for name in RESNETS:
        with torch.device("meta"):
            own = ResNet(name).state_dict()
        if shapes == {k: v.shape for k, v in own.items() if not k.endswith("num_batches_tracked")}:
            return name
    raise ValueError(f"backbone.body is none of {', '.join(RESNETS)}; other bodies cannot be converted")


def _box_head(state: State, channels: int) -> dict[str, Any]:
    width = state[_CLASS_SCORES].shape[1]
    if f"{_BOX_HEAD}.fc7.weight" in state:
        head, flat = "fc", state[f"{_BOX_HEAD}.fc6.weight"].shape
    else:
        head, key = "conv_fc", f"{_BOX_HEAD}.{BOX_CONVOLUTIONS + 1}.weight"
        if count_of_blocks(state, _BOX_HEAD) != BOX_CONVOLUTIONS or key not in state:
            raise ValueError(
                f"{_BOX_HEAD} is neither two fully connected layers nor {BOX_CONVOLUTIONS} convolutions and one such"
            )
        flat = state[key].shape
    side = math.isqrt(flat[1] // channels)
    if flat[0] != width or flat[1] != channels * side**2:
        raise ValueError(
            f"{_BOX_HEAD} reads {flat[1]} numbers and gives {flat[0]}; expected {channels} x side x side, and "
            f"{width} as the class scores read"
        )
    return {"head": head, "width": width, "roi_size": side}


def _mask_head(state: State) -> dict[str, Any]:
    convolutions = count_of_blocks(state, _MASK_HEAD)
    weights = [state[f"{_MASK_HEAD}.{i}.0.weight"] for i in range(convolutions)]
    widths = {weight.shape[0] for weight in weights} | {state[f"{_MASK_LOGITS}.weight"].shape[1]}
    if len(widths) != 1 or any(weight.shape[2:] != (3, 3) for weight in weights):
        raise ValueError(
            f"{_MASK_HEAD} has layers of {sorted(widths)} channels; expected 3x3 ones of one width"
        )
    return {"width": widths.pop(), "convolutions": convolutions}


def converted(state: State, config: ModelConfig, labels: Sequence[int]) -> MaskXRCNN:
    """The network of `config` with torchvision's weights, in evaluation mode.

    Args:
        state: under torchvision's present names, with normalisations of `model.backbones.torchvision_state.EPSILON`.
        config: `torchvision_config(state)`, perhaps with other sizes, anchors or thresholds.
        labels: torchvision's labels (1 and up) that become labels 1, 2, ... here; other rows are left out, so that
            their share of the softmax goes to the others.

    Raises:
        ValueError: weights that do not fit `config`, or a label that they have no row for.
    """
    rows_there = state[_CLASS_SCORES].shape[0]
    if wrong := [label for label in labels if not 0 < label < rows_there]:
        raise ValueError(f"labels {wrong[:4]}: the weights have the labels 1 to {rows_there - 1}")
    rows = torch.tensor([0, *labels])
    weights = {key: value for key, value in state.items() if key.startswith("backbone.body.")}
    for blocks in ("inner_blocks", "layer_blocks"):
        for k in range(4):
            name = f"backbone.fpn.{blocks}.{k}"
            weights |= _named(f"{name}.0", convolution(state, name))
    for i in range(config.rpn.convolutions):
        weights |= _named(f"rpn.head.conv.{i}.0", convolution(state, f"rpn.head.conv.{i}"))
    weights |= {f"rpn.{key}": value for key, value in under(state, "rpn.").items() if "conv." not in key}
    if config.box.head == "fc":
        weights |= {f"box_head.{key}": value for key, value in under(state, f"{_BOX_HEAD}.").items()}
    else:
        for i in range(BOX_CONVOLUTIONS):
            weights |= _named(f"box_head.convs.{2 * i}", convolution(state, f"{_BOX_HEAD}.{i}"))
        last = under(state, f"{_BOX_HEAD}.{BOX_CONVOLUTIONS + 1}.")
        weights |= {f"box_head.fc.{key}": value for key, value in last.items()}
    for key, value in under(state, "roi_heads.box_predictor.").items():
        each = value.reshape(rows_there, -1, *value.shape[1:])  # one row a class, or four
        weights[f"box_predictor.{key}"] = each[rows].flatten(0, 1)
    for i in range(config.mask.convolutions):
        weights |= _named(f"mask_branch.head.convs.{2 * i}", convolution(state, f"{_MASK_HEAD}.{i}"))
    for key, value in under(state, "roi_heads.mask_predictor.conv5_mask.").items():
        weights[f"mask_branch.head.deconv.{key}"] = value
    weights["mask_weights.specific"] = state[f"{_MASK_LOGITS}.weight"][rows, :, 0, 0]
    weights["mask_weights.bias"] = state[f"{_MASK_LOGITS}.bias"][rows]

    network = build_network(config, num_classes=len(labels))
    own = network.state_dict()
    counters = {key: value for key, value in own.items() if key.endswith("num_batches_tracked")}
    weights = {key: value for key, value in weights.items() if not key.endswith("num_batches_tracked")}
    load_weights(network, counters | weights, source="torchvision's weights")
    return network.eval()


def _named(name: str, convolution: tuple[Tensor, Tensor]) -> State:
    weight, bias = convolution
    return {f"{name}.weight": weight, f"{name}.bias": bias}
