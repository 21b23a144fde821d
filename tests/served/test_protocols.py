"""The real TorchServe over REST and gRPC, with a stand-in for the network that tells images apart."""

import gzip
import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from PIL import Image

from client.errors import ServerRefused
from client.generated import inference_pb2, inference_pb2_grpc
from maskx_answer import image_content
from maskx_image import decode_to_fit
from maskx_model import ServedModel
from server.processes import ENGINES
from tests.pictures import encoded
from tests.served.machine import SECRET, Machine
from tests.served.nginx import wait_until
from tests.served.standin import png, scene

THREE = png(scene(width=61, height=47, red=(3, 2, 20, 11), green=(30, 4, 13, 21), blue=(5, 30, 31, 9)))


@pytest.mark.engines(*ENGINES)
def test_the_server_says_how_to_ask_it_and_is_ready(server: Machine) -> None:
    assert f"curl -T photo.jpg http://127.0.0.1:{server.ports.inference}/predictions/maskx" in server.started
    assert server.command("ready").stdout == "ready\n"


PARAMETERS: list[dict[str, Any]] = [
    {},
    {"max_detections": 1},
    {"score_threshold": 0.999, "max_detections": 7},
    {"categories": "red,90"},
    {"categories": 11, "mask_format": "none"},
    {"categories": '["bleu \u00e9"]', "mask_format": "polygon"},
    {"mask_format": "polygon"},
    {"mask_format": "png", "max_detections": 2},
    {"mask_format": "none"},
    {"output": "json", "mask_format": "rle"},
    {"output": "overlay"},
    {"output": "overlay", "categories": "green", "mask_format": "none"},
]


@pytest.mark.engines(*ENGINES)
@pytest.mark.parametrize(
    "image",
    [THREE, png(scene()), png(scene(width=1, height=1)), png(scene(width=300, red=(0, 0, 300, 30)))],
    ids=["three", "nothing", "a pixel", "wide"],
)
def test_rest_and_grpc_answer_every_parameter_with_the_same_bytes(server: Machine, image: bytes) -> None:
    rest, grpc_client = server.rest(), server.grpc()
    with ThreadPoolExecutor(2 * len(PARAMETERS)) as pool:
        over_rest = [pool.submit(rest.predict, image, one) for one in PARAMETERS]
        over_grpc = [pool.submit(grpc_client.predict, image, one) for one in PARAMETERS]
        for parameters, one, other in zip(PARAMETERS, over_rest, over_grpc, strict=True):
            assert one.result() == other.result(), parameters
            begin = b"\x89PNG" if parameters.get("output") == "overlay" else b'{"model"'
            assert one.result().startswith(begin), parameters


@pytest.mark.engines(*ENGINES)
def test_parameters_change_what_they_name(server: Machine) -> None:
    """Else the test above would hold of a server that heeds none."""
    answers = {str(one): server.rest().predict(THREE, one) for one in PARAMETERS}
    # json and rle are the default; a threshold changes nothing.
    assert len(set(answers.values())) == len(PARAMETERS) - 2
    found = {name: json.loads(body)["detections"] for name, body in answers.items() if body.startswith(b"{")}
    names = {name: [one["category"] for one in ones] for name, ones in found.items()}
    assert names[str(PARAMETERS[1])] == ["red"]
    assert names[str(PARAMETERS[3])] == ["red", "bleu \u00e9"]
    assert names[str(PARAMETERS[4])] == ["green"] and "segmentation" not in found[str(PARAMETERS[4])][0]
    assert names[str(PARAMETERS[5])] == ["bleu \u00e9"]
    assert all(isinstance(one["segmentation"], list) for one in found[str(PARAMETERS[6])])
    assert all("png" in one["segmentation"] for one in found[str(PARAMETERS[7])])


def half_size_jpeg() -> bytes:
    """A photograph that the decoder brings to half its sides for this network."""
    pixels = scene(width=256, height=192, red=(16, 16, 96, 64), green=(128, 96, 64, 64))
    return encoded(Image.fromarray(pixels), "JPEG")


@pytest.mark.engines(*ENGINES)
@pytest.mark.parametrize("mask_format", ["rle", "polygon", "png", "none"])
@pytest.mark.parametrize("image", [THREE, half_size_jpeg()], ids=["three", "scaled down"])
def test_what_is_served_is_what_the_network_gives_offline(
    server: Machine, offline: ServedModel, image: bytes, mask_format: str
) -> None:
    decoded = decode_to_fit(image, min_size=offline.min_size, max_size=offline.max_size)
    parameters = replace(offline.defaults, mask_format=mask_format)
    (found,) = offline.predict([decoded.pixels], [parameters], [(decoded.height, decoded.width)])
    expected = image_content(
        found, offline.categories, height=decoded.height, width=decoded.width, mask_format=mask_format
    )
    assert len(expected["detections"]) >= 2
    for client in (server.rest(), server.grpc()):
        answer = json.loads(client.predict(image, {"mask_format": mask_format}))
        assert answer == {"model": {"name": "maskx", "version": "1.0"}, **expected}
        order = ["category_id", "category", "bbox", "score", "area", "mask_supervised", "mask_source"]
        assert [*answer["detections"][0]][:7] == order


@pytest.fixture(scope="module")
def offline(standin: Path) -> ServedModel:
    return ServedModel(standin, torch.device("cpu"))


@pytest.mark.engines(*ENGINES)
def test_an_answer_is_compressed_where_the_client_accepts_it(server: Machine) -> None:
    many = scene(width=64, height=64)
    many[::2, ::2] = (255, 0, 0)
    wide = {"Content-Type": "image/png", "score-threshold": "0.1"}
    plain = server.ask(png(many), wide).body
    packed = server.ask(png(many), {**wide, "Accept-Encoding": "deflate, gzip"})
    assert packed.headers["content-encoding"] == "gzip" and packed.headers["vary"] == "accept-encoding"
    assert len(packed.body) < len(plain) and gzip.decompress(packed.body) == plain
    assert server.grpc().predict(png(many), {"score_threshold": 0.1}) == plain


@pytest.mark.engines(*ENGINES)
def test_a_trace_goes_through(server: Machine) -> None:
    traceparent = f"00-{'1' * 32}-{'2' * 16}-01"
    headers = {"Content-Type": "image/png", "traceparent": traceparent}
    for body in (THREE, b"?"):
        assert server.ask(body, headers).headers["traceparent"] == traceparent


@pytest.mark.engines(*ENGINES)
@pytest.mark.parametrize(
    ("image", "parameters", "kind"),
    [
        pytest.param(b"GIF89a but no more", {}, "InvalidImage", id="no image"),
        pytest.param(THREE[: len(THREE) // 2], {}, "InvalidImage", id="cut short"),
        pytest.param(b"", {}, "InvalidRequest", id="empty"),
        pytest.param(b'{"picture": 1}', {}, "InvalidRequest", id="json without image"),
        pytest.param(THREE, {"score_threshold": "h\u00f6ch"}, "InvalidRequest", id="wrong value"),
        pytest.param(THREE, {"scoer": 1}, "InvalidRequest", id="unknown name"),
    ],
)
def test_a_bad_request_is_refused_with_the_same_error_over_both_protocols(
    server: Machine, image: bytes, parameters: dict[str, Any], kind: str
) -> None:
    errors = []
    for client in (server.rest(), server.grpc()):
        with pytest.raises(ServerRefused) as raised:
            client.predict(image, parameters)
        # Each by its own protocol.
        message = raised.value.message.replace("the body is", "the field 'data' is")
        errors.append((raised.value.code, raised.value.kind, message))
    assert errors[0] == errors[1]
    assert errors[0][:2] == (400, kind)


@pytest.mark.engines(*ENGINES)
def test_a_bad_image_alone_gets_a_true_grpc_status(server: Machine) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{server.ports.grpc}") as channel:
        stub = inference_pb2_grpc.InferenceAPIsServiceStub(channel)
        request = inference_pb2.PredictionsRequest(model_name="maskx", input={"data": b"?"})
        with pytest.raises(grpc.RpcError) as raised:
            stub.Predictions(request, timeout=60)
    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]


def test_the_worker_has_lived_through_it_all_and_sees_neither_the_project_nor_a_secret(
    server: Machine,
) -> None:
    worker = server.worker()
    log = (server.state / "logs" / "model_log.log").read_text()
    assert log.count("[PID]") == 1 and f"[PID]{worker.pid}" in log
    environment = worker.environ()
    assert environment["MASKX_TEST_PLAIN"] == "may be seen" and SECRET not in environment
    assert str(server.state) in worker.cwd()
    project = str(server.command.__globals__["ROOT"])
    assert not any(project in part for part in environment.get("PYTHONPATH", "").split(":"))


def metrics(machine: Machine) -> dict[str, float]:
    """Each time series of :8082/metrics, without the name of the host."""
    reply = machine.ask(path="/metrics", method="GET", port=machine.ports.metrics)
    lines = reply.body.decode().splitlines()
    pairs = [line.rsplit(" ", 1) for line in lines if line and not line.startswith("#")]
    return {re.sub(r'[Hh]ostname="[^"]*",', "", name): float(value) for name, value in pairs}


def test_what_was_asked_and_how_long_it_took_stands_in_the_metrics(server: Machine) -> None:
    def added() -> dict[str, float]:
        now = metrics(server)
        return {
            name: value - before.get(name, 0.0) for name, value in now.items() if value != before.get(name)
        }

    before = metrics(server)
    server.rest().predict(THREE)
    server.ask(THREE, {"Content-Type": "image/png", "X-Request-Start": f"t={time.time() - 3:.3f}"})
    with pytest.raises(ServerRefused):
        server.grpc().predict(b"?")
    labels = 'ModelName="maskx",Level="Model",'
    wanted = {
        f'maskx_requests_total{{Protocol="rest",Code="200",{labels}}}': 2,
        f'maskx_requests_total{{Protocol="grpc",Code="400",{labels}}}': 1,
        f'maskx_errors_total{{Type="InvalidImage",{labels}}}': 1,
        f"maskx_images_total{{{labels}}}": 3,
        f"maskx_detections_total{{{labels}}}": 6,
        f"maskx_batch_size_sum{{{labels}}}": 3,
        f"maskx_decode_seconds_count{{{labels}}}": 3,
        f"maskx_forward_seconds_count{{{labels}}}": 3,
        f"maskx_encode_seconds_count{{{labels}}}": 3,
        f"maskx_queue_seconds_count{{{labels}}}": 1,
        f'maskx_queue_seconds_bucket{{{labels}le="2.5",}}': 0,
    }

    def seen() -> dict[str, float]:
        return {name: added().get(name, 0.0) for name in wanted}

    # TorchServe reads them from the worker's output, in its own time.
    wait_until(lambda: seen() == wanted, 120)
    assert 2.5 < added()[f"maskx_queue_seconds_sum{{{labels}}}"] < 3000  # seconds, and not milliseconds
    assert metrics(server)[f'maskx_device_memory_bytes{{Device="cpu",{labels}}}'] > 50_000_000


@pytest.mark.engines(*ENGINES)
def test_the_describe_call_says_device_and_precision(server: Machine) -> None:
    path, port = "/models/maskx?customized=true", server.ports.management
    (described,) = json.loads(server.ask(path=path, method="GET", port=port).body)
    metadata = described["customizedMetadata"]
    assert {key: metadata[key] for key in ("device", "precision", "precision_asked")} == {
        "device": "cpu",
        "precision": "float32",  # of the stand-in nothing may be cast
        "precision_asked": "auto",
    }


@pytest.mark.engines(*ENGINES)
def test_no_model_can_be_registered_or_removed(server: Machine) -> None:
    url = f"/models?url=file://{server.state}/model-store/maskx.mar&model_name=other"
    for method, path in (("POST", url), ("DELETE", "/models/maskx")):
        assert server.ask(path=path, method=method, port=server.ports.management).status == 405
    assert server.command("ready").stdout == "ready\n"


@pytest.mark.engines(*ENGINES)
def test_nothing_listens_but_on_loopback_and_the_worker_has_no_network_connection(server: Machine) -> None:
    listening = {
        connection.laddr.ip.removeprefix("::ffff:")
        for process in server.processes()
        for connection in process.net_connections("inet")
        if connection.status == "LISTEN"
    }
    assert listening == {"127.0.0.1"}
    server.rest().predict(THREE)
    assert server.worker().net_connections("inet") == []


@pytest.mark.engines(*ENGINES)
def test_the_worker_keeps_no_file_open_for_writing_and_leaves_none_behind(server: Machine) -> None:
    worker, folder = server.worker(), server.state
    before = {path for path in folder.rglob("*") if "logs" not in path.parts}
    server.rest().predict(THREE)
    assert {path for path in folder.rglob("*") if "logs" not in path.parts} == before
    assert [file.path for file in worker.open_files() if "w" in getattr(file, "mode", "")] == []
