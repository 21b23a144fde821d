"""Results for CVAT and Label Studio, read back by decoders written from the formats' documentation."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from client.annotation import convert
from client.annotation.label_studio import brush_rle
from maskx_draw import Window

Said = pytest.CaptureFixture[str]

HEIGHT, WIDTH = 37, 53
Result = dict[str, Any]


def blob(seed: int) -> np.ndarray:
    """A ragged mask with holes and islands, bool [HEIGHT, WIDTH]; odd seeds touch the image's edges."""
    rng = np.random.default_rng(seed)
    pixels = np.zeros((HEIGHT, WIDTH), bool)
    if seed % 2:
        pixels[:, :] = rng.random((HEIGHT, WIDTH)) < 0.5
        pixels[0, 0] = pixels[-1, -1] = True
    else:
        pixels[5:20, 7:31] = rng.random((15, 24)) < 0.7
    return pixels


def result(pixels: np.ndarray | None = None, **more: Any) -> Result:
    one = {
        "image_id": 4,
        "category_id": 2,
        "category": "cup, é <&>",
        "bbox": [7.25, 5.0, 60.0, 15.0],
        "score": 0.75,
        "area": 9,
        "mask_supervised": False,
    }
    if pixels is not None:
        rle = coco_mask.encode(np.asfortranarray(pixels.astype(np.uint8)))
        one["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode()}
    return {**one, **more}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, [])
    return tmp_path


def write(folder: Path, results: list[Result], height: int = HEIGHT, width: int = WIDTH) -> None:
    (folder / "results.json").write_text(json.dumps(results))
    images = [
        {"id": 4, "file_name": "deep/é & b.jpg", "height": height, "width": width},
        {"id": 9, "file_name": "empty.jpg", "height": 10, "width": 20},
    ]
    categories = [{"id": 1, "name": "dog"}, {"id": 2, "name": "cup, é <&>"}]
    about = {"images": images, "categories": categories, "annotations": []}
    (folder / "results.images.json").write_text(json.dumps(about))


def run(folder: Path, to: str, *more: str) -> Path:
    out = folder / "out" / ("a.xml" if to == "cvat" else "a.json")
    assert convert.main([str(folder / "results.json"), "--to", to, "--out", str(out), *more]) == 0
    return out


# ---- CVAT: https://docs.cvat.ai/docs/other/xml_format, version 1.1, "annotation"


def decoded_cvat(mask: ET.Element, height: int, width: int) -> np.ndarray:
    """The mask of an element, from the documentation: runs of the window, row by row, background first."""
    pixels: list[bool] = []
    for i, run_length in enumerate(mask.attrib["rle"].split(",")):
        pixels += [i % 2 == 1] * int(run_length)
    rows, columns = int(mask.attrib["height"]), int(mask.attrib["width"])
    left, top = int(mask.attrib["left"]), int(mask.attrib["top"])
    assert len(pixels) == rows * columns
    whole = np.zeros((height, width), bool)
    whole[top : top + rows, left : left + columns] = np.array(pixels).reshape(rows, columns)
    return whole


def images_of(path: Path) -> list[ET.Element]:
    root = ET.parse(path).getroot()
    assert root.tag == "annotations" and root.findtext("version") == "1.1"
    return root.findall("image")


@pytest.mark.parametrize("seed", range(4))
def test_a_mask_comes_back_from_cvats_run_lengths(folder: Path, seed: int) -> None:
    write(folder, [result(blob(seed))])
    image, empty = images_of(run(folder, "cvat"))
    assert image.attrib == {"id": "0", "name": "deep/é & b.jpg", "width": str(WIDTH), "height": str(HEIGHT)}
    assert list(empty) == []
    (mask,) = image
    assert mask.tag == "mask" and mask.attrib["label"] == "cup, é <&>" and mask.attrib["source"] == "auto"
    assert np.array_equal(decoded_cvat(mask, HEIGHT, WIDTH), blob(seed))
    assert {one.attrib["name"]: one.text for one in mask} == {"score": "0.7500", "transferred": "true"}


def test_cvats_labels_are_those_of_the_results_with_both_attributes(folder: Path) -> None:
    labels = ET.parse(run(folder, "cvat")).getroot().findall("meta/task/labels/label")
    assert [label.findtext("name") for label in labels] == ["dog", "cup, é <&>"]
    names = [one.findtext("name") for one in labels[0].findall("attributes/attribute")]
    assert names == ["score", "transferred", "mask_source"]


def test_what_the_masks_were_learned_from_goes_along_where_the_results_say_it(folder: Path) -> None:
    write(folder, [result(mask_source="taught")])
    (box,) = images_of(run(folder, "cvat"))[0]
    assert {one.attrib["name"]: one.text for one in box}["mask_source"] == "taught"
    (task, _) = json.loads(run(folder, "labelstudio").read_text())
    assert task["predictions"][0]["result"][0]["meta"]["text"] == ["transferred mask", "mask source: taught"]


def test_polygons_stay_polygons_and_the_parts_of_an_object_are_one_group(folder: Path) -> None:
    parts = [[1, 2, 10.5, 2, 10.5, 7.25], [20, 20, 30, 20, 30, 30, 20, 30]]
    write(folder, [result(segmentation=parts), result(segmentation=parts[:1], bbox=[1, 2, 9.5, 5.25])])
    first, second, alone = images_of(run(folder, "cvat"))[0]
    assert first.attrib["points"] == "1.00,2.00;10.50,2.00;10.50,7.25"
    assert first.attrib["group_id"] == second.attrib["group_id"] and "group_id" not in alone.attrib
    (mask, _) = images_of(run(folder, "cvat", "--shapes", "mask"))[0]
    square = decoded_cvat(mask, HEIGHT, WIDTH)[20:30, 20:30]
    assert mask.tag == "mask" and square.all()


def test_without_masks_there_are_boxes_within_the_image_the_largest_lowest(folder: Path) -> None:
    write(folder, [result(bbox=[1, 1, 2, 2]), result(blob(0)), result(segmentation=[])])
    boxes = list(images_of(run(folder, "cvat", "--shapes", "box"))[0])
    assert [box.tag for box in boxes] == ["box"] * 3
    assert [box.attrib["z_order"] for box in boxes] == ["0", "1", "2"]
    sides = {name: boxes[0].attrib[name] for name in ("xtl", "ytl", "xbr", "ybr")}
    assert sides == {"xtl": "7.25", "ytl": "5.00", "xbr": f"{WIDTH}.00", "ybr": "20.00"}
    assert boxes[2].attrib["xbr"] == "3.00"


# ---- Label Studio: the packed run lengths of https://github.com/thi-ng/umbrella (rle-pack), as its brush uses them


class Bits:
    def __init__(self, data: list[int]) -> None:
        self.bits = np.unpackbits(np.array(data, np.uint8))
        self.at = 0

    def take(self, count: int) -> int:
        taken = self.bits[self.at : self.at + count]
        self.at += count
        return int("".join(map(str, taken)), 2)


def decoded_brush(rle: list[int], height: int, width: int) -> np.ndarray:
    """The alpha channel of a brush, bool [height, width]."""
    stream = Bits(rle)
    count, value_bits = stream.take(32), stream.take(5) + 1
    sizes = [stream.take(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < count:
        repeated = stream.take(1)
        length = stream.take(sizes[stream.take(2)]) + 1
        if repeated:
            values += [stream.take(value_bits)] * length
        else:
            values += [stream.take(value_bits) for _ in range(length)]
    assert len(values) == count == height * width * 4
    pixels = np.array(values).reshape(height, width, 4)
    assert set(np.unique(pixels)) <= {0, 255} and (pixels == pixels[..., :1]).all()
    return pixels[..., 3] == 255


@pytest.mark.parametrize("seed", range(4))
def test_a_mask_comes_back_from_label_studios_bits(folder: Path, seed: int) -> None:
    write(folder, [result(blob(seed))])
    task, empty = json.loads(run(folder, "labelstudio", "--url-prefix", "/d/?d=").read_text())
    assert (
        task["data"] == {"image": "/d/?d=deep/%C3%A9%20%26%20b.jpg"}
        and empty["predictions"][0]["result"] == []
    )
    (prediction,) = task["predictions"]
    (region,) = prediction["result"]
    assert prediction["score"] == region["score"] == 0.75 and prediction["model_version"] == "maskx"
    names = {"type": "brushlabels", "from_name": "brush", "to_name": "image"}
    assert {**names, "original_width": WIDTH, "original_height": HEIGHT}.items() <= region.items()
    assert region["value"]["format"] == "rle" and region["value"]["brushlabels"] == ["cup, é <&>"]
    assert np.array_equal(decoded_brush(region["value"]["rle"], HEIGHT, WIDTH), blob(seed))


def test_runs_longer_than_a_length_can_say_are_cut() -> None:
    """A length has 16 bits at most; an image of 300 x 200 has 240,000 values."""
    window = Window(100, 50, np.ones((30, 100), bool))
    pixels = decoded_brush(brush_rle(window, height=200, width=300), 200, 300)
    assert pixels.sum() == 3000 and pixels[50:80, 100:200].all()
    whole = decoded_brush(brush_rle(Window(0, 0, np.ones((200, 300), bool)), height=200, width=300), 200, 300)
    assert whole.all()


def test_polygons_and_boxes_are_percents_of_the_sides(folder: Path) -> None:
    box = result(bbox=[20, 10, 30, 40])
    polygon = result(segmentation=[[0, 0, 50, 0, 50, 100]])
    write(folder, [polygon, box], height=100, width=200)
    out = run(folder, "labelstudio")
    first, second = json.loads(out.read_text())[0]["predictions"][0]["result"]
    label = ["cup, é <&>"]
    points = [[0, 0], [25, 0], [25, 100]]
    assert first["value"] == {"points": points, "closed": True, "polygonlabels": label}
    sides = {"x": 10, "y": 10, "width": 15, "height": 40}
    assert second["value"] == {**sides, "rotation": 0, "rectanglelabels": label}
    assert first["id"] != second["id"]


def test_the_labelling_interface_has_a_control_for_each_kind_of_region_and_all_labels(folder: Path) -> None:
    write(folder, [result(blob(0)), result()])
    view = ET.parse(run(folder, "labelstudio").with_suffix(".config.xml")).getroot()
    controls = {one.attrib["name"]: one for one in view if one.tag != "Image"}
    tags = {name: one.tag for name, one in controls.items()}
    assert tags == {"brush": "BrushLabels", "rectangle": "RectangleLabels"}
    for one in controls.values():
        assert [label.attrib["value"] for label in one] == ["dog", "cup, é <&>"]
        assert one.attrib["toName"] == "image"


@pytest.mark.parametrize(
    "prefix", ["C:/photos/", "C:\\photos\\", "/root/photos/", "file:///photos/", "photos/", ""]
)
def test_a_path_that_label_studio_does_not_serve_is_warned_of_and_written(
    folder: Path, prefix: str, capsys: Said
) -> None:
    tasks = json.loads(run(folder, "labelstudio", "--url-prefix", prefix).read_text())
    said = capsys.readouterr().err
    first = tasks[0]["data"]["image"]
    assert first.startswith(prefix)
    assert said.startswith(f"warning: Label Studio does not serve {first!r} (2 of 2 images ")
    for allowed in ("/data/local-files/?d=", "/data/upload/", "http://", "s3://", "gs://", "azure-blob://"):
        assert allowed in said
    assert "--url-prefix '/data/local-files/?d=FOLDER/'" in said and said.count("\n") == 1


@pytest.mark.parametrize(
    "prefix",
    [
        "/data/local-files/?d=photos/",
        "/annotate/data/local-files/?d=",
        "/data/upload/3/",
        "http://host/photos/",
        "https://host/photos?name=",
        "s3://bucket/",
        "gs://bucket/photos/",
        "azure-blob://container/",
    ],
)
def test_of_what_label_studio_serves_nothing_is_said(folder: Path, prefix: str, capsys: Said) -> None:
    run(folder, "labelstudio", "--url-prefix", prefix)
    assert capsys.readouterr().err == ""


def test_names_that_are_addresses_themselves_need_no_prefix(folder: Path, capsys: Said) -> None:
    images = json.loads((folder / "results.images.json").read_text())
    images["images"][0]["file_name"] = "https://host/a.jpg"
    (folder / "results.images.json").write_text(json.dumps(images))
    run(folder, "labelstudio")
    assert "does not serve 'empty.jpg' (1 of 2 images " in capsys.readouterr().err


# ---- both


@pytest.mark.parametrize("to", ["cvat", "labelstudio"])
def test_what_scores_less_is_left_out(folder: Path, to: str, capsys: Said) -> None:
    write(folder, [result(blob(0)), result(blob(1), score=0.5)])
    run(folder, to, "--min-score", "0.6")
    assert "1 objects in 2 images" in capsys.readouterr().out


@pytest.mark.parametrize("to", ["cvat", "labelstudio"])
def test_of_a_whole_data_set_only_the_images_with_results_are_written(folder: Path, to: str) -> None:
    write(folder, [result(blob(0))])
    out = run(folder, to, "--images", str(folder / "results.images.json"))
    assert "empty.jpg" not in out.read_text()


@pytest.mark.parametrize(
    ("results", "words"),
    [
        ([result(image_id=5)], "a result of image 5"),
        ({"a": 1}, "does not hold COCO results"),
        ([{"image_id": 4}], "not as COCO has it"),
        ([result(segmentation={"size": [1, 2], "counts": "0"})], "does not fit an image"),
        ([result(segmentation={"counts": "0"})], "a result of image 4 cannot be read"),
        ([result(bbox=[1, 2])], "a result of image 4 cannot be read"),
    ],
)
def test_results_that_cannot_be_are_one_line(folder: Path, results: Any, words: str, capsys: Said) -> None:
    write(folder, results)
    out = str(folder / "a.xml")
    assert convert.main([str(folder / "results.json"), "--to", "cvat", "--out", out]) == 2
    said = capsys.readouterr()
    assert said.out == "" and words in said.err
    assert said.err.startswith("error: ") and said.err.count("\n") == 1


def test_without_the_images_list_the_option_is_named(folder: Path, capsys: Said) -> None:
    (folder / "results.images.json").unlink()
    arguments = [str(folder / "results.json"), "--to", "cvat", "--out", str(folder / "a.xml")]
    assert convert.main(arguments) == 2
    assert "--images" in capsys.readouterr().err
