"""What the handler makes of the keypoints of an exported file."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from maskx_draw import draw_detections
from maskx_model import ServedModel
from maskx_service import Service
from maskx_settings import Limits
from model.checkpoint import load_network
from tests.export.keypoints import NAMES, write_keypoint_model
from tests.export.tiny import CLASSES
from tests.served.standin import png

SIDE = (70, 90)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_keypoint_model(tmp_path_factory.mktemp("keypoints"))


@pytest.fixture(scope="module")
def served(exported: Path) -> ServedModel:
    return ServedModel(exported, torch.device("cpu"), precision="float32")


def photograph() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*SIDE, 3), dtype=np.uint8)


def asked(service: Service, **parameters: Any) -> Any:
    (answer,) = service.answer([{"data": png(photograph()), "score_threshold": b"0", **parameters}])
    assert answer.status == 200, answer.body
    return json.loads(answer.body) if answer.content_type == "application/json" else answer.body


@pytest.fixture
def service(served: ServedModel) -> Service:
    return Service(served, Limits(), name="maskx", version="1.0")


def test_an_answer_has_the_keypoints_of_the_network_in_cocos_pixels(exported: Path, service: Service) -> None:
    network, classes, _ = load_network(exported.with_name("checkpoint.pt"))
    network.score_threshold = 0.0
    with torch.inference_mode():
        (expected,) = network([torch.from_numpy(photograph()).permute(2, 0, 1)])
    detections = asked(service)["detections"]
    assert len(detections) == expected["labels"].numel() > 5
    same = total = 0
    for one, label, keypoints in zip(
        detections, expected["labels"].tolist(), expected["keypoints"].tolist(), strict=True
    ):
        assert one["category_id"] == classes.id_of_label(label)
        assert ("keypoints" in one) == (label in (1, 3, 4))
        for (x, y, score), *found in zip(
            keypoints, *(one.get("keypoints", [])[k::3] for k in range(3)), strict=False
        ):
            total += 1
            same += found == pytest.approx([x - 0.5, y - 0.5, score], abs=0.011)
    # Where two places are equally likely, the frozen file may choose otherwise.
    assert total > 9 and same > 0.9 * total


@pytest.mark.parametrize("mask_format", ["rle", "polygon", "png", "none"])
def test_keypoints_come_with_every_form_of_mask(service: Service, mask_format: str) -> None:
    plain, found = asked(service), asked(service, mask_format=mask_format.encode())
    assert [one.get("keypoints") for one in found["detections"]] == [
        one.get("keypoints") for one in plain["detections"]
    ]
    assert any("keypoints" in one for one in found["detections"])


def test_with_an_image_id_the_answer_is_a_coco_result_with_keypoints(
    service: Service, tmp_path: Path
) -> None:
    results = [{"image_id": 1, **one} for one in asked(service)["detections"] if "keypoints" in one]
    (tmp_path / "results.json").write_text(json.dumps(results))
    coco = COCO()
    coco.dataset = {"images": [{"id": 1}], "categories": [{"id": i} for i in CLASSES.ids], "annotations": []}
    coco.createIndex()
    loaded = coco.loadRes(str(tmp_path / "results.json"))
    assert [len(one["keypoints"]) for one in loaded.anns.values()] == [3 * len(NAMES)] * len(results)


def test_the_server_tells_the_names_of_its_keypoints(served: ServedModel) -> None:
    assert served.description()["keypoints"] == list(NAMES)


def test_an_overlay_shows_keypoints_and_the_lines_between_them(service: Service) -> None:
    content = asked(service, max_detections=b"1", categories=b"a,c,d")
    overlay = asked(service, max_detections=b"1", categories=b"a,c,d", output=b"overlay")
    picture = np.asarray(Image.open(io.BytesIO(overlay)))
    (one,) = content["detections"]
    assert min(one["keypoints"][2::3]) >= 0.1  # else there is nothing to show
    bare = {name: value for name, value in one.items() if name != "keypoints"}
    image = Image.fromarray(photograph())
    drawn = draw_detections(image, [one], legend=True, lines=((0, 1), (0, 2)))
    assert np.array_equal(picture, np.asarray(drawn))
    without_lines = np.asarray(draw_detections(image, [one], legend=True))
    without = np.asarray(draw_detections(image, [bare], legend=True))
    assert not np.array_equal(picture, without_lines) and not np.array_equal(without_lines, without)


def test_keypoints_of_little_score_are_not_drawn() -> None:
    bare: dict[str, Any] = {"category_id": 1, "bbox": [1, 1, 20, 20]}
    few, some = bare | {"keypoints": [5.0, 5.0, 0.05]}, bare | {"keypoints": [5.0, 5.0, 0.5]}
    drawn = [draw_detections(Image.new("RGB", (40, 40)), [one]).tobytes() for one in (bare, few, some)]
    assert drawn[0] == drawn[1] != drawn[2]
