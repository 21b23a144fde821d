"""Drawing of detections."""

import itertools
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageChops, ImageDraw, ImageFont
from pycocotools import mask as coco_mask

from client import draw
from client.draw import TINT, color_of, dense_mask, draw_detections, label_text

WIDTH, HEIGHT = 120, 90


def blank(width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    return Image.new("RGB", (width, height), (90, 90, 90))


def detection(x: int, y: int, w: int, h: int, **more: Any) -> dict[str, Any]:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    mask[y : y + h, x : x + w] = 1
    rle = coco_mask.encode(mask)
    segmentation = {"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode()}
    about = {
        "category_id": 1,
        "category": "thing",
        "bbox": [x, y, w, h],
        "score": 0.876,
        "mask_supervised": True,
    }
    return {**about, "segmentation": segmentation, **more}


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
    plain, hatched = (
        np.asarray(draw_detections(blank(), [d], min_side=0)) for d in (supervised, transferred)
    )
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
    counts = {
        **polygon,
        "segmentation": {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * 20, HEIGHT, HEIGHT * 99]},
    }
    drawn = [changed(blank(), draw_detections(blank(), [d], min_side=0)) for d in (polygon, counts)]
    assert drawn[0][43:77, 23:77].all()
    assert drawn[1][:, 20].all()
    assert label_text(polygon) == "1"


def test_boxes_at_and_beyond_the_edge_or_of_no_area_are_drawn_inside_the_image() -> None:
    for bbox in ([-5, -5, 10, 10], [115, 85, 50, 50], [0, 0, 120, 90], [30, 30, 0, 0], [200, 200, 5, 5]):
        one = {"category_id": 3, "category": "a very long name that is wider than the image", "bbox": bbox}
        assert changed(blank(), draw_detections(blank(), [one], min_side=0)).any()


def test_a_mask_of_another_image_size_is_refused_with_both_sizes() -> None:
    with pytest.raises(
        ValueError, match=r"size \[90, 120\] does not fit an image of height 90 and width 121"
    ):
        draw_detections(blank(121, 90), [detection(1, 1, 5, 5)])


def test_a_mask_comes_back_as_it_was_encoded() -> None:
    dense = dense_mask(detection(7, 3, 11, 5)["segmentation"], height=HEIGHT, width=WIDTH)
    assert dense is not None and dense.shape == (HEIGHT, WIDTH) and dense.dtype == bool
    assert dense[3:8, 7:18].all() and dense.sum() == 55


def test_every_mode_of_image_can_be_drawn_on() -> None:
    for mode in ("L", "P", "RGBA", "CMYK", "1"):
        drawn = draw_detections(Image.new(mode, (WIDTH, HEIGHT)), [detection(10, 40, 30, 20)])
        assert drawn.mode == "RGB"


def test_ids_that_follow_each_other_have_colours_that_differ() -> None:
    colors = [color_of(i) for i in range(1, 91)]
    assert len(set(colors)) == 90
    near = [max(abs(a - b) for a, b in zip(one, two, strict=True)) for one, two in itertools.pairwise(colors)]
    assert min(near) > 60
