"""Trainings with the other mask heads and mask weights, from the command's configuration to the checkpoint."""

from pathlib import Path

import pytest

from model.checkpoint import load_network
from tests.training.tiny_set import tiny_config
from training.config import load_config
from training.experiments.variants import detector_alone
from training.train import train

END_TO_END = ["schedule.end_to_end_steps=2", "schedule.detector_steps=0", "schedule.mask_steps=0"]
HOURGLASS = ["model.mask.head=hourglass20", "model.mask.roi_size=8"]
SPECIFIC = ["model.transfer.kind=class_specific", "data.mask_classes=all"]
PRIOR = ["model.box.head=conv", "model.mask.prior=cam"]
FORMS = {
    "hourglass and prior": [*HOURGLASS, *PRIOR],
    "mlp head, bfloat16": ["model.mask.head=mlp", "model.mask.mlp=none", "precision=bfloat16"],
    "softmax": [*SPECIFIC, "model.mask.loss=softmax"],
    "hourglass, prior, class-specific, bfloat16": [*HOURGLASS, *PRIOR, *SPECIFIC, "precision=bfloat16"],
}


@pytest.mark.parametrize("schedule", [[], END_TO_END], ids=["stage by stage", "end to end"])
@pytest.mark.parametrize("changes", FORMS.values(), ids=FORMS)
def test_a_training_ends_in_a_checkpoint_that_loads(
    changes: list[str], schedule: list[str], tiny_set: Path, tmp_path: Path
) -> None:
    config = tiny_config(tiny_set, tmp_path, *changes, *schedule)
    network, _, contents = load_network(train(config))
    assert contents["step"] == config.schedule.total_steps
    assert network.box_head.has_prior is (config.model.mask.prior == "cam")


def test_class_specific_masks_of_a_class_without_masks_are_refused_by_its_name(
    tiny_set: Path, tmp_path: Path
) -> None:
    config = tiny_config(tiny_set, tmp_path, "model.transfer.kind=class_specific")
    with pytest.raises(ValueError, match=r"1 of 3 have none \('slab'\): set data.mask_classes=all"):
        train(config)


@pytest.mark.parametrize(
    "changes",
    [
        [*SPECIFIC, "model.mask.loss=softmax"],
        ["box_losses.projection=1", "teacher.weight=0.5"],
    ],
)
def test_the_detector_of_an_experiment_is_the_same_whatever_its_masks_learn_from(changes: list[str]) -> None:
    base = ["data.mask_classes=all"]
    plain, other = (load_config("training/presets/shapes.toml", [*base, *more]) for more in ([], changes))
    assert plain != other and detector_alone(plain) == detector_alone(other)
