"""The OpenAPI document as a page: one HTML file without a script or an outside address, for `/docs`."""

import base64
import hashlib
import json
from collections.abc import Mapping
from html import escape
from typing import Any

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }
code, pre { font: 14px/1.4 ui-monospace, monospace; }
pre { overflow: auto; padding: .75rem; background: #8882; border-radius: 6px; max-height: 24rem; }
section { border-top: 1px solid #8886; margin-top: 2rem; }
table { border-collapse: collapse; display: block; overflow: auto; }
th, td { text-align: left; vertical-align: top; padding: .25rem .75rem .25rem 0; border-bottom: 1px solid #8884; }
.method { font-weight: 700; text-transform: uppercase; }
summary { cursor: pointer; padding: .25rem 0; }
"""

POLICY = (
    "default-src 'none'; style-src 'sha256-"
    + base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    + "'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The Content-Security-Policy to send with the page."""

_LONGEST = 60
"""Characters of a text in an example, beyond which it is cut in the page; the document has it whole."""


def documentation_page(document: Mapping[str, Any]) -> bytes:
    """The page of an OpenAPI 3.1 document (`maskx_openapi.openapi_document`), UTF-8."""
    info = document["info"]
    paths = "".join(
        _operation(path, method, operation, item.get("parameters", []))
        for path, item in document["paths"].items()
        for method, operation in item.items()
        if method in ("get", "post")
    )
    schemas = "".join(
        f"<details id='{escape(name)}'><summary><code>{escape(name)}</code></summary>{_code(schema)}</details>"
        for name, schema in document["components"]["schemas"].items()
    )
    title = escape(info["title"])
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{title}</title><style>{STYLE}</style>"
        f"<h1>{title}</h1><p>{escape(info.get('summary', ''))} Version {escape(info['version'])}. "
        f"<a href='openapi.json'>The document itself</a> (OpenAPI {escape(document['openapi'])}).</p>"
        f"{paths}<section><h2>Schemas</h2>{schemas}</section></html>"
    ).encode()


def _operation(path: str, method: str, operation: Mapping[str, Any], of_path: list[Any]) -> str:
    name = escape(operation["operationId"])
    rows = "".join(_row(one) for one in [*of_path, *operation.get("parameters", [])])
    table = f"<table><tr><th>parameter<th>in<th>values<th>meaning</tr>{rows}</table>" if rows else ""
    described = f"<p>{escape(operation['description'])}</p>" if "description" in operation else ""
    return (
        f"<section id='{name}'><h2><span class=method>{method}</span> <code>{escape(path)}</code></h2>"
        f"<p>{escape(operation['summary'])}</p>{described}{table}{_bodies(operation)}{_answers(operation)}</section>"
    )


def _row(parameter: Mapping[str, Any]) -> str:
    schema = parameter["schema"]
    cells = [f"<code>{escape(parameter['name'])}</code>", escape(parameter["in"]), escape(_values(schema))]
    return "<tr>" + "".join(f"<td>{cell}" for cell in [*cells, escape(parameter["description"])]) + "</tr>"


def _values(schema: Mapping[str, Any]) -> str:
    """What a schema allows, in words."""
    words = str(schema.get("type", ""))
    if "enum" in schema:
        words = ", ".join(map(str, schema["enum"]))
    elif "minimum" in schema and "maximum" in schema:
        words = f"{words} from {schema['minimum']} to {schema['maximum']}"
    if schema.get("examples"):
        words = f"{words}, such as {', '.join(map(str, schema['examples']))}"
    return f"{words}; else {schema['default']}" if "default" in schema else words


def _bodies(operation: Mapping[str, Any]) -> str:
    parts = []
    for kind, body in operation.get("requestBody", {}).get("content", {}).items():
        examples = {name: one["value"] for name, one in body.get("examples", {}).items()}
        if "example" in body:
            examples["example"] = body["example"]
        shown = "".join(f"<p>{escape(name)}</p>{_code(one)}" for name, one in examples.items())
        parts.append(
            f"<details><summary><code>{escape(kind)}</code></summary>{shown or _code(body['schema'])}</details>"
        )
    return f"<h3>Body</h3>{''.join(parts)}" if parts else ""


def _answers(operation: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td><code>{escape(status)}</code><td>{escape(answer['description'])}<td>{_schemas_of(answer)}</tr>"
        for status, answer in operation["responses"].items()
    )
    return f"<h3>Answers</h3><table><tr><th>status<th>meaning<th>body</tr>{rows}</table>"


def _schemas_of(answer: Mapping[str, Any]) -> str:
    names = []
    for content in answer.get("content", {}).values():
        schema = content["schema"]
        names += [one["$ref"].rpartition("/")[2] for one in schema.get("oneOf", [schema]) if "$ref" in one]
    return ", ".join(f"<a href='#{escape(name)}'>{escape(name)}</a>" for name in names)


def _code(value: Any) -> str:
    return f"<pre>{escape(json.dumps(_short(value), indent=1))}</pre>"


def _short(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _short(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_short(one) for one in value]
    cut = isinstance(value, str) and len(value) > _LONGEST and " " not in value
    return f"{value[:_LONGEST]}..." if cut else value
