"""A small COCO set with known masks, and a network that answers from them; for the tests of evaluation."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as mask_utils
from torch import Tensor

from model.classes import ClassTable
from tests.training.data.coco_set import annotation

CLASSES = ClassTable(
    ids=(2, 5, 7, 9), names=("ant", "bee", "cat", "dog"), has_mask=(True, False, True, False)
)
HEIGHT, WIDTH = 40, 48
Change = Callable[[dict[str, Any]], Any]


@dataclass
class Thing:
    """One object: category id and mask, bool [h, w]; its box is the mask's unless given as XYXY."""

    category_id: int
    mask: np.ndarray
    crowd: bool = False

    @property
    def box(self) -> list[float]:
        rows, columns = np.nonzero(self.mask)
        return [float(columns.min()), float(rows.min()), float(columns.max() + 1), float(rows.max() + 1)]


@dataclass
class Scene:
    """Images by id; the top left pixel of an image carries its id, so that a fake network knows it again."""

    things: dict[int, list[Thing]] = field(default_factory=dict)
    size: tuple[int, int] = (HEIGHT, WIDTH)

    def write(self, folder: Path, change: Change = bool) -> tuple[Path, Path]:
        """Images and annotations (compressed run lengths), changed: the folder of images and the JSON file."""
        (folder / "images").mkdir(parents=True)
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for image_id, things in self.things.items():
            pixels = np.full((*self.size, 3), 128, dtype=np.uint8)
            pixels[0, 0] = image_id
            name = f"{image_id}.png"
            Image.fromarray(pixels).save(folder / "images" / name)
            images.append({"id": image_id, "file_name": name, "height": self.size[0], "width": self.size[1]})
            for thing in things:
                x0, y0, x1, y1 = thing.box
                encoded = mask_utils.encode(np.asfortranarray(thing.mask.astype(np.uint8)))
                segmentation = {"size": list(self.size), "counts": encoded["counts"].decode()}
                box = [x0, y0, x1 - x0, y1 - y0]
                one = annotation(len(annotations) + 1, image_id, thing.category_id, box)
                one |= {
                    "area": int(thing.mask.sum()),
                    "iscrowd": int(thing.crowd),
                    "segmentation": segmentation,
                }
                annotations.append(one)
        categories = [{"id": i, "name": name} for i, name in zip(CLASSES.ids, CLASSES.names, strict=True)]
        document = {"images": images, "annotations": annotations, "categories": categories}
        change(document)
        (folder / "truth.json").write_text(json.dumps(document))
        return folder / "images", folder / "truth.json"


def corner(top: int, left: int, side: int, size: tuple[int, int] = (HEIGHT, WIDTH)) -> np.ndarray:
    """An L of the given side: three quarters of a square."""
    mask = np.zeros(size, dtype=bool)
    mask[top : top + side, left : left + side] = True
    mask[top : top + side // 2, left + side // 2 : left + side] = False
    return mask


def usual_scene(scale: int = 1) -> Scene:
    """Five images, every class several times, one image without objects; `scale` times 40 x 48 pixels."""
    scene = Scene(size=(scale * HEIGHT, scale * WIDTH))
    for image_id in range(1, 5):
        side = scale * (10 + image_id)
        scene.things[image_id] = [
            Thing(
                CLASSES.ids[(image_id + k) % 4],
                corner(scale * (2 + 3 * k), scale * (1 + 14 * k), side, scene.size),
            )
            for k in range(3)
        ]
    scene.things[5] = []
    return scene


def run_lengths(masks: list[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Column-major run lengths of dense masks as the network gives them: counts [total], offsets [D+1]."""
    counts: list[int] = []
    offsets = [0]
    for mask in masks:
        flat = np.concatenate([[0], mask.ravel(order="F").astype(int)])
        changes = np.flatnonzero(np.diff(flat))
        counts += np.diff(np.concatenate([[0], changes, [mask.size]])).tolist()
        offsets.append(len(counts))
    return torch.tensor(counts, dtype=torch.int64), torch.tensor(offsets, dtype=torch.int64)


@dataclass
class KnowingNetwork:
    """Answers with the scene's own objects, spoiled as told. Serves as network and as its own served form."""

    scene: Scene
    rows: int = 0
    """Masks are moved down by so many rows."""
    labels: int = 0
    """Labels are moved on by so many."""
    noise: int | None = None
    """Seed of random shifts of boxes and masks and of random scores."""
    extra: list[Thing] = field(default_factory=list)
    """False detections in every image."""
    detection_calls: list[tuple[list[float], int]] = field(default_factory=list)

    labels_moved: dict[int, int] = field(default_factory=dict)
    """Rows by which the masks of single labels are moved, in place of `rows`."""
    labels_asked: set[int] = field(default_factory=set)
    """Labels of the ground-truth boxes whose masks were asked for."""

    def inference(self) -> "KnowingNetwork":
        return self

    def to(self, device: Any) -> "KnowingNetwork":
        return self

    def _mask(self, thing: Thing) -> np.ndarray:
        rows = self.labels_moved.get(CLASSES.label_of_id(thing.category_id), self.rows)
        return np.roll(thing.mask, rows, axis=0)

    def _label(self, category_id: int) -> int:
        return (CLASSES.label_of_id(category_id) - 1 + self.labels) % CLASSES.num_classes + 1

    def __call__(
        self,
        images: list[Tensor],
        sizes: Tensor,
        score_threshold: Tensor,
        max_detections: Tensor,
        class_mask: Tensor,
        with_masks: Tensor,
    ) -> list[dict[str, Tensor]]:
        assert class_mask.all() and with_masks.all()
        assert class_mask.shape == (len(images), CLASSES.num_classes + 1)
        self.detection_calls.append((score_threshold.tolist(), len(images)))
        answers = []
        for image, size in zip(images, sizes.tolist(), strict=True):
            assert list(image.shape) == [3, *size] and image.dtype == torch.uint8
            image_id = int(image[0, 0, 0])
            found = [*self.scene.things[image_id], *self.extra]
            boxes = torch.tensor([thing.box for thing in found]).reshape(-1, 4)
            scores = torch.full((len(found),), 0.9)
            masks = [self._mask(thing) for thing in found]
            if self.noise is not None:
                random = torch.Generator().manual_seed(100 * self.noise + image_id)
                reach = size[0] // 16
                boxes = boxes + torch.randint(-reach, reach + 1, boxes.shape, generator=random)
                scores = torch.rand(len(found), generator=random)
                shifts = torch.randint(reach, (len(found),), generator=random).tolist()
                masks = [np.roll(mask, shift, axis=1) for mask, shift in zip(masks, shifts, strict=True)]
            counts, offsets = run_lengths(masks)
            labels = torch.tensor([self._label(thing.category_id) for thing in found], dtype=torch.int64)
            runs = {"rle_counts": counts, "rle_offsets": offsets}
            answers.append({"boxes": boxes, "scores": scores, "labels": labels} | runs)
        return answers

    def masks_on_boxes(
        self, images: list[Tensor], boxes: list[Tensor], labels: list[Tensor]
    ) -> list[tuple[Tensor, Tensor]]:
        answers = []
        for image, box, label in zip(images, boxes, labels, strict=True):
            known = self.scene.things[int(image[0, 0, 0])]
            masks = []
            for one, its_label in zip(box.tolist(), label.tolist(), strict=True):
                same = [t for t in known if t.box == one and CLASSES.label_of_id(t.category_id) == its_label]
                masks.append(self._mask(same[0]))
                self.labels_asked.add(its_label)
            answers.append(run_lengths(masks))
        return answers
