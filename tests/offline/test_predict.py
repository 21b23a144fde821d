"""Offline prediction: a folder in, COCO results out, whole after a kill, by this process and by Ray alike."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from export.archive import build_archive
from offline import predict
from offline.on_ray import has_ray
from offline.plan import Image, listed_images, numbered
from offline.predict import main
from offline.store import Store
from tests.served.standin import DEVICE_FAULT, NETWORK_FAULT, plain, png, scene

Said = pytest.CaptureFixture[str]

RAY = [
    pytest.mark.skipif(not has_ray(), reason="Ray is not installed (requirements/offline.txt)"),
    pytest.mark.filterwarnings("ignore"),  # Ray warns of its own settings' ends
]
ENGINES = ["plain", pytest.param("ray", marks=RAY)]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Five images with one red rectangle each, a file that is no image, and others that are none of ours."""
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    for number, name in enumerate(("a.png", "b.PNG", "deep/c.png", "d.png", "e.png")):
        (folder / name).write_bytes(png(scene(red=(2 + number, 3, 10, 12))))
    (folder / "broken.jpg").write_bytes(b"no image")
    (folder / "notes.txt").write_text("not looked at")
    (folder / ".hidden.png").write_bytes(b"not looked at")
    return folder


class Command:
    """The command line over one folder, archive and output."""

    def __init__(self, standin: Path, images: Path, out: Path) -> None:
        self.out = out
        self.words = [f"--archive={standin}", f"--images={images}", f"--out={out}", "--device=cpu"]

    def __call__(self, *more: str, engine: str = "plain") -> int:
        return main([*self.words, "--engine", engine, "--part-images", "2", *more])

    def read(self, name: str) -> Any:
        return json.loads((self.out / name).read_text())


@pytest.fixture
def command(standin: Path, images: Path, tmp_path: Path) -> Command:
    return Command(standin, images, tmp_path / "out")


@pytest.mark.parametrize("engine", ENGINES)
def test_a_folder_becomes_coco_results_and_a_bad_image_an_error_of_its_own(
    command: Command, engine: str, capsys: Said
) -> None:
    assert command(engine=engine) == 0
    names = {image["id"]: image["file_name"] for image in command.read("results.images.json")["images"]}
    assert names == {1: "a.png", 2: "b.PNG", 4: "d.png", 5: "deep/c.png", 6: "e.png"}
    results = command.read("results.json")
    assert [one["image_id"] for one in results] == [1, 2, 4, 5, 6]
    assert [one["bbox"] for one in results] == [[x, 3, 10, 12] for x in (2, 3, 5, 4, 6)]
    assert {one["category_id"] for one in results} == {7}
    (error,) = command.read("errors.json")
    assert (error["id"], error["file_name"], error["error"]["type"]) == (3, "broken.jpg", "InvalidImage")
    assert "5 images, 5 detections, 1 images with an error" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools' loadRes
def test_pycocotools_loads_the_results_onto_the_images(command: Command) -> None:
    from pycocotools.coco import COCO

    assert command() == 0
    loaded = COCO(str(command.out / "results.images.json")).loadRes(str(command.out / "results.json"))
    (found,) = loaded.loadAnns(loaded.getAnnIds(imgIds=[5]))
    mask = loaded.annToMask(found)
    assert mask.sum() == 120 and mask[3:15, 4:14].all()


def test_the_results_become_annotations_without_naming_their_images(command: Command) -> None:
    from client.annotation import convert

    assert command() == 0
    out = command.out / "a.xml"
    assert convert.main([str(command.out / "results.json"), "--to", "cvat", "--out", str(out)]) == 0
    assert out.read_text().count("<mask ") == 5


def test_an_archive_gives_what_its_model_gives_and_says_how_it_is_run(
    command: Command, standin: Path, images: Path, tmp_path: Path
) -> None:
    build_archive(standin, tmp_path / "maskx.mar")
    of_archive = Command(tmp_path / "maskx.mar", images, tmp_path / "other")
    assert command("--precision", "float32") == of_archive("--precision", "float32") == 0
    assert (tmp_path / "other" / "results.json").read_bytes() == (command.out / "results.json").read_bytes()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_run_that_was_killed_goes_on_and_ends_with_the_same_bytes(
    command: Command, standin: Path, images: Path, tmp_path: Path, engine: str
) -> None:
    assert command() == 0
    killed = Command(standin, images, tmp_path / "killed")
    script = (
        "import os, sys\n"
        "from offline import predict, predictor\n"
        "whole = predictor.Predictor.predict\n"
        "def dying(self, images, contents):\n"
        "    if images[0].id == 3:\n"
        "        os.kill(os.getpid(), 9)\n"
        "    return whole(self, images, contents)\n"
        "predictor.Predictor.predict = dying\n"
        "predict.main(sys.argv[1:])\n"
    )
    words = [*killed.words, "--engine", "plain", "--part-images", "2"]
    done = subprocess.run([sys.executable, "-c", script, *words], cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == -9
    assert sorted(path.name for path in (killed.out / "parts").iterdir()) == ["000000.json"]
    # As a kill in the middle of a write leaves it.
    (killed.out / "parts" / "000002.json.unfinished").write_text("[{")
    first = (killed.out / "parts" / "000000.json").stat().st_mtime_ns
    assert killed(engine=engine) == 0
    assert (killed.out / "parts" / "000000.json").stat().st_mtime_ns == first
    for name in ("results.json", "results.images.json", "errors.json"):
        assert (killed.out / name).read_bytes() == (command.out / name).read_bytes()


def test_a_broken_part_is_done_again(command: Command) -> None:
    assert command() == 0
    results = command.read("results.json")
    (command.out / "parts" / "000001.json").write_text("")
    assert command() == 0
    assert command.read("results.json") == results


def test_images_that_came_later_are_added_and_keep_nobody_waiting(
    command: Command, images: Path, capsys: Said
) -> None:
    assert command() == 0
    (images / "aa.png").write_bytes(png(scene(green=(1, 1, 5, 5))))
    assert command() == 0
    assert "7 images in 4 parts, 1 to do" in capsys.readouterr().err
    assert command.read("results.json")[-1]["image_id"] == 7
    assert len(command.read("results.json")) == 6


def test_parts_whose_plan_is_lost_are_not_taken_for_those_of_this_run(
    command: Command, images: Path, capsys: Said
) -> None:
    assert command() == 0
    (command.out / "plan.json").unlink()
    (images / "a.png").unlink()
    assert command() == 2
    assert "parts of a run but no plan.json" in capsys.readouterr().err
    assert command("--restart") == 0
    assert len(command.read("results.json")) == 4


def test_failed_images_are_tried_again_when_asked(command: Command, images: Path) -> None:
    assert command() == 0
    (images / "broken.jpg").write_bytes(png(scene(red=(1, 1, 5, 5))))
    assert command() == 0
    assert len(command.read("errors.json")) == 1
    assert command("--retry-failed") == 0
    assert command.read("errors.json") == []
    assert len(command.read("results.json")) == 6


def test_results_of_other_settings_are_not_mixed(command: Command, capsys: Said) -> None:
    assert command() == 0
    assert command("--score-threshold", "0.3") == 2
    assert "score_threshold None, and now it is '0.3'" in capsys.readouterr().err
    assert command("--categories", "green", "--restart") == 0
    assert command.read("results.json") == []


def test_a_fault_of_the_network_costs_its_own_image_and_a_lost_device_ends_the_run(
    command: Command, images: Path, capsys: Said
) -> None:
    (images / "d.png").write_bytes(png(plain(NETWORK_FAULT)))
    assert command() == 0
    assert [one["file_name"] for one in command.read("errors.json")] == ["broken.jpg", "d.png"]
    (images / "d.png").write_bytes(png(plain(DEVICE_FAULT)))
    assert command("--restart") == 1
    assert "start the same command again" in capsys.readouterr().err
    assert sorted(path.name for path in (command.out / "parts").iterdir()) == ["000000.json"]


def test_the_images_of_an_annotation_file_have_its_ids_and_a_missing_one_is_an_error(
    command: Command, tmp_path: Path
) -> None:
    listed = [{"id": 70, "file_name": "deep/c.png"}, {"id": 5, "file_name": "gone.png"}]
    (tmp_path / "coco.json").write_text(json.dumps({"images": listed}))
    assert command("--annotations", str(tmp_path / "coco.json")) == 0
    assert [one["image_id"] for one in command.read("results.json")] == [70]
    (error,) = command.read("errors.json")
    assert (error["id"], error["error"]["type"]) == (5, "Unreadable")


def test_a_bucket_is_read_and_written_as_a_folder_is(command: Command, images: Path, standin: Path) -> None:
    assert command() == 0
    bucket = Store("memory://bucket")
    for path in images.rglob("*.*"):
        bucket.write(f"photos/{path.relative_to(images).as_posix()}", [path.read_bytes()])
    words = [f"--archive={standin}", "--images=memory://bucket/photos", "--out=memory://bucket/out"]
    assert main([*words, "--device=cpu", "--engine=plain"]) == 0
    assert bucket.read("out/results.json") == (command.out / "results.json").read_bytes()


def test_names_that_are_numbers_are_the_ids_unless_two_are_the_same() -> None:
    assert [image.id for image in numbered(["000000397133.jpg", "7.png"])] == [397133, 7]
    assert [image.id for image in numbered(["a/7.jpg", "b/07.jpg"])] == [1, 2]
    assert [image.id for image in numbered(["7.jpg", "x.jpg"], [3, 12])] == [13, 14]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--score-threshold", "2"], "score_threshold is"),
        (["--categories", "purple"], "purple"),
        (["--archive", "nowhere.mar"], "nowhere.mar cannot be read"),
        (["--archive", __file__], "is neither an archive"),
        (["--images", "nothing://here"], "nothing"),
        (["--part-images", "0"], "--part-images must be 1 or more"),
    ],
)
def test_a_mistake_is_named_before_any_image_is_read(
    command: Command, words: list[str], message: str, capsys: Said
) -> None:
    assert command(*words) == 2
    assert message in capsys.readouterr().err
    assert not command.out.exists()


def test_a_folder_without_images_is_refused(command: Command, tmp_path: Path, capsys: Said) -> None:
    (tmp_path / "empty").mkdir()
    assert command("--images", str(tmp_path / "empty")) == 2
    assert "has no image" in capsys.readouterr().err


def test_an_annotation_file_with_an_id_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        listed_images({"images": [{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}]}, "coco.json")
    with pytest.raises(ValueError, match="not a COCO file"):
        listed_images([], "coco.json")
    assert listed_images({"images": [{"id": 4, "file_name": "a"}]}, "coco.json") == [Image(id=4, name="a")]


def test_ray_is_asked_for_by_name_where_it_is_absent(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    monkeypatch.setattr(predict, "has_ray", lambda: False)
    assert command(engine="ray") == 2
    assert "requirements/offline.txt" in capsys.readouterr().err
    assert command(engine="auto") == 0
