"""Starting and stopping a real TorchServe, with the tiny network as it is exported, and starts that must fail."""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import yaml
from PIL import Image
from pycocotools import mask as coco_mask

from client.errors import ServerRefused
from export.archive import ROOT, build_archive
from export.metadata import build_metadata
from maskx_model import ServedModel
from maskx_service import Service
from maskx_settings import Limits
from tests.export.keypoints import NAMES, write_keypoint_model
from tests.export.tiny import CLASSES, CONFIG, tiny_network, unverified
from tests.pictures import encoded
from tests.served.machine import Machine, make_machine, serving
from tests.served.standin import png

CHOSEN = {"score_threshold": 0.01, "max_detections": 20}


def photo(seed: int, width: int, height: int) -> bytes:
    """Soft noise: enough for random weights to detect something in."""
    rough = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return encoded(Image.fromarray(rough).resize((width, height), Image.Resampling.BICUBIC), "JPEG")


def archive_of(torchscript: Path, version: str = "1.0") -> Path:
    """Packed as it is shipped but for its precision: float32, on every machine, for answers are compared."""
    config = yaml.safe_load((ROOT / "serve_config" / "model-config.yaml").read_text())
    config["maskx"]["precision"] = "float32"
    configuration = torchscript.with_name("model-config.yaml")
    configuration.write_text(yaml.safe_dump(config))
    archive = torchscript.with_name("maskx.mar")
    build_archive(torchscript, archive, version=version, configuration=configuration)
    return archive


def offline(torchscript: Path, image: bytes, parameters: dict[str, float], version: str = "1.0") -> bytes:
    """The answer that the exported file gives here, without a server."""
    model = ServedModel(torchscript, torch.device("cpu"), precision="float32")
    service = Service(model, Limits(), name="maskx", version=version)
    fields = {name: str(value).encode() for name, value in parameters.items()}
    return service.answer([{"data": image, **fields}])[0].body


@pytest.fixture(scope="module")
def torchscript(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny network, exported."""
    path = tmp_path_factory.mktemp("tiny") / "maskx.pt"
    metadata = build_metadata(
        CLASSES,
        mask_size=14,
        max_detections=30,
        min_size=CONFIG.input.min_size,
        max_size=CONFIG.input.max_size,
    )
    path.write_bytes(unverified(tiny_network(), metadata))
    return path


@pytest.fixture(scope="module")
def machine(torchscript: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """The tiny network, served with tokens; other versions can be registered."""
    folder = tmp_path_factory.mktemp("machine")
    with serving(folder, archive_of(torchscript), "--tokens", "--model-api") as machine:
        yield machine


def test_with_tokens_on_nothing_is_answered_without_one_and_the_same_over_both_protocols_with_it(
    machine: Machine,
) -> None:
    image = photo(0, 64, 64)
    with pytest.raises(ServerRefused, match="InvalidKeyException"):
        machine.rest().predict(image)
    with pytest.raises(ServerRefused, match="403 PERMISSION_DENIED"):
        machine.grpc().predict(image)
    assert machine.rest(machine.key()).predict(image) == machine.grpc(machine.key()).predict(image)


@pytest.mark.parametrize(("width", "height"), [(64, 64), (97, 50), (33, 140)])
def test_the_served_answer_is_byte_for_byte_the_offline_one(
    machine: Machine, torchscript: Path, width: int, height: int
) -> None:
    image = photo(width, width, height)
    expected = offline(torchscript, image, CHOSEN)
    assert machine.rest(machine.key()).predict(image, CHOSEN) == expected
    assert len(json.loads(expected)["detections"]) > 3


def test_the_log_says_what_the_network_computes_in(machine: Machine) -> None:
    log = (machine.state / "logs" / "model_log.log").read_text()
    assert "maskx is ready on cpu in float32 by torchscript, 5 categories" in log


def test_the_served_answer_is_the_trained_networks(machine: Machine) -> None:
    image = photo(1, 90, 70)
    answer = json.loads(machine.rest(machine.key()).predict(image, CHOSEN))
    pixels = torch.from_numpy(np.array(Image.open(io.BytesIO(image)).convert("RGB"))).permute(2, 0, 1)
    with torch.inference_mode():
        network = tiny_network().inference()
        (expected,) = network(
            [pixels.contiguous()],
            torch.tensor([[70, 90]]),
            torch.tensor([0.01]),
            torch.tensor([20]),
            torch.ones((1, CLASSES.num_classes + 1), dtype=torch.bool),
            torch.tensor([True]),
        )
    found = answer["detections"]
    assert [one["category_id"] for one in found] == [CLASSES.id_of_label(int(c)) for c in expected["labels"]]
    assert [one["mask_supervised"] for one in found] == [
        CLASSES.has_mask[int(c) - 1] for c in expected["labels"]
    ]
    assert np.abs(np.array([one["score"] for one in found]) - expected["scores"].numpy()).max() < 1e-4
    corners = np.array([one["bbox"] for one in found])
    corners[:, 2:] += corners[:, :2]
    assert np.abs(corners - expected["boxes"].numpy()).max() < 0.02
    for d, one in enumerate(found):
        counts = expected["rle_counts"][expected["rle_offsets"][d] : expected["rle_offsets"][d + 1]]
        values = np.arange(len(counts)) % 2
        mask = np.repeat(values, counts.numpy()).reshape(90, 70).T
        decoded = coco_mask.decode(one["segmentation"])
        assert one["area"] == int(decoded.sum())
        assert int((decoded != mask).sum()) <= 2  # frozen weights are rounded otherwise


def share_alike(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> float:
    """The share of keypoints that are in the same place but for rounding; boxes and categories must be."""
    assert [one["category_id"] for one in found] == [one["category_id"] for one in expected]
    same: list[bool] = []
    for one, other in zip(found, expected, strict=True):
        assert one["bbox"] == pytest.approx(other["bbox"], abs=0.02)
        assert ("keypoints" in one) == ("keypoints" in other)
        pairs = zip(one.get("keypoints", []), other.get("keypoints", []), strict=True)
        same += [abs(a - b) < 0.02 for a, b in pairs]
    assert len(same) > 3 * len(NAMES)
    return sum(same) / len(same)


def test_keypoints_of_a_version_registered_with_tokens_on_are_those_that_its_file_gives_offline(
    machine: Machine, tmp_path: Path
) -> None:
    exported = write_keypoint_model(tmp_path)
    for arguments in (("register", "--archive", str(archive_of(exported, "2.0"))), ("default", "2.0")):
        done = machine.command(*arguments)
        assert done.returncode == 0, done.stderr
    image = png(np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8))
    parameters = {"score_threshold": 0.0, "max_detections": 30}
    expected = json.loads(offline(exported, image, parameters, "2.0"))["detections"]
    rest = machine.rest(machine.key())
    found = json.loads(rest.predict(image, parameters))
    assert found["model"]["version"] == "2.0"
    assert found == json.loads(machine.grpc(machine.key()).predict(image, parameters))
    # Threads of another number sum in another order, by which two equally likely places may change.
    assert share_alike(found["detections"], expected) > 0.95
    assert any("keypoints" in one for one in expected) and any("keypoints" not in one for one in expected)
    picture = Image.open(io.BytesIO(rest.predict(image, {**parameters, "output": "overlay"})))
    assert picture.format == "PNG" and min(picture.size) >= 490


def test_stopping_leaves_no_process_no_port_and_no_token_and_can_be_said_twice(machine: Machine) -> None:
    processes, address = machine.processes(), machine.rest(machine.key())
    assert len(processes) >= 3  # TorchServe's starter, Java, a worker
    assert machine.command("stop").stdout == "stopped\n"
    assert machine.processes() == []
    # one that ended and was not yet waited for by the machine's first process is no process any more
    assert {p.status() for p in processes if p.is_running()} <= {psutil.STATUS_ZOMBIE}
    with pytest.raises(ConnectionError):
        address.predict(b"")
    assert {path.name for path in machine.state.iterdir()} == {".maskx-server", "logs"}
    again = machine.command("stop")
    assert (again.returncode, again.stdout) == (0, "no server was running\n")
    assert machine.command("ready").returncode == 1


def test_a_model_that_cannot_be_served_is_told_in_one_line_and_nothing_is_left_running(
    standin_archive: Callable[..., Path], tmp_path: Path
) -> None:
    """A GPU that is asked for where TorchServe sees none; the worker would be restarted for five minutes."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    machine = make_machine(tmp_path, standin_archive("gpu", deviceType="gpu", deviceIds=[]))
    try:
        assert (
            "error: the model cannot be served: ValueError: model-config.yaml asks for deviceType gpu"
            in machine.refused()
        )
    finally:
        machine.end()


def test_an_archive_that_is_cut_short_is_told_in_one_line(
    standin_archive: Callable[..., Path], tmp_path: Path
) -> None:
    archive = standin_archive("short")
    archive.write_bytes(archive.read_bytes()[:5000])
    machine = make_machine(tmp_path, archive)
    assert "it was changed or not copied whole" in machine.refused()
    (tmp_path / "build" / "maskx.mar.sha256").unlink()
    assert "cannot be read as an archive of make archive: BadZipFile" in machine.refused()
