"""Packed segmentations draw what pycocotools draws, and what does not fit is named."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pycocotools import mask as mask_utils

from training.data.masks import SegmentationError, draw_crop, pack_segmentation, parse_counts

# pycocotools' decode with NumPy 2; the project draws without it
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

HEIGHT, WIDTH = 11, 14


def runs_of(mask: NDArray[np.uint8]) -> list[int]:
    """Column-major run lengths, counted pixel by pixel."""
    runs, value = [0], 0
    for pixel in mask.T.ravel().tolist():
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    return runs


def compressed(mask: NDArray[np.uint8]) -> dict[str, Any]:
    rle = mask_utils.encode(np.asfortranarray(mask))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


@st.composite
def masks(draw: st.DrawFn) -> NDArray[np.uint8]:
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    seed, share = draw(st.integers(0, 2**32 - 1)), draw(st.sampled_from([0.02, 0.5, 0.98, 1.0]))
    mask = (np.random.default_rng(seed).random((height, width)) < share).astype(np.uint8)
    mask[draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))] = 1
    return mask


@given(masks())
def test_compressed_counts_are_parsed_to_the_runs_of_the_mask(mask: NDArray[np.uint8]) -> None:
    assert parse_counts(compressed(mask)["counts"]).tolist() == runs_of(mask)


def test_runs_of_a_large_image_are_parsed() -> None:
    mask = np.zeros((3000, 4000), np.uint8)
    mask[1000:2500, 3000:3002] = 1
    assert parse_counts(compressed(mask)["counts"]).tolist() == [9_001_000, 1500, 1500, 1500, 2_994_500]


@given(masks(), st.data())
def test_both_rle_forms_draw_the_window_of_the_mask_and_know_its_extent(
    mask: NDArray[np.uint8], choice: st.DataObject
) -> None:
    height, width = mask.shape
    x0 = choice.draw(st.integers(0, width - 1))
    y0 = choice.draw(st.integers(0, height - 1))
    x1, y1 = choice.draw(st.integers(x0 + 1, width)), choice.draw(st.integers(y0 + 1, height))
    ys, xs = np.nonzero(mask)
    for rle in (compressed(mask), {"size": [height, width], "counts": runs_of(mask)}):
        kind, data, extent, dropped = pack_segmentation(rle, height, width)
        crop = draw_crop(kind, data, (x0, y0, x1, y1), height, width)
        assert crop.dtype == np.uint8
        assert np.array_equal(crop, mask[y0:y1, x0:x1])
        assert extent == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
        assert dropped == 0


@settings(deadline=None)
@given(
    st.lists(
        st.lists(
            st.tuples(st.integers(-200, 2800), st.integers(-200, 2200)).map(
                lambda p: [p[0] / 100, p[1] / 100]
            ),
            min_size=3,
            max_size=7,
        ),
        min_size=1,
        max_size=3,
    )
)
def test_polygons_draw_what_pycocotools_draws(polygons: list[list[list[float]]]) -> None:
    flat = [[v for point in polygon for v in point] for polygon in polygons]
    full = mask_utils.decode(mask_utils.merge(mask_utils.frPyObjects(flat, 22, 28)))
    kind, data, _, _ = pack_segmentation(flat, 22, 28)
    assert np.array_equal(draw_crop(kind, data, (0, 0, 28, 22), 22, 28), full)
    assert np.array_equal(draw_crop(kind, data, (5, 3, 20, 19), 22, 28), full[3:19, 5:20])


def test_polygons_of_fewer_than_three_points_are_dropped_and_counted() -> None:
    square = [2, 2, 8, 2, 8, 8, 2, 8]
    kind, data, extent, dropped = pack_segmentation([[1, 1, 9, 9], square, [3, 3]], HEIGHT, WIDTH)
    assert dropped == 2
    assert extent == (2, 2, 8, 8)
    alone = pack_segmentation([square], HEIGHT, WIDTH)
    window = (0, 0, WIDTH, HEIGHT)
    assert np.array_equal(
        draw_crop(kind, data, window, HEIGHT, WIDTH), draw_crop(alone[0], alone[1], window, HEIGHT, WIDTH)
    )


@pytest.mark.parametrize(
    ("segmentation", "kind", "message"),
    [
        ("text", "segmentation that cannot be read", "a str"),
        (5, "segmentation that cannot be read", "a int"),
        ([[1, 2, 3, 4, 5]], "polygon of odd length", "5 numbers"),
        ([[1, 2, 3, 4]], "polygon of fewer than 3 points", "at least 3"),
        ([1, 2, 3, 4, 5, 6], "polygon that cannot be read", "no list"),
        ([["1", "2", "3", "4", "5", "6"]], "polygon that cannot be read", "numbers"),
        ([[1, 2, 3, 4, 5, float("nan")]], "polygon that cannot be read", "finite"),
        ([[1, 2, 3, 4, 5, 10**400]], "polygon that cannot be read", "finite"),
        ([[1, 2, 3, 4, 5, 500]], "polygon far outside the image", "14 x 11"),
        ([[-15, 2, 3, 4, 5, 5]], "polygon far outside the image", "14 x 11"),
        ({"counts": "x"}, "RLE that cannot be read", "size and counts"),
        ({"size": [14, 11], "counts": [154]}, "RLE of another size than its image", r"\[11, 14\]"),
        ({"size": [11, 14], "counts": [100, 53]}, "RLE that does not add up", "153.*154"),
        ({"size": [11, 14], "counts": [-1, 155]}, "RLE that cannot be read", "whole numbers"),
        ({"size": [11, 14], "counts": [0.5, 153.5]}, "RLE that cannot be read", "whole numbers"),
        ({"size": [11, 14], "counts": [154]}, "mask without a pixel", "zeros"),
        ({"size": [11, 14], "counts": [10**30]}, "RLE that cannot be read", "hold"),
        ({"size": [11, 14], "counts": ""}, "RLE that cannot be read", "no characters"),
        ({"size": [11, 14], "counts": "Z"}, "RLE that cannot be read", "unfinished"),
        ({"size": [11, 14], "counts": "12 "}, "RLE that cannot be read", "does not know|do not know"),
        ({"size": [11, 14], "counts": "é"}, "RLE that cannot be read", "does not know"),
        ({"size": [11, 14], "counts": "o" * 20 + "1"}, "RLE that cannot be read", "35 bits"),
        ({"size": [11, 14], "counts": "11"}, "RLE that does not add up", "sum to 2"),
    ],
)
def test_a_segmentation_that_does_not_fit_is_named(segmentation: Any, kind: str, message: str) -> None:
    with pytest.raises(SegmentationError, match=message) as caught:
        pack_segmentation(segmentation, HEIGHT, WIDTH)
    assert caught.value.kind == kind


@given(masks(), st.data())
def test_damaged_counts_are_refused_or_drawn_as_pycocotools_draws_them(
    mask: NDArray[np.uint8], choice: st.DataObject
) -> None:
    rle = compressed(mask)
    height, width = rle["size"]
    counts = list(rle["counts"])
    for _ in range(choice.draw(st.integers(0, 2))):
        counts[choice.draw(st.integers(0, len(counts) - 1))] = chr(choice.draw(st.integers(40, 120)))
    rle["counts"] = "".join(counts)
    try:
        kind, data, _, _ = pack_segmentation(rle, height, width)
    except SegmentationError:
        assert rle["counts"] != compressed(mask)["counts"]
        return
    assert np.array_equal(draw_crop(kind, data, (0, 0, width, height), height, width), mask_utils.decode(rle))
