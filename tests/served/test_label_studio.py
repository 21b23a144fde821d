"""The model backend for Label Studio before the real server: a task's image in, regions of its masks out."""

import http.server
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from client import Client
from client.annotation.backend import Backend, Images, handler_of
from tests.served.machine import Machine
from tests.served.standin import png, scene

pytestmark = pytest.mark.engines("torchserve", "light")

INTERFACE = (
    '<View><Image name="picture" value="$photo"/><{tag} name="marks" toName="picture">'
    '<Label value="Red thing" predicted_values="red"/><Label value="bleu \u00e9"/></{tag}></View>'
)


def predicted(server: Machine, folder: Path, tag: str) -> list[dict[str, Any]]:
    """The regions that Label Studio is sent for one task."""
    asked = {
        "tasks": [{"id": 5, "data": {"photo": "/data/local-files/?d=a.png"}}],
        "label_config": INTERFACE.format(tag=tag),
    }
    with Client(f"http://127.0.0.1:{server.ports.inference}") as client:
        made = Backend(client=client, images=Images(files=folder))
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler_of(made)) as backend:
            threading.Thread(target=backend.serve_forever, daemon=True).start()
            reply = httpx.post(f"http://127.0.0.1:{backend.server_port}/predict", json=asked, timeout=60)
            backend.shutdown()
    assert reply.status_code == 200, reply.text
    (prediction,) = reply.json()["results"]
    regions: list[dict[str, Any]] = prediction["result"]
    return regions


@pytest.mark.parametrize("tag", ["BrushLabels", "PolygonLabels", "RectangleLabels"])
def test_label_studio_has_a_region_of_each_object_whose_category_it_knows(
    server: Machine, tmp_path: Path, tag: str
) -> None:
    picture = scene(width=50, height=40, red=(5, 4, 20, 16), green=(30, 2, 8, 8), blue=(30, 20, 10, 10))
    (tmp_path / "a.png").write_bytes(png(picture))
    regions = predicted(server, tmp_path, tag)
    kind = tag.lower()
    assert sorted(one["value"][kind][0] for one in regions) == ["Red thing", "bleu \u00e9"]  # no green
    assert {(one["type"], one["original_width"], one["original_height"]) for one in regions} == {
        (kind, 50, 40)
    }
    red = next(one["value"] for one in regions if one["value"][kind] == ["Red thing"])
    if tag == "RectangleLabels":
        assert [red[name] for name in ("x", "y", "width", "height")] == [10, 10, 40, 40]
    elif tag == "PolygonLabels":
        assert {(min(axis), max(axis)) for axis in zip(*red["points"], strict=True)} == {(10, 50)}
    else:
        assert red["format"] == "rle" and len(red["rle"]) > 8
