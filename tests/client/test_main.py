"""The command line of the client, with a server that is not there or answers a fixed text."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from client import __main__ as command
from client.errors import ServerRefused

ANSWER: dict[str, Any] = {
    "model": {"name": "maskx", "version": "1.0"},
    "image": {"height": 30, "width": 40},
    "detections": [
        {
            "category_id": 1,
            "category": "red disc",
            "bbox": [1.0, 2.25, 10.0, 5.5],
            "score": 0.98765,
            "area": 40,
            "mask_supervised": True,
            "segmentation": {"size": [30, 40], "counts": [60, 10, 1130]},
        },
        {
            "category_id": 2,
            "category": "o",
            "bbox": [0.0, 0.0, 40.0, 30.0],
            "score": 0.5,
            "area": 1200,
            "mask_supervised": False,
        },
    ],
}


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.new("RGB", (40, 30)).save(path)
    return path


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Whatever is asked over REST gets ANSWER; the parameters asked with are collected."""
    asked: list[dict[str, Any]] = []

    def predict(self: Any, image: bytes, parameters: dict[str, Any]) -> bytes:
        asked.append(parameters)
        return json.dumps(ANSWER).encode()

    monkeypatch.setattr(command.RestClient, "predict", predict)
    return asked


def test_the_table_is_aligned_and_marks_transferred_masks() -> None:
    assert command.table(ANSWER).splitlines() == [
        "category  score    x    y  width  height  area  mask",
        "red disc  0.988  1.0  2.2   10.0     5.5    40  supervised",
        "o         0.500  0.0  0.0   40.0    30.0  1200  transferred*",
        "* the class never had a mask in training",
        "2 detections in 40 x 30 pixels, by maskx 1.0",
    ]


def test_no_detection_is_said_in_one_line() -> None:
    assert command.table({**ANSWER, "detections": []}) == "0 detections in 40 x 30 pixels, by maskx 1.0"


def test_a_photo_becomes_a_table_and_an_overlay(
    photo: Path, answered: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    out = photo.with_name("overlay.png")
    assert command.main([str(photo), "--out", str(out), "--max-detections", "5"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("category") and str(out) in said.out and said.err == ""
    assert answered == [{"max_detections": "5"}]
    with Image.open(out) as drawn:
        assert drawn.size == (640, 480)
        assert np.asarray(drawn).any()


def test_json_is_the_answer_and_nothing_else_on_the_output(
    photo: Path, answered: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main([str(photo), "--json", "--out", str(photo.with_name("o.png"))]) == 0
    assert json.loads(capsys.readouterr().out) == ANSWER
    assert answered == [{}]


def failure(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    status = command.main(arguments)
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and said.err.startswith("error: ")
    return status, said.err


def test_every_failure_is_one_line_that_says_what_to_do(
    photo: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    nobody = ["--url", "http://127.0.0.1:1"]
    assert failure([str(photo), *nobody], capsys)[0] == 2
    assert "make serve" in failure([str(photo), *nobody], capsys)[1]
    assert "make serve" in failure([str(photo), "--grpc", "127.0.0.1:1"], capsys)[1]
    status, text = failure([str(photo) + ".not", *nobody], capsys)
    assert status == 2 and "there is no file" in text

    def refuse(*_: Any) -> bytes:
        raise ServerRefused(400, "InvalidImage", "cut short")

    monkeypatch.setattr(command.RestClient, "predict", refuse)
    assert failure([str(photo)], capsys) == (
        1,
        "error: the server refused with 400 InvalidImage: cut short\n",
    )


def test_an_overlay_that_cannot_be_written_fails_after_the_answer_was_printed(
    photo: Path, answered: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main([str(photo), "--out", str(photo.with_name("overlay.xyz"))]) == 2
    said = capsys.readouterr()
    assert said.out.startswith("category") and ".xyz" in said.err


def test_sixteen_bits_are_scaled_for_the_overlay_and_exif_turns_it(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    Image.fromarray(np.full((30, 40), 32896, np.uint16)).save(path)
    assert np.unique(np.asarray(command.opened(path.read_bytes()))).tolist() == [128]
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(tmp_path / "turned.jpg", exif=exif)
    assert command.opened((tmp_path / "turned.jpg").read_bytes()).size == (30, 40)
