"""Classes with a side: in a mirrored image a left one is a right one, in training and nowhere else."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from model.classes import ClassTable
from tests.training.data.coco_set import Load, assert_same, document
from tests.training.data.test_augment import sample
from tests.training.tiny_set import tiny_changes, write_tiny_set
from training.config import load_config
from training.data.augment import AugmentConfig, augment
from training.data.sides import Sides, hint, sides, suggested_pairs
from training.train import main

CLASSES = ClassTable(
    ids=(1, 2, 3, 4),
    names=("left_light", "right_light", "hood", "right_hand"),
    has_mask=(True, True, True, False),
)
PAIRS = (("left_light", "right_light"),)
BOXES = [(1.0, 2.0, 4.5, 6.0), (2.0, 2.0, 3.0, 3.0), (8.0, 1.0, 16.0, 9.0)]


def test_a_mirrored_image_has_the_other_side_and_its_masks_and_another_one_stays() -> None:
    image, target = sample(BOXES)
    always = AugmentConfig(horizontal_flip=1.0)
    plain_image, plain = augment(image, target, 3, always)
    mirrored_image, mirrored = augment(image, target, 3, always, sides(PAIRS, CLASSES))
    assert torch.equal(plain_image, mirrored_image)
    assert mirrored["labels"].tolist() == [2, 1, 3] and plain["labels"].tolist() == [1, 2, 3]
    assert_same({**mirrored, "labels": plain["labels"]}, plain)
    never = AugmentConfig(horizontal_flip=0.0)
    assert_same(augment(image, target, 3, never, sides(PAIRS, CLASSES))[1], target)


def test_a_mask_follows_its_object_also_to_a_class_of_set_b() -> None:
    known = sides((("left_light", "right_hand"),), CLASSES)
    assert known is not None
    _, target = sample(BOXES)
    target["labels"] = torch.tensor([1, 4, 3])
    followed = known.mirrored(target)
    assert followed["labels"].tolist() == [4, 1, 3]
    assert followed["has_mask"].tolist() == target["has_mask"].tolist() == [True, True, False]


def test_a_data_set_swaps_where_it_mirrors_and_reads_plain_samples_as_they_are(load_coco: Load) -> None:
    config = AugmentConfig(horizontal_flip=1.0, swapped_classes=(("box", "cup"),))
    dataset, plain = load_coco(document(), augment=config), load_coco(document())
    box, cup = (dataset.classes.label_of_name(name) for name in ("box", "cup"))
    assert plain[0][1]["labels"].tolist() == [box, cup, box]
    assert dataset[0, 5][1]["labels"].tolist() == [cup, box, cup]
    assert_same(dataset[0][1], plain[0][1])
    assert_same(dataset.target(0), plain.target(0))


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        (
            [["left_light", "rigth_light"]],
            r"augment.swapped_classes: .*'rigth_light' \(did you mean 'right_light'",
        ),
        ([["wheel", "hood"]], "augment.swapped_classes: no class is called 'wheel'"),
    ],
)
def test_an_unknown_name_is_an_error_with_the_key_and_near_names(pairs: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        sides(pairs, CLASSES)


@pytest.mark.parametrize("pairs", ['[["a", "b"], ["b", "c"]]', '[["a", "a"]]'])
def test_a_class_in_two_pairs_or_its_own_other_side_is_refused(pairs: str) -> None:
    with pytest.raises(ValueError, match=r"augment.swapped_classes has '[ab]' more than once"):
        load_config("training/presets/shapes.toml", [f"augment.swapped_classes={pairs}"])


@pytest.mark.parametrize("wrong", ['["a", "b"]', '[["a", "b", "c"]]', "a"])
def test_what_is_no_list_of_pairs_is_refused_by_its_key(wrong: str) -> None:
    with pytest.raises(ValueError, match="augment.swapped_classes"):
        load_config("training/presets/shapes.toml", [f"augment.swapped_classes={wrong}"])


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (["right_light", "left_light"], [("left_light", "right_light")]),
        (["Left Door", "Right Door", "left door"], [("Left Door", "Right Door")]),
        (["frontLeftDoor", "frontRightDoor"], [("frontLeftDoor", "frontRightDoor")]),
        (["LEFT-ARM", "RIGHT-ARM"], [("LEFT-ARM", "RIGHT-ARM")]),
        (
            ["r_eye", "l_eye", "L", "size_l"],
            [("l_eye", "r_eye")],
        ),  # CelebAMask-HQ, zllrunning/face-parsing.PyTorch #57
        (["back_left_wheel", "back_right_door"], []),
        (["cleft", "cright", "bright", "bleft"], []),
    ],
)
def test_pairs_are_suggested_by_whole_words_of_any_case(
    names: list[str], pairs: list[tuple[str, str]]
) -> None:
    assert suggested_pairs(names) == pairs


def test_the_hint_can_be_pasted_and_then_there_is_none() -> None:
    said = hint(AugmentConfig(), CLASSES)
    assert said is not None
    key, _, value = said.splitlines()[-1].strip().partition("=")
    config = load_config("training/presets/shapes.toml", [f"{key}={value.strip(chr(39))}"])
    assert config.augment.swapped_classes == PAIRS
    assert hint(config.augment, CLASSES) is None
    assert hint(AugmentConfig(horizontal_flip=0.0), CLASSES) is None


def test_without_a_partner_the_hint_is_not_to_mirror() -> None:
    one = ClassTable(ids=(1, 2), names=("right hand", "bright"), has_mask=(True, True))
    assert "right hand:" in str(hint(AugmentConfig(), one)) and "horizontal_flip=0" in str(
        hint(AugmentConfig(), one)
    )
    none = ClassTable(ids=(1,), names=("copyright",), has_mask=(True,))
    assert hint(AugmentConfig(), none) is None


def test_a_pair_across_the_sets_is_said_to_bring_masks() -> None:
    said = hint(AugmentConfig(swapped_classes=(("right_hand", "hood"),)), CLASSES)
    assert said is not None and said.startswith("hint: right_hand: set B")


def test_a_training_with_pairs_goes_through_and_says_no_hint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tiny_set(tmp_path)
    document = json.loads((tmp_path / "train.json").read_text())
    for category, name in zip(document["categories"], ("left_brick", "right_brick", "slab"), strict=True):
        category["name"] = name
    (tmp_path / "train.json").write_text(json.dumps(document))
    words = [w for w in tiny_changes(tmp_path, tmp_path / "out") if not w.startswith("data.mask_classes")]
    words += [
        "data.mask_classes=left_brick,right_brick",
        "schedule.detector_steps=1",
        "schedule.mask_steps=1",
    ]
    assert main(words) == 0
    said = capsys.readouterr().out
    found = re.search(r"augment.swapped_classes='(.*)'", said)
    assert found and json.loads(found[1]) == [["left_brick", "right_brick"]]
    assert main(["--restart", *words, f"augment.swapped_classes={found[1]}"]) == 0
    assert "hint" not in capsys.readouterr().out
    assert main(["--restart", *words, 'augment.swapped_classes=[["left_brick", "rihgt_brick"]]']) == 2
    assert "augment.swapped_classes: no class is called 'rihgt_brick'" in capsys.readouterr().err


def test_sides_are_of_labels_whatever_the_order_of_a_pair() -> None:
    one, other = (sides((pair,), CLASSES) for pair in (PAIRS[0], PAIRS[0][::-1]))
    assert isinstance(one, Sides) and isinstance(other, Sides)
    assert one.labels.tolist() == other.labels.tolist() == [0, 2, 1, 3, 4]
    assert sides((), CLASSES) is None
