"""The light server beside TorchServe: for every format, parameter and way to ask, the same status and bytes."""

import base64
import gzip
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from client.errors import ServerRefused
from tests.served.asking import multipart
from tests.served.conftest import COMPILED
from tests.served.machine import Machine, serving
from tests.served.standin import png, scene
from tests.served.test_protocols import PARAMETERS, THREE, half_size_jpeg

IMAGES = {
    "three": THREE,
    "nothing": png(scene()),
    "a pixel": png(scene(width=1, height=1)),
    "wide": png(scene(width=300, red=(0, 0, 300, 30))),
    "a photograph": half_size_jpeg(),
}
BAD: list[tuple[bytes, dict[str, Any]]] = [
    (b"", {}),
    (b"GIF89a but no more", {}),
    (THREE[: len(THREE) // 2], {}),
    (b'{"picture": 1}', {}),
    (THREE, {"score_threshold": "h\u00f6ch"}),
    (THREE, {"scoer": 1}),
    (THREE, {"categories": "rde"}),
    (THREE, {"output": "overlay", "max_detections": "none"}),
]
TEXT = base64.b64encode(THREE).decode()
AS_JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def both(
    standin_archive: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Machine, Machine]]:
    archive = standin_archive("both", batchSize=4, maxBatchDelay=1)
    folders = [tmp_path_factory.mktemp(name) for name in ("torchserve", "light")]
    with (
        serving(folders[0], archive) as torchserve,
        serving(folders[1], archive, "--engine", "light") as light,
    ):
        yield torchserve, light


def answered(machine: Machine, protocol: str, image: bytes, parameters: dict[str, Any]) -> tuple[Any, ...]:
    """The bytes, or what the error is."""
    client = machine.grpc() if protocol == "grpc" else machine.rest()
    try:
        return ("answer", client.predict(image, parameters))
    except ServerRefused as error:
        return (error.code, error.kind, error.message)


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
@pytest.mark.parametrize("name", IMAGES)
def test_every_format_and_parameter_is_answered_with_the_same_bytes(
    both: tuple[Machine, Machine], name: str, protocol: str
) -> None:
    for parameters in PARAMETERS:
        first, other = (answered(one, protocol, IMAGES[name], parameters) for one in both)
        assert first == other and first[0] == "answer", parameters


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_every_error_has_the_same_status_name_and_message(
    both: tuple[Machine, Machine], protocol: str
) -> None:
    for image, parameters in BAD:
        first, other = (answered(one, protocol, image, parameters) for one in both)
        assert first == other and first[0] == 400, (image[:20], parameters)


V2 = {"id": "7", "inputs": [{"name": "image", "shape": [2], "datatype": "BYTES", "data": [TEXT, "AAAA"]}]}
FORM_TYPE, FORM = multipart(THREE, {"score_threshold": "0.25", "categories": "bleu \u00e9,red"})
WAYS: dict[str, tuple[str, bytes, dict[str, str]]] = {
    "several": (
        "/predictions/maskx",
        json.dumps({"images": [TEXT, "AAAA", {"image": TEXT}]}).encode(),
        AS_JSON,
    ),
    "v1": ("/v1/models/maskx:predict", json.dumps({"instances": [{"b64": TEXT}]}).encode(), AS_JSON),
    "columns": ("/v1/models/maskx:predict", json.dumps({"inputs": {"x": [{"b64": TEXT}]}}).encode(), AS_JSON),
    "v2": ("/v2/models/maskx/infer", json.dumps(V2).encode(), AS_JSON),
    "form": ("/predictions/maskx", FORM, {"Content-Type": FORM_TYPE}),
    "gzip": ("/predictions/maskx/1.0", gzip.compress(THREE), {"Content-Encoding": "gzip"}),
    "urlencoded": ("/predictions/maskx", b"a=1", {"Content-Type": "application/x-www-form-urlencoded"}),
    "spelled": ("/predictions/maskx", THREE, {"Score-THRESHOLD": "2"}),
    "latin": ("/predictions/maskx", THREE, {"categories": "bleu \u00e9"}),
    "query": ("/models/maskx/invoke?max_detections=1", THREE, {"Content-Type": "image/png"}),
    "invocations": ("/invocations?model_name=maskx", THREE, {"Content-Type": "image/png"}),
    "packed": ("/predictions/maskx", THREE, {"Accept-Encoding": "gzip", "mask_format": "polygon"}),
    "traced": ("/predictions/maskx", THREE, {"traceparent": f"00-{'1' * 32}-{'2' * 16}-01"}),
}
OF_THE_ANSWER = ("content-type", "x-error-type", "content-encoding", "vary", "traceparent")


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_ask_over_rest_gives_the_same_status_headers_and_bytes(
    both: tuple[Machine, Machine], way: str
) -> None:
    path, body, headers = WAYS[way]
    first, other = (one.ask(body, headers, path) for one in both)
    assert (first.status, first.body) == (other.status, other.body)
    for name in OF_THE_ANSWER:
        assert first.headers.get(name) == other.headers.get(name), name


ALIKE: dict[str, tuple[bytes, dict[str, str]]] = {
    "a form cut off": (FORM[:-20], {"Content-Type": FORM_TYPE}),
    "a parameter in two headers": (THREE, {"Mask-Format": "png", "mask_format": "png"}),
}
"""What both refuse, each in words of its own: of a form that is cut off TorchServe keeps the fields that were whole,
and headers it hands over in an order of its own."""


@pytest.mark.parametrize("what", ALIKE)
def test_what_differs_in_words_is_refused_with_the_same_status_and_name(
    both: tuple[Machine, Machine], what: str
) -> None:
    first, other = (one.ask(*ALIKE[what]) for one in both)
    assert first.status == other.status == 400
    assert first.error()["type"] == other.error()["type"] == "InvalidRequest"


def test_both_describe_the_model_alike(both: tuple[Machine, Machine]) -> None:
    path = "/models/maskx?customized=true"
    first, other = (
        json.loads(one.ask(path=path, method="GET", port=one.ports.management).body)[0] for one in both
    )
    assert other["customizedMetadata"] == first["customizedMetadata"]
    for name in ("modelName", "modelVersion", "batchSize", "maxBatchDelay", "minWorkers"):
        assert first[name] == other[name], name


@pytest.mark.skipif(COMPILED, reason="with compiled parts there is one lane")
@pytest.mark.parametrize("by", ["torchserve", "light"])
def test_batches_that_are_computed_in_lanes_have_the_bytes_that_they_have_alone(
    both: tuple[Machine, Machine],
    standin_archive: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    by: str,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setenv("MASKX_LANES", "2")
    archive = standin_archive("lanes", batchSize=3, maxBatchDelay=20)
    wanted = [(image, parameters) for image in IMAGES.values() for parameters in PARAMETERS[:4]]
    with serving(tmp_path, archive, "--engine", by) as lanes, ThreadPoolExecutor(8) as clients:
        path = "/models/maskx?customized=true"
        (told,) = json.loads(lanes.ask(path=path, method="GET", port=lanes.ports.management).body)
        assert told["customizedMetadata"]["lanes"] == 2
        found = list(clients.map(lambda one: answered(lanes, "rest", *one), wanted * 3))
    assert found == [answered(both[1], "rest", *one) for one in wanted] * 3
