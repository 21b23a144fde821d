"""Boundary AP (Cheng et al., Boundary IoU, CVPR 2021): mask AP whose overlap is the lesser of mask and boundary IoU.

Boundary IoU is that of the pixels of both masks no farther than 2 % of the image's diagonal from their outlines. It
tells how well outlines are drawn where masks are large. The strips along the outlines are made by faster-coco-eval,
which is optional (requirements/boundary.txt).
"""

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_utils
from pycocotools.cocoeval import COCOeval

from training.evaluate.truth import RunLengths

DILATION = 0.02
"""Width of the strip, as a share of the image's diagonal (Cheng et al., Sec. 4)."""


def strips_of(masks: Sequence[RunLengths]) -> list[RunLengths]:
    """The pixels of each mask that are near its outline or the image's border.

    Raises:
        ValueError: faster-coco-eval is not installed.
    """
    api = _api()
    return [api.rleToBoundary(mask, DILATION) for mask in masks]


def require_boundary() -> None:
    """ValueError where what makes the strips is not installed."""
    _api()


def _api() -> Any:
    try:
        return importlib.import_module("faster_coco_eval.core.mask")
    except ModuleNotFoundError as error:
        raise ValueError(
            "boundary AP needs the package faster-coco-eval, which is not installed: "
            "pip install -r requirements/boundary.txt, or leave out --boundary"
        ) from error


class BoundaryEvaluation(COCOeval):  # type: ignore[misc]  # pycocotools has no types
    """pycocotools' evaluation of masks, with the lesser of both overlaps; a crowd's is that of its mask alone."""

    def computeIoU(self, imgId: int, catId: int) -> Any:  # noqa: N802  # pycocotools' names
        """Overlaps [D, G] of an image's detections of a class, the surest first, with its objects."""
        ious = super().computeIoU(imgId, catId)
        if not len(ious):
            return ious
        truth, found = self._gts[imgId, catId], self._dts[imgId, catId]
        order = np.argsort([-one["score"] for one in found], kind="mergesort")[: self.params.maxDets[-1]]
        exact = np.array([not one["iscrowd"] for one in truth], bool)
        if not exact.any():
            return ious
        at_boundary: NDArray[np.float64] = mask_utils.iou(
            strips_of([found[k]["segmentation"] for k in order]),
            strips_of([one["segmentation"] for one, plain in zip(truth, exact, strict=True) if plain]),
            [0] * int(exact.sum()),
        )
        ious[:, exact] = np.minimum(ious[:, exact], at_boundary)
        return ious
