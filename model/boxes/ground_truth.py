"""What is known about a batch, put together on the host and brought to the device in one copy (`model.targets`)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from model.host import moved
from model.losses import LossDivisor
from model.targets import Target, mask_windows


@dataclass(frozen=True, kw_only=True)
class FlatMasks:
    """The masks of a batch, one after the other."""

    pixels: Tensor  # uint8 [P], 0 and 1; row by row in each mask's window
    places: Tensor  # int64 [N * G, 5]: first pixel in `pixels`, height, width, x, y of the window; else zeros


@dataclass(frozen=True, kw_only=True)
class GroundTruth:
    """The objects and crowd regions of N images, each image filled up to the most that one has: G and M, at least 1
    and 0.

    Boxes are XYXY in pixels of the canvas. What is filled up is an empty box with label 0. All of it lies on the
    network's device but for what is said to be of the host.
    """

    boxes: Tensor  # float32 [N, G, 4]
    labels: Tensor  # int64 [N, G]; 0 where there is no object
    has_mask: Tensor  # bool [N, G]
    crowds: Tensor  # float32 [N, M, 4]
    scales: Tensor  # float32 [N, 4], from an image's own pixels to those of the canvas
    sizes: Tensor  # int64 [N, 2], height and width of each image on the canvas
    seeds: Tensor  # int64 [N], from which an image's anchors and RoIs are drawn
    without: Tensor  # int64 [W], the objects without a mask among N * G
    masks: FlatMasks
    mask_weights: Tensor | None  # float32 [N, G], of the masks in their loss; None: 1 each
    keypoints: Tensor | None  # float32 [N, G, K, 3] on the canvas
    with_mask: int  # host: how many objects have a mask
    without_mask: int  # host: how many have none

    @property
    def images(self) -> int:
        """N."""
        return self.boxes.shape[0]

    def weights_of(self, objects: Tensor) -> Tensor | None:
        """Weights [R] in the mask loss of the masks of `objects`, int64 [R] among N * G; None: 1 each."""
        return None if self.mask_weights is None else self.mask_weights.view(-1)[objects]

    def of_set_a(self) -> "GroundTruth":
        """The same places with no object but those that have a mask."""
        return replace(
            self,
            labels=torch.where(self.has_mask, self.labels, 0),
            without=self.without[:0],
            without_mask=0,
        )


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Images as the losses see them."""

    canvas: Tensor  # normalised images [N, 3, H, W]
    features: dict[str, Tensor]  # the pyramid's levels of the canvas
    truth: GroundTruth  # the objects on it
    total: LossDivisor
    proposals: tuple[Tensor, Tensor] | None = (
        None  # those kept of a frozen RPN, as `rpn_training.proposed` has them
    )


def ground_truth(
    targets: Sequence[Target],
    *,
    shapes: Sequence[tuple[int, int]],
    sizes: Sequence[tuple[int, int]],
    seeds: Sequence[int],
    device: torch.device,
) -> GroundTruth:
    """The targets of a batch, on the host, as tensors on `device`.

    Args:
        targets: one per image. No mask of an object without `has_mask` is looked at.
        shapes: height and width of each image.
        sizes: the same on the canvas.
        seeds: one per image, 0..2^63-1.
    """
    images = len(targets)
    counts = [target["boxes"].shape[0] for target in targets]
    crowd_counts = [target["crowd_boxes"].shape[0] for target in targets]
    most, most_crowds = max(counts, default=0) or 1, max(crowd_counts, default=0)
    slots = _slots(counts, most)
    own = torch.cat([target["boxes"] for target in targets])
    known = torch.cat([target["has_mask"] for target in targets])
    has_mask = known.tolist()
    image_of = [i for i, count in enumerate(counts) for _ in range(count)]
    scales = torch.tensor([[w / x, h / y] * 2 for (y, x), (h, w) in zip(shapes, sizes, strict=True)])
    pixels, places = flat_masks(targets, own, has_mask, [shapes[i] for i in image_of])
    crowds = torch.cat([target["crowd_boxes"] for target in targets])
    keypoints = [torch.cat([target["keypoints"] for target in targets])] if "keypoints" in targets[0] else []
    weights = [_mask_weights(targets)] if any("mask_weights" in target for target in targets) else []
    on_device = moved(
        [
            _filled(own, slots, images, most),
            _filled(torch.cat([target["labels"] for target in targets]), slots, images, most),
            _filled(known, slots, images, most),
            _filled(crowds, _slots(crowd_counts, most_crowds), images, most_crowds),
            scales,
            torch.tensor(sizes),
            torch.tensor(seeds),
            torch.tensor([s for s, mask in zip(slots, has_mask, strict=True) if not mask], dtype=torch.int64),
            pixels,
            _filled(places, slots, images, most).view(-1, 5),
            *(_filled(weight, slots, images, most) for weight in weights),
            *(_filled(keypoint, slots, images, most) for keypoint in keypoints),
        ],
        device,
    )
    boxes, labels, known, crowds, scales, on_canvas, drawn, without, pixels, places, *more = on_device
    weights, keypoints = more[: len(weights)], more[len(weights) :]
    return GroundTruth(
        boxes=boxes * scales[:, None],
        labels=labels,
        has_mask=known,
        crowds=crowds * scales[:, None],
        scales=scales,
        sizes=on_canvas,
        seeds=drawn,
        without=without,
        masks=FlatMasks(pixels=pixels, places=places),
        mask_weights=weights[0] if weights else None,
        keypoints=_scaled_keypoints(keypoints[0], scales) if keypoints else None,
        with_mask=sum(has_mask),
        without_mask=len(has_mask) - sum(has_mask),
    )


def _slots(counts: Sequence[int], most: int) -> list[int]:
    """Where each image's items stand among `most` of every image."""
    return [i * most + k for i, count in enumerate(counts) for k in range(count)]


def _filled(values: Tensor, slots: list[int], images: int, most: int) -> Tensor:
    """Items [T, ...] of all images at their slots: [images, most, ...], zeros elsewhere."""
    filled = values.new_zeros((images * most, *values.shape[1:]))
    if slots:
        filled[torch.tensor(slots)] = values
    return filled.view(images, most, *values.shape[1:])


def flat_masks(
    targets: Sequence[Target], boxes: Tensor, has_mask: Sequence[bool], shapes: Sequence[tuple[int, int]]
) -> tuple[Tensor, Tensor]:
    """Pixels [P] of all masks and the place [T, 5] of each object's (`FlatMasks`), of T objects one after another."""
    if not boxes.shape[0]:
        return torch.zeros(0, dtype=torch.uint8), torch.zeros((0, 5), dtype=torch.int64)
    sides = torch.tensor(shapes)
    corners = mask_windows(boxes, sides[:, 0], sides[:, 1])[:, :2].tolist()
    parts: list[Tensor] = []
    places: list[tuple[int, int, int, int, int]] = []
    first = number = 0
    for target in targets:
        masks = target["masks"]
        for k in range(len(masks)):
            place = (0, 0, 0, 0, 0)
            if has_mask[number]:
                height, width = masks[k].shape
                place = (first, height, width, *corners[number])
                parts.append(masks[k].reshape(-1))
                first += height * width
            places.append(place)
            number += 1
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.uint8), torch.tensor(places)


def _mask_weights(targets: Sequence[Target]) -> Tensor:
    """Of all objects, one target after another; 1 where a target has none."""
    return torch.cat([target.get("mask_weights", torch.ones(target["boxes"].shape[0])) for target in targets])


def _scaled_keypoints(keypoints_NGK3: Tensor, scales: Tensor) -> Tensor:
    at = keypoints_NGK3[..., :2] * scales[:, None, None, :2]
    return torch.cat([at, keypoints_NGK3[..., 2:]], dim=3)
