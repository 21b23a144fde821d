"""Near names: of another separator, encoding, folder, suffix, case or upload, where a file is not there."""

import json
import os
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from model.classes import class_table
from tests.training.data.coco_set import HEIGHT, WIDTH, Load, document, finding
from training.data.tools import Reading
from training.evaluate.__main__ import main as evaluate
from training.evaluate.truth import load_ground_truth
from training.images import names as near_names
from training.images.names import NearNames

LENIENT = Reading(names="lenient")
KIND = "file of a near name, as data.names=lenient says"


def put(folder: Path, *files: str | bytes) -> None:
    for name in files:
        path = Path(os.fsdecode(os.path.join(os.fsencode(folder), os.fsencode(name))))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


@pytest.mark.parametrize(
    ("name", "file", "kinds"),
    [
        ("x\\b.jpg", "x/b.jpg", "separator"),
        ("C:\\photos\\x\\b.jpg", "x/b.jpg", "separator, folder"),
        (unicodedata.normalize("NFD", "ä.jpg"), unicodedata.normalize("NFC", "ä.jpg"), "encoding"),
        (unicodedata.normalize("NFC", "ä.jpg"), unicodedata.normalize("NFD", "ä.jpg"), "encoding"),
        ("m%C3%A4n%20b.jpg", "män b.jpg", "encoding"),
        ("a b.jpg", "a%20b.jpg", "encoding"),
        ("a+b.jpg", "a b.jpg", "encoding"),
        ("ä.jpg".encode().decode("latin-1"), "ä.jpg", "encoding"),
        ("ä.jpg", "ä.jpg".encode().decode("cp437"), "encoding"),
        ("ä.jpg", b"\xe4.jpg", "encoding"),
        ("x/b.jpg", "b.jpg", "folder"),
        ("b.jpg", "x/y/b.jpg", "folder"),
        ("../../x/b.jpg", "x/b.jpg", "folder"),
        ("1a2b3c4d-b.jpg", "b.jpg", "prefix of an upload"),
        ("b c.jpg", "1a2b3c4d-b_c.jpg", "prefix of an upload, encoding"),
        ("data/upload/1/1a2b3c4d-b.jpg", "b.jpg", "folder, prefix of an upload"),
        ("b.jpeg", "b.jpg", "suffix"),
        ("b.jpg", "b.PNG", "suffix"),
        ("b", "b.jpg", "suffix"),
        ("b.jpg", "b.JPG", "case"),
        ("X/B.jpg", "x/b.jpg", "case"),
        ("/data/local-files/?d=x/b.jpg", "x/b.jpg", "address"),
        ("/data/local-files/?d=photos/x/a%20b.jpg", "x/a b.jpg", "address, folder"),
        ("b.jpg?token=1%2F2", "b.jpg", "address"),
    ],
)
def test_a_near_file_is_found_and_it_is_said_in_what_it_differs(
    tmp_path: Path, name: str, file: str | bytes, kinds: str
) -> None:
    put(tmp_path, file, "other.jpg")
    near = NearNames(tmp_path, [name]).of([name])[name]
    assert near.file == os.fsdecode(file) and near.differences() == kinds
    assert f"({kinds}); data.names=lenient takes it" in str(near)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("y/b.jpg", "x/b.jpg"),
        ("1a2b3c4d-b.jpg", "5a2b3c4d-b.jpg"),
        ("b.jpg", "b.txt"),
        ("b.jpg", "bb.jpg"),
        ("a.b.jpg", "a.jpg"),
    ],
)
def test_what_says_otherwise_is_not_near(tmp_path: Path, name: str, file: str) -> None:
    put(tmp_path, file)
    near = NearNames(tmp_path, [name]).of([name])[name]
    assert near.files == () and near.file is None and str(near) == ""


def test_of_two_near_files_none_is_taken_and_both_are_named(tmp_path: Path) -> None:
    put(tmp_path, "x/b.jpg", "b.PNG")
    near = NearNames(tmp_path, ["b.jpg"]).of(["b.jpg"])["b.jpg"]
    assert near.file is None and near.files == ("b.PNG", "x/b.jpg")
    assert "b.PNG, x/b.jpg, and which is meant is not known" in str(near)


def test_of_very_many_near_files_no_more_are_kept_than_say_so(tmp_path: Path) -> None:
    names = [f"{number}/b.jpg" for number in range(20)]
    put(tmp_path, *(f"{number:08x}-b.jpg" for number in range(20)))
    near = NearNames(tmp_path, names).of(names)["3/b.jpg"]
    assert near.file is None and len(near.files) == 4
    assert str(near).endswith(" and more, and which is meant is not known")


def test_a_file_is_taken_for_one_image_only(tmp_path: Path) -> None:
    put(tmp_path, "b.jpg", "c.JPG")
    wanted = ["x/b.jpg", "y/b.jpg", "c.jpg", "c.JPG"]
    near = NearNames(tmp_path, wanted).of(wanted[:3])
    assert near["x/b.jpg"].file is None and "to 2 images" in str(near["x/b.jpg"])
    assert near["c.jpg"].files == (), "c.JPG is another image's own"


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    put(tmp_path, "x/b.jpg")
    (tmp_path / "x" / "again").symlink_to(tmp_path)
    assert NearNames(tmp_path, ["b.jpg"]).of(["b.jpg"])["b.jpg"].files == ("x/b.jpg",)


def test_a_folder_that_is_too_large_is_not_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "x/b.jpg", "y/c.jpg")
    monkeypatch.setattr(near_names, "MOST_FILES", 1)
    assert NearNames(tmp_path, ["b.jpg"]).of(["b.jpg"])["b.jpg"].files == ()


def test_the_folder_is_read_once_however_many_files_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, *(f"x/{number}.jpg" for number in range(50)))
    read: list[Any] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: read.append(path) or scandir(path))  # type: ignore[func-returns-value]
    missing = [f"{number}.JPG" for number in range(50)]
    near = NearNames(tmp_path, missing).of(missing)
    assert [near[name].file for name in missing] == [f"x/{number}.jpg" for number in range(50)]
    assert len(read) == 2


def test_a_name_looks_at_its_own_near_files_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of n files that are called alike in n folders each is looked up, not compared with n names."""
    files = [f"{number}/rgb/image.jpg" for number in range(40)]
    put(tmp_path, *files)
    read: list[str] = []
    stem = near_names._stem
    monkeypatch.setattr(near_names, "_stem", lambda last: read.append(last) or stem(last))  # type: ignore[func-returns-value]
    missing = [f"train/{file}" for file in files]
    near = NearNames(tmp_path, missing).of(missing)
    assert [near[name].file for name in missing] == files
    assert len(read) == 2 * len(files)
    bare = NearNames(tmp_path, ["image.jpg"]).of(["image.jpg"])["image.jpg"]
    assert len(bare.files) == 4 and bare.file is None


# ---- as the data set has it ----


def with_other_names() -> dict[str, Any]:
    contents = document()
    contents["images"][0]["file_name"] = "train/A.PNG"
    contents["images"][1]["file_name"] = "1a2b3c4d-b.jpeg"
    return contents


def test_a_missing_file_is_refused_with_the_near_one_named(load_coco: Load) -> None:
    with pytest.raises(
        ValueError, match=r"(?s)A\.PNG: cannot be read.*near: a\.png \(folder, case\)"
    ) as raised:
        load_coco(with_other_names())
    assert "near: sub/b.jpg (folder, prefix of an upload, suffix); data.names=lenient takes it" in str(
        raised.value
    )


def test_lenient_takes_the_near_files_counts_them_and_keeps_their_paths(
    load_coco: Load, coco_folder: Path
) -> None:
    data = load_coco(with_other_names(), reading=LENIENT)
    found = finding(data, KIND)
    assert found.count == 2 and "'train/A.PNG'; 'a.png' is there and taken (folder, case)" in found.first
    assert [data.path(row) for row in range(3)] == [
        coco_folder / name for name in ("a.png", "sub/b.jpg", "empty.png")
    ]
    assert data[0][0].shape == (3, HEIGHT, WIDTH)


def test_lenient_finds_nothing_where_every_file_is_there(load_coco: Load) -> None:
    assert load_coco(document(), reading=LENIENT).report == load_coco(document()).report


def test_lenient_refuses_what_is_not_known(load_coco: Load, coco_folder: Path) -> None:
    Image.new("RGB", (WIDTH, HEIGHT)).save(coco_folder / "sub" / "a.png")
    contents = document()
    contents["images"][0]["file_name"] = "A.PNG"
    with pytest.raises(ValueError, match=r"near: a\.png, sub/a\.png, and which is meant is not known"):
        load_coco(contents, reading=LENIENT)


def test_names_that_are_no_text_do_not_stop_the_report(load_coco: Load, coco_folder: Path) -> None:
    contents = document()
    contents["images"][0]["file_name"] = "ä.png"
    contents["annotations"][0]["bbox"] = [0, 0, 0, 0.5]
    (coco_folder / "a.png").rename(os.fsdecode(os.fsencode(coco_folder) + b"/\xe4.png"))
    data = load_coco(contents, reading=LENIENT)
    assert data[0][0].shape == (3, HEIGHT, WIDTH)
    assert str(data.report).encode("utf-8") and "\\udce4" in str(data.report)


def test_evaluation_takes_near_files_too(coco_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(with_other_names()))
    classes = class_table(document()["categories"], "all")
    for reading, wanted in ((Reading(), "train/A.PNG"), (LENIENT, "a.png")):
        truth = load_ground_truth(path, classes, coco_folder, reading=reading)
        assert truth.file_names[50] == wanted
        assert (KIND in [one.kind for one in truth.findings]) == (reading is LENIENT)


def test_the_setting_of_a_command_or_a_checkpoint_of_before_the_option_is_read() -> None:
    assert Reading.of({"crowd_as_objects": True, "workers": 2}) == Reading(crowd_as_objects=True)
    assert Reading.of({"names": "lenient"}) == LENIENT
    with pytest.raises(SystemExit):
        evaluate(["--checkpoint", "x.pt", "--names", "nearly"])
