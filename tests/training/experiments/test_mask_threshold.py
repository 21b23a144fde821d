"""The threshold of transferred masks: measured on held-out classes, carried in the logits of what is served."""

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from model.boxes.pooling import rois_of
from model.checkpoint import load_checkpoint, load_network
from model.network import MaskXRCNN
from model.serving import prepared_for_serving
from tests.export.tiny import tiny_network
from tests.model.small_network import image, small_network, target, transfer
from tests.training.tiny_set import tiny_config, write_tiny_set
from training.config import TrainingConfig, changed, config_from_dict
from training.evaluate.predictions import ObjectMask, Predictions
from training.experiments import mask_threshold as calibrate_masks
from training.experiments.mask_threshold import calibrate, chosen_threshold, main, report
from training.train import train

# ---- the threshold in the network ----


def probabilities(network: MaskXRCNN, labels: list[int]) -> torch.Tensor:
    """Served mask probabilities [D, M, M] of the same box for each label."""
    served = network.eval().inference()
    features = served.for_pooling(served.backbone(served.canvas([image()], 64, 64)))
    boxes = torch.tensor([[10.0, 8, 50, 40]]).repeat(len(labels), 1)
    with torch.no_grad():
        return served.mask_probabilities(features, rois_of([boxes]), torch.tensor(labels))


def loud(network: MaskXRCNN) -> MaskXRCNN:
    """Weights that give probabilities all over (0, 1)."""
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in network.mask_weights.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return network


@pytest.mark.parametrize("kind", ["transfer", "class_agnostic", "class_specific"])
def test_a_pixel_belongs_to_a_shifted_mask_from_the_threshold_on(kind: Any) -> None:
    network = loud(small_network(transfer=transfer(kind=kind)))
    before = probabilities(network, [1, 2, 3, 4])
    network.set_mask_threshold(0.3, [2, 4])
    after = probabilities(network, [1, 2, 3, 4])
    assert torch.equal(after[[0, 2]], before[[0, 2]])
    undecided = (before - 0.3).abs() < 1e-5
    assert bool((((after >= 0.5) == (before >= 0.3)) | undecided)[[1, 3]].all())
    between = (before >= 0.3) & (before < 0.5)
    assert bool(between[1].any())  # else the line above would hold without a shift
    network.set_mask_threshold(0.5, [2, 4])
    assert torch.equal(probabilities(network, [1, 2, 3, 4]), before)


def test_the_threshold_leaves_training_and_the_weights_alone() -> None:
    network = loud(small_network())
    network.set_stage("mask")
    keys = set(network.state_dict())
    losses = []
    for threshold in (0.5, 0.3):
        network.set_mask_threshold(threshold, [1, 2, 3, 4, 5])
        torch.manual_seed(0)
        losses.append(network.eval().losses([image()], [target(3)])["loss_mask"])
    assert torch.equal(*losses)
    assert set(network.state_dict()) == keys


def test_the_exported_file_carries_the_threshold_and_answers_as_the_network_does() -> None:
    network = tiny_network()
    network.set_mask_threshold(0.3, [2, 4])
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(prepared_for_serving(network.inference())), file)
    scripted = torch.jit.load(io.BytesIO(file.getvalue()))
    features = scripted.for_pooling(scripted.backbone(scripted.canvas([image()], 64, 64)))
    eager = network.inference()
    same = eager.for_pooling(eager.backbone(eager.canvas([image()], 64, 64)))
    boxes, labels = rois_of([torch.tensor([[10.0, 8, 50, 40]] * 2)]), torch.tensor([1, 2])
    with torch.no_grad():
        shifted = scripted.dense_mask_head(*scripted.crops_of(features, boxes, labels))[: len(labels)]
        torch.testing.assert_close(shifted, eager.mask_probabilities(same, boxes, labels), atol=1e-5, rtol=0)
        network.set_mask_threshold(0.5, [])
        plain = network.inference().mask_probabilities(same, boxes, labels)
    wanted = torch.sigmoid(torch.logit(plain.double()) + math.log(0.7 / 0.3)).float()
    torch.testing.assert_close(shifted[0], plain[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(shifted[1], wanted[1], atol=1e-5, rtol=0)


# ---- the choice ----


def test_the_best_threshold_is_chosen_where_it_gains_more_than_chance() -> None:
    sure = {0.4: [0.62, 0.71, 0.53, 0.82], 0.5: [0.6, 0.7, 0.5, 0.8], 0.6: [0.5, 0.6, 0.4, 0.7]}
    rows, chosen = chosen_threshold(sure)
    assert chosen == 0.4
    assert [row.threshold for row in rows] == [0.4, 0.5, 0.6]
    gains = [0.02, 0.01, 0.03, 0.02]
    deviation = math.sqrt(sum((gain - 0.02) ** 2 for gain in gains) / 3)
    assert rows[0].gain == pytest.approx(0.02) and rows[0].gain_error == pytest.approx(deviation / 2)
    assert rows[0].iou == pytest.approx(0.67) and rows[1].gain == 0


@pytest.mark.parametrize(
    "ious",
    [
        {0.4: [0.9, 0.3, 0.6], 0.5: [0.5, 0.6, 0.5]},  # better in the mean, by chance
        {0.4: [0.9], 0.5: [0.5]},  # one object tells nothing
        {0.4: [0.4, 0.4], 0.5: [0.5, 0.5]},
    ],
)
def test_half_stays_where_no_other_is_surely_better(ious: dict[float, list[float]]) -> None:
    assert chosen_threshold(ious)[1] == 0.5


# ---- the measurement ----


@pytest.fixture
def config(tmp_path: Path) -> TrainingConfig:
    """A training on the tiny set, with brick and tile in set A and slab in set B, judged by its own images."""
    write_tiny_set(tmp_path / "set")
    words = [f"validate_transfer.{word}" for word in ("groups=2", "folds=2", "steps=1")]
    return tiny_config(tmp_path / "set", tmp_path / "run", *words)


def test_only_held_out_classes_are_shifted_and_judged(
    config: TrainingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained_with: list[str] = []

    def noting(config: TrainingConfig, *, resume: bool = False) -> Path:
        if config.schedule.mask_steps:
            trained_with.append(Path(config.data.mask_classes).read_text())
        return train(config, resume=resume)

    def best_at_035(network: MaskXRCNN, *arguments: Any, **options: Any) -> Predictions:
        shift = torch.zeros(4) if network.mask_shift is None else network.mask_shift
        moved = torch.where(shift != 0)[0].tolist()
        threshold = float(torch.sigmoid(-shift).min() if shift.sum() > 0 else torch.sigmoid(-shift).max())
        assert moved in ([], [1], [2])  # never slab, of set B
        good = 1 - abs(threshold - 0.35)
        masks = [
            ObjectMask(
                image_id=1, category_id=label, iou=good if [label] == moved or not moved else 0.0, box_fill=0
            )
            for label in (1, 2)
        ]
        return Predictions(truth=arguments[2], results=[], object_masks=masks)

    monkeypatch.setattr(calibrate_masks, "predict", best_at_035)
    classes = load_network(train(config))[1]
    found = calibrate(config, classes, noting, thresholds=(0.35, 0.6))
    assert sorted(trained_with) == ["brick\n", "tile\n"]
    assert sorted(found.held_out) == [("brick",), ("tile",)]
    assert [row.threshold for row in found.rows] == [0.35, 0.5, 0.6]
    assert [row.iou for row in found.rows] == pytest.approx([1, 0.85, 0.75])
    assert (found.objects, found.chosen) == (2, 0.35)
    assert "model.transfer.mask_threshold=0.35" in report(found)


def test_with_masks_as_they_come_classes_of_few_masks_are_held_out_too(config: TrainingConfig) -> None:
    """Of the tiny set's 6 bricks, 4 tiles and 2 slabs the last are too few for set A."""
    config = changed(
        config, {"data.mask_classes": "auto", "validate_transfer.groups": 3, "validate_transfer.folds": 3}
    )
    classes = load_network(train(config))[1]
    assert classes.mask_sources == ("masks", "masks", "some_masks")
    found = calibrate(config, classes, train, thresholds=(0.4,))
    assert sorted(found.held_out) == [("brick",), ("slab",), ("tile",)]
    assert found.objects == 12


def test_the_command_measures_writes_the_table_and_puts_the_threshold_into_the_checkpoint(
    config: TrainingConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = train(config)
    monkeypatch.setattr(calibrate_masks, "THRESHOLDS", (0.4, 0.5))
    words = ["--checkpoint", str(checkpoint)]
    assert main(words) == 0
    assert "objects of classes held out of set A" in capsys.readouterr().out
    table = json.loads((checkpoint.parent / "calibrate_masks.json").read_text())
    assert table["objects"] == 10 and table["chosen"] in [row["threshold"] for row in table["rows"]]
    assert load_network(checkpoint)[0].mask_shift is None

    monkeypatch.setattr(calibrate_masks, "chosen_threshold", lambda ious: ((), 0.4))
    assert main([*words, "--write"]) == 0
    network, classes, contents = load_network(checkpoint)
    assert contents["model_config"]["transfer"]["mask_threshold"] == 0.4
    assert network.mask_shift is not None
    shifted = [label for label in range(4) if float(network.mask_shift[label]) != 0]
    assert shifted == list(classes.set_b_labels()) == [3]
    assert float(network.mask_shift[3]) == pytest.approx(math.log(0.6 / 0.4))
    # a training that goes on is the same training: the threshold is no part of it
    assert config_from_dict(load_checkpoint(checkpoint)["training_config"]) == config
    assert train(changed(config, {"schedule.mask_steps": 3}), resume=True) == checkpoint


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_a_threshold_that_makes_no_sense_is_refused(config: TrainingConfig, threshold: float) -> None:
    with pytest.raises(ValueError, match=r"model.transfer.*mask_threshold is"):
        changed(config, {"model.transfer.mask_threshold": threshold})
    classes = load_network(train(changed(config, {"schedule.mask_steps": 0})))[1]
    with pytest.raises(ValueError, match="a threshold is"):
        calibrate(config, classes, train, thresholds=(0.5, threshold))


def test_a_mistake_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["--checkpoint", str(tmp_path / "gone.pt")]) == 2
    assert capsys.readouterr().err.startswith("error: ")
