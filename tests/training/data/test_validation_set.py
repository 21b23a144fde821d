"""The validation set is looked at before the first step, as the training set is."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model.classes import class_table
from tests.training.tiny_set import NAMES, tiny_changes, write_tiny_set
from training.config import DEFAULT_CONFIG, load_config
from training.data.coco import look_at_validation_set
from training.train import main

CLASSES = class_table([{"id": i, "name": name} for i, name in enumerate(NAMES, start=1)], "brick,tile")


@pytest.fixture
def look(tmp_path: Path) -> Callable[..., None]:
    """Write val.json with a change beside the training set, and look at it for a network of bricks, tiles and slabs."""
    write_tiny_set(tmp_path)

    def look(change: Callable[[dict[str, Any]], Any] = bool, **settings: str) -> None:
        document = json.loads((tmp_path / "train.json").read_text())
        change(document)
        (tmp_path / "val.json").write_text(json.dumps(document))
        settings = {"val_annotations": str(tmp_path / "val.json")} | settings
        words = [f"data.{key}={value}" for key, value in settings.items()]
        look_at_validation_set(
            load_config(DEFAULT_CONFIG, [*tiny_changes(tmp_path, tmp_path / "run"), *words]), CLASSES
        )

    return look


def test_what_it_holds_is_told_and_masks_of_set_b_are_not_read(
    look: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    def spoilt(document: dict[str, Any]) -> None:
        for one in document["annotations"]:
            one["segmentation"] = "none" if one["category_id"] == 3 else one["segmentation"]
        document["annotations"][0]["segmentation"] = []

    look(spoilt)
    told = capsys.readouterr().out
    assert "val.json: 6 images (0 without objects), 12 objects (9 with a mask), 0 crowd regions" in told
    assert told.count("; first: ") == 1 and "annotation 1 of 0.png: expected polygons" in told


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d["categories"][2].update(name="plate"), r"category 3 is called 'plate'; expected 'slab'"),
        (lambda d: d["annotations"][3].update(category_id=4), r"annotation 4 of 2\.png: category_id 4"),
        (lambda d: d["images"][1].update(width=7), r"1\.png: is 64 x 64; expected 7 x 64"),
        (lambda d: d.update(annotations=[]), "no object is left"),
        (lambda d: d.pop("images"), "no list 'images'"),
    ],
)  # fmt: skip
def test_what_evaluation_could_not_use_is_refused_by_file_and_entry(
    look: Callable[..., None], change: Callable[[dict[str, Any]], Any], words: str
) -> None:
    with pytest.raises(ValueError, match=rf"(?s)the validation set: (?=.*val\.json).*{words}"):
        look(change)


def test_classes_under_other_ids_are_told_by_their_names(
    look: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    def turned(document: dict[str, Any]) -> None:
        for one in document["categories"]:
            one["id"] = 4 - one["id"]
        for one in document["annotations"]:
            one["category_id"] = 4 - one["category_id"]

    look()
    as_before = capsys.readouterr().out.splitlines()
    look(turned)
    told = capsys.readouterr().out.splitlines()
    assert told[0] == as_before[0]
    assert (
        "2 x category under another id" in told[1]
        and "category 3 ('brick') is 1 in the set trained on" in told[1]
    )


def test_without_a_validation_set_nothing_is_looked_at(
    look: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    look(val_annotations="")
    assert capsys.readouterr().out == ""


def test_a_training_ends_before_its_first_step_where_the_validation_set_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tiny_set(tmp_path)
    words = [*tiny_changes(tmp_path, tmp_path / "run"), f"data.val_annotations={tmp_path / 'nowhere.json'}"]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "the validation set: cannot read the annotation file" in error and "nowhere.json" in error
    assert "stage detector" not in error and not (tmp_path / "run" / "checkpoint.pt").exists()
