"""The body of an answer (border 5)."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from maskx_answer import Category, Detections, answer_body, error_body, run_length_text

CATEGORIES = {
    1: Category(id=7, name="red", mask_supervised=True),
    2: Category(id=90, name="bl\u00e9u", mask_supervised=False),
}


def two_detections() -> Detections:
    """In an image of 3 x 4: the second column, and nothing at all."""
    return Detections(
        boxes=np.array([[1, 0, 2, 3], [0.125, 0.5, 3.1415926, 2.7]], dtype=np.float32),
        scores=np.array([0.987654321, 0.1], dtype=np.float32),
        labels=np.array([2, 1]),
        rle_counts=np.array([3, 3, 6, 12]),
        rle_offsets=np.array([0, 3, 4]),
    )


def body_of(detections: Detections) -> bytes:
    return answer_body(detections, CATEGORIES, height=3, width=4, model_name="maskx", model_version="1.0")


def test_the_answer_holds_exactly_what_the_border_says() -> None:
    assert json.loads(body_of(two_detections())) == {
        "model": {"name": "maskx", "version": "1.0"},
        "image": {"height": 3, "width": 4},
        "detections": [
            {
                "category_id": 90,
                "category": "bl\u00e9u",
                "bbox": [1.0, 0.0, 1.0, 3.0],
                "score": 0.987654,
                "area": 3,
                "mask_supervised": False,
                "segmentation": {"size": [3, 4], "counts": "336"},
            },
            {
                "category_id": 7,
                "category": "red",
                "bbox": [0.12, 0.5, 3.02, 2.2],
                "score": 0.1,
                "area": 0,
                "mask_supervised": True,
                "segmentation": {"size": [3, 4], "counts": "<"},
            },
        ],
    }


def test_the_answer_is_compact_ascii() -> None:
    body = body_of(two_detections())
    assert body.isascii()
    assert b" " not in body and b"\n" not in body


def test_an_image_without_detections_has_an_empty_list() -> None:
    nothing = Detections(
        boxes=np.zeros((0, 4), np.float32),
        scores=np.zeros(0, np.float32),
        labels=np.zeros(0, np.int64),
        rle_counts=np.zeros(0, np.int64),
        rle_offsets=np.zeros(1, np.int64),
    )
    assert json.loads(body_of(nothing))["detections"] == []


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_run_lengths_become_the_text_that_pycocotools_gives_the_same_mask(
    height: int, width: int, seed: int, share: float
) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < share
    flat = mask.T.reshape(-1)
    edges = np.flatnonzero(np.diff(np.concatenate(([False], flat)))).tolist()
    counts = np.diff(np.array([0, *edges, flat.size]))
    text = run_length_text(counts, height=height, width=width)
    expected = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert text == {"size": [height, width], "counts": expected["counts"].decode()}
    assert int(counts[1::2].sum()) == int(mask.sum()) == int(coco_mask.area(text))


def test_run_lengths_of_another_image_size_are_never_answered() -> None:
    with pytest.raises(ValueError, match="cover 11 pixels of an image of 3 x 4 = 12"):
        run_length_text(np.array([5, 6]), height=3, width=4)


def test_an_error_is_an_object_of_code_type_and_message() -> None:
    assert json.loads(error_body(400, "InvalidImage", 'no "image"\n\u00e9')) == {
        "error": {"code": 400, "type": "InvalidImage", "message": 'no "image"\n\u00e9'}
    }
