"""Windows of masks."""

import torch

from model.targets import mask_windows


def test_a_window_is_the_box_rounded_outwards() -> None:
    boxes = torch.tensor([[1.25, 2.0, 3.0, 4.5], [0.0, 0.0, 0.25, 0.25], [9.5, 7.5, 10.0, 8.0]])
    assert mask_windows(boxes, 8, 10).tolist() == [[1, 2, 3, 5], [0, 0, 1, 1], [9, 7, 10, 8]]


def test_a_window_never_leaves_the_image() -> None:
    assert mask_windows(torch.tensor([[-3.5, -1.0, 20.0, 9.0]]), 8, 10).tolist() == [[0, 0, 10, 8]]


def test_no_boxes_have_no_windows() -> None:
    windows = mask_windows(torch.zeros(0, 4), 8, 10)
    assert windows.shape == (0, 4)
    assert windows.dtype == torch.int64
