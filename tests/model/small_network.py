"""A network small enough for tests, and targets drawn at random for it."""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from model.build import build_network
from model.config import (
    BackboneConfig,
    BoxConfig,
    InputConfig,
    MaskConfig,
    ModelConfig,
    RpnConfig,
    TransferConfig,
)
from model.network import MaskXRCNN
from model.targets import Target, mask_windows

SMALL = ModelConfig(
    input=InputConfig(min_size=64, max_size=96),
    backbone=BackboneConfig(name="small", weights="none", norm="batch", trainable_layers=5, fpn_channels=16),
    rpn=RpnConfig(
        anchor_sizes=(8, 16, 32, 48, 64),
        pre_nms_train=50,
        pre_nms_test=50,
        post_nms_train=50,
        post_nms_test=50,
        batch_per_image=32,
    ),
    box=BoxConfig(width=32, canonical_size=28, rois_per_image=32, score_threshold=0.0),
    mask=MaskConfig(width=16, convolutions=1),
)


def small_network(num_classes: int = 5, seed: int = 0, **changes: Any) -> MaskXRCNN:
    """The small network; `changes` are fields of `ModelConfig` (whole sections)."""
    torch.manual_seed(seed)
    return build_network(dataclasses.replace(SMALL, **changes), num_classes=num_classes)


def transfer(**fields: Any) -> TransferConfig:
    """A transfer section."""
    return TransferConfig(**fields)


def image(height: int = 64, width: int = 64, seed: int = 0) -> Tensor:
    """Uint8 noise [3, height, width]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


def target(
    count: int,
    *,
    height: int = 64,
    width: int = 64,
    classes: int = 5,
    with_masks: bool | list[bool] = True,
    seed: int = 0,
    image_id: int = 1,
) -> Target:
    """`count` objects with boxes of 16 to 32 pixels and random masks."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 30
    side = 16 + torch.rand(count, 2, generator=generator) * 16
    boxes = torch.cat([corner, corner + side], dim=1)
    has_mask = torch.tensor([with_masks] * count if isinstance(with_masks, bool) else with_masks)
    masks = []
    for (x0, y0, x1, y1), known in zip(
        mask_windows(boxes, height, width).tolist(), has_mask.tolist(), strict=True
    ):
        shape = (y1 - y0, x1 - x0) if known else (0, 0)
        masks.append(torch.randint(0, 2, shape, dtype=torch.uint8, generator=generator))
    return Target(
        image_id=image_id,
        boxes=boxes,
        labels=torch.randint(1, classes + 1, (count,), generator=generator),
        has_mask=has_mask.to(torch.bool).reshape(count),
        masks=masks,
        crowd_boxes=torch.zeros((0, 4)),
    )


Arguments = tuple[list[Tensor], Tensor, Tensor, Tensor, Tensor, Tensor]
"""Of `model.inference.Inference.forward`."""


def asked(
    images: list[Tensor],
    *,
    sizes: list[list[int]] | None = None,
    threshold: float = 0.0,
    most: int = 20,
    classes: int = 5,
    labels: list[int] | None = None,
    with_masks: bool = True,
) -> Arguments:
    """Every image asked for the same; by default in its own pixels, all labels, at most 20 detections, with masks."""
    count = len(images)
    class_mask = torch.zeros((count, classes + 1), dtype=torch.bool)
    class_mask[:, list(range(classes + 1)) if labels is None else labels] = True
    return (
        images,
        torch.tensor(sizes or [[x.shape[1], x.shape[2]] for x in images]),
        torch.full((count,), threshold),
        torch.full((count,), most),
        class_mask,
        torch.full((count,), with_masks),
    )


ASKED = asked([image(90, 70)])


@torch.no_grad()
def same_when_scripted(served: Any, arguments: Arguments = ASKED) -> list[dict[str, Tensor]]:
    """The answers, having seen that TorchScript gives them too, to the last bit, whatever its executor makes of the
    graph from the second run on."""
    scripted = torch.jit.script(served)
    for _ in range(3):
        eager: list[dict[str, Tensor]] = served(*arguments)
        for one, other in zip(eager, scripted(*arguments), strict=True):
            assert one.keys() == other.keys()
            for key in one:
                assert torch.equal(one[key], other[key]), key
    return eager
