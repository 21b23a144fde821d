"""COCO results for annotation tools: CVAT's XML 1.1, or Label Studio's tasks with predictions.

python -m client.annotation.convert results.json --to cvat --out annotations.xml
python -m client.annotation.convert results.json --to labelstudio --out tasks.json --url-prefix '/data/local-files/?d='
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from .cvat import write_cvat
from .label_studio import write_label_studio
from .shapes import KINDS, read_results

PROG = "python -m client.annotation.convert"


def main(arguments: Sequence[str] | None = None, *, prog: str = PROG) -> int:
    """Command line under the name `prog`; returns the exit status: 0 written, 2 not."""
    first, *examples = (__doc__ or "").replace(PROG, prog).split("\n")
    parser = argparse.ArgumentParser(
        prog=prog,
        description=first,
        epilog="\n".join(examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("results", type=Path, help="COCO results, as python -m client --coco writes them")
    parser.add_argument("--to", choices=("cvat", "labelstudio"), required=True)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    parser.add_argument(
        "--images",
        type=Path,
        metavar="FILE",
        help="a COCO file with images and categories (default: the list beside)",
    )
    parser.add_argument(
        "--shapes",
        choices=KINDS,
        default="auto",
        help="auto: masks as masks, polygons as polygons, else boxes; mask: polygons as masks too; box (default: auto)",
    )
    parser.add_argument("--min-score", type=float, default=0.0, help="leaves out what is below (default: 0)")
    parser.add_argument("--url-prefix", default="", help="Label Studio: what comes before the file names")
    parser.add_argument("--model-version", default="maskx", help="Label Studio: whose predictions they are")
    options = parser.parse_args(arguments)
    try:
        results = read_results(
            options.results, options.images, kind=options.shapes, min_score=options.min_score
        )
        options.out.parent.mkdir(parents=True, exist_ok=True)
        beside = ""
        if options.to == "cvat":
            write_cvat(results, options.out)
        else:
            configuration = write_label_studio(
                results, options.out, url_prefix=options.url_prefix, model_version=options.model_version
            )
            beside = f" and {configuration} (the labelling interface)"
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    objects = sum(len(found) for found in results.by_image.values())
    print(f"written: {options.out} ({objects} objects in {len(results.images)} images){beside}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
