"""An image as the network's encoder wants it: resized, normalised, padded to the square canvas."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.prompt_masks.segmenter import Frame


def resized(image: NDArray[np.uint8], frame: Frame) -> NDArray[np.uint8]:
    """RGB [H, W, 3] in the size in which the canvas shows it, by Pillow's bilinear filter as SAM's own code."""
    if image.shape[:2] == (frame.seen_height, frame.seen_width):
        return image
    size = (frame.seen_width, frame.seen_height)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))


def canvas(
    picture: NDArray[np.uint8], side: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> NDArray[np.float32]:
    """float32 [1, 3, side, side]: the picture [h, w, 3] less `mean`, by `std` (both in pixel values), zeros around."""
    filled = np.zeros((1, 3, side, side), np.float32)
    height, width = picture.shape[:2]
    for channel in range(3):
        part = filled[0, channel, :height, :width]
        np.subtract(picture[:, :, channel], np.float32(mean[channel]), out=part)
        part /= np.float32(std[channel])
    return filled
