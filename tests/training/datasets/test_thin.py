"""`python -m training.datasets thin`: which objects keep their masks, and that nothing else is lost."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from training.datasets.__main__ import main
from training.datasets.thin import thinned

SQUARE = [[1, 1, 5, 1, 5, 5, 1, 5]]


def document() -> dict[str, Any]:
    """40 objects of category 1, three of category 7, one of 9; a crowd, a box alone, a taught mask, and odd entries."""
    categories = [1] * 40 + [7] * 3 + [9]
    objects: list[Any] = [
        {"id": number, "image_id": 3, "category_id": category, "bbox": [1, 1, 4, 4], "area": 9, "iscrowd": 0,
         "segmentation": SQUARE, "note": number}
        for number, category in enumerate(categories, start=1)
    ]  # fmt: skip
    objects += [
        {**objects[0], "id": 100, "iscrowd": 1},
        {**objects[0], "id": 101, "segmentation": []},
        {**objects[0], "id": 102, "mask_source": "segmenter"},
        {**objects[0], "id": 103, "category_id": [1]},
        "no annotation",
    ]
    return {
        "info": {"year": 2026},
        "images": [{"id": 3, "file_name": "a.png", "width": 9, "height": 9}],
        "categories": [{"id": i, "name": str(i)} for i in (1, 7, 9)],
        "annotations": objects,
    }


def kept(found: dict[str, Any]) -> set[int]:
    """Ids of the objects that had a true mask and have one."""
    return {one["id"] for one in found["annotations"][:44] if "segmentation" in one}


def test_each_category_keeps_its_share_of_masks_and_at_least_one() -> None:
    found = thinned(document(), 0.2, 0)
    by_category = Counter(one["category_id"] for one in found["annotations"][:44] if "segmentation" in one)
    assert by_category == {1: 8, 7: 1, 9: 1}
    assert Counter(
        thinned(document(), 0, 0)["annotations"][i].get("segmentation") is None for i in range(44)
    ) == {
        True: 41,
        False: 3,
    }
    assert kept(thinned(document(), 1, 0)) == set(range(1, 45))


def test_nothing_but_those_masks_is_lost() -> None:
    before = document()
    found = thinned(before, 0.2, 0)
    assert found["annotations"][44:] == before["annotations"][44:]
    assert {key: value for key, value in found.items() if key != "annotations"} == {
        key: value for key, value in before.items() if key != "annotations"
    }
    for one, other in zip(found["annotations"][:44], before["annotations"][:44], strict=True):
        assert one | {"segmentation": SQUARE} == other
    assert before == document()  # the argument stays


def test_a_greater_share_holds_the_masks_of_a_smaller_one_and_seeds_differ() -> None:
    few, more = kept(thinned(document(), 0.1, 0)), kept(thinned(document(), 0.4, 0))
    assert few < more
    assert kept(thinned(document(), 0.4, 1)) != more


def test_the_command_writes_the_same_bytes_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "in.json"
    source.write_text(json.dumps(document()))
    for name in ("one", "other"):
        words = ["--annotations", str(source), "--share", "0.2", "--seed", "5", "--out", str(tmp_path / name)]
        assert main(["thin", *words]) == 0
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()
    assert "10 of 44 objects with a mask keep it, 3 categories" in capsys.readouterr().out
    assert json.loads((tmp_path / "one").read_text()) == thinned(document(), 0.2, 5)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--share", "1.5", "--out", "o.json"], "the share is 1.5; give a number from 0 to 1"),
        (["--share", "nan", "--out", "o.json"], "the share is nan"),
        (["--share", "0.5", "--out", "in.json"], "is the file to be thinned"),
        (["--share", "0.5", "--annotations", "none.json", "--out", "o.json"], "none.json: No such file"),
    ],
)
def test_a_mistake_is_one_line(
    words: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in.json").write_text(json.dumps(document()))
    assert main(["thin", "--annotations", "in.json", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error and error.count("\n") == 1
    assert not Path("o.json").exists()
