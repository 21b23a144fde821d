"""The body of an answer (border 5)."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskx_answer import Category, Detections, answer_body, error_body, mask_areas

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


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 2**31), min_size=1, max_size=7), max_size=9))
def test_the_area_of_a_mask_is_the_sum_of_its_every_second_run(masks: list[list[int]]) -> None:
    pixels = max((sum(runs) for runs in masks), default=0)
    masks = [[*runs, pixels - sum(runs)] for runs in masks]
    counts = np.array([run for runs in masks for run in runs], dtype=np.int64)
    offsets = np.cumsum([0, *map(len, masks)])
    areas = mask_areas(counts, offsets, height=1, width=pixels)
    assert areas.dtype == np.int64
    assert areas.tolist() == [sum(runs[1::2]) for runs in masks]


@pytest.mark.parametrize(
    ("counts", "offsets", "covered"),
    [([3, 3, 6, 5, 6], [0, 3, 5], 11), ([3, 3, 7, 12], [0, 3, 4], 13), ([12], [0, 0, 1], 0)],
)
def test_run_lengths_of_another_image_size_are_never_answered(
    counts: list[int], offsets: list[int], covered: int
) -> None:
    detections = replace(two_detections(), rle_counts=np.array(counts), rle_offsets=np.array(offsets))
    with pytest.raises(ValueError, match=f"cover {covered} pixels of an image of 3 x 4 = 12"):
        body_of(detections)


def test_the_detections_themselves_are_left_as_they_were() -> None:
    detections, same = two_detections(), two_detections()
    body_of(detections)
    for name, array in vars(detections).items():
        assert np.array_equal(array, getattr(same, name)), name


def test_an_error_is_an_object_of_code_type_and_message() -> None:
    assert json.loads(error_body(400, "InvalidImage", 'no "image"\n\u00e9')) == {
        "error": {"code": 400, "type": "InvalidImage", "message": 'no "image"\n\u00e9'}
    }
