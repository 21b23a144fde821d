"""A grid of experiments: every row trained and evaluated over several seeds, and one table made of it.

    python -m training.experiments shapes [--seeds 3] [--rows box,exact] [--dry-run] [key=value ...]

A grid is a name in training/experiments/grids or a TOML file (see `grid`). Rows that are trained stage by stage
(Sec. 3.3) share one detector per seed and detector settings, and with `augment.views` what it sees of the images,
which is kept in OUT/seed<k>/features until you remove it. Each finished row is a file under OUT/seed<k>/rows
and is not made again; what was begun goes on. Several processes may work on one OUT: each takes rows that nobody is at.
`results.json`, `results.md` and `results.png` in OUT hold what is there so far, of all seeds.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from model.checkpoint import load_network
from model.files import command, write_whole
from training.config import TrainingConfig, changed
from training.data.splits import judged_classes
from training.datasets.thin import write_thinned
from training.distributed import chosen_device, refuse_processes
from training.drawn.shapes import ShapesConfig, write_shapes
from training.evaluate.measure import Results, evaluate_network
from training.experiments.estimate import estimate, kinds, report
from training.experiments.grid import (
    Cell,
    GridConfig,
    RowConfig,
    cells_of_seed,
    load_grid,
    stage_wise,
    with_rows,
)
from training.experiments.joined import Joins
from training.experiments.plot import write_plot
from training.experiments.table import figures_of, markdown, summary
from training.experiments.variants import (
    Train,
    detector_digest,
    detector_in,
    digest,
    mask_branch_alone,
    train_in,
    with_features,
    write_json,
)
from training.locks import Busy, locked
from training.process import training_status
from training.train import train

Row = dict[str, Any]


class Experiments:
    """A grid under way in a folder.

    Args:
        grid: what is compared.
        train: trains a configuration, as `training.train.train`.
        out: folder of all that is made.
        rows: those of the grid that are wanted.
        segmenter: folder of a promptable segmenter, for rows that join sources of masks.
        overrides: changes to the grid's configuration, as on the command line.
    """

    def __init__(
        self,
        grid: GridConfig,
        train: Train,
        *,
        out: Path,
        rows: Sequence[RowConfig],
        overrides: Sequence[str] = (),
        segmenter: Path | None = None,
    ) -> None:
        self.grid, self.train, self.out = grid, train, out
        self.joins = Joins(segmenter, train, out / "segmenter")
        self.rows, self.overrides = tuple(rows), tuple(overrides)
        self._cells: dict[tuple[int, str], list[Cell]] = {}

    def cells(self, seeds: Sequence[int]) -> list[Cell]:
        """Everything to be trained and evaluated, seed by seed.

        Raises:
            ValueError: see `cells_of_seed`.
        """
        for row in self.rows:
            if row.join:
                self.joins.require_segmenter(row.name)
        return [cell for seed in seeds for row in self.rows for cell in self._cells_of(seed, row)]

    def _cells_of(self, seed: int, row: RowConfig) -> list[Cell]:
        key = seed, row.name
        if key not in self._cells:
            self._cells[key] = cells_of_seed(self.grid, [row], self.overrides, seed=seed, out=self.out)
        return self._cells[key]

    def row_file(self, cell: Cell) -> Path:
        """Where a cell's row is kept: the same file for all rows of the same settings, another for any others."""
        row = cell.row
        joined = {"join": (row.join, row.source, row.student, self.joins.segmenter)} if row.join else {}
        name = digest(
            cell.config,
            **joined,
            filled=cell.row.box,
            judged_by=cell.judged_by,
            val=f"{cell.config.data.val_images} {cell.config.data.val_annotations}",
            drawing=str(self.grid.drawing) if self.grid.data == "drawn" else "",
            **({"mask_share": cell.row.mask_share} if cell.row.mask_share < 1 else {}),
        )
        return self.out / f"seed{cell.seed}" / "rows" / f"{name}.json"

    def kept(self, cell: Cell) -> Row | None:
        """A cell's finished row, if it has one."""
        path = self.row_file(cell)
        if not path.is_file():
            return None
        try:
            row: Row = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(
                f"{path} cannot be read ({error}); remove it, and the row is made anew"
            ) from error
        return row | {"row": cell.row.name, "split": cell.split}

    def run(self, seeds: Sequence[int]) -> None:
        """Make every row that is not there yet; those that another process is at come last.

        Raises:
            ValueError, Stopped: see `training.train.train`.
        """
        cells = self.cells(seeds)
        places = {cell.title: f"{number} of {len(cells)}" for number, cell in enumerate(cells, start=1)}
        self.write_tables()
        while cells:
            busy = [cell for cell in cells if not self._make(cell, places[cell.title], wait=False)]
            if len(busy) == len(cells):
                self._make(busy.pop(0), places[cells[0].title], wait=True)
            cells = busy

    def plan(self, seeds: Sequence[int], *, timed: bool) -> str:
        """What is kept, what is to be made, and about how long it takes; with `timed`, steps are tried for it."""
        cells = self.cells(seeds)
        to_make = [cell for cell in cells if self.kept(cell) is None]
        words = f"{len(cells)} rows over seeds {', '.join(map(str, seeds))}: {len(cells) - len(to_make)} kept"
        if not to_make:
            return f"{words}, none to make"
        drawn = self.grid.drawing if self.grid.data == "drawn" else None
        found = estimate(to_make, self.kept_rows(), out=self.out, drawn=drawn, timed=timed)
        return f"{words}, {len(to_make)} to make, {report(found)}"

    def write_tables(self) -> str:
        """Write what is there so far, of all seeds in the folder, to results.json, .md and .png; the table."""
        rows = self.kept_rows()
        entries = summary(self.grid, rows)
        write_json(
            self.out / "results.json",
            {
                "about": self.grid.about,
                "summary": entries,
                "rows": [{key: value for key, value in row.items() if key != "results"} for row in rows],
            },
        )
        table = markdown(self.grid, entries)
        write_whole(self.out / "results.md", f"{self.grid.about}\n\n{table}")
        if entries:
            write_plot(self.out / "results.png", entries)
        return table

    def kept_rows(self) -> list[Row]:
        """The finished rows of every seed in the folder, in the grid's order."""
        names = [path.name.removeprefix("seed") for path in self.out.glob("seed*") if path.is_dir()]
        found = []
        for seed in sorted(int(name) for name in names if name.isdigit()):
            for row in self.grid.rows:
                try:
                    cells = self._cells_of(seed, row)
                except ValueError:
                    continue  # the changes that were asked for do not suit this row, which so has no results
                found += [kept for cell in cells if (kept := self.kept(cell)) is not None]
        order = [row.name for row in self.grid.rows]
        return sorted(found, key=lambda kept: order.index(kept["row"]))

    def _make(self, cell: Cell, place: str, *, wait: bool) -> bool:
        """Make a cell's row unless it is there; False where another process is at a part of it and `wait` is not."""
        path = self.row_file(cell)
        if path.is_file():
            return True
        try:
            with locked(path.with_suffix(".lock"), wait=wait):
                if path.is_file():
                    return True
                print(f"== {cell.title} ({place})", flush=True)
                row = self._trained_and_evaluated(cell, wait=wait)
                write_json(path, row)
        except Busy as busy:
            print(f"== {cell.title}: later, another process holds {busy}", flush=True)
            return False
        self.write_tables()
        figures = [("mask IoU A", row["mask_iou_a"]), ("mask IoU B", row["mask_iou_b"])]
        shown = ", ".join(f"{name} {100 * value:.1f}" for name, value in figures if value is not None)
        print(f"== {cell.title}: {shown}", flush=True)
        return True

    def _trained_and_evaluated(self, cell: Cell, *, wait: bool) -> Row:
        self._draw(cell.seed, wait=wait)
        of_join = self.grid.joined_row(cell.row)
        seconds: dict[str, float | None] = {"detector": None, "training": None}
        if of_join is None:
            checkpoint = self._trained(cell, seconds, wait=wait)
        else:
            like = next(one for one in self._cells_of(cell.seed, of_join) if one.split == cell.split)
            checkpoint = self._trained(like, seconds, wait=wait)
            if cell.row.student:
                taught = self.joins.training_file(checkpoint.parent, cell.row.source)
                checkpoint = self._trained(cell, seconds, taught=taught, wait=wait)
        start = time.monotonic()
        results = self._judged(cell, checkpoint)
        seconds["evaluation"] = time.monotonic() - start
        return {
            "seed": cell.seed,
            **figures_of(results, filled=cell.row.box),
            "seconds": seconds,
            "kinds": kinds(cell),
            "checkpoint": str(checkpoint),
            "results": results.to_dict(),
        }

    def _trained(
        self, cell: Cell, seconds: dict[str, float | None], *, taught: Path | None = None, wait: bool
    ) -> Path:
        """The checkpoint of a cell, trained to its end; of a filled box that of the detector. `taught`: what its mask
        branch learns from in place of the training set's own annotations."""
        config, runs = self._with_its_masks(cell), self.out / f"seed{cell.seed}" / "runs"
        if cell.row.box or stage_wise(config):
            checkpoint, seconds["detector"] = self._detector(cell, runs, wait=wait)
            if cell.row.box:
                return checkpoint
            config = mask_branch_alone(config, checkpoint, steps=config.schedule.mask_steps)
            config = with_features(config, self.out / f"seed{cell.seed}" / "features")
        if taught is not None:
            config = changed(config, {"data.train_annotations": str(taught)})
        make = partial(train_in, runs, config, self.train)
        checkpoint, seconds["training"] = _trained_in(runs / digest(config), make, wait=wait)
        return checkpoint

    def _judged(self, cell: Cell, checkpoint: Path) -> Results:
        network, classes, _ = load_network(checkpoint)
        judged_by = judged_classes(classes, cell.judged_by)
        if cell.row.join and not cell.row.student:
            return self.joins.results(checkpoint.parent, cell.row.source, judged_by)
        data, device = cell.config.data, chosen_device(cell.config.device)
        images, annotations = Path(data.val_images), Path(data.val_annotations)
        return evaluate_network(network.to(device), judged_by, images, annotations, device=device)

    def _draw(self, seed: int, *, wait: bool) -> None:
        if self.grid.data == "drawn":
            folder, drawing = self.out / f"seed{seed}", self.grid.drawing
            with locked(folder / "data.lock", wait=wait):
                write_shapes(folder / "data", ShapesConfig(train=drawing.train, val=drawing.val, seed=seed))

    def _with_its_masks(self, cell: Cell) -> TrainingConfig:
        """The configuration of a cell, with the annotations of which its row trains on a part of the masks."""
        share, before = cell.row.mask_share, Path(cell.config.data.train_annotations)
        if share == 1:
            return cell.config
        path = self.out / f"seed{cell.seed}" / f"masks_{share:g}_{digest(cell.config)}.json"
        write_thinned(before, path, share=share, seed=cell.seed)
        return changed(cell.config, {"data.train_annotations": str(path)})

    def _detector(self, cell: Cell, runs: Path, *, wait: bool) -> tuple[Path, float | None]:
        """The detector a cell stands on; the seconds of its training where all of it was now, else None."""
        if cell.config.data.detector_from:
            return Path(cell.config.data.detector_from), None
        make = partial(detector_in, runs, cell.detector, self.train)
        return _trained_in(runs / detector_digest(cell.detector), make, wait=wait)


def _trained_in(folder: Path, make: Callable[[], Path], *, wait: bool) -> tuple[Path, float | None]:
    """The checkpoint that `make` trains in `folder`, under its lock; the seconds where all of it was now, else None."""
    with locked(folder.with_name(f"{folder.name}.lock"), wait=wait):
        begun, start = (folder / "checkpoint.pt").exists(), time.monotonic()
        return make(), None if begun else time.monotonic() - start


def _rows(grid: GridConfig, names: str, segmenter: Path | None) -> tuple[RowConfig, ...]:
    """The rows of these names; of all, without a segmenter, those that need none, and the others are told."""
    rows = with_rows(grid, names)
    if names or segmenter is not None:
        return rows
    if joined := [row.name for row in rows if row.join]:
        print(
            f"left out without --segmenter FOLDER (see training.prompt_masks): {', '.join(joined)}",
            flush=True,
        )
    return tuple(row for row in rows if not row.join)


def main(arguments: list[str] | None = None) -> int:
    """The command line; the status of `training_status`."""
    parser = command("training.experiments", __doc__)
    add = parser.add_argument
    add("grid", help="a name in training/experiments/grids, or a TOML file")
    add("--out", type=Path, help="folder (default: build/experiments/GRID)")
    add("--seeds", type=int, help="how many (default: the grid's)")
    add("--first-seed", type=int, default=0, help="the first of them (default: %(default)s)")
    add("--rows", default="", help="names with commas between, * for any letters (default: all)")
    add("--dry-run", action="store_true", help="say what is to be made and how long it takes")
    add(
        "--no-timing",
        action="store_true",
        help="no timed steps first: the estimate knows finished rows alone",
    )
    add(
        "--segmenter", type=Path, help="folder of a promptable segmenter, for rows that join sources of masks"
    )
    add("overrides", nargs="*", metavar="key=value", help="changes to the configuration")
    options = parser.parse_intermixed_args(arguments)
    with training_status("the same command goes on from there") as status:
        refuse_processes("training.experiments")
        grid = load_grid(options.grid)
        count = grid.seeds if options.seeds is None else options.seeds
        if count < 1 or options.first_seed < 0:
            raise ValueError(
                f"--seeds {count}, --first-seed {options.first_seed}: give 1 or more, and 0 or more"
            )
        out = options.out or Path("build/experiments") / Path(options.grid).stem
        experiments = Experiments(
            grid,
            train,
            out=out,
            rows=_rows(grid, options.rows, options.segmenter),
            overrides=options.overrides,
            segmenter=options.segmenter,
        )
        seeds = range(options.first_seed, options.first_seed + count)
        print(experiments.plan(seeds, timed=not options.no_timing), flush=True)
        if options.dry_run:
            return 0
        experiments.run(seeds)
        print(experiments.write_tables())
        print(f"{out / 'results.md'} and {out / 'results.json'} written")
    return status.code


if __name__ == "__main__":
    sys.exit(main())
