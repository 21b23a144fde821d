"""Files of grids, and what a grid's cells are configured as."""

from pathlib import Path

import pytest

from model.config import MaskConfig
from training.config import changed, load_config
from training.data.splits import SEED, random_splits
from training.experiments.grid import (
    GRIDS,
    GridConfig,
    RowConfig,
    base_config,
    cells_of_seed,
    load_grid,
    with_rows,
)
from training.experiments.variants import detector_digest

OUT = Path("build/experiments/shapes")


@pytest.mark.parametrize("name", sorted(path.stem for path in GRIDS.glob("*.toml")))
def test_every_row_of_a_grid_of_ours_is_a_configuration(name: str) -> None:
    grid = load_grid(name)
    cells = cells_of_seed(grid, grid.rows, [], seed=0, out=OUT)
    assert len(cells) >= len(grid.rows) > 3
    different = {
        (str(cell.config), cell.judged_by, row.box, row.mask_share, row.join, row.source, row.student)
        for cell, row in [(one, one.row) for one in cells]
        if cell.config.data.mask_classes != "all"
    }
    judged_twice = [cell for cell in cells if cell.config.data.mask_classes == "all"]
    assert len(different) + len(judged_twice) == len(cells), "two rows of the same settings"
    in_every_class = name.startswith("mixed")  # there are masks, and no set B
    assert all((cell.judged_by == "all") == in_every_class for cell in cells)


def test_the_paper_has_all_rows_of_its_tables_and_figure() -> None:
    """Rows as the README of the paper's own code names them."""
    rows = load_grid("paper").rows
    in_table = {
        table: sum(table in row.paper for row in rows) for table in ("1a", "1b", "1c", "1d", "Table 2")
    }
    assert in_table == {"1a": 7, "1b": 5, "1c": 4, "1d": 5, "Table 2": 6}
    splits = {f"random:{name}" for name in random_splits(80)}
    assert [
        set(row.splits) == splits and len(row.splits) == 25 for row in rows if "Figure 3" in row.paper
    ] == [True, True]
    assert SEED == 3


@pytest.mark.parametrize("name", ["paper", "photos", "shapes"])
def test_rows_in_the_papers_form_start_as_the_papers_code_does(name: str) -> None:
    grid = load_grid(name)
    cells = cells_of_seed(grid, grid.rows, [], seed=0, out=OUT)
    exact = [cell.config.model.transfer for cell in cells if name == "paper" or cell.row.name == "exact"]
    assert exact and {(form.init, form.residual, form.normalise) for form in exact} == {
        ("fan_out", False, False)
    }
    random = {form.random_rows for form in exact if form.input == "random"}
    assert random == ({"word"} if name == "paper" else set())
    others = {
        cell.config.model.transfer.init for cell in cells if cell.row.name not in ("exact", "exact_fan_in")
    }
    assert name == "paper" or others == {"fan_in"}


def test_the_rungs_of_the_ladder_are_what_their_names_say_whatever_the_preset_has() -> None:
    grid = load_grid("shapes")
    overrides = ["model.mask.mlp=none"]
    cells = {
        cell.row.name: cell.config for cell in cells_of_seed(grid, grid.rows, overrides, seed=0, out=OUT)
    }
    exact, form = cells["exact"].model, cells["exact"].model.transfer
    assert (form.input, form.layers, form.activation) == ("cls+box", 2, "leaky_relu")
    assert not form.residual and not form.normalise and form.init == "fan_out"
    assert cells["exact_fan_in"] == changed(cells["exact"], {"model.transfer.init": "fan_in"})
    for name in ("class_agnostic", "exact", "residual"):
        paper = MaskConfig(width=exact.mask.width, mlp="none")
        assert cells[name].model.mask == paper and cells[name].model.box.head == "fc"
        assert not cells[name].box_losses.used and not cells[name].teacher.used
    assert cells["residual"].model.transfer.residual
    assert cells["ground_truth"].model.mask.train_on == "ground_truth"
    own = str(OUT / "seed0/data/mask_classes.txt")
    in_a = {name: config.data.mask_classes for name, config in cells.items()}
    assert in_a.pop("oracle") == "all" and set(in_a.values()) == {own}


def test_detectors_are_found_under_the_same_name_whatever_the_mask_branch() -> None:
    grid = load_grid("shapes")
    cells = cells_of_seed(grid, grid.rows, [], seed=0, out=OUT)
    names = {
        head: {detector_digest(c.detector) for c in cells if c.config.model.box.head == head}
        for head in ("fc", "conv")
    }
    assert len(names["fc"]) == len(names["conv"]) == 1 and names["fc"] != names["conv"]
    assert {cell.detector.data.mask_classes for cell in cells} == {str(OUT / "seed0/data/mask_classes.txt")}
    others = cells_of_seed(grid, grid.rows, [], seed=1, out=OUT)
    assert detector_digest(others[0].detector) not in names["fc"]


def test_changes_of_the_command_line_come_before_those_of_a_row_and_after_the_grids() -> None:
    row = RowConfig(name="one", set=("model.mask.width=8",))
    grid = GridConfig(
        about="", preset="shapes", set=("model.box.width=16", "model.mask.width=24"), rows=(row,)
    )
    (cell,) = cells_of_seed(grid, grid.rows, ["model.box.width=32", "model.mask.width=40"], seed=5, out=OUT)
    assert (cell.config.model.box.width, cell.config.model.mask.width, cell.config.seed) == (32, 8, 5)
    assert base_config(grid, [], seed=5, out=OUT).data == load_config("training/presets/shapes.toml").data


def test_rows_are_chosen_by_name_in_the_order_of_the_grid() -> None:
    grid = load_grid("shapes")
    assert [row.name for row in with_rows(grid, " oracle,box ")] == ["box", "oracle"]
    of_1a = [row.name for row in with_rows(load_grid("paper"), "1a-*")]
    assert of_1a == ["1a-randn", "1a-glove", "1a-cls", "1a-box"]
    assert with_rows(grid, "") == grid.rows
    with pytest.raises(ValueError, match="no row is called exakt.*did you mean exact"):
        with_rows(grid, "box,exakt")


ROW = '\n[[rows]]\nname = "one"\n'


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('rows = []\npreset = "shapes"\nabout = ""', "a grid without rows"),
        ('preset = "shapes"\nabout = ""\nseds = 2' + ROW, "unknown key seds: did you mean seeds"),
        ('preset = "shapes"\nabout = ""\nseeds = 0' + ROW, "seeds is 0"),
        ('preset = "shapes"\nabout = ""' + ROW + ROW, "two rows are called one"),
        (
            'preset = "shapes"\nabout = ""' + ROW + 'after = "zero"',
            "row one: after is 'zero', which is no row above it",
        ),
        ('preset = "shapes"\nabout = ""\nbetween = ["one"]' + ROW, "give two rows, the lower and the upper"),
        (
            'preset = "shapes"\nabout = ""\nbetween = ["one", "two"]' + ROW,
            "between names 'two', which is no row",
        ),
        ('preset = "shapes"\nabout = ""' + ROW.replace("one", "a b"), "name is 'a b'"),
        ('about = ""' + ROW, "preset is missing"),
        ("about = ", "Invalid value"),
    ],
)
def test_a_mistake_in_a_grids_file_is_named_with_the_file(tmp_path: Path, text: str, error: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=error) as caught:
        load_grid(str(path))
    assert str(caught.value).startswith(f"{path}: ")
