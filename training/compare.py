"""The systems of the paper's Table 2 side by side, each over several seeds of data and weights.

Per seed: a data set is drawn, one detector trained, and on top of it the mask branch of every system
(stage-wise, so that all share their boxes). Finished rows are kept in `compare.json` and not made again.

    python -m training.compare --seeds 3 --systems box,class_agnostic,exact,chosen,oracle --config ...

box: every detection's box filled. class_agnostic: one mask for all classes. exact: the paper's Mask^X.
chosen: the configuration as it stands. oracle: as chosen, but with the masks of set B. The names of
`training.validate_transfer.CANDIDATES` are systems too.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from model.checkpoint import load_network
from training.config import DEFAULT_CONFIG, TrainingConfig, load_config
from training.evaluate import GroupResults, Results, evaluate_network
from training.shapes import ShapesConfig, write_shapes
from training.splits import split_classes
from training.train import Stopped, chosen_device, train
from training.validate_transfer import CANDIDATES
from training.variants import (
    Train,
    changed,
    detector_in,
    digest,
    kept_rows,
    mask_branch_alone,
    mean_and_deviation,
    row_of,
    train_in,
    write_json,
)

SYSTEMS = ("box", "class_agnostic", "exact", "chosen", "oracle")

FIGURES = {
    "box_ap50_a": "box AP50 A",
    "box_ap50_b": "box AP50 B",
    "box_ap50": "box AP50",
    "mask_ap_a": "mask AP A",
    "mask_ap_b": "mask AP B",
    "mask_ap50_a": "mask AP50 A",
    "mask_ap50_b": "mask AP50 B",
    "mask_iou_a": "mask IoU A",
    "mask_iou_b": "mask IoU B",
}
"""The columns. Mask IoU is measured on ground-truth boxes."""


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How large the drawn data set of each seed is."""

    train: int = ShapesConfig.train
    val: int = ShapesConfig.val


def compare(
    config: TrainingConfig,
    train: Train,
    *,
    seeds: Sequence[int],
    systems: Sequence[str] = SYSTEMS,
    folder: Path = Path("build/compare"),
    drawing: Drawing | None = Drawing(),
) -> list[dict[str, Any]]:
    """One row per seed and system: its settings, FIGURES, and all results.

    Each seed draws its own data set of the size `drawing`; with None every seed trains on the
    configuration's own data, and only the weights differ. Writes compare.json and compare.md to `folder`
    after every row.

    Raises ValueError for an unknown system and for a schedule without steps for the detector or the mask
    branch.
    """
    unknown = [name for name in systems if name not in SYSTEMS and name not in CANDIDATES]
    if unknown or not systems or not seeds:
        known = dict.fromkeys([*SYSTEMS, *CANDIDATES])
        raise ValueError(
            f"systems {list(systems)}, seeds {list(seeds)}: give at least one each, of {', '.join(known)}"
        )
    if not config.schedule.mask_steps:
        raise ValueError("schedule.mask_steps is 0; the systems differ in the mask branch, so give it steps")
    kept = kept_rows(folder / "compare.json")
    rows: list[dict[str, Any]] = []
    for seed in seeds:
        of_seed = folder / f"seed{seed}"
        base = changed(config, {"seed": seed})
        if drawing is not None:
            write_shapes(of_seed / "data", ShapesConfig(train=drawing.train, val=drawing.val, seed=seed))
            base = changed(base, drawn_data(of_seed / "data"))
        for system in systems:
            trained = changed(base, changes_of(system))
            settings = digest(
                trained,
                filled=system == "box",
                split=base.data.mask_classes,
                val=val_of(base),
                drawing=str(drawing),
            )
            rows.append(
                {
                    **row_of(kept, settings, partial(one_row, base, system, train, of_seed)),
                    "seed": seed,
                    "system": system,
                }
            )
            write_json(folder / "compare.json", {"rows": kept})
            (folder / "compare.md").write_text(markdown(rows), encoding="utf-8")
    return rows


def drawn_data(folder: Path) -> dict[str, Any]:
    """The [data] keys of a data set that `training.shapes` wrote to `folder`."""
    return {
        "data.train_images": str(folder / "train"),
        "data.train_annotations": str(folder / "train.json"),
        "data.val_images": str(folder / "val"),
        "data.val_annotations": str(folder / "val.json"),
        "data.mask_classes": str(folder / "mask_classes.txt"),
    }


def val_of(config: TrainingConfig) -> str:
    """Where the validation set lies; part of a row's settings, though not of a training's."""
    return f"{config.data.val_images} {config.data.val_annotations}"


def changes_of(system: str) -> dict[str, Any]:
    """What a system changes in the configuration."""
    if system == "oracle":
        return {"data.mask_classes": "all"}
    return CANDIDATES.get(system, {})


def one_row(base: TrainingConfig, system: str, train: Train, folder: Path) -> dict[str, Any]:
    """Train a system (its detector unless an earlier system of the seed has) and evaluate it by the split
    of `base`.
    """
    start = time.monotonic()
    detector = Path(base.data.detector_from or detector_in(folder / "detector", base, train))
    checkpoint = detector
    if system != "box":
        variant = mask_branch_alone(
            changed(base, changes_of(system)), detector, steps=base.schedule.mask_steps
        )
        checkpoint = train_in(folder / system, variant, train)
    network, classes, _ = load_network(checkpoint)
    categories = [{"id": i, "name": name} for i, name in zip(classes.ids, classes.names, strict=True)]
    device = chosen_device(base.device)
    results = evaluate_network(
        network.to(device),
        split_classes(categories, base.data.mask_classes),
        Path(base.data.val_images),
        Path(base.data.val_annotations),
        device=device,
    )
    figures = figures_of(results, filled=system == "box")
    return {
        "seed": base.seed,
        "system": system,
        **figures,
        "seconds": time.monotonic() - start,
        "results": results.to_dict(),
    }


def figures_of(results: Results, *, filled: bool) -> dict[str, float | None]:
    """FIGURES of an evaluation; with `filled`, those of its boxes filled in place of its masks."""

    def of_group(group: GroupResults, suffix: str) -> dict[str, float | None]:
        mask = group.filled_box if filled else group.mask
        return {
            f"box_ap50{suffix}": group.box.ap50,
            f"mask_ap{suffix}": mask.ap,
            f"mask_ap50{suffix}": mask.ap50,
            f"mask_iou{suffix}": group.box_fill if filled else group.mask_iou,
        }

    found = of_group(results.a, "_a") | of_group(results.b, "_b") | of_group(results.all, "")
    return {name: found[name] for name in FIGURES}


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """One line per system: mean and standard deviation over its seeds, in percent."""
    lines = [
        f"| system | seeds | {' | '.join(FIGURES.values())} |",
        f"|---|---|{'---|' * len(FIGURES)}",
    ]
    for system in dict.fromkeys(row["system"] for row in rows):
        mine = [row for row in rows if row["system"] == system]
        cells = [spread([row[figure] for row in mine]) for figure in FIGURES]
        lines.append(f"| {system} | {len(mine)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def spread(values: Sequence[float | None]) -> str:
    """ "12.3 ± 0.4" in percent; without the deviation for one value, "-" for none."""
    known = [100 * value for value in values if value is not None]
    if not known:
        return "-"
    mean, deviation = mean_and_deviation(known)
    return f"{mean:.1f}" if deviation is None else f"{mean:.1f} ± {deviation:.1f}"


def main(arguments: list[str] | None = None) -> int:
    """The command line; 0 where every row is there."""
    parser = argparse.ArgumentParser(
        prog="python -m training.compare", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "--config", type=Path, default=DEFAULT_CONFIG, help="TOML file (default: %(default)s)"
    )
    parser.add_argument("--seeds", type=int, default=3, help="how many (default: %(default)s)")
    parser.add_argument("--first-seed", type=int, default=0, help="the first of them (default: %(default)s)")
    parser.add_argument(
        "--systems", default=",".join(SYSTEMS), help="names with commas between (default: %(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("build/compare"), help="folder (default: %(default)s)"
    )
    parser.add_argument(
        "--train-images", type=int, default=Drawing.train, help="drawn for each seed (default: %(default)s)"
    )
    parser.add_argument(
        "--val-images", type=int, default=Drawing.val, help="drawn for each seed (default: %(default)s)"
    )
    parser.add_argument(
        "--same-data",
        action="store_true",
        help="train every seed on the configuration's own data; draw nothing",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the configuration")
    options = parser.parse_args(arguments)
    try:
        rows = compare(
            load_config(options.config, options.overrides),
            train,
            seeds=range(options.first_seed, options.first_seed + options.seeds),
            systems=[name.strip() for name in options.systems.split(",") if name.strip()],
            folder=options.out,
            drawing=None
            if options.same_data
            else Drawing(train=options.train_images, val=options.val_images),
        )
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(f"{stopped}; the same command goes on from there", file=sys.stderr)
        return 128 + stopped.by
    print(markdown(rows))
    print(f"{options.out / 'compare.md'} and {options.out / 'compare.json'} written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
