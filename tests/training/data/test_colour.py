"""Colours changed on the device: the pictures that the reading processes would have made, whatever the batch."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from tests.model.small_network import image, target
from tests.training.data.coco_set import assert_same
from training.data.augment import AugmentConfig, augment
from training.data.colour import coloured, turned

ALL: dict[str, Any] = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.2}


def smooth(seed: int, height: int = 40, width: int = 56) -> Tensor:
    """A picture of soft colours, dark and bright."""
    coarse = image(5, 7, seed=seed)[None].float()
    return torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")[0].to(torch.uint8)


@pytest.mark.parametrize("names", [["brightness"], ["contrast"], ["saturation"], ["hue"], list(ALL)])
def test_the_picture_is_that_of_the_reader_but_for_rounding(names: list[str]) -> None:
    changes = {name: ALL[name] for name in names}
    here, there = AugmentConfig(**changes), AugmentConfig(**changes, on_device=True)
    pictures = [smooth(i, 40 + i, 56 - i) for i in range(6)]
    pairs = [augment(picture, target(2), 100 + i, there) for i, picture in enumerate(pictures)]
    got = coloured([picture for picture, _ in pairs], [known for _, known in pairs], there)
    for i, (picture, found) in enumerate(zip(pictures, got, strict=True)):
        wanted, known = augment(picture, target(2), 100 + i, here)
        assert_same(pairs[i][1], known)
        assert found.dtype == torch.uint8 and found.shape == wanted.shape
        assert found.is_contiguous() or found.numel() == wanted.numel()
        difference = (found.int() - wanted.int()).abs()
        # A rounding that went the other way in one change is up to two steps after the others.
        assert int(difference.max()) <= 3 and float(difference.float().mean()) < 0.05
        assert float((wanted.int() - picture.int()).abs().float().mean()) > 1 or names == ["contrast"]


def test_a_picture_is_the_same_whatever_else_is_in_the_batch() -> None:
    config = AugmentConfig(**ALL, on_device=True)
    pairs = [augment(smooth(i, 30 + 3 * i, 44), target(1), i, config) for i in range(5)]
    together = coloured([picture for picture, _ in pairs], [known for _, known in pairs], config)
    for (picture, known), found in zip(pairs, together, strict=True):
        assert torch.equal(coloured([picture], [known], config)[0], found)


def test_more_pictures_are_hardly_more_operations() -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Counting(TorchDispatchMode):
        operations = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.operations += 1
            name = func.overloadpacket.__name__
            assert name not in ("nonzero", "_local_scalar_dense", "masked_select")
            assert name != "repeat_interleave" or (kwargs or {}).get("output_size") is not None
            return func(*args, **(kwargs or {}))

    config, counts = AugmentConfig(**ALL, on_device=True), []
    for images in (2, 8):
        pairs = [augment(smooth(i), target(1), i, config) for i in range(images)]
        with Counting() as counting:
            coloured([picture for picture, _ in pairs], [known for _, known in pairs], config)
        counts.append(counting.operations)
    assert counts[1] <= 1.3 * counts[0]


def test_without_colours_to_change_the_target_asks_for_none() -> None:
    _, known = augment(smooth(0), target(1), 5, AugmentConfig(on_device=True))
    assert "colours" not in known
    _, known = augment(smooth(0), target(1), 5, AugmentConfig(hue=0.1))
    assert "colours" not in known


def test_the_turn_of_the_hue_is_torchvisions() -> None:
    colours = torch.rand(3, 500, generator=torch.Generator().manual_seed(0))
    colours[:, :9] = torch.tensor([0.0, 1.0, 0.5]).repeat(3)  # greys, black and white
    for turn in (-0.5, -0.2, 0.0, 0.3, 0.5):
        wanted = F.adjust_hue(colours[:, None], turn)[:, 0]
        torch.testing.assert_close(turned(colours, torch.full((500,), turn)), wanted, atol=1e-5, rtol=1e-4)
