"""A stand-in for the network with the interface of an exported one: it detects pure colours, so that the answer tells
the image.

Label 1 is red, 2 green, 3 blue: the pixels above 200 in that channel and below 100 in the two others are one
object; its box is their bounding box, its mask exactly those pixels, its score their share of the box. An image that
the decoder scaled down is brought back to its own size, pixels repeated.

An image of one of these colours from edge to edge makes the network fail:

* `NETWORK_FAULT`: an error that has to do with this image alone;
* `OUT_OF_MEMORY_ABOVE_TWO`: out of memory, unless at most 2 images are computed together;
* `ALWAYS_OUT_OF_MEMORY`: out of memory, even alone;
* `DEVICE_FAULT`: the error of a GPU that answers nothing more until the process is restarted.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from tests.pictures import encoded

NETWORK_FAULT = (255, 255, 0)
OUT_OF_MEMORY_ABOVE_TWO = (0, 255, 255)
ALWAYS_OUT_OF_MEMORY = (0, 250, 250)
DEVICE_FAULT = (255, 0, 255)

METADATA: dict[str, Any] = {
    "format_version": 1,
    "categories": [
        {"label": 1, "id": 7, "name": "red", "mask_supervised": True, "mask_source": "masks"},
        {"label": 2, "id": 11, "name": "green", "mask_supervised": False, "mask_source": "taught"},
        {"label": 3, "id": 90, "name": "bleu \u00e9", "mask_supervised": True, "mask_source": "masks"},
    ],
    "mask_size": 28,
    "defaults": {"score_threshold": 0.5, "max_detections": 100},
    "input": {"min_size": 64, "max_size": 96},
    "versions": {"torch": "0", "torchvision": "0", "maskx": "0"},
}


class StandIn(nn.Module):
    """The exported network's `forward`."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("channels", torch.arange(3))

    def forward(
        self,
        images: list[Tensor],
        sizes: Tensor,
        score_threshold: Tensor,
        max_detections: Tensor,
        class_mask: Tensor,
        with_masks: Tensor,
    ) -> list[dict[str, Tensor]]:
        answers: list[dict[str, Tensor]] = []
        for image in images:
            self.fail_if_told(image, len(images))
        for i, drafted in enumerate(images):
            image = self.in_its_own_size(drafted, int(sizes[i, 0]), int(sizes[i, 1]))
            boxes: list[Tensor] = []
            scores: list[Tensor] = []
            labels: list[Tensor] = []
            counts: list[Tensor] = [torch.zeros(0, dtype=torch.int64)]
            ends: list[int] = [0]
            for c in range(3):
                others = torch.maximum(image[(c + 1) % 3], image[(c + 2) % 3])
                mask = torch.logical_and(image[c] > 200, others < 100)
                if bool(mask.any()) and bool(class_mask[i, c + 1]) and len(labels) < int(max_detections[i]):
                    rows = torch.where(mask.any(1))[0]
                    columns = torch.where(mask.any(0))[0]
                    box = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
                    score = mask.sum() / ((box[2] - box[0]) * (box[3] - box[1]))
                    if float(score) > float(score_threshold[i]):
                        flat = torch.cat([torch.zeros(1, dtype=torch.bool), mask.t().flatten()])
                        changes = torch.where(flat[1:] != flat[:-1])[0]
                        edges = torch.cat([torch.tensor([0]), changes, torch.tensor([mask.numel()])])
                        runs = edges[1:] - edges[:-1]
                        boxes.append(box)
                        scores.append(score)
                        labels.append(torch.tensor(c + 1))
                        if bool(with_masks[i]):
                            counts.append(runs)
                            ends.append(ends[-1] + runs.numel())
                        else:
                            ends.append(0)
            none = torch.zeros((0, 4))
            answers.append(
                {
                    "boxes": torch.stack(boxes) if len(boxes) > 0 else none,
                    "scores": torch.stack(scores) if len(scores) > 0 else none[:, 0],
                    "labels": torch.stack(labels) if len(labels) > 0 else torch.zeros(0, dtype=torch.int64),
                    "rle_counts": torch.cat(counts),
                    "rle_offsets": torch.tensor(ends),
                }
            )
        return answers

    def in_its_own_size(self, image: Tensor, height: int, width: int) -> Tensor:
        """uint8 [3, height, width] from [3, h, w]: the nearest pixel of each."""
        if image.shape[1] == height and image.shape[2] == width:
            return image
        rows = ((torch.arange(height) + 0.5) * image.shape[1] / height).long()
        columns = ((torch.arange(width) + 0.5) * image.shape[2] / width).long()
        return image[:, rows][:, :, columns]

    def fail_if_told(self, image: Tensor, together: int) -> None:
        """Raises what the image's colour says, if it has but one; the colours are those above."""
        if bool((image == image[:, :1, :1]).all()):
            colour = [int(image[0, 0, 0]), int(image[1, 0, 0]), int(image[2, 0, 0])]
            if colour == [255, 255, 0]:
                raise RuntimeError("network fault")
            if colour == [0, 250, 250] or (colour == [0, 255, 255] and together > 2):
                raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
            if colour == [255, 0, 255]:
                raise RuntimeError("CUDA error: device-side assert triggered")


def write_standin(path: Path, metadata: dict[str, Any] | None = None) -> Path:
    """The stand-in as a maskx.pt, with the metadata given (its own by default)."""
    scripted = torch.jit.script(StandIn().eval())
    torch.jit.save(scripted, str(path), _extra_files={"metadata.json": json.dumps(metadata or METADATA)})
    return path


def scene(
    *,
    width: int = 40,
    height: int = 30,
    red: tuple[int, int, int, int] | None = None,
    green: tuple[int, int, int, int] | None = None,
    blue: tuple[int, int, int, int] | None = None,
) -> np.ndarray:
    """A grey image, uint8 [height, width, 3], with a rectangle (x, y, width, height) of each colour given."""
    pixels = np.full((height, width, 3), 128, np.uint8)
    for channel, box in enumerate((red, green, blue)):
        if box is not None:
            x, y, w, h = box
            pixels[y : y + h, x : x + w] = 0
            pixels[y : y + h, x : x + w, channel] = 255
    return pixels


def plain(colour: tuple[int, int, int], *, width: int = 40, height: int = 30) -> np.ndarray:
    """An image of one colour, uint8 [height, width, 3]."""
    return np.full((height, width, 3), colour, np.uint8)


def png(pixels: np.ndarray) -> bytes:
    """The image as a PNG file."""
    return encoded(Image.fromarray(pixels))
