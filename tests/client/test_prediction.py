"""Answers as typed values: masks in every form, windows, COCO results, overlays."""

import base64
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from client import Detection, Prediction
from client.prediction import prediction_of
from tests.client.faulty import ANSWER, DETECTION, MODEL
from tests.pictures import encoded

HEIGHT, WIDTH = 30, 40


def predicted(segmentation: Any = None, **more: Any) -> Prediction:
    one = {key: value for key, value in DETECTION.items() if key != "segmentation"}
    if segmentation is not None:
        one["segmentation"] = segmentation
    content = {"image": {"height": HEIGHT, "width": WIDTH}, "detections": [{**one, **more}]}
    return prediction_of(content, MODEL)


def detected(segmentation: Any) -> Detection:
    return predicted(segmentation).detections[0]


def square() -> np.ndarray:
    pixels = np.zeros((HEIGHT, WIDTH), bool)
    pixels[4:10, 7:19] = True
    pixels[6, 9] = False
    return pixels


def as_rle(pixels: np.ndarray) -> dict[str, Any]:
    rle = coco_mask.encode(np.asfortranarray(pixels.astype(np.uint8)))
    return {"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode()}


def as_png(pixels: np.ndarray) -> dict[str, Any]:
    data = encoded(Image.fromarray(pixels[4:10, 7:19]).convert("1"))
    return {"png": base64.b64encode(data).decode(), "bbox": [7, 4, 12, 6]}


def test_run_lengths_and_png_give_the_same_mask_and_window() -> None:
    for segmentation in (as_rle(square()), as_png(square())):
        one = detected(segmentation)
        mask, window = one.mask, one.window
        assert mask is not None and mask.dtype == bool and np.array_equal(mask, square())
        assert window is not None and (window.left, window.top, window.pixels.shape) == (7, 4, (6, 12))
        assert np.array_equal(window.pixels, square()[4:10, 7:19])


def test_a_polygon_gives_the_pixels_within() -> None:
    mask = detected([[7, 4, 19, 4, 19, 10, 7, 10]]).mask
    assert mask is not None and mask.sum() == 72 and mask[4:10, 7:19].all()


def test_no_mask_asked_for_is_none_and_a_mask_without_a_pixel_is_all_false() -> None:
    assert detected(None).mask is None and detected(None).window is None
    forms: list[Any] = [[], as_rle(np.zeros((HEIGHT, WIDTH), bool))]
    for segmentation in forms:
        one = detected(segmentation)
        assert one.window is None
        assert one.mask is not None and one.mask.shape == (HEIGHT, WIDTH) and not one.mask.any()


def test_the_content_comes_back_as_the_server_gave_it() -> None:
    assert prediction_of(ANSWER, MODEL).content() == ANSWER
    (without,) = predicted().content()["detections"]
    assert without == {key: value for key, value in DETECTION.items() if key != "segmentation"}


def test_keypoints_come_back_too_and_are_none_where_there_are_none() -> None:
    found = predicted(keypoints=[1.5, 2.0, 0.75, 3.0, 4.0, 0.25])
    assert found.detections[0].keypoints == (1.5, 2.0, 0.75, 3.0, 4.0, 0.25)
    assert found.content()["detections"][0]["keypoints"] == [1.5, 2.0, 0.75, 3.0, 4.0, 0.25]
    without = predicted()
    assert without.detections[0].keypoints is None and "keypoints" not in without.content()["detections"][0]


def test_coco_results_have_their_image_and_png_is_none() -> None:
    assert prediction_of(ANSWER, MODEL).coco(12) == [{"image_id": 12, **DETECTION}]
    with pytest.raises(ValueError, match="COCO knows no masks as PNG"):
        predicted(as_png(square())).coco(12)


def test_an_overlay_tints_the_mask_and_leaves_the_image_as_it_is() -> None:
    image = Image.new("RGB", (WIDTH, HEIGHT), (90, 90, 90))
    drawn = predicted(as_rle(square()), bbox=[7, 4, 12, 6]).overlay(image)
    assert drawn.size == (640, 480)
    pixel, other = drawn.getpixel((15 * 16, 8 * 16)), drawn.getpixel((35 * 16, 25 * 16))
    assert pixel != (90, 90, 90) and other == (90, 90, 90)
    assert image.getcolors() == [(WIDTH * HEIGHT, (90, 90, 90))]


def test_a_detection_says_what_its_masks_were_learned_from_where_the_server_does() -> None:
    assert detected(None).mask_source is None and "mask_source" not in detected(None).content()
    one = predicted(mask_supervised=False, mask_source="taught").detections[0]
    assert one.mask_source == "taught" and [*one.content()][5:7] == ["mask_supervised", "mask_source"]
