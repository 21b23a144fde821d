"""Images that break in the middle of a training: stand-ins, counts, and the stop where they are too many."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from model.checkpoint import load_checkpoint
from tests.training.tiny_set import equal, rows, tiny_changes, weights, write_tiny_set
from training.data.coco import CocoDataset
from training.data.image_files import UnreadableImage, too_many
from training.data.sampler import stand_in
from training.distributed import ALONE, Group
from training.images.broken import TRIES, BrokenImages, Problem, TooManyBroken, WithStandIns
from training.train import main


def cut(path: Path) -> bytes:
    """Leave the header of a picture whole and its pixels not; its bytes of before."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    return data


def met(out: Path) -> list[dict[str, str]]:
    with (out / "broken_images.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tiny_set(tmp_path / "set")
    return tmp_path / "set"


def train(folder: Path, out: Path, *words: str) -> int:
    return main([*tiny_changes(folder, out), *words])


# ---- which image stands in ----


def test_another_image_takes_the_place_and_the_other_places_stay(folder: Path) -> None:
    data = CocoDataset(folder / "images", folder / "train.json", mask_classes="all")
    places = [(row, 1000 + row) for row in range(6)]
    before = [data[place] for place in places]
    cut(folder / "images" / "2.png")
    drawn = [WithStandIns(data)[place] for place in places]
    for row, (one, (image, target)) in enumerate(zip(drawn, before, strict=True)):
        assert one.sample is not None
        same = one.sample[1]["image_id"] == target["image_id"] and torch.equal(one.sample[0], image)
        assert same == (row != 2) and len(one.problems) == int(row == 2)
    rows = [stand_in(sample_seed=1002, attempt=attempt, size=6) for attempt in range(TRIES)]
    first = next(row for row in rows if row != 2)
    assert drawn[2].sample is not None and drawn[2].sample[1]["image_id"] == 100 + first
    assert drawn[2].problems[0].row == 2 and "2.png: the PNG image is broken" in drawn[2].problems[0].words
    assert "\n" not in drawn[2].problems[0].words


@pytest.mark.parametrize("fault", ["deleted", "another size", "a folder"])
def test_every_way_to_break_is_one(folder: Path, fault: str) -> None:
    data = CocoDataset(folder / "images", folder / "train.json", mask_classes="all")
    path = folder / "images" / "2.png"
    path.unlink()
    if fault == "another size":
        write_tiny_set(folder.parent / "other", side=32)
        shutil.copy(folder.parent / "other" / "images" / "2.png", path)
    elif fault == "a folder":
        path.mkdir()
    with pytest.raises(UnreadableImage, match=r"2\.png: "):
        data[2]
    assert WithStandIns(data)[2, 7].problems[0].row == 2


def test_where_none_can_be_read_the_place_is_empty(folder: Path) -> None:
    data = CocoDataset(folder / "images", folder / "train.json", mask_classes="all")
    shutil.rmtree(folder / "images")
    drawn = WithStandIns(data)[2, 7]
    assert drawn.sample is None and len(drawn.problems) == TRIES


# ---- how many are too many ----


@pytest.mark.parametrize(
    ("broken", "of", "wanted"),
    [(1, 50, False), (9, 10, False), (10, 1000, False), (10, 999, True), (11, 1000, True), (500, 60_000, False)],
)  # fmt: skip
def test_ten_and_more_than_one_in_a_hundred_are_too_many(broken: int, of: int, wanted: bool) -> None:
    assert too_many(broken, of=of) is wanted


def meet(images: BrokenImages, step: int, *rows: int, complete: bool = True) -> None:
    problems = [Problem(row, f"{row}.png: gone") for row in rows]
    images.meet(problems, complete=complete, step=step, seen=8 * step, group=ALONE)


def test_one_file_that_is_broken_for_ever_never_stops_a_run() -> None:
    images = BrokenImages(images=20, position=0, saved=None)
    for step in range(1, 200):
        meet(images, step, 3)
    assert images.times(199) == 199 and images.state(199)["broken_images"] == {"times": 199, "rows": [3]}
    assert "1 images could not be read, 199 times in all" in images.summary(199)


def test_ten_files_of_a_small_set_stop_it_and_the_count_of_a_step_not_done_is_not_kept() -> None:
    images = BrokenImages(images=500, position=0, saved=None)
    meet(images, 1, *range(5))
    with pytest.raises(
        TooManyBroken, match=r"step 2: 10 of 16 images could not be read.*the last: 9\.png: gone"
    ):
        meet(images, 2, *range(5, 10))
    assert images.state(1)["broken_images"] == {"times": 5, "rows": [0, 1, 2, 3, 4]}
    again = BrokenImages(images=500, position=8, saved=images.state(1)["broken_images"])
    meet(again, 2, 7)  # what was met before the stop counts in the sum alone
    assert again.state(2)["broken_images"] == {"times": 6, "rows": [0, 1, 2, 3, 4, 7]}


def test_an_empty_place_stops_the_run_and_nothing_met_is_nothing_kept() -> None:
    images = BrokenImages(images=500, position=0, saved=None)
    meet(images, 1)
    assert images.state(1) == {} and images.summary(1) == ""
    with pytest.raises(TooManyBroken, match="step 2: none of 5 images tried for one place"):
        meet(images, 2, 1, 2, 3, 4, 5, complete=False)


class OtherMeets(Group):
    """The first of two processes, of which the other one met these."""

    def __init__(self, *problems: Problem, complete: bool = True) -> None:
        super().__init__(rank=0, size=2)
        self._other = (problems, complete)

    def largest(self, number: int) -> int:
        return max(number, int(bool(self._other[0])))

    def gathered(self, value: Any) -> list[Any]:
        return [value, self._other]


def test_what_another_process_met_counts_here_and_stops_here() -> None:
    images = BrokenImages(images=500, position=0, saved=None)
    group = OtherMeets(Problem(4, "4.png: gone"))
    images.meet([], complete=True, step=1, seen=8, group=group)
    images.meet([Problem(3, "3.png: gone")], complete=True, step=2, seen=16, group=group)
    assert images.state(2)["broken_images"] == {"times": 3, "rows": [3, 4]}
    group = OtherMeets(Problem(8, "8.png: gone"), Problem(9, "9.png: gone"), complete=False)
    with pytest.raises(TooManyBroken, match=r"step 3: none of 5 images.*the last: 9\.png: gone"):
        images.meet([], complete=True, step=3, seen=24, group=group)
    group = OtherMeets(*(Problem(row, f"{row}.png: gone") for row in range(8, 15)))
    with pytest.raises(TooManyBroken, match=r"step 3: 10 of 24 images"):
        images.meet([Problem(15, "15.png: gone")], complete=True, step=3, seen=24, group=group)


# ---- trainings ----


def test_a_broken_image_costs_its_place_and_not_the_run_whatever_reads_it(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole, none, two = (tmp_path / name for name in ("whole", "none", "two"))
    assert train(folder, whole) == 0
    assert not (whole / "broken_images.csv").exists()
    assert "broken_images" not in load_checkpoint(whole / "checkpoint.pt")
    cut(folder / "images" / "2.png")
    capfd.readouterr()
    assert train(folder, none) == 0
    shown = capfd.readouterr().err
    assert (
        shown.count("; another image takes its place (1 so far)") == 1
        and "2.png: the PNG image is broken" in shown
    )
    assert "1 images could not be read, " in shown and "Traceback" not in shown
    assert train(folder, two, "data.workers=2") == 0
    assert equal(weights(none), weights(two)) and not equal(weights(none), weights(whole))
    assert met(none) == met(two) and all("2.png" in row["image"] for row in met(none))
    kept = load_checkpoint(none / "checkpoint.pt")["broken_images"]
    assert kept == {"times": len(met(none)), "rows": [2]}
    assert [row["count"] for row in met(none)] == [str(count + 1) for count in range(kept["times"])]


def test_a_run_goes_on_without_a_file_that_is_gone_by_now_to_the_weights_of_one_left_alone(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    alone, broken = tmp_path / "alone", tmp_path / "broken"
    cut(folder / "images" / "2.png")
    assert train(folder, alone) == 0
    assert train(folder, broken, "schedule.mask_steps=0") == 0
    (folder / "images" / "2.png").unlink()
    assert train(folder, tmp_path / "new") == 2, "a run that starts wants every image"
    assert "2.png: cannot be read" in capfd.readouterr().err
    assert train(folder, broken, "--resume") == 0
    assert equal(weights(alone), weights(broken))
    assert "image that could be read when the training began" in capfd.readouterr().out
    steps = [[row["step"] for row in met(out)] for out in (alone, broken)]
    assert steps[0] == steps[1] and steps[0]
    kept = [load_checkpoint(out / "checkpoint.pt")["broken_images"] for out in (alone, broken)]
    assert kept[0] == kept[1]


def test_too_many_stop_the_run_with_its_state_saved_and_it_goes_on_when_they_are_mended(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "set", tmp_path / "run"
    write_tiny_set(folder, images=40)
    before = {path: cut(path) for path in sorted((folder / "images").iterdir())[:12]}
    words = ["schedule.batch_size=8", "schedule.detector_steps=6"]
    assert train(folder, out, *words) == 2
    error = capfd.readouterr().err
    (line,) = (line for line in error.splitlines() if line.startswith("error: "))
    saved = load_checkpoint(out / "checkpoint.pt")
    assert 0 < saved["step"] < 6 and not saved["finished"]
    assert line.startswith(f"error: step {saved['step'] + 1}: 1") and "more than one in a hundred" in line
    assert f"state at step {saved['step']} is saved in {out / 'checkpoint.pt'}" in line
    assert "--resume" in error and "Traceback" not in error
    assert [row["step"] for row in rows(out)] == [str(step + 1) for step in range(saved["step"])]

    assert train(folder, out, *words, "--resume", "data.decode_first=true") == 2
    assert "the PNG image is broken" in capfd.readouterr().err, "12 of 40 are too many to go on with"
    for path, data in before.items():
        path.write_bytes(data)
    assert train(folder, out, *words, "--resume") == 0
    kept = load_checkpoint(out / "checkpoint.pt")
    assert kept["finished"] and kept["broken_images"] == saved["broken_images"]
    assert len(met(out)) == kept["broken_images"]["times"], "rows of the step that was not done are gone"


@pytest.mark.parametrize("of", ["train", "val"])
def test_images_are_decoded_first_where_that_is_asked_for(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], of: str
) -> None:
    shutil.copytree(folder, tmp_path / "val")
    cut((folder if of == "train" else tmp_path / "val") / "images" / "4.png")
    words = [f"data.val_images={tmp_path / 'val' / 'images'}", "data.decode_first=true"]
    assert train(folder, tmp_path / "out", *words) == 2
    error = capfd.readouterr().err
    assert "4.png: the PNG image is broken or cut short" in error and "Traceback" not in error
    assert ("the validation set: " in error) == (of == "val")
    assert not (tmp_path / "out" / "checkpoint.pt").exists()


def test_near_names_are_trained_on_like_exact_ones(folder: Path, tmp_path: Path) -> None:
    assert train(folder, tmp_path / "exact") == 0
    document = json.loads((folder / "train.json").read_text())
    for image in document["images"]:
        image["file_name"] = f"photos\\{image['file_name'].upper()}"
    (folder / "train.json").write_text(json.dumps(document))
    assert train(folder, tmp_path / "refused") == 2
    assert train(folder, tmp_path / "lenient", "data.names=lenient") == 0
    assert equal(weights(tmp_path / "exact"), weights(tmp_path / "lenient"))
