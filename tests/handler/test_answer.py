"""The answer: its JSON as handler/README.md has it, its overlays beside those that the client makes of the same."""

import gzip
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO

from maskx_answer import (
    OVERLAY_SIDE,
    Detections,
    answer_body,
    compact,
    compressed,
    image_content,
    mask_areas,
    overlay_png,
)
from maskx_draw import draw_detections
from maskx_errors import ANSWER_TOO_LARGE, INVALID_IMAGE, MaskxError
from maskx_json import Envelope
from maskx_parameters import Category
from tests.handler.masks import blob, run_lengths_of

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


def content_of(detections: Detections, mask_format: str = "rle") -> dict[str, Any]:
    return image_content(detections, CATEGORIES, height=3, width=4, mask_format=mask_format)


def body_of(detections: Detections) -> bytes:
    return wrapped([content_of(detections)], Envelope(kind="single"))


def wrapped(results: list[dict[str, Any]], envelope: Envelope) -> bytes:
    return answer_body(results, envelope, model_name="maskx", model_version="1.0")


def test_the_answer_holds_exactly_what_readme_says() -> None:
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


@pytest.mark.parametrize("mask_format", ["rle", "polygon", "png", "none"])
def test_what_the_masks_of_a_class_were_learned_from_stands_after_mask_supervised(mask_format: str) -> None:
    categories = {1: CATEGORIES[1], 2: replace(CATEGORIES[2], mask_source="taught")}
    content = image_content(two_detections(), categories, height=3, width=4, mask_format=mask_format)
    first, second = content["detections"]
    assert [*first][5:7] == ["mask_supervised", "mask_source"] and first["mask_source"] == "taught"
    assert "mask_source" not in second  # as of an archive that does not say it


def test_an_image_without_detections_has_an_empty_list() -> None:
    nothing = Detections(
        boxes=np.zeros((0, 4), np.float32),
        scores=np.zeros(0, np.float32),
        labels=np.zeros(0, np.int64),
        rle_counts=np.zeros(0, np.int64),
        rle_offsets=np.zeros(1, np.int64),
    )
    assert json.loads(body_of(nothing))["detections"] == []


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


def test_the_mask_format_changes_the_segmentation_and_nothing_else() -> None:
    contents = {name: content_of(two_detections(), name) for name in ("rle", "polygon", "png")}
    found = {
        name: [one.pop("segmentation") for one in content["detections"]] for name, content in contents.items()
    }
    assert contents["polygon"] == contents["png"] == contents["rle"]
    assert [one["area"] for one in contents["rle"]["detections"]] == [3, 0]
    assert found["polygon"] == [[[1, 0, 2, 0, 2, 3, 1, 3]], [[0, 0, 0, 0, 0, 0]]]
    assert [one["bbox"] for one in found["png"]] == [[1, 0, 1, 3], [0, 0, 1, 1]]
    assert all(one.keys() == {"png", "bbox"} for one in found["png"])


def test_without_masks_there_is_no_segmentation_and_the_area_is_the_boxs() -> None:
    no_masks = replace(two_detections(), rle_counts=np.zeros(0, np.int64), rle_offsets=np.zeros(3, np.int64))
    for detections in (no_masks, two_detections()):
        content = content_of(detections, "none")["detections"]
        assert not any("segmentation" in one for one in content)
        assert [one["area"] for one in content] == [3.0, 6.644]
        assert [one["bbox"][2] * one["bbox"][3] for one in content] == pytest.approx([3.0, 6.644])


def test_a_detection_of_every_format_but_png_is_a_coco_result_that_pycocotools_loads(tmp_path: Path) -> None:
    images = [{"id": 5, "height": 3, "width": 4}]
    path = tmp_path / "truth.json"
    path.write_text(json.dumps({"images": images, "annotations": [], "categories": [{"id": 7}, {"id": 90}]}))
    for mask_format, areas in (("rle", [3, 0]), ("polygon", [3, 0]), ("none", [3, 12])):
        content = content_of(two_detections(), mask_format)["detections"]
        loaded = COCO(str(path)).loadRes([{**one, "image_id": 5} for one in content])
        assert [one["area"] for one in loaded.loadAnns([1, 2])] == pytest.approx([3.0, 6.644])
        masks = [loaded.annToMask(one) for one in loaded.loadAnns([1, 2])]
        if mask_format != "none":  # there pycocotools takes the box, and rounds it
            assert [int(mask.sum()) for mask in masks] == areas
            assert masks[0][:, 1].all()


def test_several_images_are_answered_in_order_with_their_errors() -> None:
    good, bad = content_of(two_detections()), MaskxError(INVALID_IMAGE, "no image").content()
    assert json.loads(wrapped([bad, good, bad], Envelope(kind="several"))) == {
        "model": {"name": "maskx", "version": "1.0"},
        "results": [bad, good, bad],
    }
    assert json.loads(wrapped([good], Envelope(kind="several")))["results"] == [good]
    assert json.loads(wrapped([good, bad], Envelope(kind="v1"))) == {"predictions": [good, bad]}


def test_a_single_images_error_is_the_whole_answer() -> None:
    bad = MaskxError(INVALID_IMAGE, "no \u00efmage").content()
    assert json.loads(wrapped([bad], Envelope(kind="single"))) == bad


@pytest.mark.parametrize(("id_", "more"), [(None, {}), ("a-7", {"id": "a-7"}), ("", {"id": ""})])
def test_the_second_protocol_of_kserve_has_each_result_as_text_in_one_output(
    id_: str | None, more: dict[str, str]
) -> None:
    good, bad = content_of(two_detections()), MaskxError(INVALID_IMAGE, "no image").content()
    answer = json.loads(wrapped([good, bad], Envelope(kind="v2", id=id_)))
    (output,) = answer.pop("outputs")
    assert answer == {"model_name": "maskx", "model_version": "1.0", **more}
    assert [json.loads(text) for text in output.pop("data")] == [good, bad]
    assert output == {"name": "detections", "datatype": "BYTES", "shape": [2]}


@pytest.mark.parametrize("kind", ["single", "several", "v1", "v2"])
def test_every_envelope_is_compact_ascii_whatever_the_names_are(kind: str) -> None:
    body = wrapped([content_of(two_detections())], Envelope(kind=kind))
    assert body.isascii() and b" " not in body and b"\n" not in body


def test_what_json_does_not_have_is_never_written() -> None:
    with pytest.raises(ValueError, match="JSON"):
        compact({"score": float("nan")})


def test_the_same_body_is_compressed_to_the_same_bytes() -> None:
    body = b"a long answer " * 1000
    assert compressed(body) == compressed(body)
    assert gzip.decompress(compressed(body)) == body


def found_in(height: int, width: int, mask_format: str = "rle") -> dict[str, Any]:
    masks = []
    for seed, part in enumerate(np.array_split(np.arange(width), 2)):
        mask = np.zeros((height, width), bool)
        mask[:, part] = blob(seed, height, len(part), 4)
        masks.append(mask)
    counts, offsets = run_lengths_of(masks)
    boxes = [[0, 0, width / 2, height], [width / 2, 0, width, height]]
    detections = Detections(
        boxes=np.array(boxes, np.float32),
        scores=np.array([0.9, 0.5], np.float32),
        labels=np.array([1, 2]),
        rle_counts=counts,
        rle_offsets=offsets,
    )
    return image_content(detections, CATEGORIES, height=height, width=width, mask_format=mask_format)


def photograph(height: int, width: int, *, noisy: bool = False) -> np.ndarray:
    if noisy:
        return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    y, x = np.indices((height, width))
    return np.stack([y * 255 // height, x * 255 // width, np.full_like(y, 90)], axis=2).astype(np.uint8)


def overlay(
    size: tuple[int, int], max_bytes: int = 10**7, *, mask_format: str = "rle", noisy: bool = False
) -> bytes:
    """Of a photograph of that height and width and what is found in it."""
    pixels, content = photograph(*size, noisy=noisy), found_in(*size, mask_format)
    return overlay_png(pixels, content, height=size[0], width=size[1], max_bytes=max_bytes)


def drawn_by_the_client(size: tuple[int, int]) -> Image.Image:
    return draw_detections(Image.fromarray(photograph(*size)), found_in(*size)["detections"], legend=True)


def read(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    assert (image.format, image.mode) == ("PNG", "RGB")
    return image


@pytest.mark.parametrize("size", [(90, 120), (639, 400), (700, 900), (1600, 30)])
def test_an_image_within_the_limits_gives_the_picture_that_the_client_draws(size: tuple[int, int]) -> None:
    assert (np.asarray(read(overlay(size))) == np.asarray(drawn_by_the_client(size))).all()


def test_every_exact_mask_format_gives_the_same_picture_and_none_has_no_mask() -> None:
    rle, png, none = (overlay((60, 80), mask_format=mask_format) for mask_format in ("rle", "png", "none"))
    assert rle == png != none


def test_a_large_image_is_drawn_at_the_limit_with_everything_where_it_belongs() -> None:
    picture = read(overlay((1500, 2400)))
    assert picture.size == (OVERLAY_SIDE, 1000)
    small = np.asarray(drawn_by_the_client((1500, 2400)).resize(picture.size, Image.Resampling.BOX), int)
    assert (np.abs(np.asarray(picture, int) - small).max(axis=2) > 40).mean() < 0.05


def test_pixels_that_the_decoder_scaled_down_are_drawn_over_in_their_own_size() -> None:
    content = found_in(2000, 1600)
    for one in content["detections"]:
        one["mask_supervised"] = True  # stripes have a width of their own in each size
    scaled, whole = photograph(1000, 800), photograph(2000, 1600)
    picture = read(overlay_png(scaled, content, height=2000, width=1600, max_bytes=10**7))
    assert picture.size == (800, 1000)
    large = draw_detections(Image.fromarray(whole), content["detections"], legend=True)
    small = np.asarray(large.resize(picture.size, Image.Resampling.BOX), int)
    assert (np.abs(np.asarray(picture, int) - small).max(axis=2) > 60).mean() < 0.05


@pytest.mark.parametrize("max_bytes", [3_000_000, 300_000, 30_000, 6_000])
def test_an_overlay_shrinks_until_it_fits_and_not_much_more(max_bytes: int) -> None:
    data = overlay((900, 1200), max_bytes, noisy=True)
    assert max_bytes / 4 < len(data) <= max_bytes
    assert read(data).width / read(data).height == pytest.approx(4 / 3, rel=0.05)


def test_a_small_image_is_sent_as_it_is_before_it_is_made_smaller() -> None:
    assert read(overlay((90, 120), noisy=True)).size == (720, 540)
    assert read(overlay((90, 120), 40_000, noisy=True)).size == (120, 90)
    assert read(overlay((90, 120), 20_000, noisy=True)).width < 120


def test_room_for_no_picture_is_an_error_that_says_so_and_a_tiny_image_needs_little() -> None:
    with pytest.raises(MaskxError, match="more than the 50 bytes.*ask for output=json") as raised:
        overlay((90, 120), 50)
    assert raised.value.kind is ANSWER_TOO_LARGE
    nothing: dict[str, Any] = {"image": {}, "detections": []}
    for max_bytes, side in ((10_000, 640), (100, 1)):
        tiny = overlay_png(photograph(1, 1), nothing, height=1, width=1, max_bytes=max_bytes)
        assert read(tiny).size == (side, side)
