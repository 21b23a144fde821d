"""The figures of a grid's rows, and the table made of them: mean and sample deviation over the seeds."""

import re
from collections.abc import Sequence
from typing import Any

from training.evaluate.measure import GroupResults, Results
from training.experiments.grid import GridConfig
from training.experiments.variants import mean_and_deviation

FIGURES = {
    "box_ap50_a": "box AP50, A",
    "box_ap50_b": "box AP50, B",
    "mask_ap_a": "mask AP, A",
    "mask_ap_b": "mask AP, B",
    "mask_ap50_a": "mask AP50, A",
    "mask_ap50_b": "mask AP50, B",
    "mask_iou_a": "mask IoU, A",
    "mask_iou_b": "mask IoU, B",
}
"""Of each row, and its column. Mask IoU is measured on ground-truth boxes."""

GAPS = {"gap_ap_b": ("mask_ap_b", "gap, AP"), "gap_iou_b": ("mask_iou_b", "gap, IoU")}
"""Share of the way from the lower to the upper row of `between` that a row goes on B, and its column."""

Row = dict[str, Any]


def figures_of(results: Results, *, filled: bool) -> dict[str, float | None]:
    """FIGURES of an evaluation; with `filled`, those of its boxes filled in place of its masks."""

    def of_group(group: GroupResults, suffix: str) -> dict[str, float | None]:
        mask = group.filled_box if filled else group.mask
        return {
            f"box_ap50_{suffix}": group.box.ap50,
            f"mask_ap_{suffix}": mask.ap,
            f"mask_ap50_{suffix}": mask.ap50,
            f"mask_iou_{suffix}": group.box_fill if filled else group.mask_iou,
        }

    found = of_group(results.a, "a") | of_group(results.b, "b")
    return {name: found[name] for name in FIGURES}


def with_gaps(grid: GridConfig, rows: Sequence[Row]) -> list[Row]:
    """The rows with GAPS added, each against the two rows of its own seed and split; None where there is no gap."""
    found = {(row["row"], row["seed"], row["split"]): row for row in rows}
    between = {row.name: row.between or grid.between for row in grid.rows}

    def share(row: Row, figure: str) -> float | None:
        ends = [found.get((name, row["seed"], row["split"])) for name in between[row["row"]]]
        values = [row[figure], *(end[figure] for end in ends if end is not None)]
        if len(values) != 3 or any(value is None for value in values) or values[2] <= values[1]:
            return None
        return float((values[0] - values[1]) / (values[2] - values[1]))

    return [row | {gap: share(row, figure) for gap, (figure, _) in GAPS.items()} for row in rows]


def summary(grid: GridConfig, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One entry for each row and split that has a run: its seeds, and of each figure mean and deviation over the runs.
    The trials of a random split (Figure 3) are runs of one."""
    entries = []
    placed = with_gaps(grid, rows)
    for row in grid.rows:
        mine = [one for one in placed if one["row"] == row.name]
        for split in dict.fromkeys(all_trials(one["split"]) for one in mine):
            runs = [one for one in mine if all_trials(one["split"]) == split]
            figures = {}
            for name in (*FIGURES, *GAPS):
                values = [one[name] for one in runs if one[name] is not None]
                mean, deviation = mean_and_deviation(values) if values else (None, None)
                figures[name] = {"mean": mean, "deviation": deviation, "runs": len(values)}
            entries.append(
                {
                    "row": row.name,
                    "label": row.label or row.name,
                    "paper": row.paper,
                    "split": split,
                    "runs": len(runs),
                    "seeds": sorted({one["seed"] for one in runs}),
                    "figures": figures,
                }
            )
    return entries


def all_trials(split: str) -> str:
    """A random split without its trial: "random:E3_A20B60" -> "random:A20B60"; any other as it is."""
    return re.sub(r"^(\s*random:\s*)E\d+_", r"\1", split)


def markdown(grid: GridConfig, entries: Sequence[dict[str, Any]]) -> str:
    """One line for each entry of the `summary`: mean ± sample deviation over its runs, in percent."""
    more = [name for name in ("split", "paper") if any(entry[name] for entry in entries)]
    gaps = {name: column for name, (_, column) in GAPS.items()}
    columns = FIGURES | (gaps if grid.between or any(row.between for row in grid.rows) else {})
    heads = ["row", *more, "runs", *columns.values()]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for entry in entries:
        cells = [entry["label"], *(entry[name] for name in more), str(entry["runs"])]
        cells += [spread(entry["figures"][name]) for name in columns]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def spread(figure: dict[str, Any]) -> str:
    """ "12.3 ± 0.4" in percent; without the deviation for one value, "-" for none."""
    if figure["mean"] is None:
        return "-"
    mean = f"{100 * figure['mean']:.1f}"
    return mean if figure["deviation"] is None else f"{mean} ± {100 * figure['deviation']:.1f}"
