"""The Open Inference Protocol over gRPC and REST, asked by Triton's own client, which knows nothing of this project."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from server.light.rpc import Messages, infer_body, packed
from tests.served.machine import Machine
from tests.served.standin import png, scene

pytestmark = pytest.mark.engines("light")

triton = pytest.importorskip(
    "tritonclient.grpc", reason="tritonclient of requirements/dev.txt is not installed"
)
spoken = pytest.importorskip("tritonclient.grpc.service_pb2")

IMAGE = png(scene(width=61, height=47, red=(3, 2, 20, 11), green=(30, 4, 13, 21), blue=(5, 30, 31, 9)))
OTHER = png(scene(width=50, height=40, green=(6, 7, 8, 9)))


@pytest.fixture
def client(server: Machine) -> Iterator[Any]:
    with triton.InferenceServerClient(f"127.0.0.1:{server.ports.grpc}") as made:
        yield made


def tensor(*images: bytes) -> Any:
    made = triton.InferInput("image", [len(images)], "BYTES")
    made.set_data_from_numpy(np.array(images, dtype=object))
    return made


def results(answer: Any) -> list[dict[str, Any]]:
    return [json.loads(one) for one in answer.as_numpy("detections")]


def test_the_server_and_the_model_are_live_ready_and_described(client: Any) -> None:
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("maskx") and client.is_model_ready("maskx", "1.0")
    assert client.get_server_metadata().name == "maskx"
    described = client.get_model_metadata("maskx")
    assert (described.name, list(described.versions)) == ("maskx", ["1.0"])
    tensors = [(one.name, one.datatype, list(one.shape)) for one in (*described.inputs, *described.outputs)]
    assert tensors == [("image", "BYTES", [-1]), ("detections", "BYTES", [-1])]


def test_images_are_answered_in_their_order_with_what_rest_says_of_each(server: Machine, client: Any) -> None:
    answer = client.infer("maskx", [tensor(IMAGE, b"no image", OTHER)], request_id="seven")
    first, bad, last = results(answer)
    assert answer.get_response().id == "seven" and answer.get_response().model_version == "1.0"
    assert bad["error"]["type"] == "InvalidImage"
    for image, found in ((IMAGE, first), (OTHER, last)):
        expected = json.loads(server.rest().predict(image))
        assert found == {name: expected[name] for name in ("image", "detections")}


@pytest.mark.parametrize("mask_format", ["rle", "polygon", "png", "none"])
def test_parameters_of_the_request_hold(server: Machine, client: Any, mask_format: str) -> None:
    parameters = {
        "mask_format": mask_format,
        "categories": "red,green",
        "score_threshold": 0.3,
        "max_detections": 1,
    }
    (found,) = results(client.infer("maskx", [tensor(IMAGE)], parameters=parameters))
    expected = json.loads(server.rest().predict(IMAGE, parameters))
    assert found["detections"] == expected["detections"] and len(found["detections"]) == 1


def test_elements_that_are_not_packed_are_read_too(server: Machine) -> None:
    contents = spoken.InferTensorContents(bytes_contents=[IMAGE])
    one = spoken.ModelInferRequest.InferInputTensor(
        name="image", datatype="BYTES", shape=[1], contents=contents
    )
    request = spoken.ModelInferRequest(model_name="maskx", inputs=[one])
    with grpc.insecure_channel(f"127.0.0.1:{server.ports.grpc}") as channel:
        call = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=spoken.ModelInferRequest.SerializeToString,
            response_deserializer=spoken.ModelInferResponse.FromString,
        )
        answer = call(request, timeout=60)
    expected = json.loads(server.rest().predict(IMAGE))
    raw = answer.raw_output_contents[0]
    assert int.from_bytes(raw[:4], "little") == len(raw) - 4
    assert json.loads(raw[4:])["detections"] == expected["detections"]


@pytest.mark.parametrize(
    ("arguments", "status", "kind"),
    [
        ({"parameters": {"scoer": 1}}, "INVALID_ARGUMENT", "InvalidRequest"),
        ({"inputs": [tensor(b"no image")]}, "INVALID_ARGUMENT", "InvalidImage"),
        ({"outputs": [triton.InferRequestedOutput("boxes")]}, "INVALID_ARGUMENT", "InvalidRequest"),
        ({"model_version": "9"}, "NOT_FOUND", "NotFound"),
        ({"model_name": "other"}, "NOT_FOUND", "NotFound"),
    ],
)
def test_what_is_wrong_is_a_true_status_with_the_error_as_its_text(
    client: Any, arguments: dict[str, Any], status: str, kind: str
) -> None:
    asked = {"model_name": "maskx", "inputs": [tensor(IMAGE)], **arguments}
    with pytest.raises(triton.InferenceServerException) as raised:
        client.infer(**asked)
    assert raised.value.status() == f"StatusCode.{status}"
    assert json.loads(raised.value.message())["error"]["type"] == kind


def test_over_rest_its_binary_tensors_are_answered_alike(server: Machine, client: Any) -> None:
    data = packed([IMAGE, OTHER])
    one = {"name": "image", "shape": [2], "datatype": "BYTES", "parameters": {"binary_data_size": len(data)}}
    text = json.dumps({"id": "seven", "inputs": [one]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(text))}
    for path in ("/v2/models/maskx/infer", "/v2/models/maskx/versions/1.0/infer"):
        reply = server.ask(text + data, headers, path)
        (output,) = json.loads(reply.body)["outputs"]
        found = [json.loads(each) for each in output["data"]]
        assert found == results(client.infer("maskx", [tensor(IMAGE, OTHER)]))


def test_its_addresses_over_rest_are_told_as_the_protocol_has_them(server: Machine) -> None:
    def told(path: str) -> Any:
        reply = server.ask(path=path, method="GET")
        assert reply.status == 200
        return json.loads(reply.body)

    assert set(told("/v2")) == {"name", "version", "extensions"}
    model = told("/v2/models/maskx/versions/1.0")
    assert model["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1]}]
    assert model["versions"] == ["1.0"] and set(model) == {
        "name",
        "versions",
        "platform",
        "inputs",
        "outputs",
    }
    assert told("/v2/health/ready")["ready"] is True and told("/v2/models/maskx/ready")["ready"] is True
    assert server.ask(path="/v2/models/maskx/versions/9/ready", method="GET").status == 404


def test_every_message_has_the_fields_numbers_and_types_of_tritons(root: Path) -> None:
    """Of those that both know: Triton's own have some more."""
    ours, seen = Messages(), 0
    for name, theirs in spoken.DESCRIPTOR.message_types_by_name.items():
        try:
            mine = ours.named(f"inference.{name}").DESCRIPTOR
        except KeyError:
            continue
        pairs = [(mine, theirs)]
        pairs += [(one, theirs.nested_types_by_name[one.name]) for one in mine.nested_types]
        for one, other in pairs:
            for field in one.fields:
                known = other.fields_by_name[field.name]
                assert (field.number, field.type) == (known.number, known.type), field.full_name
                seen += 1
    assert seen >= 60


def test_an_inference_becomes_the_body_that_rest_has_for_it() -> None:
    one = spoken.ModelInferRequest.InferInputTensor(name="image", datatype="BYTES", shape=[1])
    one.parameters["categories"].string_param = "red"
    request = spoken.ModelInferRequest(id="7", inputs=[one], raw_input_contents=[packed([b"abc"])])
    request.parameters["score_threshold"].double_param = 0.25
    request.parameters["max_detections"].int64_param = 3
    body, length = infer_body(request)
    content = json.loads(body[:length])
    assert body[length:] == b"\x03\x00\x00\x00abc"
    assert content["parameters"] == {"score_threshold": 0.25, "max_detections": 3} and content["id"] == "7"
    assert content["inputs"][0]["parameters"] == {"categories": "red", "binary_data_size": 7}
