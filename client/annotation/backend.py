"""A model backend for Label Studio: what its server asks of one over HTTP, answered with predictions of a maskx server.

python -m client.annotation.backend --url http://127.0.0.1:8080 --files /data/photos --listen 127.0.0.1:9090

In Label Studio: Settings, Model, Connect Model, with the address of --listen. Images are found by their address in the
task: /data/local-files/?d=... in --files; /data/... of Label Studio itself at --label-studio, with the token in
LABEL_STUDIO_API_KEY; data: in the task itself; and addresses that begin with a --fetch. No other is ever fetched.
"""

import base64
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree as ET

import httpx

from ..client import Client
from ..command import parser_of
from ..errors import ServerRefused, ServerUnreachable, TimedOut
from ..prediction import coco_results, parsed
from ..transport import DEFAULT_URL
from .label_studio import TAGS, regions_of
from .shapes import Picture, Results

MODULE = "client.annotation.backend"
TOKEN_OF_LABEL_STUDIO = "LABEL_STUDIO_API_KEY"
MOST_BYTES = 64_000_000
"""Of a request of Label Studio, and of an image."""
FETCH_SECONDS = 30.0
CONTROLS = {
    "BrushLabels": "brushlabels",
    "PolygonLabels": "polygonlabels",
    "RectangleLabels": "rectanglelabels",
}
"""Kinds of controls, the first that an interface has is what predictions are made as."""
ASKED_FOR = {"BrushLabels": "rle", "PolygonLabels": "polygon", "RectangleLabels": "none"}


@dataclass(frozen=True)
class Interface:
    """What of a labelling interface predictions need: one control on one image, and its labels by the model's names."""

    tag: str
    control: str
    image: str
    key: str
    labels: Mapping[str, str]


def interface_of(configuration: str) -> Interface:
    """Reads a labelling interface. Raises ValueError: it has no image, or no control that takes boxes or masks."""
    try:
        root = ET.fromstring(configuration)
    except ET.ParseError as error:
        raise ValueError(f"the labelling interface is no XML: {error}") from error
    images = {one.get("name", ""): one.get("value", "").lstrip("$") for one in root.iter("Image")}
    for tag in CONTROLS:
        for control in root.iter(tag):
            image = control.get("toName", "")
            if image in images:
                labels = {}
                for label in control.iter("Label"):
                    value = label.get("value", "")
                    for name in (label.get("predicted_values") or value).split(","):
                        labels[name.strip()] = value
                return Interface(tag, control.get("name", ""), image, images[image], labels)
    raise ValueError(
        f"the labelling interface needs an Image with one of {', '.join(CONTROLS)}; add one there"
    )


@dataclass(frozen=True, kw_only=True)
class Images:
    """Where the images of tasks are found, and who asks for them."""

    files: Path | None = None
    label_studio: str = ""
    token: str = ""
    fetch: tuple[str, ...] = ()

    def read(self, address: str) -> bytes:
        """The bytes of an image. Raises ValueError: the address is not among those that are allowed, or not there."""
        if address.startswith("data:"):
            return base64.b64decode(address.partition(",")[2])
        parts = urlsplit(address)
        local = parse_qs(parts.query).get("d", [""])[0]
        if local and parts.path.rstrip("/").endswith("/data/local-files"):
            return self._file(local)
        own = self.label_studio + address if address.startswith("/") else address
        if self.label_studio and own.startswith(self.label_studio + "/"):
            return self._fetched(own, {"Authorization": f"Token {self.token}"} if self.token else {})
        if any(address.startswith(prefix) for prefix in self.fetch):
            return self._fetched(address, {})
        if self.files is not None and not parts.scheme:
            return self._file(unquote(parts.path))
        raise ValueError(
            f"the image {address[:200]!r} is at no place that may be read; name one with --files, "
            "--label-studio or --fetch"
        )

    def _file(self, name: str) -> bytes:
        if self.files is None:
            raise ValueError(
                f"the image is the file {name[:200]!r}; name the folder of such files with --files"
            )
        root = self.files.resolve()
        path = (root / name.lstrip("/")).resolve()
        if not path.is_relative_to(root) or not path.is_file():
            raise ValueError(f"there is no file {name[:200]!r} in the folder of --files")
        return path.read_bytes()

    @staticmethod
    def _fetched(address: str, headers: Mapping[str, str]) -> bytes:
        try:
            with httpx.stream("GET", address, headers=dict(headers), timeout=FETCH_SECONDS) as answer:
                answer.raise_for_status()
                data = b""
                for part in answer.iter_bytes():
                    data += part
                    if len(data) > MOST_BYTES:
                        raise ValueError(f"the image {address[:200]!r} has more than {MOST_BYTES} bytes")
                return data
        except httpx.HTTPError as error:
            raise ValueError(f"the image {address[:200]!r} cannot be fetched: {error}") from error


@dataclass(frozen=True, kw_only=True)
class Backend:
    """Answers Label Studio's questions; may be shared by threads."""

    client: Client
    images: Images
    model_version: str = "maskx"
    score_threshold: str | None = None

    def setup(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """POST /setup, when a model is connected. Raises ValueError: the project's interface is not for this model."""
        interface_of(str(asked.get("schema") or asked.get("label_config") or ""))
        return {"model_version": self.model_version}

    def predict(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """POST /predict: a prediction for each task; for one that fails {"error"}, which Label Studio skips.

        Raises ValueError: the request cannot be understood, or every task fails.
        """
        tasks = asked.get("tasks")
        if not isinstance(tasks, list) or not all(isinstance(one, dict) for one in tasks):
            raise ValueError(f"tasks is {str(tasks)[:50]!r}; a list of tasks is expected")
        interface = interface_of(str(asked.get("label_config") or ""))
        results = [self._predicted(task, interface) for task in tasks]
        errors = [str(one["error"]) for one in results if "error" in one]
        for error in errors:
            print(f"error: {error}", file=sys.stderr)
        if errors and len(errors) == len(results):
            raise ValueError("; ".join(errors[:5]))
        return {"results": results, "model_version": self.model_version}

    def _predicted(self, task: Mapping[str, Any], interface: Interface) -> dict[str, Any]:
        name = f"task {task.get('id', '')}"
        try:
            address = task["data"][interface.key]
            if not isinstance(address, str):
                raise ValueError(f"its {interface.key} is no address")
            image = self.images.read(address)
            asked = {"score_threshold": self.score_threshold, "mask_format": ASKED_FOR[interface.tag]}
            answer = parsed(self.client.raw([image], asked))  # type: ignore[arg-type]
        except KeyError:
            return {
                "error": f"{name} has no data of the name {interface.key!r}, where the interface has its image"
            }
        except (ValueError, OSError, ServerRefused, ServerUnreachable, TimedOut) as error:
            return {"error": f"{name}: {error}"}
        known = [one for one in coco_results(answer, 0) if one["category"] in interface.labels]
        named = {number: interface.labels[one["category"]] for number, one in enumerate(known)}
        rows = [{**one, "category_id": number} for number, one in enumerate(known)]
        size = {"id": 0, "file_name": "", **answer["image"]}
        kind = "box" if interface.tag == "RectangleLabels" else "auto"
        (picture,) = Results([size], named, {0: rows}, kind).pictures()
        picture = Picture(**{**vars(picture), "image_id": task["id"] if type(task.get("id")) is int else 0})
        names = dict.fromkeys(TAGS, interface.control)
        kept = [
            one
            for one in regions_of(picture, names, interface.image)
            if one["type"] == CONTROLS[interface.tag]
        ]
        scores = [shape.score for shape in picture.shapes]
        score = round(sum(scores) / len(scores), 6) if scores else 0.0
        return {"result": kept, "score": score, "model_version": self.model_version}


def handler_of(backend: Backend) -> type[BaseHTTPRequestHandler]:
    """The HTTP side: GET / and /health, POST /setup, /predict, /webhook and /validate."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 60

        def do_GET(self) -> None:
            if urlsplit(self.path).path in ("/", "/health"):
                self._answer(200, {"status": "UP", "model_class": backend.model_version})
            elif urlsplit(self.path).path == "/versions":
                self._answer(200, {"versions": [backend.model_version], "message": ""})
            else:
                self._answer(404, {"error": f"there is no {self.path[:100]}"})

        def do_POST(self) -> None:
            path = urlsplit(self.path).path.rstrip("/")
            try:
                length = int(self.headers.get("Content-Length") or 0)
                if not 0 <= length <= MOST_BYTES:
                    raise ValueError(f"a request of {length} bytes; at most {MOST_BYTES} are read")
                body = self.rfile.read(length)
                if path in (
                    "/webhook",
                    "/train",
                ):  # people's work comes back by an export, see `convert --from`
                    self._answer(201, {"status": "ok", "result": {}})
                    return
                asked = json.loads(body)
                if not isinstance(asked, dict):
                    raise ValueError("the body is no JSON object")
                does = {"/setup": backend.setup, "/predict": backend.predict}.get(path)
                if does is None:
                    self._answer(404, {"error": f"there is no {path[:100]}"})
                else:
                    self._answer(200, does(asked))
            except (ValueError, RecursionError) as error:
                self._answer(400, {"error": str(error)})

        def _answer(self, status: int, content: Mapping[str, Any]) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            if status == 400:  # what was not read of a body would be taken for the next request
                self.send_header("Connection", "close")
                self.close_connection = True
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: Any) -> None:
            """Nothing: errors are told, requests are not."""

    return Handler


def main(arguments: Sequence[str] | None = None, *, prog: str = f"python -m {MODULE}") -> int:
    """Command line under the name `prog`; returns the exit status: 0 ended by Ctrl-C, 2 it could not be done."""
    parser = parser_of(__doc__, MODULE, prog)
    add = parser.add_argument
    add(
        "--url",
        default=DEFAULT_URL,
        help="the maskx server, as python -m client has it (default: %(default)s)",
    )
    add(
        "--listen",
        default="127.0.0.1:9090",
        metavar="HOST:PORT",
        help="for Label Studio (default: %(default)s)",
    )
    add("--files", type=Path, metavar="FOLDER", help="Label Studio's local files: its document root")
    add(
        "--label-studio",
        default="",
        metavar="URL",
        help=f"Label Studio itself; its token is ${TOKEN_OF_LABEL_STUDIO}",
    )
    add(
        "--fetch",
        action="append",
        default=[],
        metavar="PREFIX",
        help="addresses of images that begin so may be fetched",
    )
    add("--score-threshold", metavar="0..1", help="leaves out detections of a lower score")
    add("--model-version", default="maskx", help="whose predictions they are (default: %(default)s)")
    options = parser.parse_args(arguments)
    host, colon, port = options.listen.rpartition(":")
    try:
        if not colon or not port.isdigit():
            raise ValueError(f"--listen is {options.listen!r}; HOST:PORT is expected, such as 127.0.0.1:9090")
        if options.files is not None and not options.files.is_dir():
            raise ValueError(f"--files is {options.files}, which is no folder")
        images = Images(
            files=options.files,
            label_studio=options.label_studio.rstrip("/"),
            token=os.environ.get(TOKEN_OF_LABEL_STUDIO, ""),
            fetch=tuple(options.fetch),
        )
        with Client(options.url) as client:
            wished = {"model_version": options.model_version, "score_threshold": options.score_threshold}
            backend = Backend(client=client, images=images, **wished)
            with ThreadingHTTPServer((host, int(port)), handler_of(backend)) as server:
                print(f"Label Studio: connect the model http://{host}:{server.server_port}", flush=True)
                server.serve_forever()
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
