"""Many images: COCO results, overlays, bounded parallelism, failures, and going on after an end."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pycocotools.coco import COCO

from client import __main__ as command
from export.archive import ROOT
from tests.client.faulty import ANSWER, DETECTION, WORKER_DIED, Step, error, rest

Said = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six images in two folders, and a file that is not an image."""
    photos = tmp_path / "photos"
    (photos / "deep").mkdir(parents=True)
    for name in ("a.png", "b.jpg", "c.PNG", "d.png", "deep/a.png", "deep/é.bmp"):
        Image.new("RGB", (40, 30), (10 * len(name), 0, 0)).save(photos / name)
    (photos / "notes.txt").write_text("no image")
    return photos


NAMES = ["a.png", "b.jpg", "c.PNG", "d.png", "deep/a.png", "deep/é.bmp"]


@pytest.fixture
def out(folder: Path) -> Path:
    return folder.parent / "out" / "r.json"


def run(*arguments: object, url: str, jobs: int = 2, retries: int = 2) -> int:
    words = [*arguments, "--url", url, "--retries", retries, "--jobs", jobs]
    return command.main([str(word) for word in words])


def listed(results: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(results.with_suffix(".images.json").read_text())
    return content


def test_a_folder_becomes_results_that_pycocotools_loads(folder: Path, out: Path, capsys: Said) -> None:
    with rest(Step(status=500, body=WORKER_DIED), Step(cut=3)) as faulty:
        assert run(folder, "--coco", out, "--score-threshold", "0.2", url=faulty.url) == 0
        assert len(faulty.seen) == 8
        assert {seen.entries["score_threshold"] for seen in faulty.seen} == {b"0.2"}
    assert "6 of 6 images answered" in capsys.readouterr().out
    truth = COCO(str(out.with_suffix(".images.json")))
    loaded = truth.loadRes(str(out))
    assert [truth.imgs[i]["file_name"] for i in sorted(truth.imgs)] == NAMES
    assert truth.imgs[1] == {"id": 1, "file_name": "a.png", "height": 30, "width": 40}
    assert truth.cats == {1: {"id": 1, "name": "red disc"}}
    assert sorted(one["image_id"] for one in loaded.anns.values()) == [1, 2, 3, 4, 5, 6]
    first = {"score": 0.98765, "bbox": [1.0, 2.25, 10.0, 5.5], "mask_supervised": True}
    assert first.items() <= loaded.anns[1].items()
    assert not list(out.parent.glob("*.journal")) and not list(out.parent.glob("*.unfinished"))


def test_ids_come_from_a_list_by_name_within_the_folder_or_last_part(folder: Path, out: Path) -> None:
    images = folder.parent / "instances.json"
    entries = [{"id": 70 + i, "file_name": name} for i, name in enumerate(NAMES)]
    entries[5]["file_name"] = "é.bmp"
    images.write_text(json.dumps({"images": [{"id": 5, "file_name": "other.png"}, *entries]}))
    with rest() as faulty:
        assert run(folder, "--coco", out, "--images", images, url=faulty.url) == 0
    ids = {one["file_name"]: one["id"] for one in listed(out)["images"]}
    assert ids == {name: 70 + i for i, name in enumerate(NAMES)}


def test_a_file_that_the_list_does_not_have_is_named_at_once(folder: Path, out: Path, capsys: Said) -> None:
    images = folder.parent / "instances.json"
    images.write_text(json.dumps({"images": [{"id": 5, "file_name": "a.png"}]}))
    with rest() as faulty:
        assert run(folder, "--coco", out, "--images", images, url=faulty.url) == 2
        assert faulty.seen == []
    assert "has no image named b.jpg, nor 3 others" in capsys.readouterr().err


def test_a_pattern_and_files_by_name_are_taken_too(folder: Path, out: Path) -> None:
    with rest() as faulty:
        assert run(folder / "*.png", folder / "deep" / "é.bmp", "--coco", out, url=faulty.url) == 0
    assert [one["file_name"] for one in listed(out)["images"]] == ["a.png", "d.png", "é.bmp"]


def test_two_files_of_one_name_are_refused(folder: Path, capsys: Said) -> None:
    assert run(folder / "a.png", folder / "deep" / "a.png", "--coco", "r.json", url="http://127.0.0.1:1") == 2
    assert "a.png" in capsys.readouterr().err


def test_failed_files_are_listed_and_the_next_run_asks_for_them_alone(
    folder: Path, out: Path, capsys: Said
) -> None:
    with rest(*[Step(status=400, body=error(400, "InvalidImage", "cut short"))] * 2) as faulty:
        assert run(folder, "--coco", out, url=faulty.url) == 1
    said = capsys.readouterr()
    assert "4 of 6 images answered" in said.out
    assert "2 failed" in said.err and said.err.count("400 InvalidImage: cut short") == 2
    assert len(json.loads(out.read_text())) == len(listed(out)["images"]) == 4
    with rest() as faulty:
        assert run(folder, "--coco", out, url=faulty.url) == 0
        assert len(faulty.seen) == 2
    assert "6 of 6 images answered, 4 of them in an earlier run" in capsys.readouterr().out
    assert [one["image_id"] for one in json.loads(out.read_text())] == [1, 2, 3, 4, 5, 6]


def test_after_a_server_that_is_gone_the_same_command_goes_on(folder: Path, out: Path, capsys: Said) -> None:
    with rest(*[Step()] * 2, *[Step(cut=0)] * 40) as faulty:
        assert run(folder, "--coco", out, url=faulty.url, jobs=1, retries=1) == 2
        assert len(faulty.seen) == 5  # a kept connection that is found closed is no attempt
    said = capsys.readouterr()
    assert "2 of 6" in said.out and "the same command goes on" in said.err
    assert not out.exists()
    with rest() as faulty:
        assert run(folder, "--coco", out, url=faulty.url) == 0
        assert len(faulty.seen) == 4


def test_a_wrong_token_ends_the_run_at_once(folder: Path, out: Path, capsys: Said) -> None:
    with rest(*[Step(status=401, body=b"")] * 40) as faulty:
        assert run(folder, "--coco", out, url=faulty.url) == 2
        assert len(faulty.seen) <= 2
    assert "401" in capsys.readouterr().err


INTERRUPTIBLE = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("client", run_name="__main__", alter_sys=True)
"""
"""python -m client, also where the tests run behind a shell that has its children ignore SIGINT."""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_was_killed_goes_on_without_asking_twice(
    folder: Path, out: Path, end: signal.Signals
) -> None:
    with rest(*[Step()] * 3, Step(hang=True)) as faulty:
        arguments = [str(folder), "--coco", str(out), "--url", faulty.url, "--jobs", "1"]
        process = subprocess.Popen(
            [sys.executable, "-c", INTERRUPTIBLE, *arguments],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        while len(faulty.seen) < 4:
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(end)
        _, said = process.communicate()
        assert process.returncode == (130 if end == signal.SIGINT else -9)
        assert end != signal.SIGINT or (b"goes on" in said and b"Traceback" not in said)
    with rest() as faulty:
        assert run(folder, "--coco", out, url=faulty.url) == 0
        assert len(faulty.seen) == 3
    assert [one["image_id"] for one in json.loads(out.read_text())] == [1, 2, 3, 4, 5, 6]


BAD = Step(status=400, body=error(400, "InvalidImage"))


@pytest.fixture
def journal(folder: Path, out: Path) -> Path:
    """Of a run that was answered for three of the six."""
    with rest(*[Step()] * 3, *[BAD] * 3) as faulty:
        assert run(folder, "--coco", out, url=faulty.url, jobs=1) == 1
    return out.with_name("r.json.journal")


@pytest.mark.parametrize("cut", [1, 30])
def test_a_journal_line_that_was_cut_off_is_asked_for_again(
    folder: Path, out: Path, journal: Path, cut: int
) -> None:
    os.truncate(journal, journal.stat().st_size - cut)
    for steps, status, asked in (([Step(), BAD, BAD, BAD], 1, 4), ([], 0, 3)):
        with rest(*steps) as faulty:
            assert run(folder, "--coco", out, url=faulty.url) == status
            assert len(faulty.seen) == asked


@pytest.mark.usefixtures("journal")
def test_a_file_that_was_changed_since_it_was_answered_is_asked_for_again(folder: Path, out: Path) -> None:
    Image.new("RGB", (400, 300)).save(folder / "b.jpg")
    with rest() as faulty:
        assert run(folder, "--coco", out, url=faulty.url) == 0
        assert (folder / "b.jpg").read_bytes() in [seen.entries["data"] for seen in faulty.seen]
        assert len(faulty.seen) == 4


def test_answers_to_other_parameters_are_never_mixed(
    folder: Path, out: Path, journal: Path, capsys: Said
) -> None:
    before = journal.read_bytes()
    with rest() as faulty:
        assert run(folder, "--coco", out, "--score-threshold", "0.1", url=faulty.url) == 2
        assert faulty.seen == []
    assert "was begun with other parameters" in capsys.readouterr().err
    assert journal.read_bytes() == before


def test_overlays_are_drawn_for_all_and_again_only_where_they_are_missing(folder: Path) -> None:
    drawn = folder.parent / "drawn"
    with rest(*[Step()] * 5, BAD) as faulty:
        assert run(folder, "--overlays", drawn, url=faulty.url, jobs=1) == 1
    paths = [drawn / f"{name}.png" for name in NAMES[:5]]
    assert sorted(drawn.rglob("*.*")) == sorted(paths)
    with Image.open(paths[0]) as image:
        assert image.size == (640, 480) and len(image.getcolors(10**6) or []) > 3
    paths[0].unlink()
    kept = paths[1].stat().st_mtime_ns
    with rest() as faulty:
        assert run(folder, "--overlays", drawn, url=faulty.url) == 0
        assert len(faulty.seen) == 1
    assert len(list(drawn.rglob("*.png"))) == 6 and paths[1].stat().st_mtime_ns == kept


@pytest.mark.parametrize("jobs", [1, 3])
def test_never_more_requests_are_under_way_than_jobs(folder: Path, out: Path, jobs: int) -> None:
    with rest() as faulty:
        faulty.together, faulty.delay = jobs, 0.05
        assert run(folder, "--coco", out, url=faulty.url, jobs=jobs) == 0
        assert faulty.most_at_once == jobs


@pytest.mark.parametrize("form", ["polygon", "none"])
def test_masks_as_polygons_and_without_masks_are_results_too(folder: Path, out: Path, form: str) -> None:
    one = {**DETECTION, "segmentation": [[1, 2, 11, 2, 11, 7]]}
    if form == "none":
        del one["segmentation"]
    with rest(*[Step(body={**ANSWER, "detections": [one]})] * 6) as faulty:
        assert run(folder, "--coco", out, "--mask-format", form, url=faulty.url) == 0
    assert len(COCO(str(out.with_suffix(".images.json"))).loadRes(str(out)).anns) == 6


@pytest.mark.parametrize("jobs", ["0", "-1", "x", "1000"])
def test_a_number_of_jobs_that_cannot_be_is_refused(jobs: str, capsys: Said) -> None:
    with pytest.raises(SystemExit):
        command.main(["a.png", "--jobs", jobs])
    assert "not a number from 1 to 256" in capsys.readouterr().err
