"""A Mask R-CNN of torchvision, detectron2, Detectron or the paper's authors becomes a checkpoint of this project.

`python -m training.recipes.convert --weights FILE --out CHECKPOINT [--classes NAMES] [key=value ...]`. Whose file it
is, its names tell. The checkpoint can be evaluated, exported and trained on like any other. What cannot be here is
refused in one line: deformable convolutions, cascades, panoptic branches, normalisation by groups, DC5.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from model.classes import ClassTable, class_table
from model.files import command, exit_status, first_few
from training.config import TrainingConfig, changed
from training.distributed import refuse_processes
from training.recipes import convert_torchvision
from training.recipes.convert.detectron import (
    COCO_CLASSES,
    VISUAL_GENOME_ROWS,
    Found,
    PixelOrder,
    is_detectron,
    is_detectron2,
    network_of,
    read_detectron,
    read_detectron2,
)
from training.recipes.convert.pickles import read_file


def convert(
    weights: str | Path,
    out: Path,
    *,
    classes: str = "",
    mask_classes: str = "",
    pixels: PixelOrder | None = None,
    overrides: Sequence[str] = (),
) -> tuple[ClassTable, str]:
    """Write the checkpoint `out` from the file `weights`; its classes, and whose file it is.

    Args:
        classes: names with commas between, a file with a name to a line, or a COCO annotation file, in the order of the
            rows. Empty: COCO's 80 for as many, "person" for one with keypoints, and for the 3 001 of Visual Genome
            COCO's 80 and "class 81" and so on.
        mask_classes: set A, as `model.classes.class_table` takes it. Empty: what the file says, else all.
        pixels: of detectron2, see `read_detectron2`.
        overrides: keys of the configuration that no weight shows, such as "model.input.min_size=640".

    Raises:
        ValueError: a file or classes that cannot be had or do not fit.
    """
    file = read_file(weights)
    if is_detectron(file.state):
        found, whose = read_detectron(file), "Detectron"
    elif is_detectron2(file.state):
        found, whose = read_detectron2(file, pixels), "detectron2"
    elif any(name.startswith("backbone.body.") for name in file.state):
        if mask_classes or pixels:
            raise ValueError(
                "the file is torchvision's, all of whose classes have masks; leave out --mask-classes, --pixels"
            )
        table = convert_torchvision.convert(str(weights), out, classes=classes, overrides=overrides)
        return table, "torchvision"
    else:
        raise ValueError(
            f"{weights}: a detector of neither torchvision, detectron2 nor Detectron; its first weights are "
            f"{first_few(sorted(file.state), 4)}"
        )
    config = changed(replace(TrainingConfig(), model=found.config), overrides)
    table = classes_of(found, classes, mask_classes)
    network = network_of(found, config.model)
    origin = f"{Path(weights).name}, {whose}"
    convert_torchvision.write_converted(out, network, config, table, origin=origin)
    return table, whose


def classes_of(found: Found, classes: str = "", mask_classes: str = "") -> ClassTable:
    """The table of the rows' classes; see `convert`."""
    rows = found.rows
    if classes:
        listed = list(convert_torchvision.categories(classes, rows=rows).values())
    elif rows == COCO_CLASSES + 1:
        listed = convert_torchvision.coco_categories()
    elif rows == 2 and found.config.keypoints.layout == "coco":
        listed = convert_torchvision.coco_categories()[:1]
    elif rows == VISUAL_GENOME_ROWS:
        names = [name for _, name in convert_torchvision.coco_categories()]
        names += [f"class {number}" for number in range(COCO_CLASSES + 1, rows)]
        listed = list(enumerate(names, start=1))
    else:
        raise ValueError(
            f"the weights have {rows - 1} classes: name them with --classes, names with commas between, a file with a "
            "name to a line, or a COCO annotation file"
        )
    known = found.labels_with_masks
    if mask_classes:
        if known == ():
            raise ValueError("--mask-classes is given, but the file has no masks; leave it out")
        return class_table([{"id": number, "name": name} for number, name in listed], mask_classes)
    marks = tuple(known is None or label in known for label in range(1, rows))
    return ClassTable(
        ids=tuple(i for i, _ in listed), names=tuple(name for _, name in listed), has_mask=marks
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0 where the checkpoint was written, 2 where a mistake was named."""
    parser = command("training.recipes.convert", __doc__)
    add = parser.add_argument
    add(
        "--weights",
        required=True,
        help="a .pkl or .pth of torchvision, detectron2, Detectron or the paper's authors",
    )
    add("--out", type=Path, default=Path("build/converted/checkpoint.pt"), help="(default: %(default)s)")
    add(
        "--classes",
        default="",
        help="names with commas between, a file with a name to a line, or a COCO annotation file (default: COCO's)",
    )
    add(
        "--mask-classes",
        default="",
        help="set A: voc, nonvoc, names, a file (default: what the file says, else all)",
    )
    add(
        "--pixels",
        choices=get_args(PixelOrder),
        help="detectron2: their order, and whether divided by ImageNet's deviation (default: as the file says, else "
        "bgr for ResNets, bgr/std for ResNeXts)",
    )
    add("changes", nargs="*", metavar="key=value", help="such as model.input.min_size=640")
    options = parser.parse_intermixed_args(arguments)
    with exit_status() as status:
        refuse_processes("training.recipes.convert")
        table, whose = convert(
            options.weights,
            options.out,
            classes=options.classes,
            mask_classes=options.mask_classes,
            pixels=options.pixels,
            overrides=options.changes,
        )
        print(f"{options.out} written: {whose}'s, {table.num_classes} classes ({first_few(table.names, 4)}), set A has "
              f"{len(table.set_a_labels())}")  # fmt: skip
    return status.code


if __name__ == "__main__":
    sys.exit(main())
