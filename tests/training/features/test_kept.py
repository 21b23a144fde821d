"""Stage "mask" on kept features: to the last bit what it is without, whatever becomes of the files."""

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from model.checkpoint import load_checkpoint
from tests.training.tiny_set import equal, rows, tiny_changes, tiny_config, weights, write_tiny_set
from training.data.coco import CocoDataset
from training.data.sampler import view_seed
from training.distributed import ALONE
from training.features import kept
from training.features.kept import kept_views, view_path
from training.locks import locked
from training.run import Run
from training.train import main, prepared

VIEWS = ("augment.views=2", "augment.brightness=0.3", "augment.horizontal_flip=0.5")
MASKS = (*VIEWS, "schedule.detector_steps=0", "schedule.mask_steps=5")
ON_PROPOSALS = "model.mask.train_on=proposals"
ON_OBJECTS = "model.mask.train_on=ground_truth"
BOX_LOSSES = ("box_losses.projection=0.3", "box_losses.pairwise=0.3", "box_losses.warmup_steps=0")
ROWS = {
    "class_agnostic": ("model.transfer.kind=class_agnostic", ON_PROPOSALS),
    "transfer": ("model.transfer.kind=transfer", ON_PROPOSALS),
    "ground_truth": (ON_OBJECTS, "model.mask.jitter=0.05"),
    "box_losses": (ON_OBJECTS, *BOX_LOSSES),
    "box_losses_on_proposals": (ON_PROPOSALS, "model.mask.stage_rois=all", *BOX_LOSSES),
    "teacher": (ON_OBJECTS, "teacher.weight=0.5", "teacher.warmup_steps=0"),
    "parts": (ON_PROPOSALS, "schedule.accumulate=2"),
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures of two forms, so that batches have images of different canvases."""
    folder = tmp_path_factory.mktemp("photos")
    write_tiny_set(folder / "set", sides=((64, 64), (64, 32)))
    return folder / "set"


@pytest.fixture(scope="module")
def detector(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("detector")
    assert main([*tiny_changes(photos, out), "schedule.mask_steps=0"]) == 0
    return out / "checkpoint.pt"


@pytest.fixture
def train(photos: Path, detector: Path, tmp_path: Path) -> Callable[..., int]:
    """Train the masks in `tmp_path`/NAME with further words; the exit status."""

    def begin(name: str, *words: str) -> int:
        of_detector = f"data.detector_from={detector}"
        return main([*tiny_changes(photos, tmp_path / name), of_detector, *MASKS, *words])

    return begin


@pytest.fixture
def begun(photos: Path, detector: Path, tmp_path: Path) -> Callable[..., tuple[Run, CocoDataset]]:
    """A run that stands before its first step, and its data."""

    def begin(*words: str) -> tuple[Run, CocoDataset]:
        features = f"data.features={tmp_path / 'features'}"
        config = tiny_config(
            photos, tmp_path / "run", f"data.detector_from={detector}", *MASKS, features, *words
        )
        run, data = prepared(config, ALONE, resume=False, restart=True)
        run.begin("mask")
        return run, data

    return begin


# ---- the same ----


@pytest.mark.parametrize("words", ROWS.values(), ids=ROWS)
def test_masks_learn_the_same_to_the_last_bit_from_kept_features(
    words: tuple[str, ...], train: Callable[..., int], tmp_path: Path
) -> None:
    assert train("plain", *words) == 0
    assert train("kept", *words, f"data.features={tmp_path / 'features'}") == 0
    plain, on_kept = weights(tmp_path / "plain"), weights(tmp_path / "kept")
    assert equal(plain, on_kept)
    of_time = {"seconds", "images_per_second"}
    for one, other in zip(rows(tmp_path / "plain"), rows(tmp_path / "kept"), strict=True):
        assert {key: one[key] for key in one if key not in of_time} == {
            key: other[key] for key in other if key not in of_time
        }
    assert len(list((tmp_path / "features").glob("*/view*.bin"))) == 2
    before = {name: value for name, value in plain.items() if name.startswith("mask_branch.")}
    assert train("other", *words, "seed=9") == 0
    assert any(not torch.equal(weights(tmp_path / "other")[name], value) for name, value in before.items())


def test_a_detector_and_its_masks_in_one_run_learn_the_same(photos: Path, tmp_path: Path) -> None:
    for name, more in (("plain", []), ("kept", [f"data.features={tmp_path / 'features'}"])):
        words = [*tiny_changes(photos, tmp_path / name), *VIEWS, "schedule.mask_steps=4", *more]
        assert main(words) == 0
    assert equal(weights(tmp_path / "plain"), weights(tmp_path / "kept"))


def test_reading_processes_change_nothing(train: Callable[..., int], tmp_path: Path) -> None:
    features = f"data.features={tmp_path / 'features'}"
    assert train("alone", features) == 0 and train("two", features, "data.workers=2") == 0
    assert equal(weights(tmp_path / "alone"), weights(tmp_path / "two"))


def test_a_run_on_kept_features_that_was_killed_goes_on_to_the_same_weights(
    train: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = f"data.features={tmp_path / 'features'}"
    assert train("whole", features) == 0
    step = Run.train_on

    def until_the_fourth(run: Run, *batch: list[Tensor]) -> dict[str, float]:
        if run.step == 3:
            raise KeyboardInterrupt
        return step(run, *batch)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(Run, "train_on", until_the_fourth)
        assert train("broken", features, "output.checkpoint_every=2") == 130
    assert load_checkpoint(tmp_path / "broken" / "checkpoint.pt")["step"] == 2
    shutil.rmtree(tmp_path / "features")  # nor do they have to be there still
    assert train("broken", features, "output.checkpoint_every=2", "--resume") == 0
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "broken"))


def test_alone_on_its_canvas_an_image_teaches_what_it_teaches_beside_one_of_its_size(
    tiny_set: Path, tmp_path: Path
) -> None:
    """Views see each image on a canvas of its own; where all are of one size, that is the canvas of the batch."""
    config = tiny_config(tiny_set, tmp_path, *MASKS, ON_PROPOSALS)
    run, data = prepared(config, ALONE, resume=False, restart=True)
    run.begin("mask")
    images, targets = zip(*(data[row] for row in range(3)), strict=True)
    seen = [{**target, "seen": run.seen(image)} for image, target in zip(images, targets, strict=True)]
    of_batch = run.network.losses(list(images), list(targets), seeds=[1, 2, 3])["loss_mask"]
    alone = run.network.losses(list(images), seen, seeds=[1, 2, 3])["loss_mask"]  # type: ignore[arg-type]
    torch.testing.assert_close(alone, of_batch, rtol=1e-5, atol=1e-6)
    nothing = [{**one, "seen": [torch.zeros_like(x) for x in one["seen"]]} for one in seen]
    of_nothing = run.network.losses(list(images), nothing, seeds=[1, 2, 3])  # type: ignore[arg-type]
    assert not torch.allclose(of_nothing["loss_mask"], of_batch, rtol=1e-4)


def test_kept_views_are_those_of_the_data_and_the_image_is_not_decoded_again(
    begun: Callable[..., tuple[Run, CocoDataset]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, data = begun()
    views = kept_views(run, data)
    places = [(row, view_seed(seed=0, row=row, view=view)) for row in range(6) for view in range(2)]
    wanted = [data[place] for place in places]
    monkeypatch.setattr("training.data.coco.read_picture", None)
    mirrored, shapes = 0, set()
    for place, (image, target) in zip(places, wanted, strict=True):
        kept_image, kept_target = views[place]
        assert torch.equal(image, kept_image)
        shapes.add(kept_target["seen"][0].shape)
        assert kept_target.keys() - target.keys() == {"seen"}
        assert torch.equal(target["boxes"], kept_target["boxes"])
        assert all(map(torch.equal, target["masks"], kept_target["masks"]))
        mirrored += not torch.equal(target["boxes"], data.target(place[0])["boxes"])
    assert 0 < mirrored < 12 and len(shapes) == 2


# ---- which files, and when ----


def test_a_run_makes_the_views_that_it_comes_to_and_no_others(
    begun: Callable[..., tuple[Run, CocoDataset]], tmp_path: Path
) -> None:
    run, data = begun("augment.views=4", "schedule.mask_steps=3")  # one pass over six images
    kept_views(run, data)
    assert [path.name for path in (tmp_path / "features").glob("*/view*")] == ["view0.bin"]


def test_features_of_another_detector_are_made_anew_and_told_apart(
    train: Callable[..., int], detector: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    features = f"data.features={tmp_path / 'features'}"
    assert train("first", features) == 0
    assert "made once" in capsys.readouterr().out
    assert train("again", features, "model.transfer.kind=class_agnostic", "data.mask_classes=all") == 0
    assert "made once" not in capsys.readouterr().out
    contents = load_checkpoint(detector)
    contents["model"]["rpn.head.cls_logits.bias"] += 1.0
    other = tmp_path / "other.pt"
    torch.save(contents, other)
    assert train("third", features, f"data.detector_from={other}") == 0
    said = capsys.readouterr().out
    assert "made once" in said and "differ in: weights of the detector; remove them" in said
    assert train("plain", f"data.detector_from={other}") == 0
    assert equal(weights(tmp_path / "third"), weights(tmp_path / "plain"))


def test_an_image_that_has_changed_since_is_seen_anew(
    photos: Path, begun: Callable[..., tuple[Run, CocoDataset]], tmp_path: Path
) -> None:
    run, data = begun()
    kept_views(run, data)
    first = data.path(0)
    before = first.stat().st_mtime_ns
    try:
        first.touch()
        kept_views(run, data)
        assert len(list((tmp_path / "features").iterdir())) == 2
    finally:
        os.utime(first, ns=(before, before))


def test_a_view_whose_writer_was_killed_is_not_there_and_its_rest_is_taken_away(
    begun: Callable[..., tuple[Run, CocoDataset]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, data = begun()
    whole = kept.record

    def until_the_third(run: Run, data: CocoDataset, row: int, view: int) -> list[Tensor]:
        if row == 2:
            raise KeyboardInterrupt
        return whole(run, data, row, view)

    with monkeypatch.context() as patched:
        patched.setattr(kept, "record", until_the_third)
        with pytest.raises(KeyboardInterrupt):
            kept_views(run, data)
    (folder,) = (tmp_path / "features").iterdir()
    assert [path.name for path in folder.iterdir()] == ["lock"]
    (folder / ".view0.bin.abc.unfinished").write_bytes(b"what SIGKILL leaves")
    kept_views(run, data)
    assert sorted(path.name for path in folder.iterdir()) == ["lock", "view0.bin", "view1.bin"]


def test_a_run_that_is_asked_to_stop_leaves_a_view_undone(
    begun: Callable[..., tuple[Run, CocoDataset]], tmp_path: Path
) -> None:
    run, data = begun()
    asked = iter([False] * 8)
    kept_views(run, data, stopped=lambda: next(asked, True))
    assert [path.name for path in (tmp_path / "features").glob("*/*view*")] == ["view0.bin"]


def test_of_two_processes_one_makes_the_views_and_the_other_waits(
    begun: Callable[..., tuple[Run, CocoDataset]], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, waited, whole = [], threading.Event(), kept.record

    def counted(run: Run, data: CocoDataset, row: int, view: int) -> list[Tensor]:
        made.append((row, view))
        return whole(run, data, row, view)

    monkeypatch.setattr(kept, "record", counted)
    (one, data), (other, _) = begun(), begun()
    folder = kept_views(one, data)._folder
    whole_files = {path: path.read_bytes() for path in folder.glob("view*")}
    for path in whole_files:
        path.unlink()
    made.clear()
    monkeypatch.setattr("training.locks.print", lambda *_, **__: waited.set(), raising=False)
    second = threading.Thread(target=kept_views, args=(other, data))
    with locked(folder / "lock", wait=False):
        second.start()
        assert waited.wait(60), "it should wait for the process that holds the lock"
        for path, contents in whole_files.items():  # the first one is done
            path.write_bytes(contents)
    second.join(60)
    assert not second.is_alive() and not made


# ---- what is refused ----


def test_a_disk_without_room_is_told_of_before_anything_is_written(
    train: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(kept.shutil, "disk_usage", lambda _: SimpleNamespace(free=2**28 + 1000))
    assert train("run", f"data.features={tmp_path / 'features'}") == 2
    assert "the disk has 0.27 GB free; free some" in capsys.readouterr().err
    assert not list((tmp_path / "features").glob("*/*view*"))


def test_what_is_said_before_is_what_the_files_take(
    begun: Callable[..., tuple[Run, CocoDataset]],
) -> None:
    run, data = begun()
    said = kept.bytes_of_view(run, data)
    size = view_path(kept_views(run, data)._folder, 0).stat().st_size
    assert abs(size - said) < 0.1 * size


def test_a_damaged_file_is_named_and_not_trained_on(
    train: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    features = f"data.features={tmp_path / 'features'}"
    assert train("first", features) == 0
    (path,) = (tmp_path / "features").glob("*/view0.bin")
    path.write_bytes(path.read_bytes()[:-100])
    assert train("second", features) == 2
    assert f"{path}: damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("augment.views=0", "data.features=kept"),
            "augment.views is 0: views that never come again are not kept",
        ),
        (("augment.min_sizes=[48,64]",), "augment.views = 2 keeps the views of an image"),
        (("augment.views=-1",), "augment.views = -1; give 0"),
    ],
)
def test_settings_that_make_no_sense_together_are_refused(
    words: tuple[str, ...], said: str, train: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("run", *words) == 2
    assert said in capsys.readouterr().err
