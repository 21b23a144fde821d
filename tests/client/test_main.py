"""The command line of the client for one image, against a server that answers a fixed text or fails."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from client import __main__ as command
from client.prediction import Prediction, prediction_of, table
from export.archive import ROOT
from tests.client.faulty import ANSWER as ONE_FOUND
from tests.client.faulty import DETECTION, Faulty, Step, error, over_grpc, rest

Said = pytest.CaptureFixture[str]

TRANSFERRED = {
    "category_id": 2,
    "category": "o",
    "bbox": [0.0, 0.0, 40.0, 30.0],
    "score": 0.5,
    "area": 1200,
    "mask_supervised": False,
}
ANSWER: dict[str, Any] = {**ONE_FOUND, "detections": [{**DETECTION, "area": 40}, TRANSFERRED]}


def predicted(answer: dict[str, Any]) -> Prediction:
    return prediction_of(answer, answer["model"])


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.new("RGB", (40, 30)).save(path)
    return path


@pytest.fixture
def server() -> Iterator[Faulty]:
    with rest(Step(body=ANSWER)) as faulty:
        yield faulty


def test_the_table_is_aligned_and_marks_transferred_masks() -> None:
    assert table(predicted(ANSWER)).splitlines() == [
        "category  score    x    y  width  height  area  mask",
        "red disc  0.988  1.0  2.2   10.0     5.5    40  supervised",
        "o         0.500  0.0  0.0   40.0    30.0  1200  transferred*",
        "* the class never had a mask in training",
        "2 detections in 40 x 30 pixels, by maskx 1.0",
    ]


@pytest.mark.parametrize(("source", "said"), [("some_masks", "some masks*"), ("taught", "taught*")])
def test_the_table_does_not_call_a_class_without_masks_that_had_some_or_was_taught(
    source: str, said: str
) -> None:
    first, second = ANSWER["detections"]
    lines = table(
        predicted({**ANSWER, "detections": [first, {**second, "mask_source": source}]})
    ).splitlines()
    assert lines[2].endswith(said)
    assert lines[3] == "* the class had few or no true masks in training"


def test_no_detection_is_said_in_one_line() -> None:
    assert table(predicted({**ANSWER, "detections": []})) == "0 detections in 40 x 30 pixels, by maskx 1.0"


@pytest.mark.parametrize("option", ["--overlay", "--out"])
def test_a_photo_becomes_a_table_and_an_overlay(
    photo: Path, server: Faulty, option: str, capsys: Said
) -> None:
    out = photo.with_name("overlay.png")
    asked = ["--max-detections=5", "--categories=o,red", "--mask-format=polygon", "--score-threshold=0.3"]
    assert command.main([str(photo), option, str(out), "--url", server.url, *asked]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("category") and str(out) in said.out and said.err == ""
    assert server.seen[0].entries == {
        "data": photo.read_bytes(),
        "max_detections": b"5",
        "categories": b"o,red",
        "mask_format": b"polygon",
        "score_threshold": b"0.3",
    }
    with Image.open(out) as drawn:
        assert drawn.size == (640, 480)
        assert np.asarray(drawn).any()


def test_json_is_the_answer_and_nothing_else_on_the_output(photo: Path, server: Faulty, capsys: Said) -> None:
    overlay = ["--overlay", str(photo.with_name("o.png"))]
    assert command.main([str(photo), "--json", *overlay, "--url", server.url]) == 0
    assert json.loads(capsys.readouterr().out) == ANSWER
    assert server.seen[0].entries == {"data": photo.read_bytes()}


def test_json_of_several_images_is_a_line_each_and_a_refused_one_costs_only_itself(
    photo: Path, capsys: Said
) -> None:
    other = photo.with_name("a.png")
    other.write_bytes(b"no image")
    with rest(Step(status=400, body=error(400, "InvalidImage", "cut short"))) as faulty:
        assert command.main([str(photo), str(other), "--json", "--url", faulty.url]) == 1
    said = capsys.readouterr()
    assert json.loads(said.out) == {"file_name": "photo.png", **ONE_FOUND}
    assert "error: a.png: the server refused with 400 InvalidImage: cut short" in said.err


def test_over_grpc_the_same_is_said(photo: Path, capsys: Said) -> None:
    with over_grpc() as faulty:
        assert command.main([str(photo), "--json", "--grpc", faulty.url.removeprefix("grpc://")]) == 0
        assert command.main([str(photo), "--json", "--url", faulty.url]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == second and json.loads(first) == ONE_FOUND


def test_a_reader_who_went_away_is_told_nothing(photo: Path, server: Faulty) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    asked = [sys.executable, "-m", "client", str(photo), "--json", "--url", server.url]
    ended = subprocess.run(asked, cwd=ROOT, stdout=theirs, stderr=subprocess.PIPE, timeout=120)
    os.close(theirs)
    assert (ended.returncode, ended.stderr) == (command.UNREAD, b"")


def failure(arguments: list[str], capsys: Said) -> tuple[int, str]:
    status = command.main(arguments)
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and said.err.startswith("error: ")
    return status, said.err


def test_every_failure_is_one_line_that_says_what_to_do(photo: Path, capsys: Said) -> None:
    other = photo.with_name("b.png")
    other.write_bytes(photo.read_bytes())
    for wrong, words in (
        ([str(photo), "--url", "http://127.0.0.1:1", "--retries", "0"], "make serve"),
        ([str(photo), "--grpc", "127.0.0.1:1", "--retries", "0"], "make serve"),
        ([str(photo), str(other)], "--coco"),
        ([str(photo.parent), "--overlay", "a.png"], "--overlays"),
        ([str(photo) + ".not"], "there is no file"),
        ([str(photo), "--url", "host"], "expected one such as"),
        ([str(photo), "--ca", "/not/there"], "there is no file /not/there"),
        ([str(photo), "--images", "a.json"], "--coco results.json"),
        ([str(photo), "--coco", "a.json", "--json"], "for many images"),
        ([str(photo), "--coco", "a.json", "--mask-format", "png"], "COCO knows no masks as PNG"),
        ([str(photo), "--retries", "-2"], "attempts is -1"),
        ([str(photo.parent / "empty*.jpg")], "no image is named like"),
    ):
        status, text = failure(wrong, capsys)
        assert status == 2 and words in text
    with rest(Step(status=400, body=error(400, "InvalidImage", "cut short"))) as faulty:
        text = "error: the server refused with 400 InvalidImage: cut short\n"
        assert failure([str(photo), "--url", faulty.url], capsys) == (1, text)


def test_an_overlay_that_cannot_be_written_fails_after_the_answer_was_printed(
    photo: Path, server: Faulty, capsys: Said
) -> None:
    assert command.main([str(photo), "--overlay", str(photo.with_name("o.xyz")), "--url", server.url]) == 2
    said = capsys.readouterr()
    assert said.out.startswith("category") and ".xyz" in said.err
