"""Which detector is worth its time? Box AP over the steps of its training, for several sides of the image and trunks.

    python -m training.experiments.detector_curve --sides 160,224,320 --steps 300,600,1000,1500 [key=value ...]

One training for each side and trunk goes from each number of steps to the next. At every one of them the learning rate
has gone down as if the training ended there, and goes on from where a training as long as the next would be by then:
so each point is a finished detector's, if not quite what it would be without the points before. Its checkpoint, that
of the last point, can be a grid's `data.detector_from`. Each point is kept in OUT; what was stopped goes on there.
"""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.checkpoint import load_network
from model.dataclass_io import from_plain, to_plain
from model.files import command
from training.config import TrainingConfig, changed, load_config
from training.distributed import chosen_device, refuse_processes
from training.evaluate.measure import evaluate_network
from training.evaluate.report import aligned, percent
from training.experiments.grid import PRESETS
from training.experiments.variants import Train, detector_alone, digest, write_json
from training.locks import locked
from training.process import training_status
from training.train import train


@dataclass(frozen=True, kw_only=True)
class Point:
    """A detector after so many steps: its box AP over all classes of the validation set, in [0, 1]."""

    trunk: str
    side: int
    steps: int
    box_ap: float | None
    box_ap50: float | None
    seconds: float | None
    """Of training from the point before on; None where a part of it was done by an earlier process."""
    checkpoint: str
    """Of the whole curve: later points replace what it holds."""


def with_side(config: TrainingConfig, side: int) -> TrainingConfig:
    """The configuration with images of this shorter side; longest side, anchors and the canonical box size of the
    pyramid change in proportion, so that a network of any side has its objects on the same levels."""
    share = side / config.model.input.min_size
    return changed(
        config,
        {
            "model.input.min_size": side,
            "model.input.max_size": round(config.model.input.max_size * share),
            "model.rpn.anchor_sizes": [max(round(size * share), 1) for size in config.model.rpn.anchor_sizes],
            "model.box.canonical_size": round(config.model.box.canonical_size * share),
        },
    )


def with_trunk(config: TrainingConfig, words: str) -> TrainingConfig:
    """The configuration with a trunk: "NAME" with the weights that it says, "NAME=none" or others with its own."""
    name, _, weights = words.partition("=")
    return changed(
        config,
        {"model.backbone.name": name, "model.backbone.weights": weights or config.model.backbone.weights},
    )


def curve(config: TrainingConfig, steps: Sequence[int], train: Train, *, out: Path) -> list[Point]:
    """The points of one training of the detector of `config`, those that `out` has not made now.

    Raises:
        ValueError: steps that do not rise; see also `training.train.train`.
    """
    if not steps or list(steps) != sorted(set(steps)) or steps[0] < 1:
        raise ValueError(f"steps are {list(steps)}; give rising numbers of 1 or more, such as 300,600,1000")
    whole = detector_alone(changed(config, {"schedule.detector_steps": steps[-1]}))
    folder = out / digest(changed(whole, {"data.mask_classes": "all"}), steps=list(steps))
    kept = folder / "points.json"
    with locked(out / f"{folder.name}.lock", wait=True):
        points = _kept(kept)
        for count in steps[len(points) :]:
            points.append(_point(changed(whole, {"schedule.detector_steps": count}), folder, train))
            write_json(kept, {"points": [to_plain(point) for point in points]})
            print(report(points), flush=True)
    return points


def _point(config: TrainingConfig, folder: Path, train: Train) -> Point:
    """Train on to the steps of `config`, and judge."""
    steps = config.schedule.detector_steps
    begun = folder / f"begun_{steps}"
    whole = not begun.exists()
    folder.mkdir(parents=True, exist_ok=True)
    begun.touch()
    start = time.monotonic()
    config = changed(config, {"output.dir": str(folder)})
    checkpoint = train(config, resume=(folder / "checkpoint.pt").is_file())
    seconds = time.monotonic() - start
    network, classes, _ = load_network(checkpoint)
    device = chosen_device(config.device)
    images, annotations = Path(config.data.val_images), Path(config.data.val_annotations)
    box = evaluate_network(network.to(device), classes, images, annotations, device=device).all.box
    return Point(
        trunk=config.model.backbone.name,
        side=config.model.input.min_size,
        steps=steps,
        box_ap=box.ap,
        box_ap50=box.ap50,
        seconds=seconds if whole else None,
        checkpoint=str(checkpoint),
    )


def _kept(path: Path) -> list[Point]:
    if not path.is_file():
        return []
    try:
        plain: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["points"]
        return [from_plain(Point, one) for one in plain]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}); remove its folder, and the curve is made anew"
        ) from error


def report(points: Sequence[Point]) -> str:
    """A line for each point."""
    rows = [["trunk", "side", "steps", "box AP50", "box AP", "seconds of training"]]
    for point in points:
        figures = ["-" if value is None else percent(value) for value in (point.box_ap50, point.box_ap)]
        spent = "-" if point.seconds is None else f"{point.seconds:.0f}"
        rows.append([point.trunk, str(point.side), str(point.steps), *figures, spent])
    return aligned(rows)


def numbers(words: str) -> tuple[int, ...]:
    """Whole numbers with commas between; ValueError with what was seen."""
    try:
        return tuple(int(word) for word in words.split(","))
    except ValueError as error:
        raise ValueError(f"{words!r}: expected whole numbers with commas between, such as 160,224") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the status of `training_status`."""
    parser = command("training.experiments.detector_curve", __doc__)
    add = parser.add_argument
    add("--config", type=Path, default=PRESETS / "photos.toml", help="TOML file (default: %(default)s)")
    add("--out", type=Path, default=Path("build/detector_curve"), help="folder (default: %(default)s)")
    add("--sides", help="shorter sides of the image in pixels (default: the configuration's)")
    add("--trunks", help="names of model.backbone.name, NAME=none without weights (default: its own)")
    add("--steps", default="300,600,1000,1500", help="at which it is judged (default: %(default)s)")
    add("changes", nargs="*", metavar="key=value", help="changes to the configuration")
    options = parser.parse_intermixed_args(arguments)
    with training_status("the same command goes on") as status:
        refuse_processes("training.experiments.detector_curve")
        config = load_config(options.config, options.changes)
        sides = numbers(options.sides) if options.sides else (config.model.input.min_size,)
        trunks = options.trunks.split(",") if options.trunks else [config.model.backbone.name]
        variants = [with_side(with_trunk(config, trunk), side) for trunk in trunks for side in sides]
        points: list[Point] = []
        for variant in variants:
            points += curve(variant, numbers(options.steps), train, out=options.out)
        path = options.out / "curve.json"
        write_json(path, {"points": [to_plain(point) for point in points]})
        print(f"{report(points)}\n{path} written")
    return status.code


if __name__ == "__main__":
    sys.exit(main())
