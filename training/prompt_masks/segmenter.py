"""A promptable segmenter (Kirillov et al., Segment Anything, 2023): what it takes and gives, whoever made the network.

The network sees a square canvas. An image lies in its upper left corner, resized so that its longer side is the
canvas's, and zeros fill the rest; or it is stretched over the whole of it (SAM 2).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Fit = Literal["longest", "square"]


@dataclass(frozen=True, kw_only=True)
class Frame:
    """Where an image lies on the network's canvas, in pixels of each."""

    height: int
    width: int
    """Of the image."""
    seen_height: int
    seen_width: int
    """Of its picture in the upper left corner of the canvas."""
    side: int
    """Of the canvas."""

    @classmethod
    def of(cls, height: int, width: int, *, side: int, fit: Fit) -> "Frame":
        """The frame of an image of this size; sides are rounded as SAM's own code does it."""
        if fit == "square":
            return cls(height=height, width=width, seen_height=side, seen_width=side, side=side)
        scale = side / max(height, width)
        seen_height, seen_width = (max(int(length * scale + 0.5), 1) for length in (height, width))
        return cls(height=height, width=width, seen_height=seen_height, seen_width=seen_width, side=side)

    def on_canvas(self, boxes: NDArray[np.float32]) -> NDArray[np.float32]:
        """XYXY [N, 4] in pixels of the image, moved to those of the canvas."""
        scale = [self.seen_width / self.width, self.seen_height / self.height]
        return (boxes * np.array(scale * 2)).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """What the network made of an image: maps by the name under which the decoder takes them."""

    features: Mapping[str, Any]
    frame: Frame


@dataclass(frozen=True)
class Prompted:
    """Masks of N boxes.

    logits: float32 [N, S, S] over the whole canvas (SAM: S = 256, a quarter of its side), 0 or more inside; beyond
        the image's picture they mean nothing.
    quality: float32 [N], the IoU that the network claims.
    """

    logits: NDArray[np.float32]
    quality: NDArray[np.float32]


class Segmenter(Protocol):
    """A network that makes masks of boxes. Several threads may use one."""

    name: str
    """Of its folder, with a checksum of its files and what computes it: two of one name give the same masks."""

    def embed(self, image: NDArray[np.uint8]) -> Embedding:
        """What the network makes of an image, RGB [H, W, 3]; once for all of its boxes."""
        ...

    def masks(
        self, embedding: Embedding, boxes: NDArray[np.float32], prior: NDArray[np.float32] | None = None
    ) -> Prompted:
        """A mask for each of the boxes, XYXY [N, 4] in pixels of the image, N of 0 or more.

        prior: logits [N, S, S] of masks that are to be made better (SAM's `mask_input`), or None.
        """
        ...
