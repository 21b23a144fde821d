"""New classes from boxes alone, with masks at once: the step that the transfer function makes possible (Sec. 5).

    python -m training.recipes.grow build/train/checkpoint.pt --images DIR --annotations new.json --out build/grown

The rows of the new classes in the last layer of the box branch are learned, and nothing else is: T stays as it
is and makes their mask weights of these rows. Boxes and masks of the classes of before stay the same; their
scores only share with more classes. The file needs boxes of the new classes alone: objects of the others that
it leaves out cannot be unlearned.

A class-specific network (a Mask R-CNN of torchvision or detectron2, converted) has no T: `--fit-transfer` fits one on
its classes first, which keep the masks that they have (`training.recipes.fit_transfer`).
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from model.checkpoint import load_checkpoint
from model.classes import ClassTable, class_table
from model.files import command, first_few, write_whole
from training.config import TrainingConfig, changed, config_from_dict
from training.data.annotations import read_annotations
from training.distributed import refuse_processes
from training.experiments.variants import write_json
from training.process import training_status
from training.recipes.fit_transfer.recipe import fit_transfer
from training.schedule import STAGES
from training.train import train

STEPS = 300
Document = dict[str, Any]


def grown_config(
    checkpoint: Path,
    *,
    images: Path,
    annotations: Path,
    out: Path,
    val_images: Path | None = None,
    val_annotations: Path | None = None,
    steps: int = STEPS,
    overrides: Sequence[str] = (),
) -> TrainingConfig:
    """The training that teaches the network of `checkpoint` the classes of `annotations` that it does not know.

    Writes `out`/train.json, the annotations with the categories of both, and `out`/mask_classes.txt, set A of
    before; what taught the masks of its other classes stays too. Everything else is as it was for the checkpoint, but
    for `overrides` ("key=value").

    Args:
        val_images, val_annotations: for evaluation afterwards, which then reads `out`/val.json.

    Raises:
        ValueError: a file is missing or broken; no class is new; class-specific mask weights, which no box teaches.
    """
    contents = load_checkpoint(checkpoint)
    try:
        config = config_from_dict(contents["training_config"])
        classes = ClassTable.from_dict(contents["classes"])
    except ValueError as error:
        raise ValueError(f"{checkpoint}: {error}") from error
    if config.model.transfer.kind == "class_specific":
        raise ValueError(
            f"{checkpoint}: model.transfer.kind is class_specific, where each class's masks are learned from masks; "
            "classes with boxes alone want transfer or class_agnostic; --fit-transfer fits T on the classes it has"
        )
    document = merged(annotations, classes)
    known = [category["name"] for category in document["categories"]]
    if len(known) == classes.num_classes:
        raise ValueError(
            f"{annotations}: has no class that {checkpoint} does not know; new ones are told by their names "
            f"({first_few(known)} are known)"
        )
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "train.json", document)
    of_val: dict[str, Any] = {}
    if val_annotations is not None:
        table = class_table(document["categories"], "all")
        val = merged(val_annotations, table)
        if len(val["categories"]) > table.num_classes:
            further = [category["name"] for category in val["categories"][table.num_classes :]]
            raise ValueError(f"{val_annotations}: {first_few(further)}: no class of {annotations} or before")
        write_json(out / "val.json", val)
        of_val = {"data.val_images": str(val_images or images), "data.val_annotations": str(out / "val.json")}
    of_a = [classes.name_of_label(label) for label in classes.set_a_labels()]
    write_whole(out / "mask_classes.txt", "".join(f"{name}\n" for name in of_a))
    changes = {
        "data.train_images": str(images),
        "data.train_annotations": str(out / "train.json"),
        "data.mask_classes": str(out / "mask_classes.txt") if of_a else "auto",
        "data.start_from": str(checkpoint),
        "data.detector_from": "",
        "model.transfer.kept_mean": config.model.transfer.normalise,
        **{f"schedule.{stage}_steps": steps if stage == "classes" else 0 for stage in STAGES},
        "output.dir": str(out),
        **of_val,
    }
    return changed(changed(config, changes), overrides)


def merged(annotations: Path, classes: ClassTable) -> Document:
    """The annotation file `with_classes_before`; ValueError where it is not one."""
    document = read_annotations(annotations)
    try:
        class_table(document["categories"], "all")  # which names what is not a category
    except ValueError as error:
        raise ValueError(f"{annotations}: {error}") from error
    return with_classes_before(document, classes)


def with_classes_before(document: Mapping[str, Any], classes: ClassTable) -> Document:
    """A COCO document with the categories of `classes` first, under their ids, and its own new ones after them.

    Categories are the same where their names are. A new one keeps its id where that is above all before it, and
    else gets the next one, so that labels of before stay.
    """
    own = sorted(document["categories"], key=lambda category: category["id"])
    by_name = {str(category["name"]).strip(): category for category in own}
    categories = [
        {**by_name.get(name, {}), "id": category_id, "name": name}
        for category_id, name in zip(classes.ids, classes.names, strict=True)
    ]
    id_of = {category["name"]: category["id"] for category in categories}
    for name, category in by_name.items():
        if name not in id_of:
            id_of[name] = max(category["id"], categories[-1]["id"] + 1)
            categories.append({**category, "id": id_of[name], "name": name})
    new_id = {category["id"]: id_of[str(category["name"]).strip()] for category in own}
    annotations = [
        {**one, "category_id": new_id.get(one.get("category_id"), one.get("category_id"))}
        for one in document["annotations"]
    ]
    return {**document, "categories": categories, "annotations": annotations}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the status of `training_status`."""
    parser = command("training.recipes.grow", __doc__)
    add = parser.add_argument
    add("checkpoint", type=Path, help="of training.train, or of an earlier training.recipes.grow")
    add("--images", type=Path, required=True, help="folder of the images with new classes")
    add("--annotations", type=Path, required=True, help="COCO file; boxes are enough")
    add("--val-images", type=Path, help="for evaluation afterwards; default: --images")
    add("--val-annotations", type=Path, help="for evaluation afterwards")
    add("--out", type=Path, default=Path("build/grown"))
    add(
        "--fit-transfer",
        action="store_true",
        help="on the classes of a class-specific checkpoint, before anything",
    )
    add("--steps", type=int, default=STEPS, help=f"of training (default: {STEPS})")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    how.add_argument("--restart", action="store_true", help="train anew, replacing the checkpoint in --out")
    add("changes", nargs="*", metavar="key=value", help="such as optimiser.learning_rate=0.001")
    options = parser.parse_intermixed_args(arguments)
    with training_status("go on with the same command and --resume") as status:
        refuse_processes("training.recipes.grow")
        if options.steps < 1:
            raise ValueError(f"--steps is {options.steps}; give 1 or more")
        if options.out.resolve() == options.checkpoint.parent.resolve():
            raise ValueError(
                f"--out {options.out} is the folder of the checkpoint to start from; give another"
            )
        checkpoint = options.checkpoint
        if options.fit_transfer:
            checkpoint = options.out / "fitted.pt"
            fit_transfer(options.checkpoint, checkpoint)
        config = grown_config(
            checkpoint,
            images=options.images,
            annotations=options.annotations,
            out=options.out,
            val_images=options.val_images,
            val_annotations=options.val_annotations,
            steps=options.steps,
            overrides=options.changes,
        )
        path = train(config, resume=options.resume, restart=options.restart)
        print(f"done: {path}")
    return status.code


if __name__ == "__main__":
    sys.exit(main())
