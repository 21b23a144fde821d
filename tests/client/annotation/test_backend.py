"""The model backend for Label Studio, asked over HTTP with the bodies that Label Studio's server sends."""

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from client.annotation import backend
from client.annotation.backend import Backend, Images, handler_of, interface_of
from client.errors import ServerUnreachable
from maskx_draw import mask_window

ANSWER = {
    "model": {"name": "maskx", "version": "1.0"},
    "image": {"height": 20, "width": 40},
    "detections": [
        {
            "category_id": 1,
            "category": "cat",
            "bbox": [4, 2, 12, 10],
            "score": 0.9,
            "area": 9,
            "mask_supervised": True,
        },
        {
            "category_id": 2,
            "category": "dog",
            "bbox": [20, 2, 8, 10],
            "score": 0.7,
            "area": 9,
            "mask_supervised": False,
        },
        {
            "category_id": 3,
            "category": "eel",
            "bbox": [0, 0, 40, 20],
            "score": 0.6,
            "area": 9,
            "mask_supervised": False,
        },
    ],
}
POLYGON = [[4.0, 2.0, 16.0, 2.0, 16.0, 12.0], [4.0, 14.0, 8.0, 14.0, 8.0, 18.0]]


class Fake:
    """A client that answers in the form that is asked for, as maskx does."""

    asked: list[tuple[bytes, dict[str, Any]]]

    def __init__(self) -> None:
        self.asked = []

    def raw(self, images: list[bytes], parameters: dict[str, Any]) -> bytes:
        (image,) = images
        self.asked.append((image, parameters))
        if image == b"unreachable":
            raise ServerUnreachable("nobody answers at this address")
        content = json.loads(json.dumps(ANSWER))
        forms = {"rle": full_mask(), "polygon": POLYGON}
        for one in content["detections"]:
            if parameters["mask_format"] != "none":
                one["segmentation"] = forms[parameters["mask_format"]]
        return json.dumps(content).encode()


def full_mask() -> dict[str, Any]:
    """All of the image, as COCO's compressed run lengths of one run of 0 and one of 800."""
    return {"size": [20, 40], "counts": "0Pi0"}


def config(
    *tags: str, labels: str = '<Label value="Cat" predicted_values="cat,lion"/><Label value="dog"/>'
) -> str:
    controls = "".join(f'<{tag} name="{tag.lower()}" toName="picture">{labels}</{tag}>' for tag in tags)
    return (
        f'<View><Image name="picture" value="$photo"/>{controls}<Choices name="c" toName="picture"/></View>'
    )


@contextmanager
def served(images: Images, fake: Fake) -> Iterator[str]:
    made = Backend(client=fake, images=images, model_version="m-1", score_threshold="0.25")  # type: ignore[arg-type]
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler_of(made)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def fake() -> Fake:
    return Fake()


@pytest.fixture
def url(tmp_path: Path, fake: Fake) -> Iterator[str]:
    (tmp_path / "a b.jpg").write_bytes(b"an image")
    (tmp_path / "down.jpg").write_bytes(b"unreachable")
    with served(Images(files=tmp_path), fake) as address:
        yield address


def body(*addresses: str, label_config: str) -> dict[str, Any]:
    """As label_studio/ml/api_connector.py makes it for /predict."""
    return {
        "tasks": [
            {"id": 10 + n, "data": {"photo": one}, "annotations": [], "predictions": []}
            for n, one in enumerate(addresses)
        ],
        "model_version": "m-1",
        "project": "3.1764000000",
        "label_config": label_config,
        "params": {"login": None, "password": None, "context": None},
    }


OF_ANOTHER_NAME = config("BrushLabels").replace("$photo", "$x")
LOCAL = "/data/local-files/?d=a%20b.jpg"


def test_health_and_setup_say_which_model_this_is(url: str) -> None:
    for path in ("/", "/health"):
        assert httpx.get(url + path).json() == {"status": "UP", "model_class": "m-1"}
    asked = {"project": "3.17", "schema": config("BrushLabels"), "hostname": "http://x", "access_token": "t"}
    reply = httpx.post(f"{url}/setup", json={**asked, "extra_params": None})
    assert (reply.status_code, reply.json()) == (200, {"model_version": "m-1"})
    assert httpx.post(f"{url}/webhook", json={"action": "ANNOTATION_CREATED"}).status_code == 201
    assert httpx.get(f"{url}/nothing").status_code == 404
    assert httpx.post(f"{url}/nothing", json={}).status_code == 404


@pytest.mark.parametrize(
    ("tags", "kind", "asked"),
    [
        (["BrushLabels"], "brushlabels", "rle"),
        (["PolygonLabels"], "polygonlabels", "polygon"),
        (["RectangleLabels"], "rectanglelabels", "none"),
        (["RectangleLabels", "PolygonLabels"], "polygonlabels", "polygon"),
    ],
)
def test_predictions_fit_the_projects_interface(
    url: str, fake: Fake, tags: list[str], kind: str, asked: str
) -> None:
    reply = httpx.post(f"{url}/predict", json=body(LOCAL, label_config=config(*tags)))
    assert reply.status_code == 200 and fake.asked == [
        (b"an image", {"score_threshold": "0.25", "mask_format": asked})
    ]
    (prediction,) = reply.json()["results"]
    assert (prediction["model_version"], prediction["score"]) == ("m-1", 0.8)
    regions = prediction["result"]
    assert {one["type"] for one in regions} == {kind}
    assert {(one["from_name"], one["to_name"]) for one in regions} == {(kind, "picture")}
    labels = [one["value"][kind][0] for one in regions]
    assert labels == (["Cat", "Cat", "dog", "dog"] if kind == "polygonlabels" else ["Cat", "dog"])  # no eel
    assert len({one["id"] for one in regions}) == len(regions)
    assert {(one["original_width"], one["original_height"]) for one in regions} == {(40, 20)}
    if kind == "rectanglelabels":
        sides = {name: regions[0]["value"][name] for name in ("x", "y", "width", "height")}
        assert sides == {"x": 10, "y": 10, "width": 30, "height": 50}


def test_a_task_that_fails_is_skipped_and_told_and_costs_the_others_nothing(url: str, capfd: Any) -> None:
    addresses = [
        LOCAL,
        "/data/local-files/?d=none.jpg",
        "http://elsewhere/a.jpg",
        "/data/local-files/?d=down.jpg",
    ]
    reply = httpx.post(f"{url}/predict", json=body(*addresses, label_config=config("BrushLabels")))
    good, missing, elsewhere, down = reply.json()["results"]
    assert len(good["result"]) == 2 and not any("result" in one for one in (missing, elsewhere, down))
    assert "task 11: there is no file 'none.jpg'" in missing["error"]
    assert "at no place that may be read" in elsewhere["error"] and "nobody answers" in down["error"]
    assert capfd.readouterr().err.count("error: task") == 3


@pytest.mark.parametrize("name", ["../secret.jpg", "/etc/passwd", "..%2Fsecret.jpg", "link.jpg"])
def test_no_file_outside_the_folder_is_read(tmp_path: Path, fake: Fake, name: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    (root / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    with served(Images(files=root), fake) as url:
        for address in (f"/data/local-files/?d={name}", name):
            reply = httpx.post(f"{url}/predict", json=body(address, label_config=config("BrushLabels")))
            assert reply.status_code == 400 and "there is no file" in reply.json()["error"]
    assert fake.asked == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "Expecting"),
        (b"[]", "no JSON object"),
        (json.dumps({"tasks": 3}).encode(), "tasks is '3'; a list"),
        (json.dumps(body(LOCAL, label_config="<View>")).encode(), "is no XML"),
        (json.dumps(body(LOCAL, label_config=config())).encode(), "needs an Image with one of BrushLabels"),
        (
            json.dumps(body(LOCAL, label_config=config("BrushLabels").replace("$photo", "$x"))).encode(),
            "no data of the name 'x'",
        ),
    ],
)
def test_what_cannot_be_understood_is_refused_with_the_reason(url: str, content: bytes, words: str) -> None:
    reply = httpx.post(f"{url}/predict", content=content)
    assert reply.status_code == 400 and words in reply.json()["error"]


def test_images_of_label_studio_are_fetched_with_its_token_and_of_other_places_without(fake: Fake) -> None:
    seen: list[tuple[str, str | None]] = []

    class Site(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append((self.path, self.headers.get("Authorization")))
            self.send_response(404 if "none" in self.path else 200)
            self.end_headers()
            self.wfile.write(b"from the site")

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site) as site:
        threading.Thread(target=site.serve_forever, daemon=True).start()
        own, other = f"http://127.0.0.1:{site.server_port}", f"http://localhost:{site.server_port}/photos/"
        images = Images(label_studio=own, token="key", fetch=(other,))
        assert images.read("/data/upload/3/a.jpg") == images.read(f"{own}/b.jpg") == b"from the site"
        assert images.read(f"{other}c.jpg") == b"from the site"
        assert images.read("data:image/png;base64,aGk=") == b"hi"
        with pytest.raises(ValueError, match="cannot be fetched: .*404"):
            images.read("/data/none.jpg")
        with pytest.raises(ValueError, match="at no place that may be read"):
            images.read(f"http://localhost:{site.server_port}/other/c.jpg")
        site.shutdown()
    with_token = [path for path, token in seen if token == "Token key"]
    assert with_token == ["/data/upload/3/a.jpg", "/b.jpg", "/data/none.jpg"]
    assert ("/photos/c.jpg", None) in seen and len(seen) == 4


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in (
        (["--listen", "9090"], "--listen is '9090'; HOST:PORT"),
        (["--files", str(tmp_path / "none")], "which is no folder"),
    ):
        assert backend.main(arguments) == 2
        assert words in capsys.readouterr().err


def test_the_mask_of_this_test_is_what_it_says() -> None:
    window = mask_window(full_mask(), height=20, width=40)
    assert window is not None and window.pixels.all() and window.pixels.shape == (20, 40)
    assert interface_of(config("BrushLabels")).labels == {"cat": "Cat", "lion": "Cat", "dog": "dog"}
