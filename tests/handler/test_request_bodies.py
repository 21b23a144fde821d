"""An image, and several, in every body that is understood."""

import base64
import gzip
import json
from typing import Any
from urllib.parse import quote

import pytest

from tests.handler.asked import (
    DEFAULTS,
    FORM,
    IMAGE,
    INPUT,
    LONG_TEXT,
    SECOND,
    TEXT,
    TEXT_2,
    body,
    images_of,
    only,
    parsed,
    refused_with,
)


@pytest.mark.parametrize(
    ("request_", "headers"),
    [
        ({"body": bytearray(IMAGE)}, {}),
        ({"body": IMAGE}, {"Content-Type": "image/png"}),
        ({"data": IMAGE}, FORM),
        (body({"image": TEXT}), {}),
        ({"body": b"\xef\xbb\xbf\n  " + json.dumps({"image": TEXT}).encode()}, {}),
        ({"body": json.dumps({"image": TEXT}).encode("utf-16")}, {"content-type": "application/json"}),
        ({"body": {"image": TEXT}}, {}),
        ({"body": json.dumps({"image": TEXT})}, {}),
        ({"data": bytearray(json.dumps({"image": TEXT}).encode())}, {}),
        (body({"image": "data:image/png;base64," + TEXT}), {}),
        (body({"image": {"b64": TEXT}}), {}),
        (body({"data": TEXT}), {}),
        (body({"body": TEXT}), {}),
        (body({"b64": TEXT}), {}),
        (body({"image_bytes": {"b64": TEXT}}), {}),
        (body({"encoded_image_string_tensor": {"b64": TEXT}}), {}),
        ({"body": LONG_TEXT.encode()}, {}),
        ({"data": base64.urlsafe_b64encode(IMAGE)}, {}),
        (body({"image": TEXT[:8] + "\r\n" + TEXT[8:] + "\n"}), {}),
        ({"body": b"data:image/png;base64," + TEXT.encode()}, {}),
        ({"body": gzip.compress(IMAGE)}, {"content-encoding": "gzip"}),
        ({"body": gzip.compress(json.dumps({"image": TEXT}).encode())}, {"Content-Encoding": "GZIP"}),
        ({"body": IMAGE}, {"Content-Encoding": "identity"}),
        ({"body": IMAGE, "model_name": b"maskx", "model_version": b"1.0"}, {}),
    ],
)
def test_every_way_to_send_a_single_image_carries_it_and_the_defaults(
    request_: dict[str, Any], headers: dict[str, str]
) -> None:
    request = parsed(request_, headers)
    assert request.envelope.kind == "single"
    assert only(request).image == IMAGE and type(only(request).image) is bytes
    assert only(request).parameters == DEFAULTS


@pytest.mark.parametrize(
    ("request_", "kind"),
    [
        ({"data_10": SECOND, "data": IMAGE}, "several"),
        ({"data2": SECOND, "data1": IMAGE}, "several"),
        ({"data_10": SECOND, "data_9": IMAGE}, "several"),
        ({"data_1": IMAGE, "data_2": json.dumps({"image": TEXT_2}).encode()}, "several"),
        (body({"images": [TEXT, {"image": TEXT_2}]}), "several"),
        (body({"images": [{"image": {"b64": TEXT}}, "data:;base64," + TEXT_2]}), "several"),
        (body({"instances": [{"b64": TEXT}, {"image": {"b64": TEXT_2}}]}), "v1"),
        (body({"instances": [TEXT, {"image": TEXT_2}]}), "v1"),
        (body({"inputs": [{**INPUT, "shape": [2], "data": [TEXT, TEXT_2]}]}), "v2"),
        (body({"inputs": [{**INPUT, "shape": [1, 1], "data": [one]} for one in (TEXT, TEXT_2)]}), "v2"),
    ],
)
def test_every_way_to_send_several_images_keeps_their_order(request_: dict[str, Any], kind: str) -> None:
    request = parsed(request_)
    assert (request.envelope.kind, request.envelope.id) == (kind, None)
    assert images_of(request) == [IMAGE, SECOND]


def tensor(*data: Any, **others: Any) -> dict[str, Any]:
    return body({"inputs": [{"name": "a", "datatype": "BYTES", "shape": [-1], "data": list(data), **others}]})


def elements(*images: bytes) -> bytes:
    """A BYTES tensor in its binary form."""
    return b"".join(len(one).to_bytes(4, "little") + one for one in images)


def binary(content: dict[str, Any], data: bytes) -> tuple[dict[str, Any], dict[str, str]]:
    """A body and its headers with the data of its tensors behind the JSON."""
    start = json.dumps(content).encode()
    return {"body": bytearray(start + data)}, {"Inference-Header-Content-Length": str(len(start))}


def in_binary(size: int, **others: Any) -> dict[str, Any]:
    return {
        "name": "a",
        "datatype": "BYTES",
        "shape": [-1],
        "parameters": {"binary_data_size": size},
        **others,
    }


OTHERS_EXAMPLES = {
    # pytorch/serve kubernetes/kserve: v1/mnist.json, v2/mnist/mnist_v2_bytes.json, v2/bert/ and v2/mnist/tobytes.py
    "TorchServe v1": (body({"instances": [{"data": TEXT, "target": 0}]}), "v1"),
    "TorchServe v2": (tensor(TEXT), "v2"),
    "TorchServe v2, a text": (tensor(shape=-1, data=TEXT), "v2"),
    "TorchServe v2, characters": (tensor(*TEXT), "v2"),
    # kserve/kserve docs: TensorFlow flowers, and the protocol's nested and flat forms of a tensor
    "KServe v1 with a key": (body({"instances": [{"image_bytes": {"b64": TEXT}, "key": " 1"}]}), "v1"),
    "KServe v2 nested": (tensor([TEXT], shape=[1, 1]), "v2"),
    "KServe v2 with a free side": (tensor([[TEXT]], shape=[1, -1, 1]), "v2"),
    "KServe v2 scalar": (tensor(TEXT, shape=[]), "v2"),
    "KServe v2 b64": (tensor({"b64": TEXT}), "v2"),
    "KServe v2, MLServer's word": (tensor(TEXT, parameters={"content_type": "base64"}), "v2"),
    "KServe v2 numbers": (tensor(*IMAGE, shape=[len(IMAGE)]), "v2"),
    # tensorflow/serving api_rest.md: rows, columns, and binary values
    "TensorFlow row": (body({"signature_name": "serving_default", "instances": [{"b64": TEXT}]}), "v1"),
    "TensorFlow row by a name": (body({"instances": [{"encoded": {"b64": TEXT}}]}), "v1"),
    "TensorFlow value": (body({"instances": TEXT}), "v1"),
    "TensorFlow classify": (body({"examples": [{"image": {"b64": TEXT}, "caption": "seaside"}]}), "v1"),
    "TensorFlow columns": (body({"inputs": {"image_bytes": [{"b64": TEXT}]}}), "columns"),
    "TensorFlow column": (body({"inputs": {"b64": TEXT}, "signature_name": "a"}), "columns"),
    "TensorFlow list": (body({"inputs": [TEXT]}), "columns"),
    "Hugging Face": (body({"inputs": TEXT}), "columns"),
}


@pytest.mark.parametrize("name", OTHERS_EXAMPLES)
def test_a_body_of_other_servers_examples_carries_its_image(name: str) -> None:
    content, kind = OTHERS_EXAMPLES[name]
    request = parsed(content)
    assert (request.envelope.kind, only(request).image) == (kind, IMAGE)


def test_tensors_behind_the_json_are_read_as_they_are_or_in_base64() -> None:
    data = elements(IMAGE, TEXT_2.encode())
    content = {"inputs": [in_binary(len(data))], "parameters": {"binary_data_output": True}}
    request = parsed(*binary(content, data))
    assert request.envelope.kind == "v2" and images_of(request) == [IMAGE, SECOND]
    two = [in_binary(len(elements(IMAGE))), {**INPUT, "data": [TEXT_2]}]
    assert images_of(parsed(*binary({"inputs": two}, elements(IMAGE)))) == [IMAGE, SECOND]
    raw = parsed({"body": elements(SECOND)}, {"inference-header-content-length": "0"})
    assert raw.envelope.kind == "v2" and only(raw).image == SECOND


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (binary({"inputs": [in_binary(9)]}, b"12345"), "is 9, but 5 bytes are left behind"),
        (binary({"inputs": [in_binary(-1)]}, b""), "binary_data_size of inputs\\[0\\] is -1"),
        (binary({"inputs": [in_binary(5)]}, b"\x09\0\0\0A"), "cut short: element 0 ends at byte 13 of 5"),
        (binary({"inputs": [INPUT]}, b"12345"), "5 bytes behind the JSON belong to none"),
        (binary({"inputs": 3}, b"12345"), '"inputs" is 3; a list'),
        (({"body": b"{}"}, {"Inference-Header-Content-Length": "3"}), "is '3'; the bytes of JSON"),
        (({"body": b"{}"}, {"Inference-Header-Content-Length": "-1"}), "is '-1'; the bytes of JSON"),
    ],
)
def test_binary_data_that_does_not_agree_with_its_json_is_refused(sent: Any, message: str) -> None:
    refused_with(message, *sent)


# every two bits in every place, so that both alphabets and every padding occur
ANY_BYTES = [bytes([b"\xff"[0] - n]) + bytes(range(n, 256)) + bytes(n) for n in range(8)]


@pytest.mark.parametrize("image", ANY_BYTES, ids=range(len(ANY_BYTES)))
def test_every_alphabet_and_wrapping_of_base64_gives_the_same_bytes(image: bytes) -> None:
    plain, safe = base64.b64encode(image).decode(), base64.urlsafe_b64encode(image).decode()
    lines = base64.encodebytes(image).decode()
    assert plain != safe
    forms = [
        plain,
        safe,
        plain.rstrip("="),
        safe.rstrip("="),
        lines,
        lines.replace("\n", "\r\n"),
        f" {safe}\n",
    ]
    forms += [f"data:image/jpeg;base64,{plain}", f"data:;base64,{safe.rstrip('=')}"]
    forms += [
        f"data:image/png;charset=utf-8;base64,{plain}",
        f"DATA:image/png;BASE64,{quote(plain, safe='')}",
    ]
    for text in forms:
        assert only(parsed(body({"image": text}))).image == image, text
        assert only(parsed(tensor(text))).image == image, text


def test_an_envelope_for_several_images_stays_one_with_a_single_image() -> None:
    requests = {"data_1": IMAGE}, body({"images": [TEXT]}), body({"instances": [{"b64": TEXT}]})
    assert [parsed(request).envelope.kind for request in requests] == ["several", "several", "v1"]


def test_the_id_of_a_v2_request_comes_back() -> None:
    content = {"id": "x-1", "inputs": [INPUT], "outputs": [{"name": "detections"}]}
    assert parsed(body(content)).envelope.id == "x-1"
