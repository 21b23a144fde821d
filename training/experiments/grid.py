"""A grid of experiments: the TOML file that says which rows are trained, on which data and with how many seeds.

`grids/NAME.toml` beside this is such a file; its tables are the dataclasses here, and unknown keys are refused by name.
"""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from model.dataclass_io import from_plain, require_at_least, require_shares
from model.files import did_you_mean
from training.config import TrainingConfig, changed, load_config
from training.drawn.shapes import ShapesConfig

GRIDS = Path("training/experiments/grids")
PRESETS = Path("training/presets")


@dataclass(frozen=True, kw_only=True)
class RowConfig:
    """One row of the table: a configuration that is trained and evaluated once for each seed and split."""

    name: str
    label: str = ""
    """In the table; empty: the name."""
    paper: str = ""
    """The table and row of the paper that it repeats."""
    after: str = ""
    """A row above, whose changes come first: the rungs of a ladder."""
    set: tuple[str, ...] = ()
    """Changes to the grid's configuration, as on the command line: "model.mask.convolutions=8"."""
    box: bool = False
    """No mask branch: every detection's box, filled, is its mask."""
    join: str = ""
    """A row above, on whose run sources of masks are joined (`training.join`): masks of set B come from them."""
    source: str = "chosen"
    """Of a row with `join`: whose masks, a source's or those that the rule of trust takes."""
    student: bool = True
    """Of a row with `join`: whether a mask branch learns from these masks; if not, they are judged themselves."""
    splits: tuple[str, ...] = ()
    """Sets A that it is trained for (see `data.mask_classes`); empty: the grid's."""
    evaluate: str = ""
    """Set A that it is judged by; empty: the one it is trained for, whatever `set` makes of it."""
    between: tuple[str, ...] = ()
    """The rows whose gap on B it is to close, lower and upper; empty: the grid's."""
    mask_share: float = 1.0
    """Of each class's objects with a mask, how many keep it in training (`training.datasets.thin`)."""

    def __post_init__(self) -> None:
        require_shares(mask_share=self.mask_share)
        if not self.name or any(sign in self.name for sign in "/,*?[] \t\n"):
            raise ValueError(f"name is {self.name!r}; give a word without blanks and any of / , * ? [ ]")
        _require_two(self.between)


@dataclass(frozen=True, kw_only=True)
class DrawingConfig:
    """How large the data set is that each seed draws for itself."""

    train: int = ShapesConfig.train
    val: int = ShapesConfig.val


@dataclass(frozen=True, kw_only=True)
class GridConfig:
    """All rows, and what they have in common."""

    about: str
    """What is compared; stands above the table."""
    preset: str
    """A name in training/presets, or a file."""
    set: tuple[str, ...] = ()
    """Changes to the preset, as on the command line."""
    seeds: int = 3
    data: Literal["drawn", "own"] = "own"
    """drawn: each seed draws a data set of its own; own: all train on the configuration's."""
    drawing: DrawingConfig = field(default_factory=DrawingConfig)
    splits: tuple[str, ...] = ()
    """Sets A that every row is trained for; empty: the configuration's own."""
    between: tuple[str, ...] = ()
    """The two rows, lower and upper, between which the others are placed on B."""
    rows: tuple[RowConfig, ...] = ()

    def __post_init__(self) -> None:
        require_at_least(1, seeds=self.seeds)
        names = [row.name for row in self.rows]
        if not names:
            raise ValueError("a grid without rows: add [[rows]], each with a name")
        for position, row in enumerate(self.rows):
            if row.name in names[:position]:
                raise ValueError(f"two rows are called {row.name}; names differ")
            if row.after and row.after not in names[:position]:
                raise ValueError(f"row {row.name}: after is {row.after!r}, which is no row above it")
            if row.join and (row.join not in names[:position] or self._row(row.join).box):
                raise ValueError(
                    f"row {row.name}: join is {row.join!r}, which is no row above it that has a mask branch"
                )
        for name in {*self.between, *(name for row in self.rows for name in row.between)}:
            if name not in names:
                raise ValueError(f"between names {name!r}, which is no row; there are {', '.join(names)}")
        _require_two(self.between)

    def joined_row(self, row: RowConfig) -> RowConfig | None:
        """The row on whose run the sources of `row` are joined."""
        return self._row(row.join) if row.join else None

    def _row(self, name: str) -> RowConfig:
        return next(row for row in self.rows if row.name == name)

    def overrides(self, row: RowConfig) -> tuple[str, ...]:
        """The changes of a row: those of the rows it comes after, then its own."""
        before = next((self.overrides(one) for one in self.rows if one.name == row.after), ())
        return before + row.set


def _require_two(names: tuple[str, ...]) -> None:
    if len(names) not in (0, 2):
        raise ValueError(f"between is {list(names)}; give two rows, the lower and the upper")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What is trained and evaluated at once: one row for one seed and split."""

    seed: int
    row: RowConfig
    split: str
    """Set A in the words of `data.mask_classes`; "" is the configuration's own."""
    config: TrainingConfig
    detector: TrainingConfig
    """Of the detector it stands on where it is trained stage by stage; rows of a seed that agree in it share one."""
    judged_by: str

    @property
    def title(self) -> str:
        """ "seed 0, exact, voc"."""
        return ", ".join([f"seed {self.seed}", self.row.name, *([self.split] if self.split else [])])


def load_grid(name: str) -> GridConfig:
    """The grid of a name in training/experiments/grids, or of a file.

    Raises:
        ValueError: no such grid (with the names there are), no TOML, an unknown key, a wrong type or value.
    """
    path = Path(name) if name.endswith(".toml") else GRIDS / f"{name}.toml"
    if not path.is_file():
        known = sorted(one.stem for one in GRIDS.glob("*.toml"))
        hint = did_you_mean(name, known)
        raise ValueError(f"{name}: no such grid. There are {', '.join(known)}, or give a TOML file{hint}")
    try:
        return from_plain(GridConfig, tomllib.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:  # a TOML or encoding error is one
        raise ValueError(f"{path}: {error}") from error


def with_rows(grid: GridConfig, names: str) -> tuple[RowConfig, ...]:
    """The rows of these names, in the grid's order; commas between, * and ? stand for letters. Empty: all.

    Raises:
        ValueError: a name that fits no row.
    """
    asked = [name.strip() for name in names.split(",") if name.strip()]
    for name in asked:
        if not any(fnmatchcase(row.name, name) for row in grid.rows):
            known = [row.name for row in grid.rows]
            hint = did_you_mean(name, known)
            raise ValueError(f"rows: no row is called {name}; there are {', '.join(known)}{hint}")
    if not asked:
        return grid.rows
    return tuple(row for row in grid.rows if any(fnmatchcase(row.name, name) for name in asked))


def drawn_data(folder: Path) -> dict[str, Any]:
    """The [data] keys of a data set that `training.drawn.shapes` wrote to `folder`."""
    return {
        "data.train_images": str(folder / "train"),
        "data.train_annotations": str(folder / "train.json"),
        "data.val_images": str(folder / "val"),
        "data.val_annotations": str(folder / "val.json"),
        "data.mask_classes": str(folder / "mask_classes.txt"),
    }


def base_config(grid: GridConfig, overrides: Sequence[str], *, seed: int, out: Path) -> TrainingConfig:
    """What all rows of a seed start from: the preset, the grid's changes, the seed's data, `overrides`."""
    preset = Path(grid.preset) if grid.preset.endswith(".toml") else PRESETS / f"{grid.preset}.toml"
    config = changed(load_config(preset, grid.set), {"seed": seed})
    if grid.data == "drawn":
        config = changed(config, drawn_data(out / f"seed{seed}" / "data"))
    return changed(config, overrides)


def cells_of_seed(
    grid: GridConfig, rows: Sequence[RowConfig], overrides: Sequence[str], *, seed: int, out: Path
) -> list[Cell]:
    """The cells of one seed, row by row.

    Raises:
        ValueError: a row's configuration is not valid, or its schedule trains nothing that it needs.
    """
    base = base_config(grid, overrides, seed=seed, out=out)
    cells = []
    for row in rows:
        for split in row.splits or grid.splits or ("",):
            try:
                trained = base if not split else changed(base, {"data.mask_classes": split})
                config = changed(trained, grid.overrides(row))
                _require_steps(config, row)
            except ValueError as error:
                raise ValueError(f"row {row.name}: {error}") from error
            cells.append(
                Cell(
                    seed=seed,
                    row=row,
                    split=split,
                    config=config,
                    detector=changed(config, {"data.mask_classes": base.data.mask_classes}),
                    judged_by=row.evaluate or trained.data.mask_classes,
                )
            )
    return cells


def stage_wise(config: TrainingConfig) -> bool:
    """Whether the mask branch is trained on a finished detector (Sec. 3.3), which other rows may share."""
    return config.schedule.end_to_end_steps == 0


def _require_steps(config: TrainingConfig, row: RowConfig) -> None:
    schedule = config.schedule
    if row.box or not stage_wise(config):
        return
    if not schedule.mask_steps:
        raise ValueError("schedule.mask_steps is 0; its mask branch has to be trained, so give it steps")
    if not schedule.detector_steps and not config.data.detector_from:
        raise ValueError(
            "schedule.detector_steps is 0; the mask branch stands on a detector, so give it steps, or name a "
            "checkpoint in data.detector_from"
        )
