"""Multi-scale training and large-scale jitter: other sizes, with boxes and masks that stay true to the picture."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.canvas import Canvas
from model.config import InputConfig
from model.targets import Target, mask_windows
from tests.model.pasting import paste_crop
from tests.model.small_network import SMALL, image, small_network, target
from tests.training.data import test_augment
from tests.training.tiny_set import equal, tiny_config, weights
from training.config import load_config
from training.data.augment import AugmentConfig, cropped, jittered, scaled
from training.train import train

HEIGHT, WIDTH = 20, 30
INPUT = InputConfig(min_size=40, max_size=60)


def sample(boxes: list[Any], image_id: int = 7) -> tuple[Tensor, Target]:
    crowds = torch.tensor([[0.0, 0.0, 4.5, 20.0], [10.0, 2.0, 25.0, 9.25]])
    return test_augment.sample(boxes, height=HEIGHT, width=WIDTH, image_id=image_id, crowd_boxes=crowds)


@st.composite
def scenes(draw: st.DrawFn) -> tuple[list[test_augment.Box], tuple[int, int, int, int]]:
    """Boxes with edges on quarters of a pixel, and a window of whole pixels."""
    boxes = draw(test_augment.grid_boxes(HEIGHT, WIDTH, 4))
    x, y = draw(st.integers(0, WIDTH - 1)), draw(st.integers(0, HEIGHT - 1))
    return boxes, (x, y, draw(st.integers(x + 1, WIDTH)), draw(st.integers(y + 1, HEIGHT)))


@given(scenes())
@settings(max_examples=50)
def test_a_cut_mask_pasted_is_the_pasted_mask_cut(
    scene: tuple[list[test_augment.Box], tuple[int, int, int, int]],
) -> None:
    boxes, (x0, y0, x1, y1) = scene
    picture, whole = sample(boxes)
    part, inside = cropped(picture, whole, (x0, y0, x1, y1))
    assert torch.equal(part, picture[:, y0:y1, x0:x1])
    old = mask_windows(whole["boxes"], HEIGHT, WIDTH)
    new = mask_windows(inside["boxes"], y1 - y0, x1 - x0)
    kept = inside["labels"].tolist()
    for i, mask in enumerate(whole["masks"]):
        if not mask.numel():
            continue
        expected = paste_crop(mask, old[i], HEIGHT, WIDTH)[y0:y1, x0:x1]
        if i + 1 in kept:
            k = kept.index(i + 1)
            assert torch.equal(paste_crop(inside["masks"][k], new[k], y1 - y0, x1 - x0), expected)
        else:
            assert not expected.any()


def test_boxes_and_crowds_are_cut_and_moved_and_left_out_where_nothing_remains() -> None:
    boxes = [[1.0, 1.0, 9.5, 9.0], [0.0, 0.0, 5.0, 4.0], [12.0, 3.0, 20.0, 11.0], [6.0, 5.0, 8.0, 6.0]]
    _, inside = cropped(*sample(boxes), (5, 4, 15, 12))
    assert inside["boxes"].tolist() == [[0, 0, 4.5, 5.0], [7.0, 0.0, 10.0, 7.0], [1.0, 1.0, 3.0, 2.0]]
    assert inside["labels"].tolist() == [1, 3, 4]
    assert inside["has_mask"].tolist() == [True, True, False]
    assert inside["crowd_boxes"].tolist() == [[5.0, 0.0, 10.0, 5.25]]


def test_an_object_whose_mask_does_not_reach_into_the_window_is_left_out() -> None:
    picture, whole = sample([[0.0, 0.0, 10.0, 10.0], [1.0, 1.0, 2.0, 2.0]])
    whole["masks"][0][:, 5:] = 0
    _, inside = cropped(picture, whole, (5, 0, 15, 10))
    assert inside["labels"].tolist() == []
    assert inside["boxes"].shape == (0, 4)


def canvas_sizes(rounding: Any, *, min_size: int = 40) -> dict[tuple[int, int], tuple[int, int]]:
    """Of 729 image sizes, the size that the network's own canvas gives each."""
    down = rounding == "down"
    made = Canvas(min_size=min_size, max_size=60, step=32, mean=[0.0] * 3, std=[1.0] * 3, round_down=down)
    sides = itertools.product(range(14, 41), repeat=2)
    return {(h, w): made.size_of(torch.empty(3, h, w)) for h, w in sides}


@pytest.mark.parametrize("augmented", [{"min_sizes": (48,)}, {"scale_jitter": (1.0, 1.0)}])
def test_sizes_are_rounded_as_the_networks_own_canvas_rounds_them(augmented: dict[str, Any]) -> None:
    """A converted torchvision network rounds down."""
    down = dataclasses.replace(INPUT, rounding="down")
    expected = canvas_sizes("down", min_size=augmented.get("min_sizes", (40,))[0])
    for (h, w), size in expected.items():
        picture = torch.zeros((3, h, w), dtype=torch.uint8)
        _, (told,) = scaled([picture], [target(0)], AugmentConfig(**augmented), down, seed=0, step=1)
        assert told["size"] == size
    assert expected != canvas_sizes("nearest", min_size=augmented.get("min_sizes", (40,))[0])


def losses_at(size: tuple[int, int] | None, **changes: Any) -> dict[str, Tensor]:
    network = small_network(**changes)
    known = target(3)
    if size is not None:
        known["size"] = size
    return network.losses([image()], [known], seeds=[1])


def test_a_size_in_the_target_is_what_the_networks_own_setting_would_be() -> None:
    larger = InputConfig(min_size=96, max_size=96)
    told, own, plain = losses_at((96, 96)), losses_at(None, input=larger), losses_at(None)
    assert told.keys() == own.keys()
    assert all(torch.equal(told[name], own[name]) for name in told)
    assert not torch.equal(told["loss_objectness"], plain["loss_objectness"])
    same = losses_at((SMALL.input.min_size, SMALL.input.min_size))
    assert all(torch.equal(same[name], plain[name]) for name in plain)


def sizes(config: AugmentConfig, *, step: int, seed: int = 0) -> list[tuple[int, int]]:
    boxes = [[1.0, 1.0, 9.5, 9.0], [2.0, 2.0, 4.0, 4.0]]
    pictures, known = zip(*(sample(boxes, image_id=i) for i in range(40)), strict=True)
    images, targets = scaled(list(pictures), list(known), config, INPUT, seed=seed, step=step)
    assert all(torch.equal(one, other) for one, other in zip(images, pictures, strict=True))
    return [one["size"] for one in targets]


def test_every_shorter_side_of_the_list_is_drawn_and_the_longer_side_stays_bounded() -> None:
    seen = sizes(AugmentConfig(min_sizes=(20, 30, 100)), step=3)
    assert set(seen) == {(20, 30), (30, 45), (40, 60)}


def test_one_size_is_drawn_for_all_images_of_a_step_where_asked() -> None:
    config = AugmentConfig(min_sizes=(20, 30, 40), min_sizes_per="step")
    steps = [set(sizes(config, step=step)) for step in range(20)]
    assert all(len(seen) == 1 for seen in steps)
    assert set.union(*steps) == {(20, 30), (30, 45), (40, 60)}


def test_sizes_follow_from_seed_step_and_image_alone() -> None:
    config = AugmentConfig(min_sizes=tuple(range(20, 40)))
    torch.manual_seed(1)
    first = sizes(config, step=3)
    torch.manual_seed(2)
    assert sizes(config, step=3) == first
    assert sizes(config, step=4) != first
    assert sizes(config, step=3, seed=1) != first


def jitters(least: float, largest: float) -> list[tuple[float, Tensor, Target]]:
    """Many jitters of one picture: the factor by which each scales it, what remains of it, and the target."""
    whole = sample([[0.0, 0.0, 30.0, 20.0], [2.0, 2.0, 4.0, 4.0]])
    answers = []
    for seed in range(200):
        part, inside = jittered(*whole, (least, largest), INPUT, torch.Generator().manual_seed(seed))
        answers.append((inside["size"][0] / part.shape[1] / 2, part, inside))
    return answers


def test_large_scale_jitter_scales_by_every_factor_of_its_range_and_never_beyond_the_frame() -> None:
    factors = sorted(factor for factor, _, _ in jitters(0.1, 2.0))
    assert factors[0] == pytest.approx(0.1, abs=0.03)
    assert factors[-1] == pytest.approx(2.0, abs=0.05)
    assert factors[100] == pytest.approx(1.05, abs=0.15)
    for factor, part, inside in jitters(0.1, 2.0):
        height, width = inside["size"]
        assert height <= 40 and width <= 60
        assert part.shape[1] < HEIGHT or factor < 1.03
        assert part.shape[1] == HEIGHT or factor > 0.99
        if factor > 0.5:
            assert width / part.shape[2] == pytest.approx(height / part.shape[1], rel=0.1)


def test_where_an_image_grows_every_part_of_it_is_shown_sometimes() -> None:
    whole = sample([[3.0, 2.0, 30.0, 20.0], [2.0, 2.0, 4.0, 4.0]])[1]
    rows, columns = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    places = torch.stack([rows, columns, torch.zeros_like(rows)]).to(torch.uint8)
    corners = set()
    for seed in range(400):
        part, inside = jittered(places, whole, (2.0, 2.0), INPUT, torch.Generator().manual_seed(seed))
        y, x = part[:2, 0, 0].tolist()
        assert part[:2, -1, -1].tolist() == [y + HEIGHT // 2 - 1, x + WIDTH // 2 - 1]
        assert inside["boxes"][0].tolist() == [max(3 - x, 0), max(2 - y, 0), WIDTH // 2, HEIGHT // 2]
        corners.add((y, x))
    assert {y for y, _ in corners} == set(range(HEIGHT // 2 + 1))
    assert {x for _, x in corners} == set(range(WIDTH // 2 + 1))


def trained(tiny_set: Path, out: Path, change: str) -> dict[str, Tensor]:
    steps = [f"schedule.{stage}_steps={n}" for stage, n in (("end_to_end", 2), ("detector", 0), ("mask", 0))]
    train(tiny_config(tiny_set, out, *steps, change))
    return weights(out)


@pytest.fixture(scope="module")
def at_one_size(tiny_set: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    return trained(tiny_set, tmp_path_factory.mktemp("plain"), "seed=0")


@pytest.mark.parametrize("change", ["augment.min_sizes=[32, 48]", "augment.scale_jitter=[0.1, 2.0]"])
def test_a_training_takes_its_steps_at_the_drawn_sizes(
    tiny_set: Path, tmp_path: Path, at_one_size: dict[str, Tensor], change: str
) -> None:
    found = trained(tiny_set, tmp_path, change)
    assert all(bool(value.isfinite().all()) for value in found.values())
    assert found.keys() == at_one_size.keys() and not equal(found, at_one_size)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"min_sizes": (0, 5)}, "min_sizes"),
        ({"scale_jitter": (2.0, 0.1)}, "scale_jitter"),
        ({"scale_jitter": (0.0, 1.0)}, "scale_jitter"),
        ({"scale_jitter": (0.5, 2.0), "min_sizes": (5,)}, "set one of them"),
    ],
)
def test_sizes_that_make_no_sense_are_refused_by_name(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        AugmentConfig(**settings)


def test_a_shorter_side_above_the_longest_allowed_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"augment.min_sizes.*model.input.max_size"):
        load_config("training/presets/shapes.toml", ["augment.min_sizes=[99999]"])
