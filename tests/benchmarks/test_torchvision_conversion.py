"""The comparison with torchvision's Mask R-CNN: what counts as equal, both ways of pasting, the whole on few images."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pycocotools import mask as coco_mask

from benchmarks.accuracy.torchvision_conversion import PASTES, Answer, differences, main, results_of
from benchmarks.speed.peer_training import drawn_set_peer, merged_classes, take_over
from model.classes import ClassTable


def answer(*boxes: list[float], label: int = 1) -> Answer:
    return Answer(
        boxes=torch.tensor(boxes).reshape(-1, 4),
        scores=torch.full((len(boxes),), 0.5),
        labels=torch.full((len(boxes),), label),
        masks=torch.full((len(boxes), 4, 4), 0.9),
    )


def test_detections_are_compared_by_label_and_place_whatever_their_order() -> None:
    one, other = answer([0, 0, 10, 10], [20, 20, 40, 40]), answer([20, 20, 40, 40.001], [0, 0, 10, 10])
    found = differences(one, other)
    assert (found.detections, found.alone) == (2, 0)
    assert found.boxes == pytest.approx(1e-3, rel=0.01) and found.scores == 0 and not found.equal
    assert differences(one, one).equal
    assert differences(one, answer([0, 0, 10, 10])).alone == 2  # one more, and one that has no partner
    assert differences(one, replace(one, labels=torch.tensor([1, 2]))).alone == 1
    assert not differences(one, replace(one, masks=one.masks - 0.001)).equal
    nothing = answer()
    assert differences(nothing, nothing).equal and not differences(one, nothing).equal


def test_torchvisions_pasting_rounds_a_box_to_whole_pixels_and_ours_does_not() -> None:
    classes = ClassTable(ids=(7,), names=("a",), has_mask=(True,))
    pasted: dict[str, list[bytes]] = {paste: [] for paste in PASTES}
    for x in (10.0, 10.4):
        for paste, masks in pasted.items():
            box = answer([x, 10.0, x + 10, 20.0])
            (result,) = results_of(box, 3, (40, 40), classes, paste=paste)
            assert result["category_id"] == 7 and result["image_id"] == 3
            assert 80 <= coco_mask.area(result["segmentation"]) <= 144
            masks.append(result["segmentation"]["counts"])
    theirs, ours = pasted.values()
    assert theirs[0] == theirs[1] and ours[0] != ours[1]


@pytest.mark.parametrize(("classes", "names"), [("colours", ["red", "blue"]), ("one", ["object"])])
def test_classes_are_taken_together_by_colour_or_all(classes: str, names: list[str], tmp_path: Path) -> None:
    categories = [{"id": 3, "name": "red ring"}, {"id": 5, "name": "red cup"}, {"id": 9, "name": "blue cup"}]
    annotations = [{"id": i, "category_id": c["id"]} for i, c in enumerate(categories)]
    document = {"images": [], "annotations": annotations, "categories": categories}
    (tmp_path / "a.json").write_text(json.dumps(document), encoding="utf-8")
    merged_classes(tmp_path / "a.json", tmp_path / "b.json", classes)
    merged = json.loads((tmp_path / "b.json").read_text())
    assert [one["name"] for one in merged["categories"]] == names
    wanted = [1, 1, 2] if classes == "colours" else [1, 1, 1]
    assert [one["category_id"] for one in merged["annotations"]] == wanted


def test_weights_of_other_classes_are_taken_over_but_for_the_rows_of_the_classes() -> None:
    torch.manual_seed(0)
    one, other = drawn_set_peer(3, side=64), drawn_set_peer(5, side=64)
    before = {key: value.clone() for key, value in other.state_dict().items()}
    assert take_over(other, one.state_dict()) == 6
    for key, value in other.state_dict().items():
        of_classes = "predictor" in key and "conv5" not in key
        assert torch.equal(value, before[key] if of_classes else one.state_dict()[key]), key


def test_the_whole_on_few_images_says_that_answers_are_equal_and_that_nothing_was_learnt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "--work",
        str(tmp_path / "work"),
        "--out",
        str(tmp_path / "out"),
        "--train",
        "2",
        "--val",
        "2",
    ]
    arguments += ["--steps", "1", "--batch-size", "2", "--side", "64", "--classes", "one"]
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert "torchvision's box AP is below 0.3" in captured.err and "does not answer" not in captured.err
    assert "step 1 of 1" in captured.out
    (path,) = (tmp_path / "out").glob("torchvision-conversion-*.json")
    written = json.loads(path.read_text())
    assert written["results"]["images"] == 2 and written["training"]["steps"] == 1
    assert "| converted |" in path.with_suffix(".md").read_text()
    assert main(arguments) == 1
    assert "step 1 of 1" not in capsys.readouterr().out  # kept, not trained again
    assert main([*arguments, "--side", "10"]) == 2
    assert capsys.readouterr().err.startswith("error: size is 10")
