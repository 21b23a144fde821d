"""The errors' form, the table of them for callers, and that nothing else leaves the handler."""

import ast
import base64
import json
import re
from pathlib import Path

import pytest

import maskx_errors
from maskx_errors import INVALID_REQUEST, KINDS, OUT_OF_MEMORY, ErrorKind, MaskxError, RequestError, shown
from maskx_parameters import Category, CategoryIndex, Parameters
from maskx_request import ImageRequest, parse_request

ROOT = Path(__file__).resolve().parents[2]
HANDLER = ROOT / "handler"
README = (HANDLER / "README.md").read_text()
CONSTANTS = {name: kind for name, kind in vars(maskx_errors).items() if isinstance(kind, ErrorKind)}
MODULES = {
    path.name: ast.parse(path.read_text())
    for path in HANDLER.glob("maskx_*.py")
    if path.name != "maskx_errors.py"
}


def table(who: str) -> set[tuple[str, int]]:
    """Rows of README's one table of errors: (type, status) of those that `who` answers with."""
    found = re.findall(r"^\| `(\w+)` \| (\d{3}) \| (\w+) \|", README, re.MULTILINE)
    return {(name, int(status)) for name, status, origin in found if origin == who}


def test_every_error_of_the_handler_is_in_the_table_with_its_status_and_no_other() -> None:
    assert table("handler") == {(kind.name, kind.status) for kind in KINDS}


def test_every_error_of_the_proxy_is_in_the_table_with_its_status_and_no_other() -> None:
    lines = (ROOT / "deploy" / "nginx" / "errors.conf").read_text()
    named = set(re.findall(r'^    "~\^(\d{3}):[^"]*"\s+"(\w+)";', lines, re.MULTILINE))
    assert len(named) > 10
    of_the_handler = {(kind.name, kind.status) for kind in KINDS}
    assert table("proxy") == {(name, int(status)) for status, name in named} - of_the_handler


def test_the_kinds_are_all_there_are_and_have_names_of_their_own() -> None:
    assert set(CONSTANTS.values()) == set(KINDS)
    assert len({kind.name for kind in KINDS}) == len(KINDS)
    for kind in KINDS:
        assert kind.meaning.endswith(".") and kind.status in (400, 500, 503, 507)


def test_an_error_is_the_object_that_readme_shows() -> None:
    error = RequestError("no image")
    assert error.content() == {"error": {"code": 400, "type": "InvalidRequest", "message": "no image"}}
    assert error.kind is INVALID_REQUEST and str(error) == "no image" and isinstance(error, ValueError)
    assert MaskxError(OUT_OF_MEMORY, "x").content()["error"]["code"] == 507


def test_every_kind_is_used_by_the_handler() -> None:
    named = {node.id for tree in MODULES.values() for node in ast.walk(tree) if isinstance(node, ast.Name)}
    by_default = {"INVALID_REQUEST"}
    assert CONSTANTS.keys() - named == by_default
    assert RequestError("x").kind is INVALID_REQUEST


def calls(tree: ast.Module) -> dict[str, list[ast.Call]]:
    """Calls by the last part of what is called."""
    found: dict[str, list[ast.Call]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
            found.setdefault(name, []).append(node)
    return found


@pytest.mark.parametrize("module", sorted(MODULES))
def test_no_module_makes_errors_of_its_own(module: str) -> None:
    """An error is made by MaskxError or RequestError from a kind of the table, and by nothing else."""
    tree = MODULES[module]
    made = calls(tree)
    assert "ErrorKind" not in made
    for call in made.get("MaskxError", []):
        kind = call.args[0]
        assert ast.unparse(kind) in {*CONSTANTS, "worst.kind"}, f"{module}:{call.lineno}"
    for call in made.get("RequestError", []):
        assert len(call.args) == 1 or ast.unparse(call.args[1]) in CONSTANTS, f"{module}:{call.lineno}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict) and module != "maskx_schemas.py":  # which says what an error looks like
            keys = {key.value for key in node.keys if isinstance(key, ast.Constant)}
            assert not keys & {"error", "code"}, f"{module}:{node.lineno}"


def test_the_status_and_the_text_that_are_sent_are_those_of_an_answer() -> None:
    """TorchServe's two ways to tell of a failure take what the service made of an ErrorKind, and nothing else."""
    for module, tree in MODULES.items():
        made = calls(tree)
        for call in made.get("PredictionException", []):
            assert module == "maskx_handler.py"
            text, status = (ast.unparse(argument) for argument in call.args)
            assert re.fullmatch(r"\w+(\[0\])?\.body\.decode\(\)", text) and status.endswith(".status")
        for call in made.get("set_response_status", []):
            assert module == "maskx_handler.py"
            (code,) = (ast.unparse(one.value) for one in call.keywords if one.arg == "code")
            assert code == "answer.status"
        for call in made.get("Answer", []):
            (status,) = (ast.unparse(one.value) for one in call.keywords if one.arg == "status")
            assert status in ("200", "error.kind.status"), f"{module}:{call.lineno}"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a\nb\x1b[2J", "'a\\nb\\x1b[2J'"),
        ("x" * 99, "'" + "x" * 46 + "..."),
        (b"\xff\xfe", "'\ufffd\ufffd'"),
        ("\ud800", "'\\ud800'"),
        pytest.param(10**5000, "a number of 16610 bits", id="a long number"),
        ([[[[[1]]]]], "[[[[...]]]]"),
        ({"a": "b" * 60}, "{'a': 'bbbb"),
        (float("nan"), "nan"),
    ],
)
def test_a_value_of_the_callers_is_shown_in_short_on_one_line(value: object, text: str) -> None:
    assert shown(value).startswith(text)
    assert len(shown(value)) <= 50 and shown(value).isprintable()


def test_a_deep_value_is_shown_too() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    assert shown(deep) == "[[[[...]]]]"
    while deep:
        deep = deep.pop()  # type: ignore[assignment]  # freed level by level


EXAMPLES = re.findall(r"^```json\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
CATEGORIES = CategoryIndex(
    {i: Category(id=i, name=name, mask_supervised=True) for i, name in ((1, "person"), (18, "dog"))}
)
DEFAULTS = Parameters(score_threshold=0.5, max_detections=100)


def test_every_json_that_readme_shows_as_a_request_is_understood() -> None:
    kinds = []
    for text in EXAMPLES:
        body = text.replace("<base64>", base64.b64encode(b"image").decode()).encode()
        as_json = {"Content-Type": "application/json"}
        request = parse_request(
            {"body": body}, as_json, DEFAULTS, CATEGORIES, max_images=8, max_image_bytes=99
        )
        kinds.append(request.envelope.kind)
        for one in request.images:
            assert isinstance(one, ImageRequest), one
            assert one.image == b"image"
            assert one.parameters != DEFAULTS, json.loads(body)
    assert kinds == ["single", "several", "v1", "v1", "v1", "columns", "v2"]
