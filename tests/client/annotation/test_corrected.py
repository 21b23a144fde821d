"""Annotations that people corrected in CVAT or Label Studio come back as COCO."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from client import convert as short
from client.annotation import convert
from client.annotation.label_studio import address_of, file_name_of
from tests.client.annotation.test_convert import HEIGHT, WIDTH, blob, folder, result, run, write
from training.data.coco import CocoDataset

__all__ = ["folder"]  # a fixture
Said = pytest.CaptureFixture[str]


def back(source: Path, tool: str, out: Path, *more: str) -> dict[str, Any]:
    assert convert.main([str(source), "--from", tool, "--out", str(out), *more]) == 0
    made: dict[str, Any] = json.loads(out.read_text())
    return made


def refused(source: Path, tool: str, capsys: Said, *more: str) -> str:
    assert convert.main([str(source), "--from", tool, "--out", str(source) + ".out", *more]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("error: ") and said.err.count("\n") == 1
    return said.err


def pixels_of(one: dict[str, Any]) -> np.ndarray:
    made = coco_mask.frPyObjects(one["segmentation"], HEIGHT, WIDTH)
    decoded: np.ndarray = coco_mask.decode(coco_mask.merge(made) if isinstance(made, list) else made)
    return decoded.astype(bool)


def people_took_over(path: Path) -> None:
    """As Label Studio exports what was predicted and accepted."""
    tasks = json.loads(path.read_text())
    for number, task in enumerate(tasks):
        task |= {
            "id": number,
            "annotations": [{"result": task["predictions"][0]["result"], "was_cancelled": False}],
        }
    path.write_text(json.dumps(tasks))


@pytest.mark.parametrize("tool", ["cvat", "labelstudio"])
@pytest.mark.parametrize("prefix", ["/data/local-files/?d=photos/", "s3://bucket/", ""])
def test_what_was_converted_comes_back_as_it_was(folder: Path, tool: str, prefix: str) -> None:
    parts = [[1.0, 2.0, 10.5, 2.0, 10.5, 7.25], [20.0, 20.0, 30.0, 20.0, 30.0, 30.0, 20.0, 30.0]]
    sent = [result(blob(0)), result(blob(1)), result(segmentation=parts), result(bbox=[1, 2, 30, 20])]
    write(folder, sent)
    given = ["--url-prefix", prefix]
    out = run(folder, tool, *given)
    if tool == "labelstudio":
        people_took_over(out)
    made = back(out, tool, folder / "back.json", "--images", str(folder / "results.images.json"), *given)
    assert [(one["id"], one["file_name"]) for one in made["images"]] == [
        (4, "deep/é & b.jpg"),
        (9, "empty.jpg"),
    ]
    assert [one["name"] for one in made["categories"]] == ["dog", "cup, é <&>"]
    assert {one["category_id"] for one in made["annotations"]} == {2}
    assert {one["image_id"] for one in made["annotations"]} == {4}
    assert [one["id"] for one in made["annotations"]] == [1, 2, 3, 4]
    masks = [one for one in made["annotations"] if isinstance(one.get("segmentation"), dict)]
    assert {pixels_of(one).tobytes() for one in masks} == {blob(0).tobytes(), blob(1).tobytes()}
    assert sorted(one["area"] for one in masks) == sorted(int(blob(n).sum()) for n in (0, 1))
    (polygon,) = [one for one in made["annotations"] if isinstance(one.get("segmentation"), list)]
    assert np.allclose(np.concatenate(polygon["segmentation"]), np.concatenate(parts), atol=0.02)
    (box,) = [one for one in made["annotations"] if "segmentation" not in one]
    assert np.allclose(box["bbox"], [1, 2, 30, 20], atol=0.01) and box["iscrowd"] == 0


@pytest.mark.parametrize("tool", ["cvat", "labelstudio"])
def test_the_next_training_starts_with_it(folder: Path, tool: str) -> None:
    write(
        folder,
        [
            result(blob(0)),
            result(segmentation=[[20, 20, 30, 20, 30, 30, 20, 30]], category_id=1, category="dog"),
        ],
    )
    out = run(folder, tool)
    if tool == "labelstudio":
        people_took_over(out)
    made = back(out, tool, folder / "back.json")
    images = folder / "images"
    for one in made["images"]:
        (images / one["file_name"]).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (one.get("width", 20), one.get("height", 10))).save(images / one["file_name"])
        one |= {"width": one.get("width", 20), "height": one.get("height", 10)}
    (folder / "back.json").write_text(json.dumps(made))
    data = CocoDataset(images, folder / "back.json", mask_classes="all")
    assert len(data.report.__dict__) > 0 and len(data) >= 1


CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version><meta><job><labels>
<label><name>cat</name></label><label><name>dog</name></label><label><name>nose</name><parent>dog</parent></label>
</labels></job></meta>
<image id="0" name="a/1.jpg" width="100" height="80"><tag label="cat"/>
<box label="cat" xtl="10" ytl="20" xbr="30" ybr="40" rotation="90" occluded="0"/>
<box label="dog" xtl="1.5" ytl="2" xbr="4" ybr="8"><attribute name="is_crowd">true</attribute></box>
<ellipse label="dog" cx="50" cy="40" rx="20" ry="10" rotation="90"/>
<polygon label="cat" points="0,0;10,0;10,10" group_id="7"/><polygon label="dog" points="20,0;30,0;30,10" group_id="7"/>
<polygon label="cat" points="0,20;10,20;10,30" group_id="7"/><points label="cat" points="1,1;2,2"/></image>
<image id="1" name="b.jpg" width="9" height="8"/></annotations>"""


def test_every_shape_of_cvat_is_read_or_counted(tmp_path: Path, capsys: Said) -> None:
    (tmp_path / "a.xml").write_text(CVAT)
    made = back(tmp_path / "a.xml", "cvat", tmp_path / "out" / "a.json")
    assert "left out: 1 tags of images, 1 shapes of kind points" in capsys.readouterr().out
    assert [one["name"] for one in made["categories"]] == ["cat", "dog"]
    assert [one["file_name"] for one in made["images"]] == ["a/1.jpg", "b.jpg"]
    turned, crowd, ellipse, cat, dog = made["annotations"]
    assert turned["bbox"] == [10, 20, 20, 20] and turned["segmentation"][0][:2] == [30, 20]
    assert (crowd["bbox"], crowd["iscrowd"], "segmentation" in crowd) == ([1.5, 2, 2.5, 6], 1, False)
    assert np.allclose(ellipse["bbox"], [40, 20, 20, 40], atol=0.1) and abs(ellipse["area"] - 200 * np.pi) < 3
    assert (len(cat["segmentation"]), cat["area"], len(dog["segmentation"])) == (2, 100, 1)


def task(*regions: dict[str, Any], **more: Any) -> dict[str, Any]:
    annotation = {"result": list(regions), "was_cancelled": False, "updated_at": "2026-01-02"}
    return {
        "id": 1,
        "data": {"image": "/data/local-files/?d=x/a%20b.jpg"},
        "annotations": [annotation],
        **more,
    }


def region(kind: str, value: dict[str, Any], label: str = "cat", **more: Any) -> dict[str, Any]:
    size = {"original_width": 200, "original_height": 100}
    return {"id": "r", "type": kind, **size, "value": {**value, kind: [label]}, **more}


def test_every_region_of_label_studio_is_read_or_counted(tmp_path: Path, capsys: Said) -> None:
    shapes = [
        region("rectanglelabels", {"x": 10, "y": 10, "width": 20, "height": 40, "rotation": 0}),
        region("rectanglelabels", {"x": 50, "y": 10, "width": 10, "height": 10, "rotation": 90}, "dog"),
        region("ellipselabels", {"x": 50, "y": 50, "radiusX": 10, "radiusY": 10, "rotation": 0}),
        region("keypointlabels", {"x": 1, "y": 1}),
        {
            **region("polygon", {"points": [[0, 0], [10, 0], [10, 10]]}),
            "value": {"points": [[0, 0], [10, 0], [10, 10]]},
        },
        {"id": "r", "type": "labels", "value": {"labels": ["dog"]}},
        {"id": "n", "type": "rectangle", "original_width": 200, "original_height": 100, "value": {}},
    ]
    older = {"result": [], "was_cancelled": False, "updated_at": "2026-01-01"}
    first = task(*shapes)
    first["annotations"].insert(0, older)
    skipped = task(annotations=[{"result": [], "was_cancelled": True}])
    nothing = task(data={"image": "s3://bucket/deep/c.jpg"}, predictions=[{"result": [shapes[0]]}])
    (tmp_path / "a.json").write_text(json.dumps([first, skipped, task(annotations=[]), nothing]))
    made = back(tmp_path / "a.json", "labelstudio", tmp_path / "out.json")
    said = capsys.readouterr().out
    for words in (
        "1 tasks that were skipped",
        "1 tasks that nobody annotated",
        "1 further annotations of a task",
    ):
        assert words in said
    assert "1 regions of kind keypointlabels" in said and "1 regions without a label" in said
    assert [(one["file_name"], one["width"]) for one in made["images"]] == [
        ("x/a b.jpg", 200),
        ("deep/c.jpg", 200),
    ]
    boxes = [one["bbox"] for one in made["annotations"]]
    assert boxes[:3] == [[20, 10, 40, 40], [90, 10, 10, 20], [80, 40, 40, 20]] and len(boxes) == 4
    names = {one["id"]: one["name"] for one in made["categories"]}
    assert [names[one["category_id"]] for one in made["annotations"]] == ["cat", "dog", "cat", "dog"]


@pytest.mark.parametrize(
    ("text", "tool", "words"),
    [
        (
            "<annotations><track id='0'/></annotations>",
            "cvat",
            "'CVAT for video'; export the task as 'CVAT for images",
        ),
        ("<annotation/>", "cvat", "XML of <annotation>; <annotations> of 'CVAT for images 1.1'"),
        ("{}", "cvat", "cannot be read as XML"),
        ("<annotations/>", "cvat", "has no annotated image"),
        (
            "<annotations><image name='a.jpg' width='9'/></annotations>",
            "cvat",
            "image a.jpg cannot be read: KeyError",
        ),
        (
            CVAT.replace('points="0,0;', 'points="0;'),
            "cvat",
            "image a/1.jpg cannot be read: .* polygon's points are",
        ),
        ('{"images": []}', "labelstudio", "is no list of tasks; export as 'JSON'"),
        ("<annotations/>", "labelstudio", "cannot be read as JSON"),
        (json.dumps([task(annotations=[7])]), "labelstudio", "task 1 cannot be read: .* are numbers"),
        (
            json.dumps([task(region("polygonlabels", {}))]),
            "labelstudio",
            "task 1 cannot be read: KeyError: 'points'",
        ),
        (
            json.dumps([task(region("brushlabels", {"rle": [0, 0, 0, 1]}))]),
            "labelstudio",
            "task 1 cannot be read",
        ),
    ],
)
def test_what_is_no_export_is_one_line(
    tmp_path: Path, capsys: Said, text: str, tool: str, words: str
) -> None:
    (tmp_path / "a").write_text(text)
    assert re.search(words, refused(tmp_path / "a", tool, capsys))


def test_two_images_that_would_be_one_are_refused(tmp_path: Path, capsys: Said) -> None:
    two = CVAT.replace('name="b.jpg"', 'name="z/1.jpg"')
    (tmp_path / "a.xml").write_text(two)
    like = {"images": [{"id": 7, "file_name": "1.jpg"}], "categories": []}
    (tmp_path / "like.json").write_text(json.dumps(like))
    said = refused(tmp_path / "a.xml", "cvat", capsys, "--images", str(tmp_path / "like.json"))
    assert "a/1.jpg and z/1.jpg are both image 7" in said


@pytest.mark.parametrize(
    "name", ["photo 1+2.jpg", "50% off#2.jpg", "what?.jpg", "a&b=c.jpg", "é/ü.jpg", "a%20b.jpg"]
)
@pytest.mark.parametrize(
    "prefix", ["/data/local-files/?d=p/", "http://host/p/", "https://h/", "s3://b/p/", "gs://b/", ""]
)
def test_an_address_leads_back_to_the_name(name: str, prefix: str) -> None:
    address = address_of(name, prefix)
    assert file_name_of(address, prefix) == name
    encoded = prefix.startswith(("/", "http"))
    assert (address == prefix + name) == (not encoded or name == "plain")


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("/data/upload/4/cb0618f6-a%20b.png", "a b.png"),
        ("http://host:8080/data/upload/cb0618f6-c.png", "c.png"),
        ("/data/local-files/?d=deep/d.png", "deep/d.png"),
        ("azure-blob://container/deep/e.png", "deep/e.png"),
        ("https://host/deep/f.png?token=1", "deep/f.png"),
    ],
)
def test_without_a_prefix_an_address_still_says_the_name(address: str, name: str) -> None:
    assert file_name_of(address, "") == name


def test_an_image_that_is_there_twice_is_refused(tmp_path: Path, capsys: Said) -> None:
    box = region("rectanglelabels", {"x": 1, "y": 1, "width": 2, "height": 4})
    (tmp_path / "a.json").write_text(json.dumps([task(box), task(box)]))
    assert "1 images are there twice, x/a b.jpg is one" in refused(tmp_path / "a.json", "labelstudio", capsys)


def test_the_short_name_is_the_same_command() -> None:
    assert short.main is convert.main
