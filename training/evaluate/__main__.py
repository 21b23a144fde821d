"""`python -m training.evaluate`: how well a checkpoint detects and segments.

`python -m training.evaluate --checkpoint build/train/checkpoint.pt --images ... --annotations ... --out
build/evaluation` prints tables and writes `results.json`, `per_class.csv`, `ap_over_iou.png` and `sheet.png`.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import get_args

import torch

from model.checkpoint import load_network
from model.config import model_config_from_dict
from model.dataclass_io import require_at_least, to_plain
from model.files import command, exit_status
from training.data.sides import sides
from training.data.splits import judged_classes
from training.data.tools import Reading
from training.distributed import FailedElsewhere, Group, chosen_device, process_group
from training.evaluate.boundary import require_boundary
from training.evaluate.cityscapes import require_void
from training.evaluate.measure import judge
from training.evaluate.plot import write_plot
from training.evaluate.predictions import (
    SCORE_THRESHOLD,
    Evaluable,
    Precision,
    Predictions,
    predict,
    predict_together,
    require_images,
    usual_detections,
)
from training.evaluate.report import table, write_csv
from training.evaluate.sheet import write_sheet
from training.evaluate.truth import GroundTruth, load_ground_truth
from training.evaluate.views import Views, add_view_options, views_of


def main(arguments: list[str] | None = None) -> int:
    """The command line; 0 where the evaluation could be made."""
    parser = command("training.evaluate", __doc__)
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, help="what training.train wrote")
    add("--images", type=Path, help="folder of images (default: the checkpoint's validation set)")
    add("--annotations", type=Path, help="their COCO file (default: the checkpoint's validation set)")
    add("--out", type=Path, default=Path("build/evaluation"), help="folder (default: %(default)s)")
    add(
        "--names",
        choices=("exact", "lenient"),
        help="lenient: where an image is not there, the one of a near name is taken (default: the checkpoint's)",
    )
    add("--mask-classes", help="judge by another split into A and B (default: the checkpoint's)")
    add("--device", default="auto", help="auto, cpu, cuda, ... (default: %(default)s)")
    add("--precision", choices=get_args(Precision), default="float32", help="(default: %(default)s)")
    add("--batch-size", type=int, default=8, help="images at a time (default: %(default)s)")
    add(
        "--max-detections",
        type=int,
        help="of an image are judged (default: 300 where images have neg_category_ids, as LVIS's do; else 100)",
    )
    add(
        "--leave-out-broken",
        action="store_true",
        help="evaluate without the images that cannot be read, and count them (default: they are an error)",
    )
    add("--max-images", type=int, help="evaluate only the first so many images")
    add(
        "--score-threshold",
        type=float,
        default=SCORE_THRESHOLD,
        help="least score judged (default: %(default)s)",
    )
    add(
        "--boundary",
        action="store_true",
        help="boundary AP too (needs faster-coco-eval: requirements/boundary.txt)",
    )
    add(
        "--cityscapes",
        action="store_true",
        help="Cityscapes' own AP too, by the file that training.datasets convert cityscapes writes",
    )
    add("--sheet-images", type=int, default=12, help="images on the sheet (default: %(default)s)")
    add("--sheet-threshold", type=float, default=0.5, help="least score drawn (default: %(default)s)")
    add_view_options(parser)
    options = parser.parse_args(arguments)

    def shown(error: BaseException) -> str:
        out_of_memory = isinstance(error, torch.OutOfMemoryError)
        return f"{error}. Try a smaller --batch-size" if out_of_memory else str(error)

    with exit_status(torch.OutOfMemoryError, shown=shown) as status:
        try:
            with process_group(options.device) as group, group.one_voice():
                _evaluate_checkpoint(options, group)
        except FailedElsewhere:
            return 2
    return status.code


def _evaluate_checkpoint(options: argparse.Namespace, group: Group) -> None:
    require_at_least(1, batch_size=options.batch_size, max_detections=options.max_detections)
    device = chosen_device(options.device)
    with group.together():
        network, classes, contents = load_network(options.checkpoint)
        data = contents["training_config"]["data"]
        images_dir = options.images or Path(data["val_images"])
        annotations = options.annotations or Path(data["val_annotations"])
        if options.annotations is None and not data["val_annotations"]:
            raise ValueError(f"{options.checkpoint} has no validation set; give --images and --annotations")
        if options.mask_classes is not None:
            classes = judged_classes(classes, options.mask_classes)
        network = network.to(device)
        views = views_of(options)
        pairs = contents["training_config"].get("augment", {}).get("swapped_classes", ())
        swapped = sides(pairs, classes)
        of_sides = None if swapped is None else swapped.labels
        evaluable: Evaluable = Views(network, views, of_sides) if views.used else network
        reading = Reading.of(data | ({"names": options.names} if options.names else {}))
        truth = load_ground_truth(
            annotations, classes, images_dir, max_images=options.max_images, reading=reading
        )
        if options.boundary:
            require_boundary()
        if options.cityscapes:
            require_void(truth)
        most = usual_detections(truth) if options.max_detections is None else options.max_detections
        if not options.leave_out_broken:
            require_images(truth, images_dir, str(annotations))

    def predict_some(truth: GroundTruth) -> Predictions:
        return predict(
            evaluable,
            classes,
            images_dir,
            truth,
            device=device,
            batch_size=options.batch_size,
            score_threshold=options.score_threshold,
            precision=options.precision,
            max_detections=most,
            leave_out_broken=options.leave_out_broken,
        )

    predictions = predict_together(group, truth, images_dir, predict_some, batch_size=options.batch_size)
    if predictions is None:
        return
    # Several views are merged without their keypoints.
    keypoints = None if views.used else model_config_from_dict(contents["model_config"]).keypoints
    results = judge(
        predictions,
        classes,
        score_threshold=options.score_threshold,
        keypoints=keypoints,
        boundary=options.boundary,
        cityscapes=options.cityscapes,
    )
    options.out.mkdir(parents=True, exist_ok=True)
    write_csv(options.out / "per_class.csv", results)
    write_plot(options.out / "ap_over_iou.png", results)
    (options.out / "results.json").write_text(
        json.dumps(results.to_dict() | ({"views": to_plain(views)} if views.used else {}), indent=1) + "\n",
        encoding="utf-8",
    )
    write_sheet(
        options.out / "sheet.png",
        images_dir,
        predictions.truth,
        predictions.results,
        classes,
        count=options.sheet_images,
        score_threshold=options.sheet_threshold,
    )
    print(table(results))
    for finding in truth.findings:
        print(f"  {finding}")
    written = [
        str(options.out / name) for name in ("results.json", "per_class.csv", "ap_over_iou.png", "sheet.png")
    ]
    print(f"{', '.join(written[:-1])} and {written[-1]} written")


if __name__ == "__main__":
    sys.exit(main())
