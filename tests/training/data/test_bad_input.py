"""What hostile annotation files (tests/hostile) brought to light: each ends in one line that can be read."""

import json
import os
from pathlib import Path

import pytest

from tests.training.data.coco_set import Document, Load, document
from tests.training.tiny_set import tiny_changes, write_tiny_set
from training.data import coco
from training.data.annotations import read_annotations
from training.data.coco import read_picture
from training.data.findings import Tally, in_one_line, refuse
from training.data.tools import found_name
from training.train import main


def refused(load_coco: Load, contents: Document) -> str:
    with pytest.raises(ValueError, match="instances.json") as raised:
        load_coco(contents)
    return str(raised.value)


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("image 5 (\u30ab\u30e1\u30e9 1.png): caf\u00e9", "image 5 (\u30ab\u30e1\u30e9 1.png): caf\u00e9"),
        ("a\nb\r\tc\x1b[2J\0", "a\\nb\\r\\tc\\x1b[2J\\x00"),
        ("\ud800 \u2029 \u202e", "\\ud800 \\u2029 \\u202e"),
    ],
)
def test_words_from_a_file_are_shown_in_one_line_with_escapes(words: str, shown: str) -> None:
    assert in_one_line(words) == shown


def test_of_words_of_a_megabyte_the_beginning_and_the_end_are_shown() -> None:
    long = in_one_line("start" + "x" * 1_000_000 + "; expected a number")
    assert len(long) < 700 and long.startswith("startx") and long.endswith("; expected a number")
    assert in_one_line("x" * 600) == "x" * 600
    tally = Tally()
    for words in ("first" + "x" * 9_000, "second"):
        tally.add("kind", "kept", words)
    (found,) = tally.findings()
    assert found.count == 2 and found.first.startswith("first") and len(found.first) < 700
    with pytest.raises(ValueError, match=r"^a\.json:\n  image 1\\n\.\.\.$"):
        refuse("a.json", ["image 1\n..."])


def test_a_number_of_too_many_digits_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"images": [{"id": ' + "7" * 5000 + "}]}")
    with pytest.raises(ValueError, match=r"a\.json: holds a number of more than \d+ digits"):
        read_annotations(path)


def test_a_pipe_is_not_waited_for(load_coco: Load, coco_folder: Path) -> None:
    os.mkfifo(coco_folder / "pipe.png")
    contents = document()
    contents["images"][0]["file_name"] = "pipe.png"
    assert "pipe.png: a pipe or a device; expected a file" in refused(load_coco, contents)
    with pytest.raises(ValueError, match="pipe.png: a pipe or a device"):
        read_picture(coco_folder / "pipe.png", width=40, height=30)


@pytest.mark.parametrize(
    "name", ["x" * 5000, "a\\" + "x" * 5000, "a/" * 3000 + "none.png", "a\0.png", "a\n.png"]
)
def test_a_name_that_no_file_has_is_a_line_that_names_its_image(
    load_coco: Load, coco_folder: Path, name: str
) -> None:
    assert found_name(name, coco_folder) == name
    contents = document()
    contents["images"][0]["file_name"] = name
    lines = refused(load_coco, contents).split("\n")
    assert len(lines) == 2 and str(coco_folder) in lines[1]
    assert all(line.isprintable() and len(line) < 1000 for line in lines)


def test_a_class_name_of_a_megabyte_is_not_shown_whole(load_coco: Load) -> None:
    contents = document()
    contents["categories"][0]["name"] = {"x": "n" * 1_000_000}
    assert len(refused(load_coco, contents)) < 1000


def test_an_image_of_more_objects_than_a_step_can_hold_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny_set(tmp_path / "set", images=3)  # of one, two and three objects
    ends = ["schedule.detector_steps=1", "schedule.mask_steps=0"]
    ended = {}
    for most in (2, 3):
        monkeypatch.setattr(coco, "MOST_OBJECTS", most)
        ended[most] = main([*tiny_changes(tmp_path / "set", tmp_path / str(most)), *ends])
    assert ended == {2: 2, 3: 0}
    assert "2.png): 3 objects; at most 2 can be learnt from at once" in capsys.readouterr().err
    assert json.loads((tmp_path / "set" / "train.json").read_text())["images"][2]["file_name"] == "2.png"
