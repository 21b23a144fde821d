"""Which files a run is about, under which names and ids."""

import json
from pathlib import Path

import pytest

from client.many.files import find_images, identified, image_ids


def make(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def found(*inputs: object) -> tuple[list[str], str]:
    """Names, and what was said meanwhile."""
    said: list[str] = []
    names = [name for _, name in find_images([str(one) for one in inputs], said.append)]
    return names, "\n".join(said)


def test_what_is_left_out_of_a_folder_is_counted_by_its_kind(tmp_path: Path) -> None:
    folder = make(tmp_path / "p", "a.JPG", "b/c.heic", "b/d.txt", "e.TXT", "f", "b/.DS_Store", "g.mp4")
    (folder / "gone.jpg").symlink_to(tmp_path / "nothing.jpg")
    (folder / "linked").symlink_to(make(tmp_path / "other", "z.jpg"))
    (folder / "g.jpg").symlink_to(make(tmp_path, "z.jpg") / "z.jpg")
    names, said = found(folder)
    assert names == ["a.JPG", "b/c.heic", "g.jpg"]
    assert "left out of" in said and "7 that are no images by their names" in said
    for kind in ("2 .txt", "2 without a suffix", "1 .mp4", "1 links to nothing", "1 linked folders"):
        assert kind in said


def test_nothing_is_said_where_nothing_is_left_out(tmp_path: Path) -> None:
    folder = make(tmp_path / "p", "a.jpg", "b/c.mpo")
    assert found(folder) == (["a.jpg", "b/c.mpo"], "")
    assert found(make(tmp_path, "named.txt") / "named.txt") == (["named.txt"], "")


def test_a_pattern_too_says_what_it_leaves_out(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "a.json")
    names, said = found(f"{tmp_path}/a.*")
    assert names == ["a.jpg"] and "1 that are no images by their names (1 .json)" in said
    with pytest.raises(ValueError, match="no image is named like .*1 that are no images .*1 .json"):
        found(f"{tmp_path}/*.json")


def test_a_folder_without_an_image_says_what_it_has(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"there is no image in the folder .*: 2 that are no images .*\(2 .svg\)"
    ):
        found(make(tmp_path / "p", "a.svg", "b.SVG"))


@pytest.mark.parametrize("listed", [["1.jpg"], ["a/1.jpg"], ["1.jpg", "2.jpg"]])
def test_two_files_never_get_one_id(tmp_path: Path, listed: list[str]) -> None:
    files = find_images([str(make(tmp_path / "p", "a/1.jpg", "b/1.jpg"))])
    source = tmp_path / "val.json"
    source.write_text(
        json.dumps({"images": [{"id": 7 + n, "file_name": one} for n, one in enumerate(listed)]})
    )
    with pytest.raises(
        ValueError, match=r"a/1.jpg and b/1.jpg would both be image 7|has no image named b/1.jpg"
    ):
        identified(files, image_ids(source), source)


def test_files_of_one_name_in_two_folders_keep_their_ids_where_the_list_has_the_folders(
    tmp_path: Path,
) -> None:
    files = find_images([str(make(tmp_path / "p", "a/1.jpg", "b/1.jpg"))])
    ids = {"a/1.jpg": 3, "b/1.jpg": 4, "1.jpg": 5}
    assert [one.image_id for one in identified(files, ids, tmp_path)] == [3, 4]


def test_files_of_one_name_given_one_by_one_are_refused(tmp_path: Path) -> None:
    make(tmp_path, "a/1.jpg", "b/1.jpg")
    with pytest.raises(ValueError, match="1 names belong to several files, 1.jpg is one; give their folder"):
        found(tmp_path / "a" / "1.jpg", tmp_path / "b" / "1.jpg")
    with pytest.raises(ValueError, match="give their folder"):
        found(tmp_path / "a", tmp_path / "b")
