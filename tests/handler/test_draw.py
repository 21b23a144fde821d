"""Drawing of detections."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops, ImageDraw, ImageFont
from pycocotools import mask as coco_mask

import maskx_draw as draw
from maskx_draw import TINT, color_of, draw_detections, label_text, mask_window, run_lengths
from maskx_masks import png_masks, run_length_strings
from maskx_polygons import polygons

WIDTH, HEIGHT = 120, 90


def blank(width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    return Image.new("RGB", (width, height), (90, 90, 90))


def detection(x: int, y: int, w: int, h: int, **more: Any) -> dict[str, Any]:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    mask[y : y + h, x : x + w] = 1
    rle = coco_mask.encode(mask)
    segmentation = {"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode()}
    about = {"category_id": 1, "category": "thing", "score": 0.876, "mask_supervised": True}
    return {**about, "bbox": [x, y, w, h], "segmentation": segmentation, **more}


def changed(before: Image.Image, after: Image.Image) -> np.ndarray:
    return np.asarray(ImageChops.difference(before, after)).max(axis=2) > 0


def test_a_small_image_is_enlarged_by_a_whole_factor_and_a_large_one_is_not() -> None:
    assert draw_detections(blank(), []).size == (720, 540)
    assert draw_detections(blank(639, 10), []).size == (1278, 20)
    assert draw_detections(blank(640, 10), []).size == (640, 10)
    assert draw_detections(blank(), [], min_side=0).size == (WIDTH, HEIGHT)


def test_without_detections_nothing_is_drawn_and_the_given_image_is_never_touched() -> None:
    image = blank()
    assert not changed(image, draw_detections(image, [], min_side=0, legend=True)).any()
    draw_detections(image, [detection(10, 40, 30, 20)], min_side=0)
    assert not changed(image, blank()).any()


def test_the_mask_is_tinted_where_it_is_and_nowhere_else() -> None:
    one = detection(20, 40, 60, 40, category="", score=0.5)
    drawn = changed(blank(), draw_detections(blank(), [one], min_side=0))
    assert drawn[43:77, 23:77].all()
    outside = drawn.copy()
    outside[20:82, 18:82] = False  # the box with its line, and the name above it
    assert not outside.any()


def test_a_transferred_mask_is_hatched_in_a_dashed_box_and_starred() -> None:
    supervised, transferred = (detection(20, 40, 60, 40, mask_supervised=kind) for kind in (True, False))
    both = [draw_detections(blank(), [d], min_side=0) for d in (supervised, transferred)]
    plain, hatched = map(np.asarray, both)
    inside = (slice(45, 75), slice(25, 75))
    assert len(np.unique(plain[inside].reshape(-1, 3), axis=0)) == 1
    assert len(np.unique(hatched[inside].reshape(-1, 3), axis=0)) == 2
    color = np.array(color_of(1))
    edge = lambda pixels: (pixels[80, 21:79] == color).all(axis=1)  # noqa: E731
    assert edge(plain).all() and 0 < edge(hatched).mean() < 0.9
    assert label_text(supervised) == "thing 0.88" and label_text(transferred) == "thing* 0.88"


def test_the_legend_stands_only_where_a_transferred_mask_is() -> None:
    for supervised in (True, False):
        one = detection(20, 10, 60, 20, mask_supervised=supervised)
        image = blank()
        with_legend, without = (draw_detections(image, [one], legend=legend) for legend in (True, False))
        assert changed(with_legend, without).any() != supervised


def test_the_legend_says_no_mask_only_where_there_was_none() -> None:
    """Of a class with some masks, or with masks that no human made, it would not be true."""
    drawn = {
        source: draw_detections(
            blank(), [detection(20, 10, 60, 20, mask_supervised=False, **more)], legend=True
        )
        for source, more in {
            "": {},
            "boxes": {"mask_source": "boxes"},
            "taught": {"mask_source": "taught"},
            "some": {"mask_source": "some_masks"},
        }.items()
    }
    assert not changed(drawn[""], drawn["boxes"]).any() and not changed(drawn["taught"], drawn["some"]).any()
    assert changed(drawn["boxes"], drawn["taught"]).any()


def test_a_small_object_lies_over_a_large_one_in_whatever_order_they_come() -> None:
    small, large = detection(50, 50, 10, 10, category_id=2), detection(10, 20, 90, 60)
    first, second = (draw_detections(blank(), pair, min_side=0) for pair in ([small, large], [large, small]))
    assert not changed(first, second).any()
    under = np.full(3, 90) * (1 - TINT) + np.array(color_of(1)) * TINT
    over = under * (1 - TINT) + np.array(color_of(2)) * TINT
    assert np.abs(np.asarray(first)[55, 55] - over).max() <= 1


def test_names_of_nearly_equal_boxes_do_not_cover_each_other() -> None:
    taken: list[tuple[float, float, float, float]] = []
    pen, font = ImageDraw.Draw(blank(600, 400)), ImageFont.load_default(size=12)
    for i in range(4):
        one = detection(20, 40, 60, 40, category=f"name {i}")
        draw._label(pen, one, (100 + i, 200 + i, 300, 350), font, (600, 400), taken)
    assert len(taken) == 4
    assert not any(draw._overlap(one, other) for one, other in itertools.combinations(taken, 2))


@pytest.mark.parametrize("segmentation", [None, {}, []])
def test_a_detection_without_mask_is_a_box_and_a_name(segmentation: Any) -> None:
    one = {**detection(20, 40, 60, 40), "segmentation": segmentation}
    drawn = changed(blank(), draw_detections(blank(), [one], min_side=0))
    assert drawn[80, 21:79].all() and not drawn[62:77, 25:75].any()


def test_ground_truth_without_score_or_mark_and_with_polygons_or_plain_counts_is_drawn_too() -> None:
    polygon = {"category_id": 1, "bbox": [20, 40, 60, 40], "segmentation": [[20, 40, 80, 40, 80, 80, 20, 80]]}
    column = {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * 20, HEIGHT, HEIGHT * 99]}
    counts = {**polygon, "segmentation": column}
    drawn = [changed(blank(), draw_detections(blank(), [d], min_side=0)) for d in (polygon, counts)]
    assert drawn[0][43:77, 23:77].all()
    assert drawn[1][:, 20].all()
    assert label_text(polygon) == "1"


def test_boxes_at_and_beyond_the_edge_or_of_no_area_are_drawn_inside_the_image() -> None:
    for bbox in ([-5, -5, 10, 10], [115, 85, 50, 50], [0, 0, 120, 90], [30, 30, 0, 0], [200, 200, 5, 5]):
        one = {"category_id": 3, "category": "a very long name that is wider than the image", "bbox": bbox}
        assert changed(blank(), draw_detections(blank(), [one], min_side=0)).any()


def test_a_mask_of_another_image_size_is_refused_with_both_sizes() -> None:
    message = r"size \[90, 120\] does not fit an image of height 90 and width 121"
    with pytest.raises(ValueError, match=message):
        draw_detections(blank(121, 90), [detection(1, 1, 5, 5)])


def pasted(segmentation: Any, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    whole = np.zeros((height, width), bool)
    window = mask_window(segmentation, height=height, width=width)
    if window is not None:
        rows, columns = window.pixels.shape
        whole[window.top : window.top + rows, window.left : window.left + columns] = window.pixels
    return whole


@settings(max_examples=200)
@given(
    st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32 - 1), st.sampled_from([0, 0.1, 0.5, 0.9, 1])
)
def test_run_lengths_in_every_form_are_the_mask_that_pycocotools_encoded(
    height: int, width: int, seed: int, share: float
) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < share
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    runs = run_lengths(rle["counts"])
    assert run_lengths(rle["counts"].decode()).tolist() == runs.tolist() and runs.sum() == height * width
    for counts in (rle["counts"], rle["counts"].decode(), runs.tolist()):
        assert (pasted({"size": [height, width], "counts": counts}, height, width) == mask).all()


def test_long_and_falling_run_lengths_are_read_with_their_signs() -> None:
    runs = [5, 1_000_000, 7, 31, 40_000, 1, 2**31, 15, 16, 17]
    text = run_length_strings(np.array(runs), np.array([0, len(runs)]))[0]
    assert run_lengths(text).tolist() == runs


@pytest.mark.parametrize("counts", ["3d0`", "\x1f33", "3\u00e93", "~" * 20, "```````````````0"])
def test_text_that_is_no_run_lengths_is_refused(counts: str) -> None:
    with pytest.raises(ValueError, match="are no compressed run lengths"):
        mask_window({"size": [HEIGHT, WIDTH], "counts": counts}, height=HEIGHT, width=WIDTH)


@pytest.mark.parametrize("counts", [[10], [HEIGHT * WIDTH, 1], [-5, 5, HEIGHT * WIDTH], "", []])
def test_run_lengths_that_do_not_cover_the_image_are_refused(counts: str | list[int]) -> None:
    with pytest.raises(ValueError, match="does not fit an image of height 90 and width 120"):
        mask_window({"size": [HEIGHT, WIDTH], "counts": counts}, height=HEIGHT, width=WIDTH)


def test_a_window_is_no_larger_than_the_mask() -> None:
    window = mask_window(detection(7, 3, 11, 5)["segmentation"], height=HEIGHT, width=WIDTH)
    assert window is not None and (window.left, window.top) == (7, 3)
    assert window.pixels.shape == (5, 11) and window.pixels.all()


@settings(max_examples=200)
@given(
    st.lists(
        st.lists(st.tuples(st.integers(-5, 45), st.integers(-5, 35)), min_size=3, max_size=9), max_size=3
    )
)
def test_polygons_are_filled_by_the_even_odd_rule_and_their_union_taken(
    outlines: list[list[tuple[int, int]]],
) -> None:
    polygons = [[float(v) + 0.25 for point in outline for v in point] for outline in outlines]
    expected = np.zeros((30, 40), bool)
    for y, x in np.ndindex(30, 40):
        for polygon in polygons:
            points = list(zip(polygon[0::2], polygon[1::2], strict=True))
            crossed = 0
            for (x0, y0), (x1, y1) in zip(points, [*points[1:], points[0]], strict=True):
                if (x0 <= x + 0.5) != (x1 <= x + 0.5):
                    crossed += y0 + (x + 0.5 - x0) * (y1 - y0) / (x1 - x0) <= y + 0.5
            expected[y, x] |= crossed % 2 == 1
    # A centre that lies on an edge may be on either side.
    assert (pasted(polygons, 30, 40) != expected).mean() <= 1 / 600


def test_a_polygon_that_is_no_number_or_no_polygon_is_refused_or_left_out() -> None:
    with pytest.raises(ValueError, match="not all finite"):
        mask_window([[0, 0, float("nan"), 5, 5, 5]], height=HEIGHT, width=WIDTH)
    for nothing in ([[1, 1, 5, 5]], [[0, 0, 0, 0, 0, 0]], [[500, 500, 600, 500, 600, 600]]):
        assert mask_window(nothing, height=HEIGHT, width=WIDTH) is None


def test_the_three_forms_of_one_mask_are_drawn_alike() -> None:
    one = detection(20, 40, 60, 40)
    counts = np.array([20 * HEIGHT + 40] + [40, 50] * 59 + [40, HEIGHT * 40 + 10])
    offsets = np.array([0, 121])
    forms = [
        one["segmentation"],
        {"size": [HEIGHT, WIDTH], "counts": counts.tolist()},
        polygons(counts, offsets, height=HEIGHT, width=WIDTH)[0],
        png_masks(counts, offsets, height=HEIGHT)[0],
    ]
    drawn = [draw_detections(blank(), [{**one, "segmentation": form}]) for form in forms]
    assert changed(blank(720, 540), drawn[0]).any()
    assert not any(changed(drawn[0], other).any() for other in drawn[1:])


def test_a_png_of_another_window_or_outside_the_image_is_refused() -> None:
    png = png_masks(np.array([0, HEIGHT * WIDTH]), np.array([0, 2]), height=HEIGHT)[0]
    assert pasted(png).all()
    for bbox in ([0, 0, WIDTH, HEIGHT - 1], [1, 0, WIDTH, HEIGHT], [-1, 0, WIDTH, HEIGHT]):
        with pytest.raises(ValueError, match="does not fit an image of height 90 and width 120"):
            mask_window({**png, "bbox": bbox}, height=HEIGHT, width=WIDTH)


@pytest.mark.parametrize(("width", "height"), [(60, 45), (240, 180), (120, 90), (77, 31)])
def test_over_a_scaled_image_masks_and_boxes_lie_where_they_belong(width: int, height: int) -> None:
    one = detection(40, 30, 60, 45, category="")
    image = blank(width, height)
    drawn = draw_detections(image, [one], min_side=0, size=(HEIGHT, WIDTH))
    assert drawn.size == (width, height)
    y, x = np.nonzero(_tinted(one, width, height))
    assert np.abs([x.min(), x.max() + 1] - np.array([40, 100]) * width / WIDTH).max() <= 0.5
    assert np.abs([y.min(), y.max() + 1] - np.array([30, 75]) * height / HEIGHT).max() <= 0.5


def _tinted(one: dict[str, Any], width: int, height: int) -> np.ndarray:
    """Where the mask alone is drawn; the box and the name are those of a detection without it."""
    nowhere = {**one, "bbox": [0, 0, 0, 0], "category": "", "score": 0.5}
    with_mask, without = (
        draw_detections(blank(width, height), [d], min_side=0, size=(HEIGHT, WIDTH))
        for d in (nowhere, {**nowhere, "segmentation": None})
    )
    return changed(with_mask, without)


def test_a_mask_that_is_smaller_than_a_pixel_of_the_picture_costs_nothing() -> None:
    one = detection(41, 31, 1, 1)
    assert draw_detections(blank(5, 5), [one], min_side=0, size=(HEIGHT, WIDTH)).size == (5, 5)


def test_every_mode_of_image_can_be_drawn_on() -> None:
    for mode in ("L", "P", "RGBA", "CMYK", "1"):
        drawn = draw_detections(Image.new(mode, (WIDTH, HEIGHT)), [detection(10, 40, 30, 20)])
        assert drawn.mode == "RGB"


def test_ids_that_follow_each_other_have_colours_that_differ() -> None:
    colors = [color_of(i) for i in range(1, 91)]
    assert len(set(colors)) == 90
    near = [max(abs(a - b) for a, b in zip(one, two, strict=True)) for one, two in itertools.pairwise(colors)]
    assert min(near) > 60
