"""Keypoints in the exported file: named in its metadata, and compared before it is written."""

from typing import Any

import pytest
import torch

from export.metadata import build_metadata
from export.verify import ExportError, require_close, verification_cases
from tests.export.keypoints import KEYPOINTS, NAMES
from tests.export.tiny import CLASSES


def test_the_metadata_name_the_keypoints_and_those_of_a_model_without_say_nothing() -> None:
    sizes: dict[str, Any] = {"mask_size": 14, "max_detections": 9, "min_size": 64, "max_size": 96}
    metadata = build_metadata(CLASSES, **sizes, keypoints=KEYPOINTS)
    assert metadata["keypoints"] == {"names": list(NAMES), "lines": [[0, 1], [0, 2]], "labels": [1, 3, 4]}
    assert metadata["reducible"][-1] == "keypoint_branch.convs"
    without = build_metadata(CLASSES, **sizes)
    assert "keypoints" not in without and "keypoint_branch.convs" not in without["reducible"]


def test_keypoints_in_other_places_stop_an_export() -> None:
    cases = verification_cases(64, 3)[2:]
    answer = {
        "boxes": torch.tensor([[1.0, 1.0, 9.0, 9.0]]),
        "scores": torch.tensor([0.9]),
        "labels": torch.tensor([1]),
        "rle_counts": torch.tensor([81 * 81]),
        "rle_offsets": torch.tensor([0, 1]),
        "keypoints": torch.tensor([[[2.0, 2.0, 0.5], [3.0, 3.0, 0.5], [4.0, 4.0, 0.5], [5.0, 5.0, 0.5]]]),
    }
    require_close([[answer]], [[answer]], cases, "same")
    tie = answer | {"keypoints": answer["keypoints"].clone()}
    tie["keypoints"][0, 0, 0] += 1.0
    require_close([[answer]], [[tie]], cases, "one elsewhere")
    for change in (torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 0.1])):
        other = answer | {"keypoints": answer["keypoints"] + change}
        with pytest.raises(ExportError, match="keypoints are elsewhere"):
            require_close([[answer]], [[other]], cases, "elsewhere")
