"""The command: what it prints, that its counts are true, how it ends; and the same at the start of a training."""

import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.training.data.coco_set import annotation
from tests.training.look.made_set import Document, MadeSets
from tests.training.tiny_set import equal, tiny_changes, weights
from training import train
from training.data.coco import training_set
from training.datasets.__main__ import main
from training.look.command import check
from training.look.facts import Facts, class_table_lines
from training.look.sheet import CROWD, detections, sheet_rows


def words_of(made: MadeSets) -> list[str]:
    """A command line's, for the sets as they were last written."""
    return [
        f"data.{part}_{key}={made.folder / part}{end}"
        for part in ("train", "val")
        for key, end in (("images", ""), ("annotations", ".json"))
    ] + ["data.mask_classes=brick,tile"]


def spoilt(document: Document) -> None:
    """One object left out in each way, two crowds, masks without a pixel, and without one in its box."""
    document["annotations"] += [
        annotation(101, 77, 1, [5, 5, 9, 9]),
        annotation(102, 0, 1, [5, 5, 0, 9]),
        annotation(103, 0, 1, [500, 5, 9, 9]),
        {**annotation(104, 0, 1, [5, 5, 9, 9]), "bbox": [5]},
        annotation(105, 0, 1, [5, 5, 0.001, 9]),
        annotation(106, 1, 2, [5, 5, 9, 9], iscrowd=1),
        annotation(107, 1, 3, [500, 5, 9, 9], iscrowd=1),
        annotation(108, 2, 2, [5, 5, 9, 9], iscrowd=1),
        annotation(109, 2, 2, [5, 5, 9, 9], segmentation=[[6.6, 6, 6.9, 6, 6.9, 6.4]]),
        annotation(110, 2, 2, [5, 5, 9, 9], segmentation=[[6, 20, 40, 20, 40, 2, 13.97, 13.97]]),
    ]


def test_objects_crowds_and_what_is_left_out_are_the_annotations_of_the_file(
    made: MadeSets, capsys: pytest.CaptureFixture[str]
) -> None:
    config = made.config(train=spoilt)
    report = training_set(config).report
    assert (report.annotations, report.objects, report.crowd_regions, report.left_out) == (28, 20, 2, 6)
    assert report.objects_with_mask == 12
    check(config)
    told = capsys.readouterr().out
    assert "28 annotations: 20 objects, 2 crowd regions (9.1 %), 6 left out" in told
    assert "2 x mask without a pixel (kept without its mask)" in told
    assert re.search(r"tile +A +masks +8 +6 +6\n", told) and re.search(r"slab +B +boxes +6 +- +6\n", told)


def test_the_masks_counted_are_those_of_the_targets(made: MadeSets) -> None:
    data = training_set(made.config(train=spoilt))
    facts = Facts.of(data, "training set")
    masks = torch.zeros(4, dtype=torch.int64)
    for row in range(len(data)):
        target = data.target(row)
        masks += torch.bincount(target["labels"][target["has_mask"]], minlength=4)
    assert masks[1:].tolist() == facts.masks.tolist() == [6, 6, 0]


def test_sizes_and_quantiles_are_told(made: MadeSets, capsys: pytest.CaptureFixture[str]) -> None:
    def grown(document: Document) -> None:
        document["images"][5].update(width=300, height=200)
        document["annotations"] = document["annotations"][:-3]
        document["annotations"].append(annotation(60, 5, 1, [10, 10, 200, 150]))
        document["annotations"] += [annotation(70, 5, 2, [10, 10, 50, 50])]

    Image.fromarray(np.random.default_rng(3).integers(0, 256, (200, 300, 3), np.uint8)).save(
        made.folder / "train" / "train5.png"
    )
    check(made.config(train=grown))
    told = capsys.readouterr().out
    assert (
        "images of 64 x 64 to 300 x 200, in the middle 64 x 64; objects to an image: 3 in the middle, 3 at most"
        in told
    )
    assert "88 % small (below 32 x 32 pixels), 5.9 % medium, 5.9 % large (from 96 x 96)" in told
    assert "27 (50 %)" in told


def test_images_that_are_no_samples_are_told(made: MadeSets, capsys: pytest.CaptureFixture[str]) -> None:
    def emptied(document: Document) -> None:
        document["annotations"] = document["annotations"][3:]

    check(made.config("data.skip_empty=true", train=emptied))
    assert "1 image without objects is no sample (data.skip_empty)" in capsys.readouterr().out


def test_of_many_classes_the_first_and_the_last_are_shown(made: MadeSets) -> None:
    facts = Facts.of(training_set(made.config(train=lambda d: d["annotations"].pop())), "training set")
    assert len(class_table_lines(facts)) == 4
    bounded = class_table_lines(facts, most=2)
    assert [line.split()[0] for line in bounded] == ["class", "brick", "...", "slab"]
    assert bounded[2].split() == ["...", "1", "more", "6", "6"]


def test_boxes_of_other_conventions_are_told(made: MadeSets, capsys: pytest.CaptureFixture[str]) -> None:
    def relative(document: Document) -> None:
        for one in document["annotations"]:
            one["bbox"] = [v / 64 for v in one["bbox"]]
            one["segmentation"] = []

    def corners(document: Document) -> None:
        for one in document["annotations"]:
            x, y, w, h = one["bbox"]
            one["bbox"] = [x + 20, y + 20, min(x + w + 20, 64), min(y + h + 20, 64)]
            one["segmentation"] = []

    off = ["schedule.mask_steps=0", "schedule.end_to_end_steps=0"]
    check(made.config(*off, train=relative, val=corners))
    told = capsys.readouterr().out
    assert "18 x box of coordinates from 0 to 1, as most have (kept)" in told
    assert "warning: training set: box of coordinates from 0 to 1" in told
    assert "warning: validation set: box that reads as two corners" in told
    assert "18 x box that reads as two corners, as all do (kept)" in told


def test_sides_are_told_while_images_are_mirrored(made: MadeSets, capsys: pytest.CaptureFixture[str]) -> None:
    def sided(document: Document) -> None:
        document["categories"][0]["name"], document["categories"][1]["name"] = "left lamp", "right lamp"

    words = ["data.mask_classes=left lamp,right lamp", "augment.horizontal_flip=0.5"]
    for more, told in (([], True), (["augment.horizontal_flip=0"], False)):
        check(made.config(*words, *more, train=sided, val=sided))
        assert ("augment.swapped_classes=" in capsys.readouterr().out) is told


# ---- the command ----


def test_status_0_with_warnings_and_2_where_a_training_would_be_refused(
    made: MadeSets, capsys: pytest.CaptureFixture[str]
) -> None:
    made.config(train=lambda d: d.update(annotations=d["annotations"][1:2]))
    assert main(["check", *words_of(made)]) == 0
    captured = capsys.readouterr()
    assert "warning: training set: " in captured.out
    made.config(train=lambda d: d["images"][0].update(width=7))
    assert main(["check", *words_of(made)]) == 2
    refused = capsys.readouterr().err
    assert "train0.png: is 64 x 64; expected 7 x 64" in refused
    assert train.main([*words_of(made), f"output.dir={made.folder / 'run'}", "device=cpu"]) == 2
    assert " ".join(refused[refused.index("error: ") :].split()) == capsys.readouterr().err.splitlines()[-1]


def test_without_images_none_is_there_to_be_opened(
    made: MadeSets, capsys: pytest.CaptureFixture[str]
) -> None:
    made.config()
    for part in ("train", "val"):
        for path in (made.folder / part).iterdir():
            path.unlink()
    assert main(["check", "--no-images", *words_of(made)]) == 0
    assert "6 images (0 without objects), 18 objects (12 with a mask)" in capsys.readouterr().out
    assert main(["check", *words_of(made)]) == 2
    assert main(["check", "--no-images", "--decode", *words_of(made)]) == 2
    assert "--no-images opens no image" in capsys.readouterr().err


def test_every_image_is_decoded_where_asked(made: MadeSets, capsys: pytest.CaptureFixture[str]) -> None:
    made.config()
    assert main(["check", "--decode", *words_of(made)]) == 0
    path = made.folder / "val" / "val4.png"
    path.write_bytes(path.read_bytes()[:-3000])
    assert main(["check", *words_of(made)]) == 0
    capsys.readouterr()
    assert main(["check", "--decode", *words_of(made)]) == 2
    assert "val4.png" in capsys.readouterr().err


def test_no_validation_set_is_no_fault(made: MadeSets) -> None:
    made.config()
    assert main(["check", *words_of(made), "data.val_annotations="]) == 0


# ---- the sheet ----


def test_the_sheet_shows_the_rarest_classes_and_a_crowd(made: MadeSets) -> None:
    def change(document: Document) -> None:
        kept = [one for one in document["annotations"] if one["category_id"] < 3 or one["image_id"] == 4]
        kept.append(annotation(90, 2, 1, [3, 3, 9, 9], iscrowd=1))
        document["annotations"] = kept

    data = training_set(made.config(train=change))
    facts = Facts.of(data, "training set")
    assert {2, 4} <= set(sheet_rows(facts, 3)) and len(sheet_rows(facts, 3)) == 3
    assert sheet_rows(facts, 100) == list(range(6))
    drawn = detections(data, 4)
    assert [(one["category"], one["mask_supervised"], "segmentation" in one) for one in drawn] == [
        ("brick", True, True), ("tile", True, True), ("slab", False, False)
    ]  # fmt: skip
    assert drawn[0]["bbox"] == [8.0, 5.0, 30.0, 24.0]
    assert detections(data, 2)[-1]["category"] == CROWD


def test_the_sheet_is_written(made: MadeSets, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made.config()
    path = tmp_path / "new" / "sheet.png"
    assert main(["check", "--sheet", str(path), *words_of(made)]) == 0
    assert "sheet.png: 6 images as they are trained on" in capsys.readouterr().out
    with Image.open(path) as sheet:
        assert sheet.width > 1500 and len(sheet.convert("RGB").getcolors(10**6) or ()) > 1000


# ---- the start of a training ----


def test_a_training_begins_with_the_look_and_draws_the_same_numbers(
    tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(tiny_changes(tiny_set, tmp_path / "with")) == 0
    captured = capsys.readouterr()
    assert "  12 annotations: 12 objects, 0 crowd regions (0 %), 0 left out\n" in captured.out
    assert "  objects by class: brick " in captured.out
    assert "warning: 6 images of the validation set are in the training set too" in captured.err
    monkeypatch.setattr(train, "look_before_training", lambda *_: None)
    assert train.main(tiny_changes(tiny_set, tmp_path / "without")) == 0
    assert "annotations: " not in capsys.readouterr().out
    assert equal(weights(tmp_path / "with"), weights(tmp_path / "without"))


def test_the_look_leaves_all_generators_as_they_were(made: MadeSets) -> None:
    def states() -> tuple[object, ...]:
        numpy: dict[str, Any] = np.random.get_state(legacy=False)
        return (
            torch.get_rng_state().tolist(),
            numpy["state"]["key"].tolist(),
            numpy["state"]["pos"],
            random.getstate(),
        )

    config = made.config()
    torch.manual_seed(5)
    before = states()
    check(config)
    assert states() == before
    random.random()
    assert states() != before
