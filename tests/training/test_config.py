"""The configuration file and its overrides."""

from collections.abc import Callable
from pathlib import Path

import pytest

from training.config import TrainingConfig, config_from_dict, differing_keys, flat, load_config, to_dict

PRESETS = sorted(Path("training/presets").glob("*.toml"))
Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def to_file(text: str) -> Path:
        (tmp_path / "some.toml").write_text(text)
        return tmp_path / "some.toml"

    return to_file


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_every_preset_is_a_configuration_that_survives_the_checkpoint(preset: Path) -> None:
    config = load_config(preset)
    assert config_from_dict(to_dict(config)) == config


def test_the_presets_are_the_ones_the_documents_name() -> None:
    assert {"shapes", "photos", "paper", "paper_modern", "vg3k_detector", "vg3k_masks"} <= {
        preset.stem for preset in PRESETS
    }


def test_an_empty_file_is_the_papers_own_setting_but_for_the_steps(write: Write) -> None:
    config = load_config(write(""))
    assert config == TrainingConfig()
    assert (config.optimiser.learning_rate, config.schedule.warmup_steps) == (0.02, 500)
    assert (config.schedule.batch_size, config.optimiser.weight_decay) == (16, 1e-4)


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("schedule.mask_steps=800", 800),
        ("optimiser.learning_rate=1e-3", 0.001),
        ("optimiser.mask_learning_rate=1", 1.0),
        ("model.transfer.residual=true", True),
        ("model.rpn.anchor_sizes=[8, 16]", (8, 16)),
        ("data.mask_classes=cat,potted plant", "cat,potted plant"),
        ("data.mask_classes='quoted'", "quoted"),
        ("data.train_images=2017", "2017"),
        ("data.train_images=a=b/true", "a=b/true"),
        ("model.transfer.kind=class_agnostic", "class_agnostic"),
        ("seed=7", 7),
    ],
)
def test_an_override_changes_its_key_alone(write: Write, override: str, value: object) -> None:
    config = load_config(write(""), [override])
    key = override.partition("=")[0]
    was, now = flat(to_dict(TrainingConfig())), flat(to_dict(config))
    assert now[key] == (list(value) if isinstance(value, tuple) else value)
    assert {k: v for k, v in was.items() if k != key} == {k: v for k, v in now.items() if k != key}


def test_a_later_override_wins_over_an_earlier_one_and_over_the_file(write: Write) -> None:
    path = write("seed = 1\n[schedule]\nmask_steps = 5\nbatch_size = 4")
    config = load_config(path, ["schedule.mask_steps=6", "schedule.mask_steps=7"])
    assert (config.schedule.mask_steps, config.schedule.batch_size, config.seed) == (7, 4, 1)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("schedul.mask_steps=1", "unknown key schedul: did you mean schedule?"),
        ("schedule.mask_step=1", "unknown key schedule.mask_step: did you mean schedule.mask_steps?"),
        ("schedule.mask_steps=many", "schedule.mask_steps: expected an integer, got 'many'"),
        ("schedule=3", "schedule: expected a table of keys, got 3"),
        ("seed.x=3", "seed: expected an integer, got"),
        ("schedule.mask_steps", "expected key.of.table=value"),
        ("precision=float16", "precision: expected one of 'auto', 'float32', 'bfloat16', got 'float16'"),
        ("schedule.batch_size=0", r"\[schedule\] batch_size is 0; give 1 or more"),
        ("schedule.milestones=[0.9, 0.5]", "rising shares"),
        ("optimiser.learning_rate=0", "learning_rate is 0.0; it must be above 0"),
        ("loss_weights.loss_mask=-1", "loss_mask is -1.0"),
        ("seed=-1", "seed is -1"),
        ("optimiser.bias_rate=-2", "bias_rate is -2.0; give 0 or more"),
        ("model.rpn.images_together=0", "images_together is 0; give 1 or more"),
        ("model.rpn.pre_nms_test=0", "pre_nms_test is 0; give 1 or more"),
        ("model.rpn.straddle=-2", "straddle is -2; give -1 or more"),
        ("model.box.smooth_l1_beta=-1", r"smooth_l1_beta is -1.0; give 0 \(the plain L1 loss\) or more"),
    ],
)
def test_a_mistaken_override_is_refused_by_name(write: Write, override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(write(""), [override])


def test_a_mistake_in_the_file_names_the_file(write: Write) -> None:
    for text, message in (
        ("[modle]", "unknown key modle: did you mean model"),
        ("a = = 1", "some.toml: .*line 1"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            load_config(write(text))
        assert "some.toml" in str(caught.value)


def test_a_missing_file_is_answered_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"nowhere.toml: no such configuration file; .*shapes.toml"):
        load_config("nowhere.toml")


def differing(step: int, *overrides: str) -> list[str]:
    before = load_config("training/presets/paper.toml", STAGES)
    now = load_config("training/presets/paper.toml", [*STAGES, *overrides])
    return [key for key, _, _ in differing_keys(before, now, step=step)]


STAGES = ["schedule.end_to_end_steps=0", "schedule.detector_steps=100", "schedule.mask_steps=50"]


def test_a_resumed_run_may_write_elsewhere_and_load_otherwise() -> None:
    assert differing(10, "output.log_every=7", "data.workers=5", "device=cpu", "threads=3") == []


def test_a_run_of_before_goes_on_where_its_numbers_are_now_those_of_an_absent_key() -> None:
    assert differing(10, "model.rpn.pre_nms_train=2000", "model.rpn.pre_nms_test=1000") == []
    assert differing(10, "model.rpn.pre_nms_test=999") == ["model.rpn.pre_nms_test"]


@pytest.mark.parametrize("of_boxes", ["teacher.weight=0.5", "box_losses.projection=1"])
def test_what_objects_without_masks_teach_wants_their_rois(write: Write, of_boxes: str) -> None:
    with pytest.raises(
        ValueError, match=r"model\.mask\.stage_rois is set_a, which leaves no RoI of objects without"
    ):
        load_config(write(""), ["model.mask.stage_rois=set_a", of_boxes])
    load_config(write(""), ["model.mask.stage_rois=set_a", "model.mask.train_on=ground_truth", of_boxes])


def test_every_other_change_of_a_resumed_run_is_named() -> None:
    changes = ["optimiser.learning_rate=1", "model.transfer.layers=1", "seed=9", "augment.hue=0.1"]
    named = sorted(change.partition("=")[0] for change in changes)
    assert differing(10, *changes, "data.workers=5") == named


@pytest.mark.parametrize(
    ("step", "stage", "steps", "allowed"),
    [
        (100, "mask", 500, True), (120, "mask", 500, True), (100, "detector", 150, True), (60, "detector", 150, True),
        (120, "detector", 150, False), (60, "detector", 50, False), (120, "mask", 10, False),
        (10, "end_to_end", 5, False),
    ],
)  # fmt: skip
def test_a_run_may_get_more_steps_only_where_none_of_its_steps_becomes_another(
    step: int, stage: str, steps: int, allowed: bool
) -> None:
    key = f"schedule.{stage}_steps"
    assert differing(step, f"{key}={steps}") == ([] if allowed else [key])


def test_a_configuration_cannot_be_changed_in_place() -> None:
    with pytest.raises(AttributeError):
        TrainingConfig().seed = 3  # type: ignore[misc]
