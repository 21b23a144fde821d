"""COCO results for annotation tools (CVAT's XML 1.1, Label Studio's tasks with predictions), and corrected ones back.

python -m client.convert results.json --to cvat --out annotations.xml
python -m client.convert results.json --to labelstudio --out tasks.json --url-prefix '/data/local-files/?d='
python -m client.convert annotations.xml --from cvat --out corrected.json --images train.json
python -m client.convert export.json --from labelstudio --out corrected.json --url-prefix '/data/local-files/?d='
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ..command import parser_of
from .coco_set import write_coco_set
from .corrected import read_cvat, read_label_studio
from .cvat import write_cvat
from .label_studio import unserved, write_label_studio
from .shapes import KINDS, read_results

TOOLS = ("cvat", "labelstudio")
MODULE = "client.convert"


def main(arguments: Sequence[str] | None = None, *, prog: str = f"python -m {MODULE}") -> int:
    """Command line under the name `prog`; returns the exit status: 0 written, 2 not."""
    parser = parser_of(__doc__, MODULE, prog)
    told = "COCO results, as python -m client --coco writes them; with --from the tool's export"
    parser.add_argument("results", type=Path, metavar="FILE", help=told)
    way = parser.add_mutually_exclusive_group(required=True)
    way.add_argument("--to", choices=TOOLS)
    told = "'CVAT for images 1.1' or Label Studio's JSON -> COCO annotations for training"
    way.add_argument("--from", dest="source", choices=TOOLS, help=told)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    told = "a COCO file with images and categories (default: the list beside); with --from one whose ids are taken"
    parser.add_argument("--images", type=Path, metavar="FILE", help=told)
    told = "auto: masks as masks, polygons as polygons, else boxes; mask: polygons as masks too; box (default: auto)"
    parser.add_argument("--shapes", choices=KINDS, default="auto", help=told)
    parser.add_argument("--min-score", type=float, default=0.0, help="leaves out what is below (default: 0)")
    parser.add_argument("--url-prefix", default="", help="Label Studio: what comes before the file names")
    parser.add_argument("--model-version", default="maskx", help="Label Studio: whose predictions they are")
    options = parser.parse_args(arguments)
    try:
        if options.source is not None:
            print(_back(options))
            return 0
        of = {"kind": options.shapes, "min_score": options.min_score}
        results = read_results(options.results, options.images, **of)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        beside = ""
        if options.to == "cvat":
            write_cvat(results, options.out)
        else:
            told_there = {"url_prefix": options.url_prefix, "model_version": options.model_version}
            configuration = write_label_studio(results, options.out, **told_there)
            beside = f" and {configuration} (the labelling interface)"
            if doubt := unserved(results, options.url_prefix):
                print(f"warning: {doubt}", file=sys.stderr)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    objects = sum(len(found) for found in results.by_image.values())
    print(f"written: {options.out} ({objects} objects in {len(results.images)} images){beside}")
    return 0


def _back(options: argparse.Namespace) -> str:
    """Reads the tool's export and writes COCO annotations; returns what to say of it."""
    cvat = options.source == "cvat"
    corrected = read_cvat(options.results) if cvat else read_label_studio(options.results, options.url_prefix)
    if not corrected.images:
        raise ValueError(f"{options.results} has no annotated image{_told(corrected.left_out)}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    objects = write_coco_set(corrected, options.out, options.images)
    return f"written: {options.out} ({objects} objects in {len(corrected.images)} images){_told(corrected.left_out)}"


def _told(left_out: Counter[str]) -> str:
    found = ", ".join(f"{count} {what}" for what, count in left_out.items() if count)
    return f"; left out: {found}" if found else ""


if __name__ == "__main__":
    sys.exit(main())
