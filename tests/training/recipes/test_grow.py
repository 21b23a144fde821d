"""New classes from boxes alone: which rows are learned, that nothing else moves, and that masks come at once."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model.checkpoint import load_checkpoint, load_network
from model.classes import ClassTable
from tests.model.small_network import image
from tests.training.datasets.small_sets import write_json
from tests.training.tiny_set import tiny_changes, write_tiny_set
from training.evaluate.__main__ import main as evaluate
from training.recipes.grow import main, with_classes_before
from training.train import main as train

LAST = "box_predictor."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny set whose third class, "slab", is in a file of its own, with boxes alone and an id that is taken; and a
    network trained on the other two."""
    folder = tmp_path_factory.mktemp("grow") / "set"
    write_tiny_set(folder)
    whole = json.loads((folder / "train.json").read_text())
    old = [one for one in whole["annotations"] if one["category_id"] < 3]
    boxes = {"category_id": 1, "segmentation": []}
    new = [one | boxes for one in whole["annotations"] if one["category_id"] == 3]
    write_json(folder / "train.json", whole | {"annotations": old, "categories": whole["categories"][:2]})
    write_json(folder / "new.json", whole | {"annotations": new, "categories": [{"id": 1, "name": "slab"}]})
    threads = torch.get_num_threads()
    normal = [f"model.transfer.{form}" for form in ("input=cls+box", "normalise=true", "residual=false")]
    assert train([*tiny_changes(folder, folder / "before"), "data.mask_classes=tile", *normal]) == 0
    torch.set_num_threads(threads)
    return folder


@pytest.fixture
def grow(folder: Path, tmp_path: Path) -> Callable[..., int]:
    words = [str(folder / "before" / "checkpoint.pt"), "--images", str(folder / "images")]
    words += ["--out", str(tmp_path / "g")]
    annotations = ["--annotations", str(folder / "new.json")]
    return lambda *more, of=annotations: main([*words, *of, *more])


def rows(weights: dict[str, Tensor], name: str) -> Tensor:
    per = 4 if "bbox" in name else 1
    return weights[name].reshape(weights[name].shape[0] // per, -1)


def test_only_the_rows_of_the_new_class_are_learned_and_its_masks_are_t_of_them(
    grow: Callable[..., int], folder: Path, tmp_path: Path
) -> None:
    assert grow("--steps", "1", "optimiser.weight_decay=0.5") == 0
    one = load_checkpoint(tmp_path / "g" / "checkpoint.pt")["model"]
    assert grow("--steps", "3", "--resume", "optimiser.weight_decay=0.5") == 0
    network, classes, contents = load_network(tmp_path / "g" / "checkpoint.pt")
    assert classes.names == ("brick", "tile", "slab") and classes.has_mask == (False, True, False)
    assert contents["step"] == 3 and contents["new_labels"] == [3]
    before, now = load_checkpoint(folder / "before" / "checkpoint.pt")["model"], contents["model"]
    for name, value in before.items():
        if name.startswith(LAST):
            assert torch.equal(rows(now, name)[:3], rows(before, name)), name
            assert not torch.equal(rows(now, name)[3], rows(one, name)[3]), f"{name} is not learned"
        else:
            assert torch.equal(now[name], value), name
    assert now.keys() - before.keys() == {"mask_weights.mean"}
    was = load_network(folder / "before" / "checkpoint.pt")[0].mask_table()[0]
    table = network.mask_table()[0]
    torch.testing.assert_close(table[:3], was)
    assert bool(table[3].abs().sum() > 0) and not torch.allclose(table[3], table[2])
    network.score_threshold = 0.0
    (answer,) = network([image()])
    assert 3 in answer["labels"].tolist()


def test_the_network_grows_again_and_keeps_the_first_mean(
    grow: Callable[..., int], folder: Path, tmp_path: Path
) -> None:
    assert grow("--steps", "1") == 0
    more = json.loads((folder / "new.json").read_text())
    more["categories"][0]["name"] = "plank"
    write_json(tmp_path / "more.json", more)
    words = [str(tmp_path / "g" / "checkpoint.pt"), "--images", str(folder / "images"), "--steps", "1"]
    assert main([*words, "--annotations", str(tmp_path / "more.json"), "--out", str(tmp_path / "again")]) == 0
    first, _, _ = load_network(tmp_path / "g" / "checkpoint.pt")
    second, classes, _ = load_network(tmp_path / "again" / "checkpoint.pt")
    assert classes.names == ("brick", "tile", "slab", "plank")
    torch.testing.assert_close(second.mask_table()[0][:4], first.mask_table()[0])


def test_a_grown_network_is_evaluated_on_all_its_classes(
    grow: Callable[..., int], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    val = json.loads((folder / "new.json").read_text())
    val["categories"] = [{"id": 1, "name": "tile"}, {"id": 4, "name": "slab"}]
    val["annotations"] = [{**one, "category_id": 4} for one in val["annotations"]]
    (tmp_path / "val.json").write_text(json.dumps(val))
    assert grow("--steps", "1", "--val-annotations", str(tmp_path / "val.json")) == 0
    written = json.loads((tmp_path / "g" / "val.json").read_text())
    assert [one["name"] for one in written["categories"]] == ["brick", "tile", "slab"]
    assert {one["category_id"] for one in written["annotations"]} == {3}
    words = ["--checkpoint", str(tmp_path / "g" / "checkpoint.pt"), "--device", "cpu", "--out", str(tmp_path)]
    assert evaluate(words) == 0
    val["categories"][0]["name"] = "unicorn"
    (tmp_path / "val.json").write_text(json.dumps(val))
    assert grow("--restart", "--val-annotations", str(tmp_path / "val.json")) == 2
    assert "val.json: unicorn: no class of" in capsys.readouterr().err


def test_categories_of_before_keep_their_ids_and_new_ones_come_after_them() -> None:
    classes = ClassTable(ids=(2, 7), names=("cat", "dog"), has_mask=(True, False))
    document = {
        "images": [],
        "categories": [
            {"id": 9, "name": "cow", "color": "red"},
            {"id": 2, "name": "ant"},
            {"id": 3, "name": "dog", "supercategory": "animal"},
        ],
        "annotations": [{"id": i, "category_id": c} for i, c in enumerate((2, 3, 9, 5))],
    }
    merged = with_classes_before(document, classes)
    assert merged["categories"] == [
        {"id": 2, "name": "cat"},
        {"id": 7, "name": "dog", "supercategory": "animal"},
        {"id": 8, "name": "ant"},
        {"id": 9, "name": "cow", "color": "red"},
    ]
    # An unknown id stays, to be reported.
    assert [one["category_id"] for one in merged["annotations"]] == [8, 7, 9, 5]
    assert document["annotations"][0]["category_id"] == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps", "0"], "--steps is 0; give 1 or more"),
        (["nothing"], "'nothing': expected key.of.table=value"),
        (["schedule.detector_steps=2"], "set kept_mean to false, or these steps to 0"),
    ],
)
def test_mistakes_are_named(
    words: list[str], message: str, grow: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert grow(*words) == 2
    assert message in capsys.readouterr().err


def test_a_file_without_a_new_class_is_refused(
    grow: Callable[..., int], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert grow(of=["--annotations", str(folder / "train.json")]) == 2
    assert "has no class that" in capsys.readouterr().err and not (tmp_path / "g").exists()


@pytest.mark.parametrize("category", [{"id": 1}, {"id": "one", "name": "slab"}, "slab"], ids=str)
def test_a_category_that_is_none_is_one_error(
    category: Any, grow: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_json(tmp_path / "new.json", {"images": [], "annotations": [], "categories": [category]})
    assert grow(of=["--annotations", str(path)]) == 2
    assert f"{path}: category number 1" in capsys.readouterr().err


def test_class_specific_masks_have_nothing_to_give_a_class_with_boxes(
    grow: Callable[..., int], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    contents = load_checkpoint(folder / "before" / "checkpoint.pt")
    contents["training_config"]["model"]["transfer"]["kind"] = "class_specific"
    torch.save(contents, tmp_path / "specific.pt")
    words = ["--images", str(folder / "images"), "--annotations", str(folder / "new.json")]
    assert main([str(tmp_path / "specific.pt"), *words, "--out", str(tmp_path / "g")]) == 2
    assert "classes with boxes alone want transfer or class_agnostic" in capsys.readouterr().err
