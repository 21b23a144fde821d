"""Wrong values of every parameter however it is sent, broken or unknown JSON, broken base64."""

import base64
import json
from collections.abc import Iterator
from typing import Any

from tests.hostile.case import Case, field, form, http, refused
from tests.hostile.images import encoded

LONG = "9" * 400

WRONG_TEXTS: dict[str, tuple[str, ...]] = {
    "score_threshold": (
        "", " ", "abc", "-0.1", "1.0001", "2", "1e309", "nan", "inf", "-inf", "0x1", "0,5", "0.5.5", "1_0e-1",
        "\u0660.\u0665", "true", "null", "[]", "0.5;", "\u00bd", "1e-", "--0.5", LONG, "0.5 0.5",
    ),
    "max_detections": (
        "", "0", "-1", "1.5", "1001", "1e9", "ten", "true", "null", "[]", "{}", "\u0661\u0660", "1_0", "0x10", LONG,
        "10 10", "\u221e", "1,000",
    ),
    "categories": (
        "", ",", ",,", "unicorn", "[]", "[1.5]", '[["red"]]', "[null]", "[true]", '{"a": 1}', "[", "-5", LONG, "999999",
        "r\u00e9d", "\u7ea2", "red,unicorn", "'red'",
    ),
    "mask_format": ("", "RLE", "mask", "rle,png", "1", "null", "[]", "\u0440le", "none;", "polygons"),
    "output": ("", "JSON", "pdf", "overlay,json", "1", "null", "[]", "\u043everlay", "file:///etc/passwd"),
}  # fmt: skip
"""As text, which is how form fields, headers and entries of gRPC carry them; JSON may, too."""

HUGE = "1" + "0" * 400
WRONG_JSON = {
    "score_threshold": ("null", "true", "[]", "{}", "[0.5]", "1e400", "-1", HUGE, '{"a": {"b": []}}'),
    "max_detections": ("null", "true", "[]", "{}", "[10]", "1e400", "0.5", HUGE, "-0"),
    "categories": (
        "null", "true", "{}", "1.5", "[]", "[[]]", "[null]", '["unicorn"]', HUGE, '[{"id": 1}]',
    ),
    "mask_format": ("null", "true", "[]", "{}", "1", '["rle"]', '{"rle": 1}'),
    "output": ("null", "true", "[]", "{}", "1", '["json"]', '{"overlay": true}'),
}  # fmt: skip
"""As JSON's own types."""


def cases() -> Iterator[Case]:
    """All of this file."""
    for part in (wrong_texts, wrong_types, unknown_and_twice, wrong_json, wrong_envelopes, wrong_base64):
        yield from part()


def wrong_texts() -> Iterator[Case]:
    """Every text as a form field, a header and in JSON."""
    image = encoded("png")
    for name, values in WRONG_TEXTS.items():
        for place, value in enumerate(values):
            label = f"{name} = {ascii(value)[:40]}"
            data = value.encode()
            body, headers = form((field(name), data), (field("data", "a.png"), image))
            yield refused("wrong value, form", label, http(body, headers), {"data": image, name: data})
            spelt = name.replace("_", "-").title() if place % 2 else name
            yield refused("wrong value, header", label, http(image, [(spelt, value)]))
            text = json.dumps({"image": _text(image), name: value}, ensure_ascii=place % 2 == 0)
            yield refused("wrong value, JSON text", label, _posted(text), {"data": text.encode()})


def wrong_types() -> Iterator[Case]:
    """Every value of JSON, beside one image and beside an element of several forms."""
    image = _text(encoded("png"))
    for name, values in WRONG_JSON.items():
        for value in values:
            label = f"{name} = {value[:40]}"
            yield refused("wrong value, JSON", label, _posted(f'{{"image": "{image}", "{name}": {value}}}'))
        first = values[0]
        tensor = f'{{"name": "i", "shape": [1], "datatype": "BYTES", "data": ["{image}"]}}'
        for what, text in (
            ("v1", f'{{"instances": [{{"b64": "{image}"}}], "parameters": {{"{name}": {first}}}}}'),
            ("several", f'{{"images": ["{image}"], "{name}": {first}}}'),
            ("v2", f'{{"inputs": [{tensor}], "parameters": {{"{name}": {first}}}}}'),
        ):
            yield refused("wrong value, JSON", f"{name} = {first}, {what}", _posted(text))


def unknown_and_twice() -> Iterator[Case]:
    """Names that mean nothing, and parameters that are sent twice."""
    image = encoded("png")
    misspelt = ("scoer_threshold", "Score_Threshold", "threshold", "data_x")
    for name in (*misspelt, "url", "__class__", "\u540d", "a" * 5_000):
        body, headers = form((field("data"), image), (field(name), b"0.5"))
        entries = {"data": image, name: b"0.5"}
        yield refused("unknown name", f"form {ascii(name)[:40]}", http(body, headers), entries)
        text = json.dumps({"image": _text(image), name: 0.5}, ensure_ascii=False)
        yield refused("unknown name", f"JSON {ascii(name)[:40]}", _posted(text))
    body, headers = form((field("data"), image), (field("score_threshold"), b"0.5"))
    yield refused("given twice", "form and header", http(body, [*headers, ("score-threshold", "0.5")]))
    text = json.dumps({"image": _text(image), "max_detections": 5})
    yield refused("given twice", "JSON and header", _posted(text, ("Max-Detections", "5")))
    body, headers = form((field("data"), text.encode()), (field("max_detections"), b"5"))
    entries = {"data": text.encode(), "max_detections": b"5"}
    yield refused("given twice", "JSON and form", http(body, headers), entries)
    twice = [("score_threshold", "0.5"), ("score-threshold", "0.6")]
    yield refused("given twice", "two headers", http(image, twice))


def wrong_json() -> Iterator[Case]:
    """Bodies that begin like JSON, or say that they are."""
    image = _text(encoded("png"))
    good = f'{{"image": "{image}"}}'
    deep = 50_000
    for name, text in (
        ("a list nested 50000 deep", "[" * deep),
        ("an object nested 50000 deep", '{"a":' * deep),
        ("a list nested 3000 deep and closed", '{"image": ' + "[" * 3_000 + "]" * 3_000 + "}"),
        ("NaN", f'{{"image": "{image}", "score_threshold": NaN}}'),
        ("Infinity", f'{{"image": "{image}", "score_threshold": -Infinity}}'),
        ("a number of 10000 digits", f'{{"image": "{image}", "max_detections": {"7" * 10_000}}}'),
        ("an exponent of 10^9", f'{{"image": "{image}", "score_threshold": 1e1000000000}}'),
        ("a key twice", f'{{"image": "{image}", "image": "{image}"}}'),
        ("a parameter twice", f'{{"image": "{image}", "output": "json", "output": "json"}}'),
        ("cut short", good[:-10]),
        ("without its last brace", good[:-1]),
        ("something behind it", good + "x"),
        ("two objects", good + good),
        ("single quotes", good.replace('"', "'")),
        ("a comma too many", good[:-1] + ",}"),
        ("a comment", "{/* */" + good[1:]),
        ("no quotes", '{image: "x"}'),
        ("a control character", '{"image": "\x01"}'),
        ("a NUL", '{"image": "\0"}'),
        ("a surrogate alone", '{"image": "\\ud800"}'),
        ("a surrogate alone as a key", '{"\\ud800": 1}'),
        ("a wrong escape", '{"image": "\\x41"}'),
        ("an empty object", "{}"),
        ("an empty list", "[]"),
        ("a list", f'["{image}"]'),
        ("a list in an object's place", f'[{{"image": "{image}"}}]'),
        ("100000 keys", "{" + ",".join(f'"k{i}": 1' for i in range(100_000)) + "}"),
        ("100000 empty lists", '{"image": [' + ",".join(["[]"] * 100_000) + "]}"),
        ("a key of 1 MB", '{"' + "k" * 1_000_000 + '": 1}'),
        ("text outside ASCII", '{"im\u00e4ge": "\u56fe\u50cf"}'),
        ("spaces alone", " \r\n\t" * 10),
    ):
        kind = {"types": ("InvalidRequest", "InvalidImage")} if name == "spaces alone" else {}
        yield refused("wrong JSON", name, _posted(text), {"data": text.encode()}, **kind)
    alone = {"a number": "5", "a string": '"image"', "null": "null", "true": "true", "nothing": ""}
    for name, text in alone.items():
        yield refused("wrong JSON", f"{name}, said to be JSON", _posted(text))
    for name, data in (
        ("UTF-16 cut by a byte", good.encode("utf-16")[:-1]),
        ("bytes that are no UTF-8", b'{"image": "\xff\xfe\xfd"}'),
        ("Latin-1", b'{"\xe9": 1}'),
        ("an overlong form", b'{"\xc0\xaf": 1}'),
        ("a surrogate as UTF-8", b'{"\xed\xa0\x80": 1}'),
    ):
        types = ("InvalidRequest", "InvalidImage")
        yield refused("wrong JSON", name, http(data, [("Content-Type", "application/json")]), types=types)


def wrong_envelopes() -> Iterator[Case]:
    """JSON whose form is nothing that is known."""
    image = _text(encoded("png"))
    tensor = {"name": "i", "shape": [1], "datatype": "BYTES", "data": [image]}
    for name, content in (
        ("image null", {"image": None}),
        ("image a number", {"image": 5}),
        ("image a list", {"image": [image]}),
        ("image in an image", {"image": {"image": image}}),
        ("image and images", {"image": image, "images": [image]}),
        ("image and instances", {"image": image, "instances": [{"b64": image}]}),
        ("images an object", {"images": {"0": image}}),
        ("images empty", {"images": []}),
        ("images null", {"images": None}),
        ("instances empty", {"instances": []}),
        ("instances a number", {"instances": 5}),
        ("instances of pixels", {"instances": [[[0.5, 0.25], [0.0, 1.0]]]}),
        ("inputs of two names", {"inputs": {"a": image, "b": image}}),
        ("a parameter beside instances", {"instances": [{"b64": image}], "max_detections": 5}),
        ("inputs empty", {"inputs": []}),
        ("inputs without data", {"inputs": [{"name": "i", "shape": [1], "datatype": "BYTES"}]}),
        ("inputs of FP32", {"inputs": [{**tensor, "datatype": "FP32"}]}),
        ("inputs of another shape", {"inputs": [{**tensor, "shape": [2]}]}),
        ("inputs of a negative shape", {"inputs": [{**tensor, "shape": [-2]}]}),
        ("inputs of a huge shape", {"inputs": [{**tensor, "shape": [10**6] * 8}]}),
        ("inputs with no data", {"inputs": [{**tensor, "shape": [0], "data": []}]}),
        ("an id of v2 that is a number", {"id": 5, "inputs": [tensor]}),
        ("an id of v2 of 10000 letters", {"id": "i" * 10_000, "inputs": [tensor]}),
        ("another output of v2", {"inputs": [tensor], "outputs": [{"name": "masks"}]}),
        ("parameters a list", {"instances": [{"b64": image}], "parameters": [1]}),
        ("an overlay of two", {"images": [image, image], "output": "overlay"}),
        ("an overlay in v1", {"instances": [{"b64": image}], "parameters": {"output": "overlay"}}),
    ):
        text = json.dumps(content)
        yield refused("wrong form", name, _posted(text), {"data": text.encode()})
    many: tuple[tuple[str, dict[str, Any]], ...] = (
        ("9 images", {"images": [image] * 9}),
        ("1000 instances", {"instances": [{"b64": ""}] * 1_000}),
        ("1000 inputs", {"inputs": [{**tensor, "shape": [1_000], "data": [""] * 1_000}]}),
    )
    for name, content in many:
        yield refused("wrong form", name, _posted(json.dumps(content)), types=("TooManyImages",))


def wrong_base64() -> Iterator[Case]:
    """Text that is not an image in base64."""
    image = _text(encoded("png"))
    for name, text in (
        ("empty", ""),
        ("spaces", "   "),
        ("cut by seven", image[:-7]),
        ("cut by two", image.rstrip("=")[:-2] + "="),
        ("padding inside", image[:40] + "==" + image[40:]),
        ("padding alone", "===="),
        ("letters that are not base64", "!" + image[1:]),
        ("of two alphabets", "-_+/" + image[4:]),
        ("as Python shows bytes", str(image.encode())),
        ("outside ASCII", "\u00e9" + image[1:]),
        ("digits of another script", "\u0664" * 40),
        ("percent-encoded", "%2B" + image),
        ("in hexadecimal", "0x" + encoded("png").hex()),
        ("a NUL inside", image[:40] + "\0" + image[40:]),
        ("a data URL without data", "data:image/png;base64"),
        ("a data URL of nothing", "data:image/png;base64,"),
        ("a data URL of text", "data:text/html,<b>x</b>"),
        ("a data URL twice", "data:image/png;base64,data:image/png;base64," + image),
        ("an address", "http://127.0.0.1:8081/models"),
        ("an address of https", "https://example.com/a.png"),
        ("a file's address", "file:///etc/passwd"),
        ("a path", "/etc/passwd"),
        ("a path upwards", "../../../../etc/passwd"),
    ):
        # A path is made of letters of base64: what it decodes to is then no image.
        types = ("InvalidRequest", "InvalidImage")
        content = json.dumps({"image": text}, ensure_ascii=False)
        yield refused("wrong base64", name, _posted(content), {"data": content.encode()}, types=types)


def _text(image: bytes) -> str:
    return base64.b64encode(image).decode()


def _posted(text: str, *headers: tuple[str, str]) -> bytes:
    return http(text.encode(errors="surrogatepass"), [("Content-Type", "application/json"), *headers])
