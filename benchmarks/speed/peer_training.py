"""A torchvision Mask R-CNN of the drawn set's size, and its training by torchvision's own losses.

Only `benchmarks.accuracy.torchvision_conversion` needs one: what is converted there must come from torchvision alone.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision.models as classifiers
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign

from model.targets import Target, mask_windows
from training.data.coco import CocoDataset, collate
from training.data.sampler import SeededBatches

WIDTH = 64
"""Channels of the pyramid and of the mask head; a quarter of torchvision's."""
BOX_WIDTH = 256
CANONICAL_SIZE = 56
ANCHOR_SIZES = (16, 32, 64, 96, 128)
MASK_CONVOLUTIONS = 2
PROPOSALS_TRAIN, PROPOSALS_TEST = 100, 200


@dataclass(frozen=True, kw_only=True)
class Training:
    """How the peer is trained: AdamW, its rate rising over a twentieth of the steps and then falling by a cosine."""

    steps: int = 3000
    batch_size: int = 8
    learning_rate: float = 2e-3
    seed: int = 0
    side: int = 96
    """Of the images, in pixels."""
    classes: str = "all"
    """The drawn set's 48, or "colours", its 8 colours, or "one": an object. Fewer are learnt in less time."""
    start: str = ""
    """Weights to begin with, as far as they fit: those of other classes, say. Empty: none."""


def merged_classes(annotations: Path, out: Path, classes: str) -> None:
    """The COCO file `annotations` with its classes taken together as `Training.classes` says, written to `out`."""
    document = json.loads(annotations.read_text(encoding="utf-8"))
    name_of = {
        one["id"]: {"all": one["name"], "colours": one["name"].split()[0], "one": "object"}[classes]
        for one in document["categories"]
    }
    names = list(dict.fromkeys(name_of.values()))
    for one in document["annotations"]:
        one["category_id"] = names.index(name_of[one["category_id"]]) + 1
    document["categories"] = [{"id": i, "name": name} for i, name in enumerate(names, start=1)]
    out.write_text(json.dumps(document), encoding="utf-8")


def take_over(model: MaskRCNN, state: dict[str, Tensor]) -> int:
    """Give `model` every tensor of `state` that has its name and shape; how many were left as they are."""
    own = model.state_dict()
    fitting = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    model.load_state_dict(own | fitting)
    return len(own) - len(fitting)


def drawn_set_peer(classes: int, *, side: int) -> MaskRCNN:
    """torchvision's Mask R-CNN with ResNet-18 and FPN, for images of `side` pixels and `classes` without background."""
    body = classifiers.resnet18(weights=None)
    backbone = BackboneWithFPN(
        body,
        {f"layer{k + 1}": str(k) for k in range(4)},
        in_channels_list=[64, 128, 256, 512],
        out_channels=WIDTH,
    )
    levels = ["0", "1", "2", "3"]
    return MaskRCNN(
        backbone,
        min_size=side,
        max_size=side,
        rpn_anchor_generator=AnchorGenerator(tuple((size,) for size in ANCHOR_SIZES), ((0.5, 1.0, 2.0),) * 5),
        rpn_pre_nms_top_n_train=PROPOSALS_TRAIN,
        rpn_post_nms_top_n_train=PROPOSALS_TRAIN,
        rpn_pre_nms_top_n_test=PROPOSALS_TEST,
        rpn_post_nms_top_n_test=PROPOSALS_TEST,
        rpn_batch_size_per_image=64,
        box_roi_pool=MultiScaleRoIAlign(levels, 7, 2, canonical_scale=CANONICAL_SIZE),
        box_head=TwoMLPHead(WIDTH * 7 * 7, BOX_WIDTH),
        box_predictor=FastRCNNPredictor(BOX_WIDTH, classes + 1),
        box_batch_size_per_image=32,
        mask_roi_pool=MultiScaleRoIAlign(levels, 14, 2, canonical_scale=CANONICAL_SIZE),
        mask_head=MaskRCNNHeads(WIDTH, (WIDTH,) * MASK_CONVOLUTIONS, 1),
        mask_predictor=MaskRCNNPredictor(WIDTH, WIDTH, classes + 1),
    )


def conversion_overrides(side: int) -> list[str]:
    """What `training.recipes.convert_torchvision` cannot read off the weights of `drawn_set_peer`."""
    return [
        f"model.input.min_size={side}",
        f"model.input.max_size={side}",
        f"model.rpn.anchor_sizes={list(ANCHOR_SIZES)}",
        f"model.rpn.pre_nms_test={PROPOSALS_TEST}",
        f"model.rpn.post_nms_test={PROPOSALS_TEST}",
        f"model.box.canonical_size={CANONICAL_SIZE}",
    ]


def train_peer(
    model: MaskRCNN, data: CocoDataset, training: Training, *, say: Callable[[str], None]
) -> float:
    """Train by the sum of torchvision's losses; the seconds it took."""
    steps = training.steps
    sampler = SeededBatches(size=len(data), batch_size=training.batch_size, batches=steps, seed=training.seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=training.learning_rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=training.learning_rate, total_steps=steps, pct_start=0.05
    )
    model.train()
    began = time.monotonic()
    loader = DataLoader(data, batch_sampler=sampler, collate_fn=collate)
    for step, (images, targets) in enumerate(loader, start=1):
        wanted = [_peers_target(t, (i.shape[1], i.shape[2])) for i, t in zip(images, targets, strict=True)]
        losses = model([image / 255 for image in images], wanted)
        loss = torch.stack(list(losses.values())).sum()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimiser.step()
        schedule.step()
        if step % 20 == 0 or step == steps:
            say(f"step {step} of {steps}: loss {loss.item():.3f}, {time.monotonic() - began:.0f} s")
    model.eval()
    return time.monotonic() - began


def _peers_target(target: Target, size: tuple[int, int]) -> dict[str, Tensor]:
    """Boxes, labels and whole masks, as torchvision wants them; objects without a mask are left out."""
    windows = mask_windows(target["boxes"], *size)
    kept = torch.where(target["has_mask"])[0]
    masks = torch.zeros((len(kept), *size), dtype=torch.uint8)
    for whole, i in zip(masks, kept.tolist(), strict=True):
        x0, y0, x1, y1 = windows[i].tolist()
        whole[y0:y1, x0:x1] = target["masks"][i]
    return {"boxes": target["boxes"][kept], "labels": target["labels"][kept], "masks": masks}
