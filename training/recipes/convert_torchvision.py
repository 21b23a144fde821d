"""A torchvision Mask R-CNN becomes a checkpoint of this project, whose detections equal torchvision's.

`python -m training.recipes.convert_torchvision --weights FILE --classes NAMES --out CHECKPOINT [key=value ...]` takes a
state dict, or a checkpoint of torchvision's own training script; with
`--weights MaskRCNN_ResNet50_FPN_V2_Weights.COCO_V1` it is one of torchvision's, by its hub. The checkpoint
can be evaluated, exported and trained on like any other.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torchvision
from torchvision.models import WeightsEnum, get_weight
from torchvision.models.detection import MaskRCNN_ResNet50_FPN_V2_Weights, MaskRCNN_ResNet50_FPN_Weights

from model import config as model_config
from model.backbones.torchvision_state import (
    EPSILON,
    State,
    downloaded,
    has_old_names,
    read_state,
    with_epsilon,
    with_present_names,
)
from model.checkpoint import FORMAT, save_checkpoint
from model.classes import ClassTable
from model.files import command, exit_status, first_few
from model.network import MaskXRCNN
from model.torchvision_weights import converted, torchvision_config
from training.config import TrainingConfig, changed, to_dict
from training.distributed import refuse_processes

UNUSED = "N/A"
"""What torchvision calls the labels that COCO has no class for."""
HUB_NAMES = (str(MaskRCNN_ResNet50_FPN_Weights.COCO_V1), str(MaskRCNN_ResNet50_FPN_V2_Weights.COCO_V1))


def convert(
    weights: str,
    out: Path,
    *,
    classes: str = "",
    epsilon: float | None = None,
    keep_unused: bool = False,
    overrides: Sequence[str] = (),
) -> ClassTable:
    """Write the checkpoint `out` from torchvision's `weights`; its classes.

    Args:
        weights: a file, or one of `HUB_NAMES`.
        classes: see `categories`.
        epsilon: of the normalisations, in training. None: 0 for torchvision's files of 2019 and 1e-5 for others, as
            torchvision itself has it when it builds the network.
        keep_unused: give labels without a class a name and keep their share of the softmax, instead of leaving
            them out.
        overrides: keys of the configuration that no weight shows, such as "model.rpn.anchor_sizes=[16,32,64,96,128]".

    Raises:
        ValueError: weights or classes that cannot be had or do not fit.
    """
    state = loaded(weights, epsilon)
    config = changed(replace(TrainingConfig(), model=torchvision_config(state)), overrides)
    found = categories(classes, rows=state["roi_heads.box_predictor.cls_score.weight"].shape[0])
    if keep_unused:
        found = {k: (i, f"{name} {k}" if name == UNUSED else name) for k, (i, name) in found.items()}
    found = {label: (i, name) for label, (i, name) in found.items() if name != UNUSED}
    table = ClassTable(
        ids=tuple(category_id for category_id, _ in found.values()),
        names=tuple(name for _, name in found.values()),
        has_mask=(True,) * len(found),
    )
    network = converted(state, config.model, list(found))
    write_converted(out, network, config, table, origin=f"{Path(weights).name}, torchvision")
    return table


def write_converted(
    out: Path, network: MaskXRCNN, config: TrainingConfig, classes: ClassTable, *, origin: str
) -> None:
    """Write a converted network as a checkpoint of no step; `origin`: the file it was, and whose."""
    contents = {
        "format": FORMAT,
        "model": network.state_dict(),
        "model_config": model_config.to_dict(config.model),
        "training_config": to_dict(config),
        "classes": classes.to_dict(),
        "step": 0,
        "converted_from": origin,
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
    }
    save_checkpoint(out, contents)


def loaded(weights: str, epsilon: float | None = None) -> State:
    """The state dict of a file or of the hub, with present names and normalisations of epsilon 1e-5."""
    if Path(weights).is_file() or weights.endswith((".pth", ".pt")):
        state = read_state(weights)
    else:
        state = downloaded(known_weights(weights), weights)
    if epsilon is None:
        epsilon = 0.0 if has_old_names(state) else EPSILON
    return with_epsilon(with_present_names(state), epsilon)


def known_weights(name: str) -> WeightsEnum:
    """torchvision's Mask R-CNN weights of that name; ValueError that lists the names where there are none."""
    try:
        found = get_weight(name)
    except (ValueError, KeyError, AttributeError):
        found = None
    if found is None or str(found) not in HUB_NAMES:
        raise ValueError(f"weights {name!r}: neither a file nor one of {', '.join(HUB_NAMES)}")
    return found


def categories(classes: str, *, rows: int) -> dict[int, tuple[int, str]]:
    """Category id and name of each of torchvision's labels, by ascending label.

    Args:
        classes: names with commas between or the path of a file with a name to a line, in the order of the labels,
            which become the ids; or a COCO annotation file, whose category ids are the labels, or in the order of whose
            ids the labels count where there are as many. Empty: COCO's, of torchvision. "N/A" is not a class.
        rows: labels of the weights, background included.
    """
    if not classes:
        listed = MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"][1:]
        if rows != len(listed) + 1:
            raise ValueError(
                f"the weights have {rows - 1} labels, and COCO's have {len(listed)}: name them with --classes, names "
                "with commas between, a file with a name to a line, or a COCO annotation file"
            )
    elif classes.endswith(".json"):
        return _of_annotations(Path(classes), rows=rows)
    elif Path(classes).is_file():
        lines = [line.strip() for line in Path(classes).read_text(encoding="utf-8").splitlines()]
        listed = [line for line in lines if line and not line.startswith("#")]
    else:
        listed = [name.strip() for name in classes.split(",") if name.strip()]
    if len(listed) != rows - 1:
        raise ValueError(f"{len(listed)} class names ({first_few(listed, 4)}) for {rows - 1} labels")
    used = [name for name in listed if name != UNUSED]
    if twice := sorted({name for name in used if used.count(name) > 1}):
        raise ValueError(f"two labels have the name {twice[0]!r}; classes are told apart by name")
    return {label: (label, name) for label, name in enumerate(listed, start=1)}


def coco_categories() -> list[tuple[int, str]]:
    """Ids and names of COCO's 80 classes, by ascending id."""
    names = MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    return [(number, name) for number, name in enumerate(names) if number and name != UNUSED]


def _of_annotations(annotations: Path, *, rows: int) -> dict[int, tuple[int, str]]:
    try:
        listed = json.loads(annotations.read_text(encoding="utf-8"))["categories"]
        names = {int(one["id"]): str(one["name"]) for one in sorted(listed, key=lambda one: int(one["id"]))}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{annotations}: not a COCO file with categories ({error})") from error
    if names and min(names) >= 1 and max(names) < rows:
        return {category_id: (category_id, name) for category_id, name in names.items()}
    if len(names) == rows - 1:
        return dict(enumerate(names.items(), start=1))
    raise ValueError(
        f"{annotations} has {len(names)} categories, ids {min(names, default=0)} to {max(names, default=0)}; the "
        f"weights have the labels 1 to {rows - 1}, which must be those ids, or as many"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0 where the checkpoint was written, 2 where a mistake was named."""
    parser = command("training.recipes.convert_torchvision", __doc__)
    add = parser.add_argument
    add("--weights", required=True, help=f"a file, or {' or '.join(HUB_NAMES)}")
    add("--out", type=Path, default=Path("build/converted/checkpoint.pt"), help="(default: %(default)s)")
    add(
        "--classes",
        default="",
        help="names with commas between, a file with a name to a line, or a COCO annotation file (default: COCO's)",
    )
    add(
        "--epsilon",
        type=float,
        help="of the frozen normalisations in training (default: 0 for torchvision's files of 2019, else 1e-5; what "
        "was trained on from those has 0)",
    )
    add(
        "--keep-unused",
        action="store_true",
        help="keep labels called N/A as classes, so that the scores of others are torchvision's to the last bit",
    )
    add("changes", nargs="*", metavar="key=value", help="such as model.input.min_size=640")
    options = parser.parse_intermixed_args(arguments)
    with exit_status() as status:
        refuse_processes("training.recipes.convert_torchvision")
        table = convert(
            options.weights,
            options.out,
            classes=options.classes,
            epsilon=options.epsilon,
            keep_unused=options.keep_unused,
            overrides=options.changes,
        )
        print(f"{options.out} written: {table.num_classes} classes ({first_few(table.names, 4)})")
    return status.code


if __name__ == "__main__":
    sys.exit(main())
