"""What evaluation prints, and its table by class."""

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.training.data.coco_scene import CLASSES, Change, KnowingNetwork, Scene, usual_scene
from training.evaluate.measure import Results, evaluate_network
from training.evaluate.precision import AveragePrecision
from training.evaluate.report import table, write_csv


def evaluated(
    folder: Path, scene: Scene, network: KnowingNetwork | None = None, change: Change = bool
) -> Results:
    images, annotations = scene.write(folder, change)
    return evaluate_network(network or KnowingNetwork(scene), CLASSES, images, annotations)


def test_the_table_has_a_row_per_group_and_class_in_aligned_columns(tmp_path: Path) -> None:
    scene = usual_scene()
    lines = table(evaluated(tmp_path, scene, KnowingNetwork(scene, labels=1))).splitlines()
    assert lines[0].split()[:2] == ["classes", "objects"]
    assert [line.split()[0] for line in lines[1:4]] == ["A", "B", "all"]
    assert lines[3].split()[1:] == ["4", "12", *7 * ["0.0"], "100.0", "75.1"]
    assert len({len(line) for line in lines[:4]}) == 1
    assert [line.split()[:4] for line in lines[6:8]] == [
        ["ant", "A", "masks", "3"],
        ["bee", "B", "boxes", "3"],
    ]


def test_sizes_and_recall_stand_below_and_lvis_columns_only_where_it_is_lvis(tmp_path: Path) -> None:
    def federated(document: dict[str, Any]) -> None:
        for entry in document["images"]:
            entry["neg_category_ids"] = []
        for category, frequency in zip(document["categories"], "rcfr", strict=True):
            category["frequency"] = frequency

    scene = usual_scene()
    plain = table(evaluated(tmp_path / "coco", scene)).splitlines()
    heads = "AP small medium large AR@1 @10 @100 AR small medium large"
    (at,) = (number for number, line in enumerate(plain) if line.split() == heads.split())
    assert [line.split()[:2] for line in plain[at + 1 : at + 4]] == [
        ["A,", "boxes"], ["A,", "masks"], ["B,", "boxes"]
    ]  # fmt: skip
    assert plain[at + 1].split()[2:] == ["100.0", "-", "-", "100.0", "100.0", "100.0", "100.0", "-", "-"]
    assert "5 images, up to 100 detections of at least 0.05 in each" in plain
    lvis = table(evaluated(tmp_path / "lvis", scene, change=federated)).splitlines()
    assert lvis[at].split() == [*heads.split(), "AR@300", "APr", "APc", "APf"]
    assert lvis[at + 1].split()[-4:] == [
        "100.0",
        "100.0",
        "-",
        "100.0",
    ]  # A: the ant is rare, the cat frequent
    assert "5 images, up to 300 detections of at least 0.05 in each" in lvis


def test_every_column_of_sizes_and_recall_is_the_figure_of_its_heading(tmp_path: Path) -> None:
    results = evaluated(tmp_path, usual_scene())
    names = [
        "ap_small",
        "ap_medium",
        "ap_large",
        "ar_1",
        "ar_10",
        "ar_100",
        "ar_small",
        "ar_medium",
        "ar_large",
    ]
    names += ["ar", "ap_rare", "ap_common", "ap_frequent"]
    figures: dict[str, Any] = {name: number / 100 for number, name in enumerate(names, start=1)}
    masks = AveragePrecision(ap=0.5, ap50=0.6, ap75=0.7, **figures)
    changed = replace(results, b=replace(results.b, mask=masks), max_detections=300)
    (row,) = (line.split() for line in table(changed).splitlines() if line.startswith("B, masks"))
    assert row[2:] == [f"{number}.0" for number in range(1, len(names) + 1)]
    (head,) = (line.split() for line in table(changed).splitlines() if line.startswith(" ") and "APr" in line)
    assert " ".join(head[-5:]) == "large AR@300 APr APc APf"


def test_the_csv_has_every_figure_of_every_class_and_of_the_groups(tmp_path: Path) -> None:
    scene = usual_scene(scale=8)
    results = evaluated(tmp_path, scene, KnowingNetwork(scene, noise=3, rows=6))
    write_csv(tmp_path / "per_class.csv", results)
    with (tmp_path / "per_class.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = ["ant", "bee", "cat", "dog", "all of set A", "all of set B", "all"]
    assert [(row["class"], row["set"], row["objects"]) for row in rows] == list(
        zip(names, ["A", "B", "A", "B", "A", "B", ""], ["3", "3", "3", "3", "6", "6", "12"], strict=True)
    )
    bee = results.classes[1]
    assert (
        float(rows[1]["mask_ap_medium"]) == bee.mask.ap_medium and float(rows[1]["box_ar_1"]) == bee.box.ar_1
    )
    assert float(rows[1]["box_ap75"]) == bee.box.ap75 and rows[1]["category_id"] == "5"
    assert (
        float(rows[5]["mask_ap"]) == results.b.mask.ap and float(rows[6]["mask_iou"]) == results.all.mask_iou
    )
    assert rows[1]["mask_ap_small"] == "" and bee.mask.ap_small is None
