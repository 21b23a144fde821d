"""A join as its command makes it, on a set of a few small pictures: two classes with masks, slabs with boxes alone."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools import mask as mask_utils

from tests.training.join.made_sources import embedded
from tests.training.tiny_set import tiny_config
from training.config import TrainingConfig, changed
from training.evaluate.precision import filled_boxes, mask_iou
from training.join import __main__ as command_line
from training.join.joined import Join, checked, config_of_run, document_with_masks, join
from training.join.report import by_class, checked_table, summary
from training.prompt_masks.segmenter import Embedding, Prompted
from training.train import train

ChangedSet = Callable[[Callable[[dict[str, Any]], None]], TrainingConfig]


class Painted:
    """A segmenter that knows painted pixels of the tiny set from noise, and counts the images it has seen."""

    name = "painted"

    def __init__(self) -> None:
        self.images = 0

    def embed(self, image: NDArray[np.uint8]) -> Embedding:
        self.images += 1
        return embedded(np.where(image.max(axis=2) == 255, 6, -6).astype(np.float32), len(image))

    def masks(
        self, embedding: Embedding, boxes: NDArray[np.float32], prior: NDArray[np.float32] | None = None
    ) -> Prompted:
        logits = np.stack([embedding.features["made"]] * len(boxes))
        return Prompted(logits, np.full(len(boxes), 0.95, np.float32))


@pytest.fixture(scope="module")
def run(tiny_set: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingConfig:
    out = tmp_path_factory.mktemp("run")
    train(tiny_config(tiny_set, out))
    return config_of_run(out, ["validate_transfer.groups=2"])


@pytest.fixture(scope="module")
def joined(run: TrainingConfig) -> Join:
    return join(run, Painted(), train)


@pytest.fixture
def with_changed_set(run: TrainingConfig, tmp_path: Path) -> ChangedSet:
    """The run's configuration with a changed copy of its training set."""

    def make(change: Callable[[dict[str, Any]], None]) -> TrainingConfig:
        document = json.loads(Path(run.data.train_annotations).read_text())
        change(document)
        path = tmp_path / "changed.json"
        path.write_text(json.dumps(document))
        out = {"output.dir": str(tmp_path / "run"), "data.detector_from": f"{run.output.dir}/checkpoint.pt"}
        return changed(run, {**out, "data.train_annotations": str(path)})

    return make


def of_slabs(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [one for one in document["annotations"] if one["category_id"] == 3]


def test_objects_with_boxes_alone_get_masks_and_others_stay_as_they_were(
    run: TrainingConfig, joined: Join
) -> None:
    before = json.loads(Path(run.data.train_annotations).read_text())
    after = json.loads(json.dumps(document_with_masks(joined)))
    assert after["images"] == before["images"] and after["categories"] == before["categories"]
    others = [one for one in before["annotations"] if one["category_id"] != 3]
    assert [one for one in after["annotations"] if one["category_id"] != 3] == others
    assert len(of_slabs(after)) == len(of_slabs(before)) > 0
    for one in of_slabs(after):
        assert one["mask_source"] in ("segmenter", "prior", "transfer", "agnostic", "box", "joined")
        assert 0 <= one["mask_weight"] <= 1 and 0 <= one["mask_quality"] <= 1
        assert one["area"] == mask_utils.area(one["segmentation"])
        x, y, w, h = one["bbox"]
        left, top, width, height = mask_utils.toBbox(one["segmentation"])
        assert left >= x and top >= y and left + width <= x + w and top + height <= y + h


def test_again_it_asks_nobody_and_writes_the_same_bytes(run: TrainingConfig, joined: Join) -> None:
    asleep = Painted()
    again = join(run, asleep, train)
    assert asleep.images == 0
    assert json.dumps(document_with_masks(again)) == json.dumps(document_with_masks(joined))


def test_the_runs_own_transfer_is_taken_and_no_held_out_class_is_judged_by_it(
    run: TrainingConfig, joined: Join
) -> None:
    trained = {path.parent for path in Path(run.output.dir, "join").rglob("checkpoint.pt")}
    kinds = sorted(
        path.relative_to(Path(run.output.dir, "join")).parts[0].partition("-")[0] for path in trained
    )
    assert kinds == ["agnostic"] * 3 + ["transfer"] * 2
    splits = {path.read_text() for path in Path(run.output.dir, "join").rglob("mask_classes.txt")}
    assert splits == {"brick\n", "tile\n"}


def test_masks_as_they_come_all_judge_and_every_object_without_one_gets_one(
    run: TrainingConfig, with_changed_set: ChangedSet
) -> None:
    """`data.mask_classes=auto`: one slab and all tiles but one have masks, and no class has as many as set A asks."""

    def mixed(document: dict[str, Any]) -> None:
        slabs = of_slabs(document)
        tiles = [one for one in document["annotations"] if one["category_id"] == 2]
        for one in [*slabs[1:], tiles[0]]:
            one["segmentation"] = []

    config = changed(with_changed_set(mixed), {"data.mask_classes": "auto", "validate_transfer.groups": 3})
    found = join(config, Painted(), train)
    assert found.classes.has_mask == (True, True, True)
    before = json.loads(Path(config.data.train_annotations).read_text())["annotations"]
    after = document_with_masks(found)["annotations"]
    for one, joined_one in zip(before, after, strict=True):
        assert joined_one["segmentation"] if one["segmentation"] == [] else joined_one == one
    assert sum("mask_source" in one for one in after) == len(of_slabs({"annotations": before})) - 1 + 1
    splits = {path.read_text() for path in Path(config.output.dir, "join").rglob("mask_classes.txt")}
    assert splits == {"tile\nslab\n", "brick\nslab\n", "brick\ntile\n"}


def test_what_the_file_has_as_masks_of_set_b_changes_nothing(
    joined: Join, with_changed_set: ChangedSet
) -> None:
    def lie(document: dict[str, Any]) -> None:
        for one in of_slabs(document):
            x, y, _, _ = one["bbox"]
            one["segmentation"] = [[x, y, x + 2, y, x + 2, y + 2]]

    other = join(with_changed_set(lie), Painted(), train)
    assert json.dumps(of_slabs(document_with_masks(other))) == json.dumps(
        of_slabs(document_with_masks(joined))
    )


def test_true_masks_of_set_a_do_change_what_is_predicted(joined: Join, with_changed_set: ChangedSet) -> None:
    def lie(document: dict[str, Any]) -> None:
        for one in document["annotations"]:
            x, y, _, _ = one["bbox"]
            one["segmentation"] = [[x, y, x + 4, y, x + 4, y + 4, x, y + 4]]

    other = join(with_changed_set(lie), Painted(), train)
    assert (
        of_slabs(document_with_masks(other))[0]["mask_quality"]
        < of_slabs(document_with_masks(joined))[0]["mask_quality"]
    )


def test_the_reports_tell_every_class_and_source(joined: Join) -> None:
    table = by_class(joined)
    assert all(name in table for name in ("brick", "tile", "slab", "segmenter", "transfer", "joined"))
    assert len([line for line in table.splitlines() if " boxes " in line]) == 1
    assert "each without the truth of its class" in summary(joined)


def test_a_check_judges_the_joined_masks_of_set_b_by_their_truth(joined: Join) -> None:
    found = checked(joined)
    labels = found.objects.labels
    assert set(labels.tolist()) == {1, 2, 3}
    filled = [filled_boxes(np.array([one.box]), 64, 64)[0] for one in found.objects.objects]
    by_itself = [
        mask_iou(box, one.truth) for box, one in zip(filled, found.objects.objects, strict=True) if one.truth
    ]
    assert found.true[:, found.masks.judged.sources.index("box")] == pytest.approx(by_itself)
    assert "set B" in checked_table(found, joined.judged_labels)


def test_a_run_without_a_transfer_is_refused(run: TrainingConfig) -> None:
    with pytest.raises(ValueError, match="kind is class_agnostic.*transfer.kind=transfer"):
        join(changed(run, {"model.transfer": {"kind": "class_agnostic"}}), Painted(), train)


def test_more_groups_than_classes_with_masks_are_refused(run: TrainingConfig) -> None:
    with pytest.raises(ValueError, match="3 groups of the 2 classes"):
        join(changed(run, {"validate_transfer.groups": 3}), Painted(), train)


def test_a_set_whose_classes_have_no_masks_is_refused(with_changed_set: ChangedSet) -> None:
    def strip(document: dict[str, Any]) -> None:
        for one in document["annotations"]:
            one["segmentation"] = []

    with pytest.raises(ValueError, match="no object of set A has a mask"):
        join(with_changed_set(strip), Painted(), train)


@pytest.mark.parametrize(
    ("run_folder", "words"),
    [("nowhere", "checkpoint.pt is not there"), (None, "expected one with a segmenter's files")],
)
def test_a_mistake_on_the_command_line_is_named(
    run: TrainingConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    run_folder: str | None,
    words: str,
) -> None:
    folder = run_folder or run.output.dir
    command = ["--run", folder, "--segmenter", str(tmp_path / "none"), "--out", str(tmp_path / "out.json")]
    assert command_line.main(command) == 2
    assert words in capsys.readouterr().err and not (tmp_path / "out.json").exists()


def test_the_training_set_itself_is_not_written_over(
    run: TrainingConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--run", run.output.dir, "--segmenter", str(tmp_path), "--out", run.data.train_annotations]
    assert command_line.main(command) == 2
    assert "the run's training set itself" in capsys.readouterr().err


def test_the_command_writes_the_file_and_explains_it(
    run: TrainingConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command_line, "load_segmenter", lambda folder, device: Painted())
    out = tmp_path / "new" / "joined.json"
    command = [
        "--run",
        run.output.dir,
        "--segmenter",
        str(tmp_path),
        "--out",
        str(out),
        "--explain",
        "--check",
    ]
    assert command_line.main([*command, "--max-images=6", "validate_transfer.groups=2"]) == 0
    said = capsys.readouterr().out
    assert "because" in said and "set B" in said and f"{out} written" in said
    assert of_slabs(json.loads(out.read_text()))[0]["mask_source"]
