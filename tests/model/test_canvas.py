"""An image is resized alike by any number of threads, so that servers with different ones give the same bytes."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.canvas import interpolated


@pytest.fixture
def threads() -> Iterator[None]:
    """Gives back torch's threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def resized(pixels: Tensor, height: int, width: int, count: int) -> Tensor:
    """By so many threads."""
    torch.set_num_threads(count)
    return interpolated(pixels.to(torch.float32), height, width)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(
    ("height", "width", "to"),
    [
        (426, 640, (107, 160)),
        (478, 640, (120, 160)),
        (100, 90, (128, 115)),
        (640, 480, (320, 240)),
        (1, 7, (23, 160)),
    ],
)
@pytest.mark.parametrize("layout", ["decoded", "planes"])
def test_any_number_of_threads_gives_the_same_pixels_which_are_those_of_bilinear_resizing(
    height: int, width: int, to: tuple[int, int], layout: str
) -> None:
    noise = torch.randint(
        256, (height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    pixels = noise.permute(2, 0, 1)  # as a decoder leaves them: the colours of a pixel side by side
    if layout == "planes":
        pixels = pixels.contiguous()
    one = resized(pixels, *to, count=1)
    assert one.shape == (3, *to)
    for count in (2, 3, 4):
        assert torch.equal(resized(pixels, *to, count=count), one)
    exact = F.interpolate(pixels[None].to(torch.float64), size=to, mode="bilinear", align_corners=False)
    torch.testing.assert_close(one.to(torch.float64), exact[0], rtol=0, atol=0.02)
