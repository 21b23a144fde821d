"""The OpenAPI 3.1 document of what the server answers: out of the tables of parameters and errors that the handler goes
by, so that there is no second list.

Whoever serves it adds the errors that stand in front of the handler (`Described.errors`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from maskx_errors import KINDS
from maskx_parameters import FORMS, Parameters
from maskx_schemas import Schema, answer_schemas, parameters, reference, request_schemas
from maskx_settings import Limits

EXAMPLE_IMAGE = (
    "iVBORw0KGgoAAAANSUhEUgAAABAAAAAQAQMAAAAlPW0iAAAABlBMVEXI3PDcHh44Ym8BAAAAFElEQVR42mNgQAL8H5gYGDARMgAAI20BDofI/jkA"
    "AAAASUVORK5CYII="
)
"""A picture of 16 x 16 pixels, PNG in base64: every example with an image can be sent as it stands."""


@dataclass(frozen=True, kw_only=True)
class Described:
    """The model that a document is about.

    `defaults`: of its parameters, None where they are not known; `categories`: names by id, empty where not known;
    `limits`: of a request. `errors`: further statuses that the server in front answers with, and what they mean.
    """

    name: str = "maskx"
    version: str = "1.0"
    defaults: Parameters | None = None
    categories: Mapping[int, str] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    errors: Sequence[tuple[int, str]] = ()


def openapi_document(described: Described) -> dict[str, Any]:
    """The document: paths, parameters, bodies, answers and errors, with examples that can be sent; and under
    `x-categories` the id and name of each category, for whoever lets people choose."""
    name = described.name
    schemas = request_schemas(described.defaults, max_images=described.limits.max_images) | answer_schemas()
    predict = _predict(described)
    versioned = {
        "post": {**predict["post"], "operationId": "predictWithVersion"},
        "parameters": [_version(described)],
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": f"{name}: objects and their masks",
            "version": described.version,
            "summary": "An image in, COCO-style detections with masks out.",
        },
        "x-categories": [{"id": id_, "name": one} for id_, one in described.categories.items()],
        "paths": {
            f"/predictions/{name}": predict,
            f"/predictions/{name}/{{version}}": versioned,
            f"/v1/models/{name}:predict": _kserve("v1", _v1_example(), described),
            f"/v2/models/{name}/infer": _kserve("v2", _v2_example(), described),
            "/live": _probe("live", "Whether the server runs."),
            "/ready": _probe("ready", "Whether a model is loaded and can answer."),
        },
        "components": {"schemas": schemas},
    }


def _predict(described: Described) -> dict[str, Any]:
    limits = described.limits
    binary: Schema = {}
    bodies = {
        "image/*": {"schema": binary},
        "application/octet-stream": {"schema": binary},
        "multipart/form-data": {"schema": reference("Form")},
        "application/json": {
            "schema": {
                "oneOf": [reference(one) for one in ("OneImage", "SeveralImages", "V1Request", "V2Request")]
            },
            "examples": {
                "one": {"summary": "One image", "value": {"image": EXAMPLE_IMAGE, "score_threshold": 0.3}},
                "several": {
                    "summary": "Several images, one with a parameter of its own",
                    "value": {
                        "images": [EXAMPLE_IMAGE, {"image": EXAMPLE_IMAGE, "max_detections": 5}],
                        "mask_format": "polygon",
                    },
                },
                "v1": {"summary": "KServe's v1", "value": _v1_example()},
                "v2": {"summary": "KServe's v2", "value": _v2_example()},
            },
        },
    }
    answers = [reference(one) for one in ("Answer", "Answers", "V1Answer", "V2Answer")]
    content = {
        "application/json": {"schema": {"oneOf": answers}},
        "image/png": {"schema": {"type": "string", "contentMediaType": "image/png"}},
    }
    return {
        "post": {
            "operationId": "predict",
            "summary": "Detect the objects of an image, each with its mask.",
            "description": (
                f"An image has at most {limits.max_image_bytes} bytes and {limits.max_pixels} pixels, no side above "
                f"{limits.max_side}; a request has at most {limits.max_images} images. PUT does the same as POST. "
                "Parameters may stand in headers, in the form or in the JSON, each in one place."
            ),
            "parameters": _headers(described),
            "requestBody": {"required": True, "content": bodies},
            "responses": {
                "200": {"description": "What was found.", "content": content},
                **_errors(described),
            },
        }
    }


def _headers(described: Described) -> list[dict[str, Any]]:
    schemas = parameters(described.defaults)
    listed = []
    for form in FORMS:
        schema = {key: value for key, value in schemas[form.name].items() if key != "description"}
        if "oneOf" in schema:
            schema = {"type": "string", "examples": list(described.categories.values())[:2]}
        listed.append(
            {
                "name": form.name,
                "in": "header",
                "description": form.meaning,
                "required": False,
                "schema": schema,
            }
        )
    return listed


def _version(described: Described) -> dict[str, Any]:
    return {
        "name": "version",
        "in": "path",
        "required": True,
        "description": "One of the versions that are served.",
        "schema": {"type": "string", "examples": [described.version]},
    }


def _kserve(protocol: str, example: dict[str, Any], described: Described) -> dict[str, Any]:
    name = protocol.upper()
    body = {"application/json": {"schema": reference(f"{name}Request"), "example": example}}
    answer = {"application/json": {"schema": reference(f"{name}Answer")}}
    return {
        "post": {
            "operationId": f"{protocol}Predict",
            "summary": f"The same by KServe's protocol {protocol}.",
            "requestBody": {"required": True, "content": body},
            "responses": {
                "200": {"description": "What was found.", "content": answer},
                **_errors(described),
            },
        }
    }


def _v1_example() -> dict[str, Any]:
    return {"instances": [{"b64": EXAMPLE_IMAGE}], "parameters": {"max_detections": 5}}


def _v2_example() -> dict[str, Any]:
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [EXAMPLE_IMAGE]}
    return {"id": "42", "inputs": [tensor], "parameters": {"score_threshold": 0.3}}


def _probe(name: str, summary: str) -> dict[str, Any]:
    return {
        "get": {
            "operationId": name,
            "summary": summary,
            "responses": {"200": {"description": "Yes."}, "503": {"description": "Not now."}},
        }
    }


def _errors(described: Described) -> dict[str, Any]:
    """The statuses of errors, each with all its meanings."""
    meanings: dict[int, list[str]] = {}
    for status, meaning in [(kind.status, f"{kind.name}: {kind.meaning}") for kind in KINDS] + list(
        described.errors
    ):
        meanings.setdefault(status, []).append(meaning)
    content = {"application/json": {"schema": reference("Error")}}
    return {
        str(status): {"description": " ".join(told), "content": content}
        for status, told in sorted(meanings.items())
    }
