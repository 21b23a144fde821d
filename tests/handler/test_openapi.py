"""The OpenAPI document: valid, complete, and true of what the handler takes and answers."""

import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate
from PIL import Image

from maskx_errors import KINDS
from maskx_openapi import Described, openapi_document
from maskx_parameters import FORMS, MASK_FORMATS, PARAMETERS, Parameters
from maskx_service import Answer, Service
from maskx_settings import Limits
from server.docs_page import documentation_page
from tests.served.standin import png, scene

DESCRIBED = Described(
    version="2.0",
    defaults=Parameters(score_threshold=0.25, max_detections=100),
    categories={7: "red", 11: "green", 90: "blue"},
    limits=Limits(max_images=5),
    errors=[(413, "RequestTooLarge: The request has more bytes than allowed.")],
)
DOCUMENT = openapi_document(DESCRIBED)
THREE = png(scene(red=(1, 1, 5, 5), green=(10, 10, 5, 5), blue=(20, 10, 6, 6)))


def validator(name: str) -> Draft202012Validator:
    return Draft202012Validator(
        {"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]}
    )


def bodies() -> Iterator[tuple[str, Any]]:
    """Every example of a body in the document, with its place."""
    for path, item in DOCUMENT["paths"].items():
        for method in item.keys() & {"post"}:
            for body in item[method]["requestBody"]["content"].values():
                yield from (
                    (f"{path} {name}", one["value"]) for name, one in body.get("examples", {}).items()
                )
                if "example" in body:
                    yield f"{path} example", body["example"]


EXAMPLES = dict(bodies())


def asked(service: Service, fields: dict[str, Any], headers: Mapping[str, str] | None = None) -> Answer:
    (answer,) = service.answer([fields], [headers or {}])
    return answer


def test_the_document_has_every_category_to_choose_from() -> None:
    assert [tuple(one.values()) for one in DOCUMENT["x-categories"]] == [
        (7, "red"),
        (11, "green"),
        (90, "blue"),
    ]


def test_a_validator_of_openapi_finds_nothing_wrong_with_the_document() -> None:
    validate(json.loads(json.dumps(DOCUMENT)))
    validate(openapi_document(Described()))


def test_a_document_that_is_wrong_is_refused_by_that_validator() -> None:
    broken = json.loads(json.dumps(DOCUMENT))
    del broken["info"]["title"]
    with pytest.raises(Exception, match="title"):
        validate(broken)


@pytest.mark.parametrize("place", EXAMPLES)
def test_every_example_in_it_is_answered_and_the_answer_is_as_it_says(service: Service, place: str) -> None:
    answer = asked(service, {"body": bytearray(json.dumps(EXAMPLES[place]).encode())})
    assert answer.status == 200, answer.body
    content = json.loads(answer.body)
    named = {"model": "Answer", "results": "Answers", "predictions": "V1Answer", "outputs": "V2Answer"}
    name = next(named[key] for key in ("results", "predictions", "outputs", "model") if key in content)
    assert [error.message for error in validator(name).iter_errors(content)] == []
    for element in content["outputs"][0]["data"] if name == "V2Answer" else []:
        assert [error.message for error in validator("Result").iter_errors(json.loads(element))] == []


def test_each_example_is_an_instance_of_its_own_schema_alone() -> None:
    bodies = ("OneImage", "SeveralImages", "V1Request", "V2Request")
    fitting = {
        place: [name for name in bodies if validator(name).is_valid(value)]
        for place, value in EXAMPLES.items()
    }
    assert {len(names) for names in fitting.values()} == {1}, fitting
    assert {names[0] for names in fitting.values()} == set(bodies)


@pytest.mark.parametrize("mask_format", MASK_FORMATS)
def test_answers_with_objects_are_as_the_document_says(service: Service, mask_format: str) -> None:
    answer = asked(service, {"data": THREE, "mask_format": mask_format.encode()})
    content = json.loads(answer.body)
    assert content["detections"]
    assert [error.message for error in validator("Answer").iter_errors(content)] == []
    del content["detections"][0]["score"]
    assert not validator("Answer").is_valid(content)


def test_errors_are_as_the_document_says_and_their_statuses_are_listed(service: Service) -> None:
    answer = asked(service, {"data": b"no image"})
    assert validator("Error").is_valid(json.loads(answer.body))
    responses = DOCUMENT["paths"]["/predictions/maskx"]["post"]["responses"]
    assert responses.keys() == {"200", "413", *(str(kind.status) for kind in KINDS)}
    assert all(kind.meaning in responses[str(kind.status)]["description"] for kind in KINDS)


def test_its_parameters_are_those_that_the_handler_reads_with_the_models_defaults() -> None:
    listed = DOCUMENT["paths"]["/predictions/maskx"]["post"]["parameters"]
    assert [one["name"] for one in listed] == list(PARAMETERS)
    defaults = {one["name"]: one["schema"].get("default") for one in listed}
    assert defaults["score_threshold"] == 0.25 and defaults["max_detections"] == 100
    assert defaults["mask_format"] == "rle" and defaults["categories"] is None


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("score_threshold", [0, 1, 0.3], [-0.1, 1.1]),
        ("max_detections", [1, 1000], [0, 1001]),
        ("categories", [["red", 7], "red", 7], [[]]),
        ("mask_format", list(MASK_FORMATS), ["RLE", "mask"]),
        ("output", ["json"], ["xml"]),
        ("tiles", [256, "256, 32", [256, 32], "256"], ["a", 64, []]),
    ],
)
def test_what_a_schema_allows_is_taken_and_what_it_forbids_is_refused(
    service: Service, name: str, good: list[Any], bad: list[Any]
) -> None:
    form = next(form for form in FORMS if form.name == name)
    image = EXAMPLES["/predictions/maskx one"]["image"]
    for values, allowed in ((good, True), (bad, False)):
        for value in values:
            assert Draft202012Validator(form.schema).is_valid(value) is allowed
            body = json.dumps({"image": image, name: value}).encode()
            assert (asked(service, {"body": bytearray(body)}).status == 200) is allowed, (value, allowed)


def test_the_table_of_parameters_in_the_readme_names_the_same_ones(root: Path) -> None:
    text = (root / "handler" / "README.md").read_text(encoding="utf-8")
    table = text.partition("## Parameters")[2].partition("##")[0]
    named = [line.split("`")[1] for line in table.splitlines() if line.startswith("| `")]
    assert named == list(PARAMETERS)


def test_a_picture_can_be_asked_for_as_the_document_says(service: Service) -> None:
    content = DOCUMENT["paths"]["/predictions/maskx"]["post"]["responses"]["200"]["content"]
    answer = asked(service, {"data": THREE, "output": b"overlay"})
    assert answer.content_type in content and answer.content_type == "image/png"
    Image.open(io.BytesIO(answer.body)).load()


def test_the_page_has_every_path_parameter_and_schema_and_neither_script_nor_outside_address() -> None:
    page = documentation_page(DOCUMENT).decode()
    for word in (*DOCUMENT["paths"], *PARAMETERS, *DOCUMENT["components"]["schemas"]):
        assert word in page, word
    assert "<script" not in page and "http:" not in page and "https:" not in page


def test_the_page_shows_names_of_categories_as_text_not_as_markup() -> None:
    hostile = openapi_document(Described(categories={1: "<script>alert(1)</script>", 2: "'\"&"}))
    page = documentation_page(hostile).decode()
    assert "<script" not in page and "&lt;script&gt;" in page
