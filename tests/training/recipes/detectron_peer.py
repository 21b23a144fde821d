"""Mask R-CNN as Detectron computes it, written anew from its definition, and files of weights as it and detectron2 have
them.

Boxes are Detectron's here: from their first pixel to their last, so that a box from 3 to 5 is `plus` = 1 pixel wider
than 5 - 3. With `plus` = 0 the same lines are detectron2's network.
"""

import pickle
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import batched_nms, roi_align

from model.backbones.torchvision_state import State
from tests.training.recipes.torchvision_peer import Answer

BLOCKS = {2: 3, 3: 4, 4: 6, 5: 3}
"""Of the stages of ResNet-50."""
SIZES, RATIOS = (32, 64, 128, 256, 512), (0.5, 1.0, 2.0)
FPN, HIDDEN, MASK, POSE = 16, 32, 8, 24


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A network of Detectron or of detectron2."""

    form: str = "fpn"
    """"fpn" or "c4"."""
    masks: str = "specific"
    """"specific", "agnostic", "transfer" (with the MLP), "pose" (keypoints, no masks) or "none"."""
    classes: int = 5
    plus: int = 1
    proposals: int = 60

    @property
    def samples(self) -> int:
        """Of a bin; 0: as many as cells."""
        return 2 if self.plus and self.form == "fpn" else 0

    @property
    def mean(self) -> tuple[float, float, float]:
        """Of blue, green and red."""
        return (102.9801, 115.9465, 122.7717) if self.plus else (103.53, 116.28, 123.675)


# ---- files ----


def blobs(kind: Kind, seed: int = 0) -> State:
    """Random weights that detect something, under Detectron's names."""
    generator = torch.Generator().manual_seed(seed)
    found: State = {}

    def normal(*shape: int, std: float) -> Tensor:
        return torch.randn(*shape, generator=generator) * std

    def layer(name: str, *shape: int, gain: float = 1.0, std: float | None = None) -> None:
        inputs = int(np.prod(shape[1:]))
        found[f"{name}_w"] = normal(*shape, std=gain * inputs**-0.5 if std is None else std)
        found[f"{name}_b"] = normal(shape[0], std=0.05)

    def affine(name: str, inputs: int, outputs: int, side: int, scale: float) -> None:
        found[f"{name}_w"] = normal(outputs, inputs, side, side, std=(2 / (inputs * side**2)) ** 0.5)
        bn = "res_conv1_bn" if name == "conv1" else f"{name}_bn"
        found[f"{bn}_s"] = scale * (0.75 + 0.5 * torch.rand(outputs, generator=generator))
        found[f"{bn}_b"] = normal(outputs, std=0.1)

    affine("conv1", 3, 64, 7, 0.02)
    before = 64
    for stage, blocks in BLOCKS.items():
        inner = 64 * 2 ** (stage - 2)
        for k in range(blocks):
            name = f"res{stage}_{k}"
            if k == 0:
                affine(f"{name}_branch1", before, 4 * inner, 1, 0.7)
            affine(f"{name}_branch2a", before, inner, 1, 1.0)
            affine(f"{name}_branch2b", inner, inner, 3, 1.0)
            affine(f"{name}_branch2c", inner, 4 * inner, 1, 0.3)
            before = 4 * inner
    rows = kind.classes + 1
    if kind.form == "fpn":
        for stage, blocks in BLOCKS.items():
            lateral = f"fpn_inner_res{stage}_{blocks - 1}_sum" + ("" if stage == 5 else "_lateral")
            layer(lateral, FPN, 64 * 2**stage, 1, 1)
            layer(f"fpn_res{stage}_{blocks - 1}_sum", FPN, FPN, 3, 3)
        channels, end, anchors, width = FPN, "_fpn2", len(RATIOS), HIDDEN
        layer("fc6", HIDDEN, FPN * 49, gain=1.5)
        layer("fc7", HIDDEN, HIDDEN, gain=1.5)
    else:
        channels, end, anchors, width = 1024, "", len(RATIOS) * len(SIZES), 2048
    layer(f"conv_rpn{end}", channels, channels, 3, 3)
    layer(f"rpn_cls_logits{end}", anchors, channels, 1, 1)
    layer(f"rpn_bbox_pred{end}", 4 * anchors, channels, 1, 1, std=0.15 / channels**0.5)
    layer("cls_score", rows, width, gain=3.0 if kind.form == "fpn" else 0.6)
    layer("bbox_pred", 4 * rows, width, gain=0.3)
    if kind.masks == "pose":
        for k in range(8):
            layer(f"conv_fcn{k + 1}", POSE, POSE if k else FPN, 3, 3, gain=1.4)
        found["kps_score_lowres_w"] = normal(POSE, 17, 4, 4, std=0.3)
        found["kps_score_lowres_b"] = normal(17, std=0.1)
        found["kps_score_w"] = torch.zeros(17, 17, 4, 4)
        found["kps_score_b"] = torch.zeros(17)
    elif kind.masks != "none":
        for k in range(4 if kind.form == "fpn" else 0):
            layer(f"_[mask]_fcn{k + 1}", MASK, MASK if k else FPN, 3, 3, gain=1.4)
        before = MASK if kind.form == "fpn" else 2048
        found["conv5_mask_w"] = normal(before, MASK, 2, 2, std=1.4 * before**-0.5)
        found["conv5_mask_b"] = normal(MASK, std=0.1)
        if kind.masks == "transfer":
            layer("bbox2mask_mlp_l1", MASK, 5 * HIDDEN)
            layer("mask_fcn_logits_w_flat", MASK, MASK)
            layer("mask_mlp_logits_raw", 28 * 28, MASK * 28 * 28, std=0.01)
        else:
            layer("mask_fcn_logits", rows if kind.masks == "specific" else 1, MASK, 1, 1)
    return found


def write_python2_pickle(
    path: Path, state: State, configuration: str | None = None, *, protocol: int = 2
) -> None:
    """{"blobs": ...} as Detectron (protocol 2) and the paper's tools (protocol 0) write it, in numpy's old names."""
    arrays = {name: value.numpy() for name, value in state.items()}
    momentum = {f"{name}_momentum": np.zeros_like(value) for name, value in list(arrays.items())[:2]}
    contents: dict[str, Any] = {"blobs": arrays | momentum}
    if configuration is not None:
        contents["cfg"] = configuration
    written = pickle.dumps(contents, protocol=protocol)
    path.write_bytes(written.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))


def in_detectron2(state: State, kind: Kind) -> State:
    """The same weights under detectron2's names, rows and order of anchors, with running statistics."""
    found: State = {}
    pairs = (
        (r"^conv1_w", "stem.conv1.weight"), (r"^res_conv1_bn_", "stem.conv1.norm."),
        (r"^(res\d)_(\d+)_branch1_bn_", r"\1.\2.shortcut.norm."), (r"^(res\d)_(\d+)_branch1_", r"\1.\2.shortcut."),
        (r"^(res\d)_(\d+)_branch2a", r"\1.\2.conv1"), (r"^(res\d)_(\d+)_branch2b", r"\1.\2.conv2"),
        (r"^(res\d)_(\d+)_branch2c", r"\1.\2.conv3"), (r"^(res.*conv\d)_bn_", r"\1.norm."),
        (r"^fpn_inner_res(\d)_\d+_sum(_lateral)?", r"backbone.fpn_lateral\1"),
        (r"^fpn_res(\d)_\d+_sum", r"backbone.fpn_output\1"),
        (r"^conv_rpn(_fpn2)?", "proposal_generator.rpn_head.conv"),
        (r"^rpn_cls_logits(_fpn2)?", "proposal_generator.rpn_head.objectness_logits"),
        (r"^rpn_bbox_pred(_fpn2)?", "proposal_generator.rpn_head.anchor_deltas"),
        (r"^fc6", "roi_heads.box_head.fc1"), (r"^fc7", "roi_heads.box_head.fc2"),
        (r"^(cls_score|bbox_pred)", r"roi_heads.box_predictor.\1"),
        (r"^_\[mask\]_fcn", "roi_heads.mask_head.mask_fcn"), (r"^conv5_mask", "roi_heads.mask_head.deconv"),
        (r"^mask_fcn_logits", "roi_heads.mask_head.predictor"),
        (r"^conv_fcn", "roi_heads.keypoint_head.conv_fcn"),
        (r"^kps_score_lowres", "roi_heads.keypoint_head.score_lowres"),
        (r"[._]s$", ".weight"), (r"[._]w$", ".weight"), (r"[._]b$", ".bias"),
    )  # fmt: skip
    for name, value in state.items():
        if name in ("kps_score_w", "kps_score_b"):
            continue
        for old, new in pairs:
            name = re.sub(old, new, name)
        if re.match(r"stem|res\d", name):
            c4_head = kind.form == "c4" and name.startswith("res5")
            prefix = "backbone.bottom_up." if kind.form == "fpn" else "roi_heads." if c4_head else "backbone."
            name = prefix + name
        if "cls_score" in name:
            value = torch.cat([value[1:], value[:1]])
        elif "bbox_pred" in name:
            value = value[4:]
        elif "mask_head.predictor" in name and kind.masks == "specific":
            value = value[1:]
        elif "rpn_head.conv" not in name and "rpn_head" in name and kind.form == "c4":
            each = value.unflatten(0, (len(RATIOS), len(SIZES), -1))
            value = each.transpose(0, 1).flatten(0, 2)
        found[name] = value.contiguous()
        if name.endswith("norm.weight"):
            found[name.replace("weight", "running_mean")] = torch.zeros_like(value)
            found[name.replace("weight", "running_var")] = torch.full_like(value, 1 - 1e-5)
    return found


# ---- the network ----


def residual(state: State, stage: int, x: Tensor, stride: int) -> Tensor:
    """A stage of bottlenecks, whose stride is in the first 1x1 convolution (and in the shortcut's)."""
    for k in range(BLOCKS[stage]):
        name, own = f"res{stage}_{k}", stride if k == 0 else 1
        y = F.relu(affine_of(state, f"{name}_branch2a", x, stride=own))
        y = F.relu(affine_of(state, f"{name}_branch2b", y, padding=1))
        y = affine_of(state, f"{name}_branch2c", y)
        x = F.relu(y + (affine_of(state, f"{name}_branch1", x, stride=own) if k == 0 else x))
    return x


def affine_of(state: State, name: str, x: Tensor, *, stride: int = 1, padding: int = 0) -> Tensor:
    """Convolution, then AffineChannel."""
    bn = "res_conv1_bn" if name == "conv1" else f"{name}_bn"
    x = F.conv2d(x, state[f"{name}_w"], stride=stride, padding=padding)
    return x * state[f"{bn}_s"].view(-1, 1, 1) + state[f"{bn}_b"].view(-1, 1, 1)


def conv(state: State, name: str, x: Tensor, padding: int = 0) -> Tensor:
    return F.conv2d(x, state[f"{name}_w"], state[f"{name}_b"], padding=padding)


def cell_anchors(stride: int, sizes: Sequence[int], plus: int) -> Tensor:
    """[ratios * sizes, 4]. Detectron: a cell of the stride brought to each ratio in whole pixels, then enlarged, around
    the cell's middle pixel; detectron2: the sides as they are, around the cell's corner."""
    anchors = []
    for ratio in RATIOS:
        for size in sizes:
            if plus:
                w = float(np.round(np.sqrt(stride**2 / ratio)))
                h = float(np.round(w * ratio))
                middle = 0.5 * (stride - 1)
                w, h = w * size / stride, h * size / stride
                anchors.append(
                    [
                        middle - 0.5 * (w - 1),
                        middle - 0.5 * (h - 1),
                        middle + 0.5 * (w - 1),
                        middle + 0.5 * (h - 1),
                    ]
                )
            else:
                w, h = size / ratio**0.5, size * ratio**0.5
                anchors.append([-w / 2, -h / 2, w / 2, h / 2])
    return torch.tensor(anchors)


def moved(boxes: Tensor, deltas: Tensor, weights: Sequence[float], plus: int) -> Tensor:
    """`utils.boxes.bbox_transform`."""
    w, h = boxes[:, 2] - boxes[:, 0] + plus, boxes[:, 3] - boxes[:, 1] + plus
    x, y = boxes[:, 0] + 0.5 * w, boxes[:, 1] + 0.5 * h
    most = float(np.log(1000.0 / 16))
    dx, dy = deltas[:, 0] / weights[0], deltas[:, 1] / weights[1]
    dw, dh = (deltas[:, 2] / weights[2]).clamp(max=most), (deltas[:, 3] / weights[3]).clamp(max=most)
    x, y, w, h = dx * w + x, dy * h + y, dw.exp() * w, dh.exp() * h
    return torch.stack([x - 0.5 * w, y - 0.5 * h, x + 0.5 * w - plus, y + 0.5 * h - plus], dim=1)


def clipped(boxes: Tensor, height: float, width: float, plus: int) -> Tensor:
    limit = torch.tensor([width, height, width, height]) - plus
    return torch.minimum(boxes.clamp(min=0), limit)


def suppressed(boxes: Tensor, scores: Tensor, group: Tensor, iou: float, plus: int) -> Tensor:
    """What is kept, the best first; far sides count as where the last pixel ends."""
    return batched_nms(boxes + torch.tensor([0.0, 0.0, plus, plus]), scores, group, iou)


def pooled(levels: list[Tensor], boxes: Tensor, size: int, kind: Kind) -> Tensor:
    """RoIAlign: Detectron's takes no half cell away."""
    rois = torch.cat([torch.zeros(len(boxes), 1), boxes], dim=1)
    if len(levels) == 1:
        return roi_align(levels[0], rois, size, 1 / 16, kind.samples or -1, aligned=not kind.plus)
    area = (boxes[:, 2] - boxes[:, 0] + kind.plus) * (boxes[:, 3] - boxes[:, 1] + kind.plus)
    level = torch.floor(4 + torch.log2(area.sqrt() / 224 + 1e-6)).clamp(2, 5)
    out = torch.zeros(len(boxes), levels[0].shape[1], size, size)
    for k in range(4):
        mine = level == k + 2
        out[mine] = roi_align(
            levels[k], rois[mine], size, 0.25 / 2**k, kind.samples or -1, aligned=not kind.plus
        )
    return out


def proposals(state: State, levels: list[Tensor], height: int, width: int, kind: Kind) -> Tensor:
    boxes, scores, groups = [], [], []
    end, finest = ("_fpn2", 4) if kind.form == "fpn" else ("", 16)
    for k, level in enumerate(levels):
        stride = finest * 2**k
        hidden = F.relu(conv(state, f"conv_rpn{end}", level, padding=1))
        score = conv(state, f"rpn_cls_logits{end}", hidden)[0].permute(1, 2, 0)
        delta = conv(state, f"rpn_bbox_pred{end}", hidden)[0].permute(1, 2, 0)
        anchors = cell_anchors(stride, (SIZES[k],) if kind.form == "fpn" else SIZES, kind.plus)
        y, x = torch.meshgrid(torch.arange(score.shape[0]), torch.arange(score.shape[1]), indexing="ij")
        shifts = torch.stack([x, y, x, y], dim=2).reshape(-1, 1, 4) * stride
        score, index = score.flatten().topk(min(kind.proposals, score.numel()))
        placed = (shifts + anchors).reshape(-1, 4)[index]
        box = clipped(
            moved(placed, delta.reshape(-1, 4)[index], (1, 1, 1, 1), kind.plus), height, width, kind.plus
        )
        boxes.append(box)
        scores.append(score.sigmoid())
        groups.append(torch.full_like(score, k))
    box, score = torch.cat(boxes), torch.cat(scores)
    return box[suppressed(box, score, torch.cat(groups), 0.7, kind.plus)[: kind.proposals]]


@torch.no_grad()
def detect(state: State, kind: Kind, image: Tensor, scale: float = 1.0) -> tuple[Answer, Tensor | None]:
    """Detections of a uint8 [3, h, w] image in red, green, blue, its far sides where the last pixel ends; and of a
    network with keypoints the maps [D, 17, 56, 56].

    `scale`: by which the image is enlarged; boxes are decoded in its own pixels and masks pooled on the enlarged one.
    """
    plus = kind.plus
    x = image.flip(0).float() - torch.tensor(kind.mean).view(3, 1, 1)
    if scale != 1:
        size = [int(side * scale + 0.5) for side in image.shape[1:]]
        x = F.interpolate(x[None], size=size, mode="bilinear", align_corners=False)[0]
    height, width = x.shape[1:]
    x = F.pad(x, [0, -width % 32, 0, -height % 32])[None]
    x = F.max_pool2d(F.relu(affine_of(state, "conv1", x, stride=2, padding=3)), 3, 2, 1)
    stages = []
    for stage in (2, 3, 4, 5) if kind.form == "fpn" else (2, 3, 4):
        x = residual(state, stage, x, 1 if stage == 2 else 2)
        stages.append(x)
    if kind.form == "fpn":
        levels: list[Tensor] = []
        top = None
        for stage in (5, 4, 3, 2):
            last = BLOCKS[stage] - 1
            lateral = f"fpn_inner_res{stage}_{last}_sum" + ("" if stage == 5 else "_lateral")
            fine = conv(state, lateral, stages[stage - 2])
            top = fine if top is None else fine + F.interpolate(top, scale_factor=2.0, mode="nearest")
            levels.insert(0, conv(state, f"fpn_res{stage}_{last}_sum", top, padding=1))
        levels.append(levels[-1][:, :, ::2, ::2])
    else:
        levels = [stages[-1]]
    rois = proposals(state, levels, height, width, kind)

    def hidden_of(boxes: Tensor) -> Tensor:
        if kind.form == "c4":
            return residual(state, 5, pooled(levels, boxes, 14, kind), 2).mean(dim=(2, 3))
        flat = pooled(levels[:4], boxes, 7, kind).flatten(1)
        return F.relu(
            F.linear(F.relu(F.linear(flat, state["fc6_w"], state["fc6_b"])), state["fc7_w"], state["fc7_b"])
        )

    hidden = hidden_of(rois)
    scores = F.linear(hidden, state["cls_score_w"], state["cls_score_b"]).softmax(dim=1)
    deltas = F.linear(hidden, state["bbox_pred_w"], state["bbox_pred_b"]).view(len(rois), -1, 4)
    roi, label = torch.where(scores[:, 1:] > 0.05)
    label = label + 1
    box = moved(rois[roi] / scale, deltas[roi, label], (10, 10, 5, 5), plus)
    box = clipped(box, image.shape[1], image.shape[2], plus)
    score = scores[roi, label]
    keep = suppressed(box, score, label, 0.5, plus)[:100]
    box, score, label = box[keep], score[keep], label[keep]
    maps = None
    masks = torch.zeros(len(box), 1, 1)
    if kind.masks == "pose":
        y = pooled(levels[:4], box * scale, 14, kind)
        for k in range(8):
            y = F.relu(conv(state, f"conv_fcn{k + 1}", y, padding=1))
        y = F.conv_transpose2d(
            y, state["kps_score_lowres_w"], state["kps_score_lowres_b"], stride=2, padding=1
        )
        maps = F.interpolate(y, scale_factor=2.0, mode="bilinear", align_corners=False)
    elif kind.masks != "none":
        masks = mask_probabilities(state, kind, levels, box * scale, label)
    far = torch.tensor([0.0, 0.0, plus, plus])
    return Answer(boxes=box + far, scores=score, labels=label, masks=masks), maps


def mask_probabilities(
    state: State, kind: Kind, levels: list[Tensor], boxes: Tensor, label: Tensor
) -> Tensor:
    if kind.form == "c4":
        y = residual(state, 5, pooled(levels, boxes, 14, kind), 2)
    else:
        y = pooled(levels[:4], boxes, 14, kind)
        for k in range(4):
            y = F.relu(conv(state, f"_[mask]_fcn{k + 1}", y, padding=1))
    y = F.relu(F.conv_transpose2d(y, state["conv5_mask_w"], state["conv5_mask_b"], stride=2))
    if kind.masks == "transfer":
        w_det = torch.cat([state["cls_score_w"], state["bbox_pred_w"].reshape(kind.classes + 1, -1)], dim=1)
        w = F.leaky_relu(F.linear(w_det, state["bbox2mask_mlp_l1_w"], state["bbox2mask_mlp_l1_b"]), 0.1)
        w = F.linear(w, state["mask_fcn_logits_w_flat_w"], state["mask_fcn_logits_w_flat_b"])
        logits = F.conv2d(y, w[:, :, None, None])
        mlp = F.linear(y.flatten(1), state["mask_mlp_logits_raw_w"], state["mask_mlp_logits_raw_b"])
        logits = logits + mlp.view(-1, 1, 28, 28)
    else:
        logits = conv(state, "mask_fcn_logits", y)
    if kind.masks == "agnostic":
        return logits[:, 0].sigmoid()
    return logits[torch.arange(len(label)), label].sigmoid()
