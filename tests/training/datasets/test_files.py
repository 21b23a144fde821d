"""Lists of JSON read item by item, COCO files written in one pass, lists of image ids."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.training.datasets.small_sets import write_json
from training.datasets.files import CocoWriter, image_ids, items_of_list

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(values=st.lists(VALUES, max_size=6), chunk=st.integers(1, 40), indent=st.sampled_from([None, 0, 3]))
def test_items_are_those_of_the_whole_list_whatever_the_size_of_a_piece(
    tmp_path_factory: pytest.TempPathFactory, values: list[Any], chunk: int, indent: int | None
) -> None:
    path = tmp_path_factory.mktemp("list") / "list.json"
    path.write_text(json.dumps(values, indent=indent), encoding="utf-8")
    assert list(items_of_list(path, chunk=chunk)) == values


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ('{"a": 1}', "expected a JSON list, seen '{"),
        ("", "expected a JSON list, seen ''"),
        ("[1, 22", r"item 2, from character 4 on: the list does not end"),
        ("[1, 22, ", r"item 3, from character 8 on"),
        (
            '[{"a": 1} {"b": 2}]',
            "after item 1, at character 10: expected a comma or the list's end, seen '{'",
        ),
        ("[[1, 2], [3, x]]", "item 2, from character 9 on: Expecting value"),
        ("[1", "item 1, from character 1 on: the list does not end"),
        ("[[1]", "item 1, from character 1 on: the list does not end"),
        ("[[1] ", "after item 1, at character 5: .* seen 'the end of the file'"),
    ],
)
@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_a_broken_list_is_refused_with_the_place(tmp_path: Path, text: str, seen: str, chunk: int) -> None:
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=seen) as raised:
        list(items_of_list(path, chunk=chunk))
    assert "broken.json" in str(raised.value)


def test_a_list_that_is_missing_or_no_text_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot read .*nowhere\.json"):
        list(items_of_list(tmp_path / "nowhere.json"))
    (tmp_path / "bytes.json").write_bytes(b'["\xff\xfe"]')
    with pytest.raises(ValueError, match=r"bytes\.json: not valid JSON"):
        list(items_of_list(tmp_path / "bytes.json"))


def test_a_written_file_is_coco_and_numbers_what_has_no_id(tmp_path: Path) -> None:
    path = tmp_path / "new" / "set.json"
    with CocoWriter(path, [{"id": 1, "name": "a"}], description="a set") as writer:
        writer.add_image({"id": 7, "file_name": "x.jpg"})
        writer.add({"image_id": 7})
        writer.add({"id": 40, "image_id": 7})
    contents = json.loads(path.read_text())
    assert contents["images"] == [{"id": 7, "file_name": "x.jpg"}]
    assert [one["id"] for one in contents["annotations"]] == [1, 40]
    assert contents["categories"] == [{"id": 1, "name": "a"}]
    assert str(writer) == f"{path}: 1 images, 2 objects"


def test_an_error_leaves_the_old_file_and_nothing_unfinished(tmp_path: Path) -> None:
    path = tmp_path / "set.json"
    path.write_text("old")

    def fail_midway() -> None:
        with CocoWriter(path, [], description="") as writer:
            writer.add({"image_id": 7})
            assert len(list(tmp_path.iterdir())) == 2  # else nothing was written that could be left
            raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"):
        fail_midway()
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_ids_come_from_a_coco_file_or_from_lines(tmp_path: Path) -> None:
    assert image_ids(write_json(tmp_path / "a.json", {"images": [{"id": 5}, {"id": 42}]})) == {5, 42}
    (tmp_path / "a.txt").write_text("42\n\nval2014/COCO_val2014_000000000005.jpg\n")
    assert image_ids(tmp_path / "a.txt") == {5, 42}


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("", "lists no image"),
        ("12\ncat\n", "seen 'cat'"),
        ('{"images": [{}]}', "expected a COCO file with images"),
    ],
)
def test_a_list_of_ids_that_is_none_is_refused(tmp_path: Path, text: str, seen: str) -> None:
    (tmp_path / "ids").write_text(text)
    with pytest.raises(ValueError, match=seen):
        image_ids(tmp_path / "ids")
    with pytest.raises(ValueError, match="cannot read the list of images"):
        image_ids(tmp_path / "nowhere")
