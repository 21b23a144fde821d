"""What the masks of a class were learned from, from the annotations through a training into checkpoint and answers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from export.metadata import build_metadata
from model.checkpoint import load_checkpoint, load_network, save_checkpoint
from model.classes import ClassTable
from tests.training.tiny_set import equal, tiny_changes, weights
from training.config import DataConfig, load_config
from training.data.splits import MASKS_OF_SET_A
from training.datasets.__main__ import main as datasets
from training.evaluate.__main__ import main as evaluate
from training.recipes.grow import main as grow
from training.train import main

SOURCES = ("masks", "some_masks", "taught")


@pytest.fixture
def mixed(tiny_set: Path, tmp_path: Path) -> list[str]:
    """Words of a training on the tiny set, whose bricks have enough masks (each object several times), tiles some, of
    less weight, and slabs those of a segmenter."""
    document = json.loads((tiny_set / "train.json").read_text())
    bricks = [one for one in document["annotations"] if one["category_id"] == 1]
    found: list[dict[str, Any]] = bricks * -(-MASKS_OF_SET_A // len(bricks))
    found += [one | {"mask_weight": 0.5} for one in document["annotations"] if one["category_id"] == 2]
    found += [
        one | {"mask_source": "segmenter"} for one in document["annotations"] if one["category_id"] == 3
    ]
    document["annotations"] = [one | {"id": number} for number, one in enumerate(found, start=1)]
    (tmp_path / "mixed.json").write_text(json.dumps(document))
    words = [*tiny_changes(tiny_set, tmp_path / "run"), "data.mask_classes=auto"]
    return [*words, f"data.train_annotations={tmp_path / 'mixed.json'}"]


def test_auto_is_the_default_and_that_of_ones_own_photographs() -> None:
    assert DataConfig().mask_classes == "auto"
    assert load_config("training/presets/photos.toml").data.mask_classes == "auto"


def test_a_training_says_the_sources_and_keeps_them_in_checkpoint_metadata_and_evaluation(
    mixed: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(mixed) == 0
    said = capsys.readouterr().out
    assert "some true masks, fewer than set A asks: 1 class" in said and "2 by segmenter): slab" in said
    path = tmp_path / "run" / "checkpoint.pt"
    _, classes, contents = load_network(path)
    assert classes.mask_sources == SOURCES and contents["classes"]["mask_sources"] == list(SOURCES)
    metadata = build_metadata(classes, mask_size=28, max_detections=1, min_size=1, max_size=1)
    assert [one["mask_source"] for one in metadata["categories"]] == list(SOURCES)
    assert evaluate(["--checkpoint", str(path), "--device", "cpu", "--out", str(tmp_path)]) == 0
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    for name, in_set, source in zip(classes.names, "ABB", SOURCES, strict=True):
        assert any(line[:3] == [name, in_set, source] for line in table)
    (line,) = (row for row in (tmp_path / "per_class.csv").read_text().splitlines() if "tile" in row)
    assert line.startswith("2,tile,B,some_masks,")


def test_the_check_of_a_set_says_the_sources(mixed: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert datasets(["check", *mixed]) == 0
    said = capsys.readouterr().out
    assert "set A, true masks: 1 class" in said and "masks taught by another: 1 class" in said
    table = [line.split()[:3] for line in said.splitlines()]
    assert ["tile", "B", "some_masks"] in table and ["slab", "B", "taught"] in table


def test_a_mask_of_less_weight_moves_the_weights_otherwise_and_weights_of_1_not_at_all(
    mixed: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "mixed.json"
    text = path.read_text()
    found = []
    for number, new in enumerate(("0.5", "1.0", "0.25")):
        path.write_text(text.replace('"mask_weight": 0.5', f'"mask_weight": {new}'))
        out = tmp_path / f"run{number}"
        assert main([*mixed, f"output.dir={out}"]) == 0
        found.append(weights(out))
    path.write_text(text.replace(', "mask_weight": 0.5', ""))
    assert main([*mixed, f"output.dir={tmp_path / 'plain'}"]) == 0
    plain = weights(tmp_path / "plain")
    assert equal(plain, found[1])
    assert not equal(plain, found[0]) and not equal(found[0], found[2])


def test_parts_of_a_step_divide_by_the_count_over_all_of_them(mixed: list[str], tmp_path: Path) -> None:
    """With schedule.accumulate one part may have weights and another none that differs from 1."""
    for number in (1, 2):
        out = [f"output.dir={tmp_path / str(number)}", f"schedule.accumulate={number}"]
        assert main([*mixed, *out, "model.backbone.norm=frozen"]) == 0
    one, other = weights(tmp_path / "1"), weights(tmp_path / "2")
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=1e-3, atol=1e-5)


def test_a_run_of_before_goes_on_where_its_checkpoint_has_no_sources(tiny_set: Path, tmp_path: Path) -> None:
    words = tiny_changes(tiny_set, tmp_path / "run")
    assert main(words) == 0
    path = tmp_path / "run" / "checkpoint.pt"
    contents = load_checkpoint(path)
    del contents["classes"]["mask_sources"]
    save_checkpoint(path, contents)
    assert load_network(path)[1].mask_sources == ("masks", "masks", "boxes")
    assert main([*words, "--resume", "schedule.mask_steps=3"]) == 0
    assert load_checkpoint(path)["step"] == 5
    assert main([*words, "--resume", "schedule.mask_steps=4", "data.mask_classes=brick"]) == 2


def test_a_grown_network_keeps_what_its_masks_were_learned_from(
    mixed: list[str], tiny_set: Path, tmp_path: Path
) -> None:
    assert main(mixed) == 0
    document = json.loads((tiny_set / "train.json").read_text())
    new = [one | {"category_id": 1} for one in document["annotations"][:2]]
    document |= {"annotations": new, "categories": [{"id": 1, "name": "plank"}]}
    (tmp_path / "new.json").write_text(json.dumps(document))
    words = [str(tmp_path / "run" / "checkpoint.pt"), "--images", str(tiny_set / "images")]
    words += ["--annotations", str(tmp_path / "new.json"), "--out", str(tmp_path / "g")]
    for steps in (["--steps", "1"], ["--steps", "2", "--resume"]):
        assert grow([*words, *steps]) == 0
        _, classes, _ = load_network(tmp_path / "g" / "checkpoint.pt")
        assert dict(zip(classes.names, classes.mask_sources, strict=True)) == dict(
            zip(("brick", "tile", "slab", "plank"), (*SOURCES, "boxes"), strict=True)
        )


def test_a_network_that_was_taught_alone_trains_and_grows(
    mixed: list[str], tiny_set: Path, tmp_path: Path
) -> None:
    document = json.loads((tmp_path / "mixed.json").read_text())
    document["annotations"] = [one | {"mask_source": "segmenter"} for one in document["annotations"]]
    (tmp_path / "mixed.json").write_text(json.dumps(document))
    assert main([*mixed, "data.val_annotations="]) == 0
    checkpoint = tmp_path / "run" / "checkpoint.pt"
    assert ClassTable.from_dict(load_checkpoint(checkpoint)["classes"]).mask_sources == ("taught",) * 3
    document["categories"][0]["name"] = "plank"
    (tmp_path / "new.json").write_text(json.dumps(document))
    words = [str(checkpoint), "--images", str(tiny_set / "images"), "--steps", "1"]
    assert grow([*words, "--annotations", str(tmp_path / "new.json"), "--out", str(tmp_path / "g")]) == 0
    _, classes, _ = load_network(tmp_path / "g" / "checkpoint.pt")
    assert classes.mask_sources == (*["taught"] * 3, "boxes")
