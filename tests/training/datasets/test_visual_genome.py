"""Visual Genome's own files: which synsets become classes, which objects are kept, how images are split."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from model.classes import class_table
from tests.training.datasets.small_sets import vg_object, vg_synsets, write_json, write_visual_genome
from training.data.coco import CocoDataset
from training.datasets import visual_genome as vg
from training.datasets.coco_2014 import COCO_NAMES


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_visual_genome(tmp_path)
    (tmp_path / "minival.txt").write_text("4\n5\n")
    return tmp_path


def converted(root: Path, **options: Any) -> list[str]:
    return vg.write_visual_genome(root / "vg", root / "minival.txt", root / "vg", **options)


def document(root: Path, part: str) -> dict[str, Any]:
    contents: dict[str, Any] = json.loads((root / "vg" / f"vg3k_{part}.json").read_text())
    return contents


# ---- classes ----


def test_coco_s_80_come_first_under_coco_s_names_and_the_others_by_alphabet() -> None:
    frequent = ["window.n.01", *vg_synsets(), "apse.n.01", "Zebu.n.01"]
    categories = vg.aligned_categories(frequent)
    assert [one["name"] for one in categories[:80]] == list(COCO_NAMES)
    assert [one["name"] for one in categories[80:]] == ["Zebu.n.01", "apse.n.01", "window.n.01"]
    assert [one["id"] for one in categories] == list(range(1, 84))
    assert categories[9] == {"id": 10, "name": "traffic light", "synset": "traffic_light.n.01"}
    assert categories[57]["synset"] == "sofa.n.01" and categories[28]["synset"] == "bag.n.06"


def test_of_two_synsets_of_one_name_the_more_frequent_is_coco_s_class() -> None:
    frequent = ["cat.n.05", *vg_synsets(), "mouse.n.04"]
    categories = {one["synset"]: one["name"] for one in vg.aligned_categories(frequent)}
    assert categories["cat.n.05"] == "cat" and categories["cat.n.01"] == "cat.n.01"
    assert categories["mouse.n.01"] == "mouse" and categories["mouse.n.04"] == "mouse.n.04"


def test_a_manual_pair_goes_before_a_synset_of_the_same_name() -> None:
    categories = vg.aligned_categories(["orange.n.03", *vg_synsets()])
    assert categories[COCO_NAMES.index("orange")]["synset"] == "orange.n.01"
    assert categories[-1]["name"] == "orange.n.03"


def test_a_manual_synset_beyond_the_list_is_one_class_more() -> None:
    frequent = [synset for synset in vg_synsets() if synset != "hand_blower.n.01"] + ["window.n.01"]
    categories = vg.aligned_categories(frequent)
    assert len(categories) == len(frequent) + 1
    assert categories[COCO_NAMES.index("hair drier")]["synset"] == "hand_blower.n.01"


def test_coco_classes_without_any_synset_are_named() -> None:
    frequent = [synset for synset in vg_synsets() if synset not in ("zebra.n.01", "traffic_light.n.01")]
    with pytest.raises(ValueError, match="no synset for 2 of COCO's 80 classes.*: traffic light, zebra"):
        vg.aligned_categories(frequent)


def test_the_manual_pairs_are_18_of_coco_s_names_with_a_synset_each() -> None:
    assert len(vg.MANUAL) == len(set(vg.MANUAL.values())) == 18
    assert set(vg.MANUAL) <= set(COCO_NAMES)


def test_every_synset_of_an_object_counts_and_equal_counts_stay_in_the_file_s_order(tmp_path: Path) -> None:
    objects = [vg_object(1, ["b.n.01"]), vg_object(2, ["a.n.01", "c.n.01"]), vg_object(3, ["c.n.01"])]
    path = write_json(tmp_path / "objects.json", [{"image_id": 1, "objects": objects}])
    assert vg.count_synsets(path) == Counter({"c.n.01": 2, "b.n.01": 1, "a.n.01": 1})
    assert [synset for synset, _ in vg.count_synsets(path).most_common(2)] == ["c.n.01", "b.n.01"]


# ---- objects and images ----


def test_objects_with_no_several_or_rare_synsets_are_dropped_and_counted(root: Path) -> None:
    lines = converted(root, classes=81, test_images=2)
    assert lines[0] == (
        "81 classes; 664 objects kept; left out: 8 without a synset, 8 with several, 1 of rarer synsets, "
        "0 of no image in image_data.json"
    )  # 8 images of 80 objects and 3 trees; the tree is the 81st synset by count, the dune the 82nd
    names = {one["id"]: one["name"] for one in document(root, "train")["categories"]}
    counts = Counter(names[one["category_id"]] for one in document(root, "val")["annotations"])
    assert counts["tree.n.01"] == 3 and counts["person"] == 1 and len(counts) == 81
    with_dunes = converted(root, classes=84, test_images=2)[0]
    assert with_dunes.startswith(
        "83 classes; 665 objects kept"
    )  # beside the dune, plant.n.02 has 8 of its own


def test_objects_of_a_manual_synset_beyond_the_list_are_dropped_as_the_source_does(root: Path) -> None:
    path = root / "vg" / "objects.json"
    contents = json.loads(path.read_text())
    for item in contents[1:]:
        item["objects"] = [one for one in item["objects"] if one["synsets"] != ["hand_blower.n.01"]]
    write_json(path, contents)
    lines = converted(root, classes=81, test_images=2)  # 79 of COCO's, tree.n.01, plant.n.02
    assert lines[0].startswith("82 classes; 656 objects kept") and "2 of rarer synsets" in lines[0]


def test_val_is_in_minival_test_the_last_without_coco_id_and_train_the_rest(root: Path) -> None:
    converted(root, test_images=2)
    ids = {part: [image["id"] for image in document(root, part)["images"]] for part in vg.PARTS}
    assert ids == {"val": [1], "test": [7, 8], "train": [2, 3, 4, 5, 6]}
    assert {one["image_id"] for one in document(root, "test")["annotations"]} == {7, 8}
    assert document(root, "train")["images"][0]["file_name"] == "VG_100K/2.jpg"
    assert document(root, "val")["images"][0]["coco_id"] == 4


def test_training_reads_every_box_and_no_mask_and_the_file_of_set_a_names_coco_s_classes(root: Path) -> None:
    converted(root, test_images=2)
    split = str(root / "vg" / "mask_classes.txt")
    data = CocoDataset(root / "vg", root / "vg" / "vg3k_train.json", mask_classes=split, require_masks=False)
    assert data.classes.set_a_labels() == tuple(range(1, 81))
    assert data.report.objects == 5 * 83 + 1 and data.report.objects_with_mask == 0
    _, target = data[0]
    assert target["labels"].tolist()[:80] == list(range(1, 81))
    assert target["boxes"][0].tolist() == [0.0, 0.0, 12.0, 12.0]
    assert not target["has_mask"].any()


def test_names_of_coco_s_classes_are_those_that_the_voc_split_knows(root: Path) -> None:
    converted(root)
    assert len(class_table(document(root, "train")["categories"], "voc").set_a_labels()) == 20


# ---- files that are not Visual Genome v1.4 ----


def test_files_that_are_missing_are_named_together(root: Path) -> None:
    (root / "vg" / "objects.json").unlink()
    (root / "vg" / "image_data.json").unlink()
    with pytest.raises(ValueError, match=r"no such file: .*image_data\.json, .*objects\.json"):
        converted(root)


@pytest.mark.parametrize(
    ("item", "seen"),
    [
        ({"id": 3, "objects": []}, "item 1.*expected image_id and objects"),
        ({"image_id": 3, "regions": []}, "item 1.*expected image_id and objects"),
        ({"image_id": 3, "objects": [{"names": ["a"]}]}, "image 3.*expected synsets"),
        ({"image_id": 3, "objects": [{"synsets": [7]}]}, "image 3.*expected synsets"),
    ],
)
def test_objects_of_another_form_are_refused(root: Path, item: dict[str, Any], seen: str) -> None:
    write_json(root / "vg" / "objects.json", [item])
    with pytest.raises(ValueError, match=seen):
        converted(root)


def test_an_object_without_numbers_is_refused_and_nothing_is_left_half_written(root: Path) -> None:
    path = root / "vg" / "objects.json"
    contents = json.loads(path.read_text())
    contents[2]["objects"][0]["w"] = None
    write_json(path, contents)
    with pytest.raises(ValueError, match=r"image 3 of objects\.json: an object at \[0, 0, None, 12\]"):
        converted(root)
    assert not list((root / "vg").glob("*vg3k*"))


@pytest.mark.parametrize(
    ("change", "seen"),
    [
        ({"url": "https://example.org/1.jpg"}, r"expected \.\.\./VG_100K"),
        ({"width": None}, "expected image_id, width and height"),
        ({"image_id": 2}, "a second image of the id 2"),
    ],
)
def test_images_of_another_form_are_refused(root: Path, change: dict[str, Any], seen: str) -> None:
    path = root / "vg" / "image_data.json"
    contents = json.loads(path.read_text())
    contents[2] |= change
    write_json(path, contents)
    with pytest.raises(ValueError, match=f"(?s)item 3.*{seen}"):
        converted(root)


def test_objects_of_an_image_that_is_not_listed_are_left_out_and_counted(root: Path) -> None:
    path = root / "vg" / "image_data.json"
    write_json(path, json.loads(path.read_text())[:-1])
    assert "83 of no image in image_data.json" in converted(root)[0]
