"""What the light server tells of itself: the OpenAPI document, the same as a page, and the page to try it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from maskx_parameters import PARAMETERS
from server.page import files
from tests.served.machine import Machine

pytestmark = pytest.mark.engines("light")


def document(server: Machine) -> dict[str, Any]:
    reply = server.ask(path="/openapi.json", method="GET")
    assert reply.status == 200 and reply.headers["x-content-type-options"] == "nosniff"
    told: dict[str, Any] = json.loads(reply.body)
    return told


def test_the_document_is_valid_and_is_of_the_model_that_is_served(server: Machine) -> None:
    told = document(server)
    validate(told)
    parameters = {
        one["name"]: one["schema"] for one in told["paths"]["/predictions/maskx"]["post"]["parameters"]
    }
    assert list(parameters) == list(PARAMETERS)
    assert parameters["score_threshold"]["default"] == 0.5
    assert parameters["categories"]["examples"] == ["red", "green"]
    assert [one["name"] for one in told["x-categories"]] == ["red", "green", "bleu \u00e9"]


def test_every_example_of_every_path_is_answered_as_the_document_says(server: Machine) -> None:
    told, asked = document(server), 0
    for path, item in told["paths"].items():
        for body in item.get("post", {}).get("requestBody", {}).get("content", {}).values():
            examples = [one["value"] for one in body.get("examples", {}).values()]
            for example in [*examples, *([body["example"]] if "example" in body else [])]:
                address = path.replace("{version}", "1.0")
                headers = {"Content-Type": "application/json"}
                reply = server.ask(json.dumps(example).encode(), headers, address)
                assert reply.status == 200, (path, reply.body)
                schema = item["post"]["responses"]["200"]["content"]["application/json"]["schema"]
                validator = Draft202012Validator({**schema, "components": told["components"]})
                assert validator.is_valid(json.loads(reply.body)), (path, reply.body)
                asked += 1
    assert asked > 8


@pytest.mark.parametrize(
    ("status", "method", "path", "body"),
    [
        (404, "POST", "/predictions/other", b""),
        (405, "HEAD", "/predictions/maskx", b""),
        (400, "POST", "/predictions/maskx", b"x"),
    ],
)
def test_errors_have_a_status_that_the_document_lists(
    server: Machine, status: int, method: str, path: str, body: bytes
) -> None:
    listed = document(server)["paths"]["/predictions/maskx"]["post"]["responses"]
    assert server.ask(body, {}, path, method=method).status == status
    assert str(status) in listed and listed[str(status)]["description"]


def test_every_refusal_in_the_fronts_source_is_listed(root: Path, server: Machine) -> None:
    source = "".join(path.read_text() for path in (root / "server" / "light").glob("*.py"))
    raised = set(re.findall(r"Refusal\((\d{3}), \"([A-Za-z]+)\"", source))
    raised -= {one for one in raised if one[1].endswith("Exception")}  # of the management port
    responses = document(server)["paths"]["/predictions/maskx"]["post"]["responses"]
    missing = [
        one
        for one in raised
        if one[0] != "400" and one[1] not in responses.get(one[0], {}).get("description", "")
    ]
    assert len(raised) > 5 and missing == []


def test_the_document_is_a_page_without_a_script_under_a_policy_that_allows_none(server: Machine) -> None:
    reply = server.ask(path="/docs", method="GET")
    assert reply.status == 200 and b"/predictions/maskx" in reply.body and b"<script" not in reply.body
    assert reply.headers["content-security-policy"].startswith("default-src 'none'; style-src 'sha256-")


def test_the_page_is_served_with_its_headers_and_no_other_file(server: Machine) -> None:
    for path, file in files().items():
        reply = server.ask(path=path, method="GET")
        assert (reply.status, reply.body) == (200, file.body)
        assert reply.headers["content-type"] == file.content_type
        assert reply.headers["content-security-policy"] == file.headers["Content-Security-Policy"]
    for path in ("/js/../package.json", "/js/package.json", "/index.html", "/js/page/../../x"):
        assert server.ask(path=path, method="GET").status == 404
    assert server.ask(path="/", method="POST").status == 405
