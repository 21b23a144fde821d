"""Both sides of the training's bench do the same work, and the mask loss is one number in three ways."""

import json
from pathlib import Path
from typing import Any, Self

import pytest
import torch

from benchmarks.training import __main__ as training
from benchmarks.training.masks import MaskLossSide, Way
from benchmarks.training.sides import OursStep, ReferenceStep, full_masks, samples, write_start
from benchmarks.worker import found
from training.drawn.shapes import ShapesConfig, write_shapes

SIDE, BATCH = 64, 2


class Local:
    """A side in this process, in place of `Remote`."""

    def __init__(self, target: str, **options: Any) -> None:
        self.side = found(target)(**options)

    def call(self, method: str, **arguments: Any) -> Any:
        return getattr(self.side, method)(**arguments)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    write_shapes(folder / "set", ShapesConfig(train=8, val=1, size=SIDE), workers=1)
    write_start(data=str(folder / "set"), network="shapes", side=SIDE, out=str(folder / "start.pt"))
    return folder


@pytest.fixture(scope="module")
def sides(drawn: Path) -> tuple[OursStep, ReferenceStep]:
    data, start = str(drawn / "set"), str(drawn / "start.pt")
    ours = OursStep(data, start, "shapes", "mask_rcnn", side=SIDE, batch=BATCH, batches=1)
    return ours, ReferenceStep(data, start, "shapes", side=SIDE, batch=BATCH, batches=1)


def test_both_networks_have_the_same_weights_and_train_as_many_of_them(
    sides: tuple[OursStep, ReferenceStep],
) -> None:
    ours, theirs = sides[0].run.network, sides[1].network
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    image = torch.zeros(1, 3, SIDE, SIDE)
    with torch.no_grad():
        mine, other = ours.backbone(image), theirs.backbone(image)
        for name in ("0", "3", "pool"):
            torch.testing.assert_close(mine[name], other[name])
        pooled, hidden = torch.rand(3, 64, 7, 7), torch.rand(3, 64, 14, 14)
        box = theirs.roi_heads.box_predictor(theirs.roi_heads.box_head(pooled))[0]
        torch.testing.assert_close(ours.box_predictor(ours.box_head(pooled)), box)
        labels = torch.tensor([1, 5, 24])
        table, bias = ours.mask_table()
        logits = ours.mask_branch(hidden, table[labels], bias[labels].view(-1, 1, 1))
        whole = theirs.roi_heads.mask_predictor(theirs.roi_heads.mask_head(hidden))
        torch.testing.assert_close(logits, whole[torch.arange(3), labels], rtol=1e-4, atol=1e-5)


def test_both_sides_step_with_the_same_learning_rate_and_move_their_weights(
    sides: tuple[OursStep, ReferenceStep],
) -> None:
    ours, theirs = sides
    for _ in range(2):
        theirs_now = theirs.optimiser.param_groups[0]["lr"]
        before = [p.detach().clone() for p in (ours.run.network.rpn.head.cls_logits.weight,
                                               theirs.network.rpn.head.cls_logits.weight)]  # fmt: skip
        mine, other = ours.steps(1), theirs.steps(1)
        assert ours.run.optimiser is not None
        assert ours.run.optimiser.param_groups[0]["lr"] == pytest.approx(theirs_now)
        for one in (mine, other):
            assert one["seconds"][0] > 0 and one["loss"][0] > 0 and one["mask_rois"][0] > 0
        assert not torch.equal(before[0], ours.run.network.rpn.head.cls_logits.weight)
        assert not torch.equal(before[1], theirs.network.rpn.head.cls_logits.weight)
    assert ours.memory().keys() == theirs.memory().keys() == {"before_mib", "peak_mib"}


def test_masks_on_the_whole_image_lie_in_their_boxes(drawn: Path) -> None:
    (image, target), *_ = samples(drawn / "set", 1)[0]
    masks = full_masks(image, target)
    assert masks.shape == (len(target["labels"]), SIDE, SIDE)
    for mask, crop, (x0, y0, x1, y1) in zip(masks, target["masks"], target["boxes"].tolist(), strict=True):
        assert int(mask.sum()) == int(crop.sum()) > 0
        rows, columns = torch.where(mask > 0)
        assert y0 <= rows.min() and rows.max() < y1 and x0 <= columns.min() and columns.max() < x1


def test_too_few_fit_images_are_refused(drawn: Path) -> None:
    with pytest.raises(ValueError, match="9 are needed"):
        samples(drawn / "set", 9)


@pytest.mark.parametrize("classes", [5, 400])  # T on all of them, and on those that occur
def test_the_mask_loss_is_one_number_with_one_gradient_in_three_ways(classes: int) -> None:
    sizes: dict[str, Any] = {"width": 8, "cells": 3, "box_width": 6}
    numbers = []
    ways: tuple[Way, ...] = ("ours", "picked", "ignored")
    for way in ways:
        side = MaskLossSide(way, classes, 7, **sizes)
        loss = side.loss()
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = [p.grad for p in side.weights.parameters() if p.grad is not None]
        assert side.features.grad is not None
        numbers.append([loss, *gradients, side.features.grad.sum()])
    for other in numbers[1:]:
        for one, two in zip(numbers[0], other, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)
    assert len(numbers[0]) == 6


def test_a_run_writes_what_its_numbers_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    monkeypatch.setattr(training, "FORMS", {training.SAME: training.FORMS[training.SAME]})
    folder, out = tmp_path / "folder", tmp_path / "out"
    arguments = ["--quick", "--parts", "shapes", "masks", "--folder", str(folder), "--out", str(out)]
    monkeypatch.setattr(training, "Remote", Local)
    monkeypatch.setattr(training, "apart", lambda function, **options: found(function)(**options))
    assert training.main(arguments) == 0
    (path,) = out.glob("training-*-quick.md")
    text, content = path.read_text(), json.loads(path.with_suffix(".json").read_text())
    steps, masks = content["parts"].values()
    seconds = {name: of["median"] for name, of in steps["seconds"].items()}
    ratio = f"shapes: {training.REFERENCE} / {training.SAME}, seconds of a step"
    assert content["ratios"][ratio] == seconds[training.REFERENCE] / seconds[training.SAME]
    assert f"| {training.SAME} | {2 / seconds[training.SAME]:.2f} |" in text
    assert set(masks["seconds"]) == {"ours", "picked", "ignored"}
    assert set(masks["seconds"]["ours"]) == {"4", "300"}
