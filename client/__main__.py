"""Sends an image to the server, prints what it detected, and draws it.

python -m client photo.jpg --out overlay.png
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

from client.draw import draw_detections
from client.errors import ServerRefused, ServerUnreachable
from client.rest import DEFAULT_URL, RestClient


def table(answer: Mapping[str, Any]) -> str:
    """The detections of an answer as aligned columns, a line each, and what they are about."""
    image, model = answer["image"], answer["model"]
    about = (
        f"{len(answer['detections'])} detections in {image['width']} x {image['height']} pixels, by {model['name']} "
        f"{model['version']}"
    )
    head = ("category", "score", "x", "y", "width", "height", "area", "mask")
    rows = [head]
    for one in answer["detections"]:
        box = [f"{value:.1f}" for value in one["bbox"]]
        learned = "supervised" if one["mask_supervised"] else "transferred*"
        rows.append((one["category"], f"{one['score']:.3f}", *box, str(one["area"]), learned))
    if len(rows) == 1:
        return about
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    left = (0, len(head) - 1)
    lines = [
        "  ".join(
            text.ljust(width) if column in left else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    if any(not one["mask_supervised"] for one in answer["detections"]):
        lines.append("* the class never had a mask in training")
    return "\n".join([*lines, about])


def opened(data: bytes) -> Image.Image:
    """The image as it is drawn on: upright, 8 bits; raises ValueError where this machine cannot read it."""
    try:
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        if image.mode.startswith("I"):  # 16 bits, which Pillow would cut off rather than scale
            image = image.point(lambda value: value / 257).convert("L")
        return image.convert("RGB")
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise ValueError(
            f"the overlay cannot be drawn, for the image cannot be read here: {error}"
        ) from error


def predict(options: argparse.Namespace, data: bytes) -> bytes:
    """The answer's body, over the protocol that was asked for."""
    wishes = {"score_threshold": options.score_threshold, "max_detections": options.max_detections}
    parameters = {name: value for name, value in wishes.items() if value is not None}
    if options.grpc is None:
        client = RestClient(options.url, model=options.model, token=options.token, timeout=options.timeout)
        return client.predict(data, parameters)
    # only who asks for gRPC needs its packages and the generated code
    from client.grpc_client import GrpcClient

    with GrpcClient(
        options.grpc, model=options.model, token=options.token, timeout=options.timeout
    ) as remote:
        return remote.predict(data, parameters)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status: 0 answered, 1 refused by the server, 2 not asked or not reached."""
    parser = argparse.ArgumentParser(prog="python -m client", description=__doc__.split("\n")[0])
    parser.add_argument("image", type=Path, help="JPEG, PNG, WebP, TIFF, BMP, GIF, ...")
    parser.add_argument("--out", type=Path, help="writes the image with the detections drawn on it")
    parser.add_argument(
        "--json", action="store_true", help="prints the answer as it came, in place of the table"
    )
    parser.add_argument("--url", default=DEFAULT_URL, help="the server's REST address (default: %(default)s)")
    parser.add_argument(
        "--grpc", metavar="HOST:PORT", help="asks over gRPC, at this address (make serve: 127.0.0.1:7070)"
    )
    parser.add_argument("--score-threshold", metavar="0..1", help="leaves out detections of a lower score")
    parser.add_argument("--max-detections", metavar="N", help="at most so many, the best first")
    parser.add_argument(
        "--model", default="maskx", help="the model's name on the server (default: %(default)s)"
    )
    parser.add_argument("--token", default="", help="for a server that asks for one")
    parser.add_argument(
        "--timeout", type=float, default=120.0, help="seconds an answer may take (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    if not options.image.is_file():
        print(f"error: there is no file {options.image}", file=sys.stderr)
        return 2
    try:
        data = options.image.read_bytes()
        body = predict(options, data)
        answer = json.loads(body)
        print(body.decode() if options.json else table(answer))
        if options.out is not None:
            drawn = draw_detections(opened(data), answer["detections"], legend=True)
            drawn.save(options.out)
            print(f"drawn: {options.out}", file=sys.stderr if options.json else sys.stdout)
    except ServerRefused as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (ServerUnreachable, ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
