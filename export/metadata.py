"""metadata.json, the part of maskx.pt that says what its labels and numbers mean."""

import json
from typing import Any

import torch
import torchvision

from model.classes import ClassTable
from model.keypoints.layout import KeypointsConfig, keypoint_labels
from model.serving import REDUCIBLE, REDUCIBLE_WITH_KEYPOINTS

FORMAT_VERSION = 1
"""Raised when a reader of older files could misread the new ones."""

MASKX_VERSION = "0.1.0"
"""Version of this repository that wrote the file."""

REQUIRES = {
    "torchvision": "the file calls its operators, which must be there before it is loaded: in Python "
    "`import torchvision` before `torch.jit.load`, in C++ link or load its library (export/cpp)"
}
"""What must be there before the file is loaded, and how; else torch says "Unknown builtin op: torchvision::nms"."""


def build_metadata(
    classes: ClassTable,
    *,
    mask_size: int,
    max_detections: int,
    min_size: int,
    max_size: int,
    keypoints: KeypointsConfig | None = None,
) -> dict[str, Any]:
    """What a server must know of a model beside its weights.

    Args:
        classes: dataset ids, names, and what the masks of each were learned from (`model.classes.MASK_SOURCES`); set A
            is `mask_supervised`.
        mask_size: M, the side of a mask before it is seen at its box.
        max_detections: detections per image where a request does not say.
        min_size, max_size: the network's shorter side and bound of the longer, in pixels; a decoder may shrink a
            greater image to them.
        keypoints: which there are; None where there are none. Then `keypoints` names them, the lines that a drawing
            joins them by (pairs of their numbers, from 0), and the labels that have some.

    `reducible` names the modules whose weights may be cast to a lower precision before the file is frozen, all or none.
    `requires` is `REQUIRES`.
    """
    with_keypoints = keypoints is not None and keypoints.used
    metadata = {
        "format_version": FORMAT_VERSION,
        "categories": [
            {
                "label": label,
                "id": classes.id_of_label(label),
                "name": classes.name_of_label(label),
                "mask_supervised": classes.has_mask[label - 1],
                "mask_source": classes.mask_sources[label - 1],
            }
            for label in range(1, classes.num_classes + 1)
        ],
        "mask_size": mask_size,
        "defaults": {"score_threshold": 0.5, "max_detections": max_detections},
        "input": {"min_size": min_size, "max_size": max_size},
        "reducible": list(REDUCIBLE_WITH_KEYPOINTS if with_keypoints else REDUCIBLE),
        "requires": dict(REQUIRES),
        "versions": {
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "maskx": MASKX_VERSION,
        },
    }
    if keypoints is not None and with_keypoints:
        metadata["keypoints"] = {
            "names": list(keypoints.all_names),
            "lines": [list(pair) for pair in keypoints.lines],
            "labels": keypoint_labels(keypoints, classes),
        }
    return metadata


def metadata_json(metadata: dict[str, Any]) -> str:
    """The same text for the same content."""
    return json.dumps(metadata, indent=1, sort_keys=True, ensure_ascii=True) + "\n"
