"""What the encoder sees of an image."""

import numpy as np
import pytest

from training.prompt_masks.canvas import canvas, resized
from training.prompt_masks.segmenter import Fit, Frame


def test_the_canvas_holds_the_normalised_picture_and_zeros_around() -> None:
    picture = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    seen = canvas(picture, 4, (1, 2, 3), (2, 4, 8))
    assert seen.shape == (1, 3, 4, 4) and seen.dtype == np.float32
    expected = (picture - np.array([1, 2, 3])) / np.array([2, 4, 8])
    np.testing.assert_array_equal(seen[0, :, :2, :3], expected.transpose(2, 0, 1))
    assert not seen[:, :, 2:].any() and not seen[:, :, :, 3:].any()


@pytest.mark.parametrize(
    ("height", "width", "fit", "size"),
    [
        (512, 338, "longest", (1024, 676)),
        (338, 512, "longest", (676, 1024)),
        (3000, 1, "longest", (1024, 1)),
        (338, 512, "square", (1024, 1024)),
    ],
)
def test_a_picture_has_the_size_that_sam_gives_it(
    height: int, width: int, fit: Fit, size: tuple[int, int]
) -> None:
    frame = Frame.of(height, width, side=1024, fit=fit)
    assert resized(np.zeros((height, width, 3), np.uint8), frame).shape == (*size, 3)
