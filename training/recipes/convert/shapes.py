"""The configuration of a detector that the names and shapes of its weights show."""

import math
import re
from typing import Any

from model.backbones.torchvision_state import State, under
from model.torchvision_weights import body_name

KEYPOINTS_OF_COCO = 17


def shown(state: State) -> dict[str, Any]:
    """The configuration that names and shapes show; brings `state` to the names that hang on it, in place."""
    pyramid = "backbone.fpn.inner_blocks.3.0.weight" in state
    body = {
        name: value
        for name, value in under(state, "backbone.body.").items()
        if re.match(r"conv1|bn1|layer\d", name)
    }
    name = body_name(body)
    width = state["box_predictor.cls_score.weight"].shape[1]
    rows = state["box_predictor.cls_score.weight"].shape[0]
    if state["box_predictor.bbox_pred.weight"].shape[0] != 4 * rows:
        raise ValueError(
            f"bbox_pred has {state['box_predictor.bbox_pred.weight'].shape[0]} rows for {rows - 1} classes: boxes are "
            "the same for all classes there; this network's are of each class"
        )
    values: dict[str, Any] = {
        "backbone": {
            "name": name,
            "weights": "none",
            "norm": "frozen",
            "stride_in": "3x3" if name.startswith("resnext") or name in ("resnet18", "resnet34") else "1x1",
        },
        "rpn": {
            "convolutions": sum(bool(re.fullmatch(r"rpn\.head\.conv\.\d\.0\.weight", key)) for key in state)
        },
        "box": {"width": width},
        "mask": {"mlp": "none"},
        "transfer": {"kind": "class_agnostic"},
    }
    if pyramid:
        channels = state["backbone.fpn.inner_blocks.3.0.weight"].shape[0]
        values["backbone"]["fpn_channels"] = channels
        values["box"] |= _box_head(state, channels, width)
    else:
        values["box"] |= {"head": "res5", "roi_size": 14}
        values["rpn"] |= {"pre_nms_test": 6000, "post_nms_test": 1000}
    values["mask"] |= _mask_branch(state, pyramid, rows, values["transfer"])
    if "keypoint_branch.deconv.weight" in state:
        keypoints = state["keypoint_branch.deconv.weight"].shape[1]
        named = {"layout": "coco"}
        if keypoints != KEYPOINTS_OF_COCO:
            named = {"layout": "own", "names": [f"keypoint {k}" for k in range(1, keypoints + 1)]}  # type: ignore[dict-item]
        values["keypoints"] = named | {
            "width": state["keypoint_branch.deconv.weight"].shape[0],
            "convolutions": sum(bool(re.match(r"keypoint_branch\.convs\.\d+\.weight", key)) for key in state),
        }
    return values


def _box_head(state: State, channels: int, width: int) -> dict[str, Any]:
    flat = state["box_head.fc6.weight"].shape[1]
    side = math.isqrt(flat // channels)
    convolutions = sum(bool(re.match(r"box_head\.convs\.\d+\.weight", key)) for key in state)
    if flat != channels * side**2 or (convolutions, "box_head.fc7.weight" in state) not in (
        (0, True),
        (4, False),
    ):
        raise ValueError(
            f"the box head has {convolutions} convolutions and reads {flat} numbers; expected two fully connected "
            f"layers on {channels} channels, or four convolutions and one such"
        )
    if convolutions:
        for part in ("weight", "bias"):
            state[f"box_head.fc.{part}"] = state.pop(f"box_head.fc6.{part}")
    return {"head": "conv_fc" if convolutions else "fc", "roi_size": side, "width": width}


def _mask_branch(state: State, pyramid: bool, rows: int, transfer: dict[str, Any]) -> dict[str, Any]:
    """The mask section; fills that of the transfer, and gives mask weights their form, both in place."""
    if "mask_branch.head.deconv.weight" not in state:
        return {"width": 8, "convolutions": 0}  # see `_without_masks`
    width = state["mask_branch.head.deconv.weight"].shape[1]
    values: dict[str, Any] = {"width": width}
    if pyramid:
        convolutions = sum(bool(re.match(r"mask_branch\.head\.convs\.\d+\.weight", key)) for key in state)
        values |= {"convolutions": convolutions}
    else:
        values |= {"head": "res5", "roi_size": 7}
    if "mask_branch.mlp.fc.bias" in state:
        side = math.isqrt(state["mask_branch.mlp.fc.bias"].shape[0])
        values |= {"mlp": "official", "roi_size": side // 2}
    weights = state.get("mask_weights.specific")
    layers = sum(bool(re.match(r"mask_weights\.transfer\.layers\.\d+\.weight", key)) for key in state)
    if layers:
        read = state["mask_weights.transfer.layers.0.weight"].shape[1]
        parts = {1: "cls", 4: "box", 5: "cls+box"}
        of_box = read / state["box_predictor.cls_score.weight"].shape[1]
        if of_box not in parts:
            raise ValueError(
                f"the weight transfer function reads {read} numbers of a class: not its weights of scores, boxes or "
                "both, but perhaps vectors of words (Table 1a), which cannot be converted"
            )
        transfer |= {"kind": "transfer", "layers": layers, "input": parts[int(of_box)]}
    elif weights is None:
        raise ValueError(
            "there is a mask branch, but neither mask weights of classes nor a weight transfer function"
        )
    elif weights.shape[0] == rows:
        transfer |= {"kind": "class_specific"}
        state["mask_weights.specific"] = weights.reshape(rows, width)
    elif weights.shape[0] == 1:
        state["mask_weights.agnostic"] = state.pop("mask_weights.specific").reshape(width)
        state["mask_weights.bias"] = state["mask_weights.bias"].reshape(())
    else:
        raise ValueError(
            f"{weights.shape[0]} rows of mask weights for {rows} of class scores; expected as many, or one"
        )
    return values
