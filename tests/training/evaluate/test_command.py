"""The command line of evaluation: what it writes, and what it refuses before it begins."""

import csv
import json
from pathlib import Path

import pytest
from PIL import Image

from model.classes import ClassTable, class_table
from tests.export.tiny import save_network
from tests.model.small_network import SMALL, small_network
from tests.training.datasets.small_sets import write_cityscapes
from tests.training.tiny_set import NAMES, write_tiny_set
from training.datasets import cityscapes
from training.evaluate.__main__ import main

CLASSES = ClassTable(ids=(1, 2, 3), names=NAMES, has_mask=(True, True, False))


def command(folder: Path, classes: ClassTable = CLASSES) -> list[str]:
    """Words that evaluate a network of no training on the tiny set, to `folder`/out."""
    write_tiny_set(folder)
    checkpoint = folder / "checkpoint.pt"
    data = {"val_images": str(folder / "images"), "val_annotations": str(folder / "train.json")}
    network = small_network(classes.num_classes)
    save_network(checkpoint, network, SMALL, classes, training_config={"data": data})
    return ["--checkpoint", str(checkpoint), "--device", "cpu", "--out", str(folder / "out")]


def test_all_files_are_written_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command(tmp_path), "--max-detections", "9"]) == 0
    out = tmp_path / "out"
    names = ("results.json", "per_class.csv", "ap_over_iou.png", "sheet.png")
    shown = capsys.readouterr().out
    assert all(str(out / name) in shown for name in names)
    assert sorted(path.name for path in out.iterdir()) == sorted(names)
    contents = json.loads((out / "results.json").read_text())
    assert contents["max_detections"] == 9 and len(contents["all"]["mask"]["ap_by_iou"]) == 10
    with (out / "per_class.csv").open(newline="") as file:
        assert [row["class"] for row in csv.DictReader(file)][:3] == list(NAMES)
    with Image.open(out / "ap_over_iou.png") as plot:
        assert plot.size[0] > 700


@pytest.mark.parametrize(
    ("words", "seen"),
    [
        (["--cityscapes"], "have no 'void' in the annotation file"),
        (["--max-detections", "0"], "max_detections is 0; give 1 or more"),
    ],
)
def test_what_cannot_be_judged_is_one_line_before_any_image_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], seen: str
) -> None:
    assert main([*command(tmp_path), *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and seen in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("fault", "seen"),
    [
        ("deleted", "1.png: cannot be read (No such file or directory); expected an image"),
        ("header", "1.png: "),
        ("pixels", "1.png: the PNG image is broken or cut short"),
    ],
)
def test_a_broken_image_is_named_and_nothing_is_judged_unless_it_is_to_be_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str, seen: str
) -> None:
    words = command(tmp_path)
    picture = tmp_path / "images" / "1.png"
    data = picture.read_bytes()
    picture.write_bytes(data[: {"deleted": 0, "header": 10, "pixels": len(data) // 2}[fault]])
    if fault == "deleted":
        picture.unlink()
    assert main(words) == 2
    shown = capsys.readouterr()
    assert seen in shown.err and "--leave-out-broken" in shown.err and shown.out == ""
    assert shown.err.count("error: ") == 1 and "Traceback" not in shown.err
    assert not (tmp_path / "out").exists()
    assert main([*words, "--leave-out-broken"]) == 0
    assert json.loads((tmp_path / "out" / "results.json").read_text())["images"] == 5
    assert "left out: 1 images that are" in capsys.readouterr().out


def test_a_converted_cityscapes_is_judged_by_its_own_rules_beside_cocos(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_cityscapes(tmp_path)
    root = tmp_path / "cityscapes"
    cityscapes.write_cityscapes(root, root)
    classes = class_table([{"id": i, "name": name} for i, name in cityscapes.CLASSES.items()], "car")
    words = ["--images", str(root / "leftImg8bit/val"), "--annotations", str(root / "val.json")]
    assert main([*command(tmp_path / "tiny", classes), *words, "--cityscapes"]) == 0
    contents = json.loads((tmp_path / "tiny/out/results.json").read_text())
    assert 0 <= contents["a"]["cityscapes"]["ap"] <= contents["a"]["cityscapes"]["ap50"] < 1
    assert contents["classes"][3]["cityscapes"] == {"ap": None, "ap50": None}  # no truck
    assert "Cityscapes' own" in capsys.readouterr().out
