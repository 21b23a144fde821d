"""COCO results for annotation tools: CVAT's XML 1.1, or Label Studio's tasks with predictions.

python -m client.annotation.convert results.json --to cvat --out annotations.xml
python -m client.annotation.convert results.json --to labelstudio --out tasks.json --url-prefix '/data/local-files/?d='
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from ..command import parser_of
from .cvat import write_cvat
from .label_studio import write_label_studio
from .shapes import KINDS, read_results

MODULE = "client.annotation.convert"


def main(arguments: Sequence[str] | None = None, *, prog: str = f"python -m {MODULE}") -> int:
    """Command line under the name `prog`; returns the exit status: 0 written, 2 not."""
    parser = parser_of(__doc__, MODULE, prog)
    parser.add_argument("results", type=Path, help="COCO results, as python -m client --coco writes them")
    parser.add_argument("--to", choices=("cvat", "labelstudio"), required=True)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    told = "a COCO file with images and categories (default: the list beside)"
    parser.add_argument("--images", type=Path, metavar="FILE", help=told)
    told = "auto: masks as masks, polygons as polygons, else boxes; mask: polygons as masks too; box (default: auto)"
    parser.add_argument("--shapes", choices=KINDS, default="auto", help=told)
    parser.add_argument("--min-score", type=float, default=0.0, help="leaves out what is below (default: 0)")
    parser.add_argument("--url-prefix", default="", help="Label Studio: what comes before the file names")
    parser.add_argument("--model-version", default="maskx", help="Label Studio: whose predictions they are")
    options = parser.parse_args(arguments)
    try:
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
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    objects = sum(len(found) for found in results.by_image.values())
    print(f"written: {options.out} ({objects} objects in {len(results.images)} images){beside}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
