"""Sends images to the server: one becomes a table and an overlay, many become COCO results.

python -m client photo.jpg --overlay overlay.png
python -m client photos/ --coco results.json --overlays drawn/
"""

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from maskx_image import FORMATS

from .client import AsyncClient, Client, Connection, Parameters
from .command import parser_of
from .errors import ServerRefused, ServerUnreachable, TimedOut
from .images import upright
from .many.batch import Outcome, run
from .many.coco import images_list_of, write_coco
from .many.files import ImageFile, find_images, identified, image_ids, numbered
from .many.journal import Journal
from .prediction import parsed, prediction_of, table
from .retry import Retries
from .transport import DEFAULT_URL, TOKEN_VARIABLE

INTERRUPTED = 130
UNREAD = 141
FAILED_SHOWN = 20
IDS_ALONE = "--images gives the ids of --coco; name a file for the results: --coco results.json"


def main(arguments: Sequence[str] | None = None, *, prog: str = "python -m client") -> int:
    """Command line under the name `prog`; returns the exit status.

    0 all answered, 1 refused (one file or more), 2 not asked or not reached, 130 interrupted; the same command then
    goes on. 141 where whoever read the output went away before its end, as `| head` does.
    """
    options = _parser(prog).parse_args(arguments)
    try:
        found = find_images(options.images_or_folders)
        many = options.coco is not None or options.overlays is not None
        status = _many(options, found) if many else _each(options, found)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return UNREAD
    except ServerRefused as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (ServerUnreachable, TimedOut, ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; with --coco or --overlays the same command goes on", file=sys.stderr)
        return INTERRUPTED


def _each(options: argparse.Namespace, found: Sequence[tuple[Path, str]]) -> int:
    """One image after the other: a table, or a line of JSON; the overlay of a single one."""
    if options.images is not None:
        raise ValueError(IDS_ALONE)
    if len(found) > 1 and options.overlay is not None:
        raise ValueError(f"--overlay is for one image, {len(found)} were given; take --overlays FOLDER")
    if len(found) > 1 and not options.json:
        raise ValueError(
            f"{len(found)} images were given; say what to make of them: --coco results.json, --overlays FOLDER or "
            "--json"
        )
    parameters = _parameters(options)
    status = 0
    with Client(_url(options), **_connection(options, attempts=4)) as client:
        for path, name in found:
            try:
                data = path.read_bytes()
                body = client.raw([data], parameters)
                content = parsed(body)
                prediction = prediction_of(content, content.get("model", {}))
            except ServerRefused as error:
                if len(found) == 1:
                    raise
                print(f"error: {name}: {error}", file=sys.stderr)
                status = 1
                continue
            if not options.json:
                print(table(prediction))
            elif len(found) == 1:
                print(body.decode())
            else:
                print(json.dumps({"file_name": name, **content}, separators=(",", ":")))
            if options.overlay is not None:
                prediction.overlay(upright(data)).save(options.overlay)
                print(f"drawn: {options.overlay}", file=sys.stderr if options.json else sys.stdout)
    return status


def _many(options: argparse.Namespace, found: Sequence[tuple[Path, str]]) -> int:
    """Files and folders -> COCO results, overlays, or both."""
    if options.json or options.overlay is not None:
        raise ValueError("--coco and --overlays are for many images, --overlay and --json for looking at one")
    if options.images is not None and options.coco is None:
        raise ValueError(IDS_ALONE)
    if options.coco is not None and options.mask_format == "png":
        raise ValueError("COCO knows no masks as PNG; with --coco the mask format is rle, polygon or none")
    images = numbered(found)
    if options.images is not None:
        images = identified(found, image_ids(options.images), options.images)
    parameters = _parameters(options)
    output: Path = options.coco or options.overlays
    output.parent.mkdir(parents=True, exist_ok=True)
    asked = {"model": options.model, "version": options.version, "parameters": parameters}
    with Journal(output.with_name(output.name + ".journal"), asked) as journal:

        async def ask() -> Outcome:
            connection = _connection(options, attempts=Retries().attempts)
            wanted = {"jobs": options.jobs, "overlays": options.overlays}
            async with AsyncClient(_url(options), **connection) as client:
                return await run(client, images, parameters, journal, **wanted)

        outcome = asyncio.run(ask())
        before = f", {outcome.kept} of them in an earlier run" if outcome.kept else ""
        print(f"{outcome.answered + outcome.kept} of {len(images)} images answered{before}")
        if outcome.stopped is not None:
            print(f"error: {outcome.stopped}", file=sys.stderr)
            print(f"the answers are kept in {journal.path}; the same command goes on", file=sys.stderr)
            return 2
        status = _finish(options, images, journal, outcome.failed)
    if status == 0:
        journal.path.unlink()
    return status


def _finish(
    options: argparse.Namespace, images: list[ImageFile], journal: Journal, failed: dict[str, str]
) -> int:
    if options.coco is not None:
        detections = write_coco(options.coco, journal.answers(images))
        print(f"written: {options.coco} ({detections} detections) and {images_list_of(options.coco)}")
    if options.overlays is not None:
        print(f"drawn: {options.overlays}")
    if not failed:
        return 0
    print(f"{len(failed)} failed; the same command tries them again:", file=sys.stderr)
    for name, reason in sorted(failed.items())[:FAILED_SHOWN]:
        print(f"  {name}: {reason}", file=sys.stderr)
    if len(failed) > FAILED_SHOWN:
        print(f"  and {len(failed) - FAILED_SHOWN} more", file=sys.stderr)
    return 1


def _url(options: argparse.Namespace) -> str:
    return f"grpc://{options.grpc}" if options.grpc is not None else str(options.url)


def _connection(options: argparse.Namespace, *, attempts: int) -> Connection:
    """How the server is asked. A single image is not asked for as long as one of many, for somebody is waiting."""
    return {
        "model": options.model,
        "version": options.version,
        "token": options.token,
        "ca": options.ca,
        "timeout": options.timeout,
        "deadline": options.deadline,
        "retries": Retries(attempts=attempts if options.retries is None else options.retries + 1),
    }


def _parameters(options: argparse.Namespace) -> Parameters:
    return {
        "score_threshold": options.score_threshold,
        "max_detections": options.max_detections,
        "categories": options.categories,
        "mask_format": options.mask_format,
        "tiles": options.tiles,
    }


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = parser_of(__doc__, "client", prog)
    told = f"{', '.join(FORMATS)}; a folder, with all below; or a pattern, 'photos/*.jpg'"
    parser.add_argument("images_or_folders", nargs="+", metavar="IMAGE", help=told)
    add = parser.add_argument_group("what comes out").add_argument
    add("--overlay", "--out", type=Path, metavar="PNG", help="the image with the detections drawn on it")
    add("--json", action="store_true", help="the answer as it came; a line for each of several")
    add("--coco", type=Path, metavar="FILE", help="COCO results of all images, and their list beside")
    add("--images", type=Path, metavar="FILE", help="a COCO file whose ids --coco takes, by file name")
    add("--overlays", type=Path, metavar="FOLDER", help="an overlay of every image")
    add = parser.add_argument_group("what is asked for (else the server's defaults)").add_argument
    add("--score-threshold", metavar="0..1", help="leaves out detections of a lower score")
    add("--max-detections", metavar="N", help="at most so many, the best first")
    add("--categories", metavar="NAMES", help="only these; names or ids with commas between")
    add("--mask-format", choices=("rle", "polygon", "png", "none"), help="form of the masks")
    add("--tiles", metavar="SIDE[,OVERLAP]", help="looks at a large image in tiles of so many pixels")
    add = parser.add_argument_group("whom is asked").add_argument
    add(
        "--url", default=DEFAULT_URL, help="http(s)://host:port or grpc(s)://host:port (default: %(default)s)"
    )
    add("--grpc", metavar="HOST:PORT", help="short for --url grpc://HOST:PORT (127.0.0.1:7070)")
    add("--model", default="maskx", help="the model's name on the server (default: %(default)s)")
    add("--version", default="", help="the model's version (default: the server's)")
    add("--token", help=f"for a server that asks for one (default: ${TOKEN_VARIABLE})")
    add("--ca", type=Path, metavar="PEM", help="authority of the server's certificate")
    add("--timeout", type=float, default=120.0, help="seconds of an attempt (default: %(default)s)")
    told = "seconds of all attempts at an image (default: %(default)s)"
    add("--deadline", type=float, default=300.0, help=told)
    add("--retries", type=int, metavar="N", help="further attempts (default: 3; 9 for many images)")
    add("--jobs", type=_jobs, default=4, metavar="N", help="requests at a time (default: %(default)s)")
    return parser


def _jobs(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 256):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 256")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
