"""The curve of a detector: one training that goes from point to point, each judged once."""

import json
from pathlib import Path

import pytest

from model.checkpoint import load_checkpoint
from tests.training.tiny_set import tiny_changes, tiny_config
from training.config import TrainingConfig, load_config
from training.experiments import detector_curve
from training.experiments.detector_curve import curve, main, with_side, with_trunk
from training.train import train


class Counted:
    """Trains, and remembers how far each time; stops before the call of this number."""

    def __init__(self, *, until: int = 99) -> None:
        self.steps: list[tuple[int, bool]] = []
        self.until = until

    def __call__(self, config: TrainingConfig, *, resume: bool = False) -> Path:
        if len(self.steps) == self.until:
            raise KeyboardInterrupt
        self.steps.append((config.schedule.detector_steps, resume))
        return train(config, resume=resume)


def test_one_training_goes_from_point_to_point_and_finished_points_are_kept(
    tiny_set: Path, tmp_path: Path
) -> None:
    config = tiny_config(tiny_set, tmp_path / "unused")
    first = Counted(until=1)
    with pytest.raises(KeyboardInterrupt):
        curve(config, (2, 3), first, out=tmp_path)
    second = Counted()
    points = curve(config, (2, 3), second, out=tmp_path)
    assert first.steps == [(2, False)] and second.steps == [(3, True)]
    assert [point.steps for point in points] == [2, 3]
    assert points[0].seconds is not None and points[1].seconds is None  # its first try had begun before
    assert all(point.box_ap50 is not None for point in points)
    assert load_checkpoint(Path(points[-1].checkpoint))["step"] == 3
    assert curve(config, (2, 3), Counted(until=0), out=tmp_path) == points


def test_a_curve_of_other_steps_is_another_training(tiny_set: Path, tmp_path: Path) -> None:
    config = tiny_config(tiny_set, tmp_path / "unused")
    one, other = (curve(config, steps, train, out=tmp_path)[-1] for steps in ((1, 2), (2,)))
    assert one.checkpoint != other.checkpoint


@pytest.mark.parametrize("steps", [(), (3, 2), (0, 1), (2, 2)])
def test_steps_that_do_not_rise_are_refused(tiny_set: Path, tmp_path: Path, steps: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="give rising numbers"):
        curve(tiny_config(tiny_set, tmp_path / "unused"), steps, train, out=tmp_path)


def test_a_smaller_side_takes_anchors_and_levels_with_it() -> None:
    half = with_side(load_config("training/presets/photos.toml", []), 160)
    assert (half.model.input.min_size, half.model.input.max_size) == (160, 224)
    assert half.model.rpn.anchor_sizes == (8, 16, 32, 64, 128)
    assert half.model.box.canonical_size == 56


def test_a_trunk_has_the_weights_that_are_named_or_else_the_configurations() -> None:
    config = load_config("training/presets/photos.toml", [])
    assert with_trunk(config, "resnet50").model.backbone.weights == "imagenet"
    assert with_trunk(config, "resnet50=none").model.backbone.weights == "none"


def test_the_command_prints_and_writes_every_point(
    tiny_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--config", "training/presets/shapes.toml", "--out", str(tmp_path), "--steps", "1,2"]
    words += ["--sides", "64,48", *tiny_changes(tiny_set, tmp_path / "unused")]
    assert main(words) == 0
    written = json.loads((tmp_path / "curve.json").read_text())["points"]
    assert [(one["side"], one["steps"]) for one in written] == [(64, 1), (64, 2), (48, 1), (48, 2)]
    told = capsys.readouterr().out
    assert "box AP50" in told and f"{tmp_path / 'curve.json'} written" in told
    assert main([*words[:6], "--sides", "wide"]) == 2
    assert "'wide': expected whole numbers" in capsys.readouterr().err


def test_points_that_cannot_be_read_are_named(tiny_set: Path, tmp_path: Path) -> None:
    config = tiny_config(tiny_set, tmp_path / "unused")
    (point,) = curve(config, (1,), train, out=tmp_path)
    kept = Path(point.checkpoint).with_name("points.json")
    kept.write_text("{}")
    with pytest.raises(ValueError, match=r"points\.json cannot be read"):
        curve(config, (1,), detector_curve.train, out=tmp_path)
