"""The real TorchServe over REST and gRPC, with a stand-in for the network that tells images apart."""

import base64
import http.client
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier
from typing import Any

import grpc
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from client.errors import ServerRefused
from client.generated import inference_pb2, inference_pb2_grpc
from client.rest import multipart
from tests.served.machine import SECRET, Machine
from tests.served.standin import METADATA, png, scene

THREE = png(scene(width=61, height=47, red=(3, 2, 20, 11), green=(30, 4, 13, 21), blue=(5, 30, 31, 9)))


def post(
    machine: Machine, body: bytes, headers: dict[str, str], path: str = "/predictions/maskx"
) -> tuple[int, dict[str, str], bytes]:
    """One prediction as it is, without our client."""
    return ask(machine.ports.inference, "POST", path, body, headers)


def ask(
    port: int, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    """One HTTP request to one of the server's ports."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body=body, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def test_the_server_says_how_to_ask_it_and_is_ready(server: Machine) -> None:
    assert f"curl -T photo.jpg http://127.0.0.1:{server.ports.inference}/predictions/maskx" in server.started
    assert server.command("ready").stdout == "ready\n"


@pytest.mark.parametrize(
    "parameters", [{}, {"max_detections": 1}, {"score_threshold": 0.999, "max_detections": 7}]
)
@pytest.mark.parametrize(
    "image", [THREE, png(scene()), png(scene(width=1, height=1)), png(scene(width=300, red=(0, 0, 300, 30)))]
)
def test_rest_and_grpc_answer_with_the_same_bytes(
    server: Machine, image: bytes, parameters: dict[str, Any]
) -> None:
    assert server.rest().predict(image, parameters) == server.grpc().predict(image, parameters)


def test_every_road_over_rest_gives_the_same_bytes(server: Machine) -> None:
    expected = server.rest().predict(THREE)
    form, body = multipart(THREE, {})
    as_json = json.dumps({"image": base64.b64encode(THREE).decode()}).encode()
    for content_type, sent in (
        ("image/png", THREE),
        ("text/plain", THREE),
        ("application/json", as_json),
        ("text/plain; charset=utf-8", as_json),
        (form, body),
    ):
        assert post(server, sent, {"Content-Type": content_type})[2] == expected, content_type


def test_the_answer_is_the_wire_format(server: Machine) -> None:
    status, headers, body = post(server, THREE, {"Content-Type": "image/png"})
    assert status == 200 and headers["content-type"] == "application/json"
    answer = json.loads(body)
    assert answer.keys() == {"model", "image", "detections"}
    assert answer["model"] == {"name": "maskx", "version": "1.0"}
    assert answer["image"] == {"height": 47, "width": 61}
    named = {entry["id"]: (entry["name"], entry["mask_supervised"]) for entry in METADATA["categories"]}
    boxes = []
    for one in answer["detections"]:
        assert list(one) == [
            "category_id", "category", "bbox", "score", "area", "mask_supervised", "segmentation",
        ]  # fmt: skip
        assert named[one["category_id"]] == (one["category"], one["mask_supervised"])
        assert one["segmentation"]["size"] == [47, 61]
        boxes.append(one["bbox"])
    assert boxes == [[3, 2, 20, 11], [30, 4, 13, 21], [5, 30, 31, 9]]


def test_every_area_is_the_decoded_masks_and_the_mask_is_the_images(server: Machine) -> None:
    pixels = scene(width=61, height=47, red=(3, 2, 20, 11), blue=(5, 30, 31, 9))
    pixels[5:8, 7:9] = 128  # a hole
    answer = json.loads(server.grpc().predict(png(pixels)))
    assert len(answer["detections"]) == 2
    for one, channel in zip(answer["detections"], (0, 2), strict=True):
        decoded = coco_mask.decode(one["segmentation"])
        assert one["area"] == int(decoded.sum()) > 0
        others = pixels.sum(axis=2) - pixels[:, :, channel]
        assert np.array_equal(decoded.astype(bool), (pixels[:, :, channel] == 255) & (others == 0))


def test_a_detection_with_an_image_id_is_a_coco_result(server: Machine) -> None:
    answer = json.loads(server.rest().predict(THREE))
    truth = COCO()
    truth.dataset = {
        "images": [{"id": 5, **answer["image"]}],
        "categories": [{"id": entry["id"], "name": entry["name"]} for entry in METADATA["categories"]],
        "annotations": [],
    }
    truth.createIndex()
    results = truth.loadRes([{**one, "image_id": 5} for one in answer["detections"]])
    for loaded, one in zip(results.loadAnns(results.getAnnIds()), answer["detections"], strict=True):
        assert int(results.annToMask(loaded).sum()) == one["area"]


BAD: list[tuple[str, bytes, dict[str, Any], str]] = [
    ("no image", b"GIF89a but no more", {}, "InvalidImage"),
    ("cut short", THREE[: len(THREE) // 2], {}, "InvalidImage"),
    ("empty", b"", {}, "InvalidImage"),
    ("json without image", b'{"picture": 1}', {}, "InvalidRequest"),
    ("wrong value", THREE, {"score_threshold": "h\u00f6ch"}, "InvalidRequest"),
    ("unknown name", THREE, {"scoer": 1}, "InvalidRequest"),
]


@pytest.mark.parametrize(
    ("image", "parameters", "kind"), [row[1:] for row in BAD], ids=[row[0] for row in BAD]
)
def test_a_bad_request_is_refused_with_the_same_error_over_both_protocols(
    server: Machine, image: bytes, parameters: dict[str, Any], kind: str
) -> None:
    errors = []
    for client in (server.rest(), server.grpc()):
        with pytest.raises(ServerRefused) as raised:
            client.predict(image, parameters)
        errors.append((raised.value.code, raised.value.kind, raised.value.message))
    assert errors[0] == errors[1]
    assert errors[0][:2] == (400, kind)


def test_a_bad_image_is_an_http_400_with_an_error_object(server: Machine) -> None:
    status, headers, body = post(server, b"?", {"Content-Type": "image/jpeg"})
    assert status == 400 and headers["content-type"] == "application/json"
    error = json.loads(body)
    assert list(error) == ["error"] and list(error["error"]) == ["code", "type", "message"]
    assert error["error"]["code"] == 400


def test_a_bad_image_alone_gets_a_true_grpc_status(server: Machine) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{server.ports.grpc}") as channel:
        stub = inference_pb2_grpc.InferenceAPIsServiceStub(channel)
        request = inference_pb2.PredictionsRequest(model_name="maskx", input={"data": b"?"})
        with pytest.raises(grpc.RpcError) as raised:
            stub.Predictions(request, timeout=60)
    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]


def at_once(machine: Machine, asks: list[Callable[[], Any]]) -> list[Any]:
    """All asked in one batch, and each one's answer, in order; an exception is an answer too."""

    def ask(one: Callable[[], Any], barrier: Barrier) -> Any:
        barrier.wait()
        try:
            return one()
        except ServerRefused as error:
            return error

    for _ in range(10):  # until the machine was quick enough for all to meet in one batch
        before, barrier = machine.batches(), Barrier(len(asks))
        with ThreadPoolExecutor(len(asks)) as pool:
            answers = [future.result() for future in [pool.submit(ask, one, barrier) for one in asks]]
        if machine.batches() == before + 1:
            return answers
    raise AssertionError("the requests never met in one batch")


@pytest.mark.parametrize("protocol", ["rest", "grpc", "both"])
def test_one_bad_image_of_eight_hurts_no_other_of_its_batch_and_order_is_kept(
    server: Machine, protocol: str
) -> None:
    images = [
        png(scene(width=50 + i, height=30 + i, red=(i, 2, 9, 7), green=(20, 4, 5 + i, 6))) for i in range(8)
    ]
    images[3] = images[3][:60]
    over_rest, over_grpc = server.rest(), server.grpc()
    grpc_at = {"rest": [], "grpc": range(8), "both": range(0, 8, 2)}[protocol]
    answers = at_once(
        server, [partial((over_grpc if i in grpc_at else over_rest).predict, images[i]) for i in range(8)]
    )
    bad = answers.pop(3)
    assert isinstance(bad, ServerRefused) and bad.code == 400 and bad.kind == "InvalidImage"
    for i, body in zip((0, 1, 2, 4, 5, 6, 7), answers, strict=True):
        answer = json.loads(body)
        assert answer["image"] == {"height": 30 + i, "width": 50 + i}
        assert [one["bbox"] for one in answer["detections"]] == [[i, 2, 9, 7], [20, 4, 5 + i, 6]]


def test_requests_of_one_batch_keep_their_own_parameters(server: Machine) -> None:
    predict = server.rest().predict
    answers = at_once(server, [partial(predict, THREE, {"max_detections": count}) for count in (1, 2, 3, 1)])
    counts = [len(json.loads(answer)["detections"]) for answer in answers]
    assert counts == [1, 2, 3, 1]


def test_headers_and_paths_that_steer_other_handlers_change_nothing(server: Machine) -> None:
    expected = server.rest().predict(THREE)
    headers = {"Content-Type": "image/png", "describe": "True", "explain": "True"}
    assert post(server, THREE, headers)[2] == expected
    assert post(server, THREE, {"Content-Type": "image/png"}, "/explanations/maskx")[2] == expected


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


def test_metrics_count_the_requests_in_prometheus_form(server: Machine) -> None:
    def count() -> float:
        text = ask(server.ports.metrics, "GET", "/metrics")[2].decode()
        lines = [line for line in text.splitlines() if line.startswith("ts_inference_requests_total{")]
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    before = count()
    server.rest().predict(THREE)
    assert count() == before + 1


def test_the_describe_call_says_device_and_precision(server: Machine) -> None:
    status, _, body = ask(server.ports.management, "GET", "/models/maskx?customized=true")
    assert status == 200, body
    (described,) = json.loads(body)
    metadata = described["customizedMetadata"]
    assert {key: metadata[key] for key in ("device", "precision", "precision_asked")} == {
        "device": "cpu",
        "precision": "float32",  # of the stand-in nothing may be cast
        "precision_asked": "auto",
    }


def test_no_model_can_be_registered_or_removed(server: Machine) -> None:
    url = f"/models?url=file://{server.state}/model-store/maskx.mar&model_name=other"
    assert ask(server.ports.management, "POST", url)[0] == 405
    assert ask(server.ports.management, "DELETE", "/models/maskx")[0] == 405
    assert server.command("ready").stdout == "ready\n"


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


def test_the_worker_keeps_no_file_open_for_writing_and_leaves_none_behind(server: Machine) -> None:
    worker, folder = server.worker(), server.state
    before = {path for path in folder.rglob("*") if "logs" not in path.parts}
    server.rest().predict(THREE)
    assert {path for path in folder.rglob("*") if "logs" not in path.parts} == before
    assert [file.path for file in worker.open_files() if "w" in getattr(file, "mode", "")] == []
