"""Keypoints over the real TorchServe: REST and gRPC give what the exported file gives here."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from export.archive import ROOT, build_archive
from maskx_model import ServedModel
from maskx_service import Service
from maskx_settings import Limits
from tests.export.keypoints import NAMES, write_keypoint_model
from tests.served.machine import Machine, make_machine

CHOSEN = {"score_threshold": "0", "max_detections": "30"}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_keypoint_model(tmp_path_factory.mktemp("keypoints"))


@pytest.fixture(scope="module")
def machine(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    config = yaml.safe_load((ROOT / "serve_config" / "model-config.yaml").read_text())
    configuration = exported.with_name("model-config.yaml")
    configuration.write_text(yaml.safe_dump({**config, "maskx": {**config["maskx"], "precision": "float32"}}))
    build_archive(exported, exported.with_name("maskx.mar"), configuration=configuration)
    machine = make_machine(tmp_path_factory.mktemp("machine"), exported.with_name("maskx.mar"))
    try:
        started = machine.start()
        assert started.returncode == 0, started.stderr
        yield machine
    finally:
        machine.end()


def photograph() -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def near(mine: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> float:
    """The share of keypoints that are in the same place but for rounding; boxes and categories must be."""
    assert [one["category_id"] for one in mine] == [one["category_id"] for one in theirs]
    same: list[bool] = []
    for one, other in zip(mine, theirs, strict=True):
        assert one["bbox"] == pytest.approx(other["bbox"], abs=0.02)
        assert ("keypoints" in one) == ("keypoints" in other)
        pairs = zip(one.get("keypoints", []), other.get("keypoints", []), strict=True)
        same += [abs(a - b) < 0.02 for a, b in pairs]
    assert len(same) > 3 * len(NAMES)
    return sum(same) / len(same)


def test_keypoints_over_rest_and_grpc_are_those_that_the_file_gives_offline(
    machine: Machine, exported: Path
) -> None:
    model = ServedModel(exported, torch.device("cpu"), precision="float32")
    service = Service(model, Limits(), name="maskx", version="1.0")
    (offline,) = service.answer([{"data": photograph(), **{k: v.encode() for k, v in CHOSEN.items()}}])
    expected = json.loads(offline.body)["detections"]
    rest = json.loads(machine.rest().predict(photograph(), CHOSEN))
    grpc = json.loads(machine.grpc().predict(photograph(), CHOSEN))
    assert rest["detections"] == grpc["detections"]
    # Threads of another number sum in another order, by which two equally likely places may change.
    assert near(rest["detections"], expected) > 0.95
    assert any("keypoints" in one for one in expected) and any("keypoints" not in one for one in expected)


def test_an_overlay_with_keypoints_is_served(machine: Machine) -> None:
    plain = {**CHOSEN, "output": "overlay"}
    picture = Image.open(io.BytesIO(machine.rest().predict(photograph(), plain)))
    assert picture.format == "PNG" and min(picture.size) >= 490
