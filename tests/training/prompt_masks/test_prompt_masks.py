"""`python -m training.prompt_masks`: which objects get a mask, what is written, and how it ends."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO

from tests.training.prompt_masks.boxes_set import (
    POLYGON,
    SIZES,
    boxes_document,
    write_boxes_set,
    write_turned,
)
from training.prompt_masks.__main__ import main

PROMPTED = (1, 3, 4, 5, 7)
"""Annotations of the set that are objects without a mask."""


@pytest.fixture
def words(tiny: Path, tmp_path: Path) -> list[str]:
    """The command line over the set."""
    return write_boxes_set(tmp_path)


def written(words: list[str]) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(Path(words[words.index("--out") + 1]).read_bytes())
    return document


def by_id(document: dict[str, Any]) -> dict[int, dict[str, Any]]:
    return {entry["id"]: entry for entry in document["annotations"]}


def decoded(entry: dict[str, Any]) -> NDArray[np.bool_]:
    runs = entry["segmentation"]
    return mask_utils.decode({**runs, "counts": runs["counts"].encode()}).astype(bool)


def ellipse_in(entry: dict[str, Any], size: tuple[int, int]) -> NDArray[np.bool_]:
    width, height = size
    x0, y0, w, h = entry["bbox"]
    w, h = min(w, width - x0), min(h, height - y0)
    x, y = np.arange(width) + 0.5, np.arange(height)[:, None] + 0.5
    return ((x - x0 - w / 2) / w) ** 2 + ((y - y0 - h / 2) / h) ** 2 <= 0.25


def assert_ellipses(document: dict[str, Any], ids: tuple[int, ...]) -> None:
    for number in ids:
        entry = by_id(document)[number]
        mask, expected = decoded(entry), ellipse_in(entry, SIZES[entry["image_id"] - 1])
        assert (mask & expected).sum() / (mask | expected).sum() > 0.95, number


def test_objects_without_a_mask_get_one_and_all_else_stays(words: list[str]) -> None:
    assert main(words) == 0
    found, given = written(words), boxes_document()
    assert_ellipses(found, PROMPTED)
    for number, entry in by_id(found).items():
        old = by_id(given)[number]
        if number in PROMPTED:
            new = {key: entry.pop(key) for key in ("segmentation", "area", "mask_source", "mask_quality")}
            assert new["area"] == mask_utils.area(
                {**new["segmentation"], "counts": new["segmentation"]["counts"].encode()}
            )
            assert new["mask_source"] == "segmenter" and 0 < new["mask_quality"] <= 1
            old = {key: value for key, value in old.items() if key not in ("segmentation", "area")}
        assert entry == old
    del found["annotations"], given["annotations"]
    assert found == given


def test_the_output_is_a_coco_file_in_which_every_object_has_a_mask(words: list[str], tmp_path: Path) -> None:
    assert main(words) == 0
    coco = COCO(str(tmp_path / "masks.json"))
    for entry in coco.loadAnns(coco.getAnnIds()):
        assert entry["iscrowd"] or coco.annToMask(entry).any()


def test_with_all_the_masks_that_were_there_are_dropped(words: list[str]) -> None:
    assert main([*words, "--all"]) == 0
    found = by_id(written(words))
    assert_ellipses(written(words), (*PROMPTED, 2))
    assert found[2]["mask_source"] == "segmenter" and found[2]["tag"] == "a"
    assert found[6] == by_id(boxes_document())[6]


def test_an_output_as_input_has_nothing_left_to_do(words: list[str], tmp_path: Path) -> None:
    assert main(words) == 0
    again = [*words]
    again[words.index("--annotations") + 1] = str(tmp_path / "masks.json")
    again[words.index("--out") + 1] = str(tmp_path / "again.json")
    assert main(again) == 0
    assert written(again) == written(words)


def test_a_picture_with_an_orientation_is_prompted_upright(words: list[str], tmp_path: Path) -> None:
    write_turned(tmp_path / "images" / "2.png")
    assert main(words) == 0
    assert_ellipses(written(words), (3, 4))
    assert by_id(written(words))[3]["segmentation"]["size"] == [100, 200]


def test_a_file_of_a_near_name_is_taken(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "images" / "2.png").rename(tmp_path / "images" / "2.PNG")
    assert main(words) == 0
    assert_ellipses(written(words), PROMPTED)
    assert "file of a near name" in capsys.readouterr().out


def test_an_image_that_cannot_be_read_is_named_and_its_objects_have_no_masks(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "images" / "1.png").write_bytes(b"no image")
    (tmp_path / "images" / "3.png").unlink()
    assert main([*words, "--all"]) == 1
    found = by_id(written(words))
    assert_ellipses(written(words), (3, 4))
    assert not any("segmentation" in found[number] for number in (1, 2, 5, 7))
    said = capsys.readouterr().err
    assert "2 images could not be read" in said and "1.png" in said and "3.png" in said
    assert main(words) == 1
    assert by_id(written(words))[2]["segmentation"] == POLYGON


def test_an_image_of_another_size_than_annotated_is_not_prompted(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "images" / "3.png").write_bytes((tmp_path / "images" / "1.png").read_bytes())
    assert main(words) == 1
    assert "3.png: expected 60 x 90 pixels, as its annotations say" in capsys.readouterr().err
    assert "mask_source" not in by_id(written(words))[5]


def test_a_broken_disk_stops_the_run(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = boxes_document()
    document["images"] = [
        {"id": number, "file_name": f"gone/{number}.png", "width": 9, "height": 9} for number in range(1, 21)
    ]
    document["annotations"] = [
        {"id": number, "image_id": number, "category_id": 1, "bbox": [1, 1, 5, 5]} for number in range(1, 21)
    ]
    assert main(write_boxes_set(tmp_path, document)) == 2
    assert "error: 10 images could not be read" in capsys.readouterr().err
    assert not (tmp_path / "masks.json").exists()


def test_a_mask_of_which_nothing_is_left_is_no_mask_and_is_named(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = boxes_document()
    document["annotations"][4]["bbox"] = [5, 5, 0.01, 0.01]  # an ellipse between the samples of the logits
    words = write_boxes_set(tmp_path, document)
    assert main([*words, "--all"]) == 0
    entry = by_id(written(words))[5]
    assert not {"segmentation", "mask_source", "mask_quality"} & entry.keys()
    assert entry["bbox"] == [5, 5, 0.01, 0.01]
    assert (
        "1 of no pixel inside the box; their objects keep the box alone: annotations 5"
        in capsys.readouterr().out
    )


def test_a_mask_that_cannot_be_used_is_made_anew(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = boxes_document()
    document["annotations"][1]["segmentation"] = [[1, 2, 3]]
    words = write_boxes_set(tmp_path, document)
    assert main(words) == 0
    assert_ellipses(written(words), (2,))
    assert "polygon of odd length" in capsys.readouterr().out


def test_a_file_without_objects_is_written_as_it_is(tiny: Path, tmp_path: Path) -> None:
    document = boxes_document()
    document["annotations"] = []
    words = write_boxes_set(tmp_path, document)
    assert main(words) == 0
    assert written(words) == document


def test_no_more_images_than_asked_for_are_prompted(words: list[str]) -> None:
    assert main([*words, "--max-images", "2"]) == 0
    assert [number for number, entry in by_id(written(words)).items() if "mask_source" in entry] == [1, 3, 4]


def test_the_same_command_writes_the_same_bytes(words: list[str], tmp_path: Path) -> None:
    assert main(words) == 0
    first = (tmp_path / "masks.json").read_bytes()
    (tmp_path / "masks.json").unlink()
    assert main(words) == 0
    assert (tmp_path / "masks.json").read_bytes() == first
    assert {path.name for path in tmp_path.iterdir()} == {"boxes.json", "images", "masks.json", "tiny"}


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--out", "boxes.json", "is the input; expected another file"),
        ("--annotations", "nothing.json", "No such file"),
        ("--images", "nowhere", "no folder of images"),
        ("--segmenter", "nowhere", "no folder .*nowhere; expected one with a segmenter's files"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    words: list[str],
    tmp_path: Path,
    option: str,
    value: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = (tmp_path / "boxes.json").read_bytes()
    words[words.index(option) + 1] = str(tmp_path / value)
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    assert re.search(message, said)
    assert not (tmp_path / "masks.json").exists() and (tmp_path / "boxes.json").read_bytes() == before


def test_a_number_of_images_below_one_is_refused(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--max-images", "0"]) == 2
    assert "--max-images 0; expected 1 or more" in capsys.readouterr().err


def test_input_that_changes_meanwhile_is_not_mixed_with_its_masks(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from training.prompt_masks import __main__ as program

    def changing(*arguments: Any, **options: Any) -> Any:
        document = copy.deepcopy(boxes_document())
        document["annotations"].reverse()
        (tmp_path / "boxes.json").write_text(json.dumps(document))
        return prompt_all(*arguments, **options)

    prompt_all = program.prompt_all
    monkeypatch.setattr(program, "prompt_all", changing)
    assert main(words) == 2
    assert "boxes.json: was changed while masks were made for it" in capsys.readouterr().err
    assert not (tmp_path / "masks.json").exists()
