"""Every option of the method: trained for 20 steps (2 if large), exported, reloaded, and predicted with."""

import json
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import torch
from PIL import Image

import export.verify
from export.files import METADATA_NAME
from export.torchscript import export_checkpoint
from model.checkpoint import load_checkpoint
from model.keypoints.layout import COCO_NAMES
from tests.export.tiny import answers_here
from tests.model.small_network import asked
from tests.training.option_rows import AMOUNTS, BASE, ELSEWHERE, ROWS
from tests.training.tiny_set import rows as logged_rows
from training.config import TrainingConfig, flat, load_config, to_dict
from training.drawn.figures import FIGURES, FiguresConfig
from training.drawn.shapes import ShapesConfig, write_shapes
from training.drawn.write import write_set
from training.train import train

SIDE = 64


@dataclass(frozen=True)
class Drawn:
    """Where the drawn sets and the file of word vectors lie."""

    shapes: Path = Path("shapes")
    figures: Path = Path("figures")
    words: Path = Path("words.txt")


def config_of(row: str, drawn: Drawn, out: Path) -> TrainingConfig:
    """The configuration of one of `ROWS`."""
    figures = tomllib.loads(Path("training/presets/figures.toml").read_text())
    places = vars(drawn) | {"keypoints": json.dumps(figures["model"]["keypoints"]["names"])}
    changes = [change.format(**places) for change in (*BASE, *ROWS[row])]
    return load_config("training/presets/shapes.toml", [*changes, f"output.dir={out}"])


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    """A few drawn images of each kind, and a vector for each word in a class's name."""
    folder = tmp_path_factory.mktemp("drawn")
    drawn = Drawn(folder / "shapes", folder / "figures", folder / "words.txt")
    write_shapes(drawn.shapes, ShapesConfig(train=12, val=1, size=SIDE), workers=1)
    write_set(FIGURES, drawn.figures, FiguresConfig(train=6, val=1, size=SIDE))
    document = json.loads((drawn.shapes / "train.json").read_text())
    words = sorted({word for category in document["categories"] for word in category["name"].split()})
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(len(words), 4, generator=generator).tolist()
    lines = [" ".join([word, *map(str, vector)]) for word, vector in zip(words, vectors, strict=True)]
    drawn.words.write_text("\n".join(lines) + "\n", encoding="utf-8")
    people = json.loads((drawn.figures / "train.json").read_text())
    for category in people["categories"]:
        if "keypoints" in category:
            category["keypoints"] = list(COCO_NAMES)
    for annotation in people["annotations"]:
        if "keypoints" in annotation:
            given = annotation["keypoints"]
            annotation["keypoints"] = given + [0] * (3 * len(COCO_NAMES) - len(given))
    (drawn.figures / "coco.json").write_text(json.dumps(people))
    return drawn


@pytest.mark.parametrize("row", ROWS)
def test_an_option_trains_is_exported_reloaded_and_predicts(
    row: str, drawn: Drawn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(row, drawn, tmp_path)
    checkpoint = train(config)
    saved = load_checkpoint(checkpoint)
    assert saved["finished"] and saved["step"] == config.schedule.total_steps > 0
    labels = saved["model"]["box_predictor.cls_score.weight"].shape[0]
    del saved
    logged, losses = logged_rows(tmp_path), ["loss_mask", "loss_class"]
    losses += ["loss_projection", "loss_pairwise"] * config.box_losses.used
    losses += ["loss_pseudo_mask"] * config.teacher.used + ["loss_keypoint"] * config.model.keypoints.used
    assert [name for name in losses if not any(float(step[name] or 0) > 0 for step in logged)] == []

    monkeypatch.setattr(export.verify, "answers_of_fresh_process", answers_here)
    export_checkpoint(checkpoint, tmp_path / "maskx.pt")  # only where eager == scripted == reloaded, exactly
    extra: dict[str, str | bytes] = {METADATA_NAME: ""}
    model = torch.jit.load(tmp_path / "maskx.pt", _extra_files=extra)
    assert json.loads(extra[METADATA_NAME])["mask_size"] == 2 * config.model.mask.roi_size
    picture = Image.open(next(Path(config.data.train_images).glob("*.png"))).convert("RGB")
    image = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    with torch.inference_mode():
        (answer,) = model(*asked([image], sizes=[[2 * SIDE, 2 * SIDE]], most=5, classes=labels - 1))
    assert answer["labels"].shape == (5,) and bool(answer["scores"].isfinite().all())
    assert bool((answer["boxes"] >= 0).all()) and bool((answer["boxes"] <= 2 * SIDE).all())
    runs = answer["rle_counts"].tensor_split(answer["rle_offsets"][1:-1])
    assert [int(run.sum()) for run in runs] == [(2 * SIDE) ** 2] * 5


# ---- that no option is left out ----


def leaves(cls: type = TrainingConfig, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of the configuration and its annotation."""
    hints = get_type_hints(cls)
    for entry in fields(cls):
        if is_dataclass(hints[entry.name]):
            yield from leaves(hints[entry.name], f"{prefix}{entry.name}.")
        else:
            yield f"{prefix}{entry.name}", hints[entry.name]


def choices() -> dict[str, tuple[Any, ...]]:
    """The values of every key that takes one of a few words, or true or false."""
    found = {}
    for key, hint in leaves():
        # Of a union of words and text, the words.
        hint = next((part for part in get_args(hint) if get_origin(part) is Literal), hint)
        if get_origin(hint) is Literal:
            found[key] = get_args(hint)
        elif hint is bool:
            found[key] = (True, False)
    return {key: values for key, values in found.items() if not key.startswith("validate_transfer.")}


def in_toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


@cache
def settings() -> list[dict[str, Any]]:
    """The whole configuration of every row, by its keys."""
    return [flat(to_dict(config_of(row, Drawn(), Path("out")))) for row in ROWS]


def test_every_value_of_every_choice_is_trained_or_has_a_test_of_its_own() -> None:
    rows = settings()
    left = [
        f"{key}={in_toml(value)}"
        for key, values in choices().items()
        for value in values
        if not any(row[key] == value for row in rows)
    ]
    assert sorted(left) == sorted(key for key in ELSEWHERE if "=" in key)


def test_every_other_option_is_trained_at_another_value_than_the_default_or_has_a_test_of_its_own() -> None:
    rows, usual = settings(), flat(to_dict(TrainingConfig()))
    left = [
        key
        for key, value in usual.items()
        if key not in choices() and not key.startswith(AMOUNTS) and all(row[key] == value for row in rows)
    ]
    assert sorted(left) == sorted(key for key in ELSEWHERE if "=" not in key)


@pytest.mark.parametrize("where", sorted(set(ELSEWHERE.values())))
def test_the_tests_named_for_the_other_options_are_there(where: str) -> None:
    path, _, name = where.partition("::")
    assert f"\ndef {name}(" in Path(path).read_text(encoding="utf-8")
