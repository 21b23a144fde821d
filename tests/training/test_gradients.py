"""The gradient of a step in parts: that of all its images at once, whatever each part has of sets A and B."""

import copy
import dataclasses
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

import model.boxes.rois
import model.boxes.rpn_training
from model.network import MaskXRCNN
from model.targets import Target
from tests.model.small_network import SMALL, image, small_network, target, transfer
from training.distributed import ALONE
from training.gradients import Gradients

IMAGES = [image(seed=seed) for seed in range(5)]
TARGETS = [
    target(3, seed=0, image_id=10),
    target(4, seed=1, image_id=11, with_masks=False),
    target(1, seed=2, image_id=12),
    target(0, image_id=13),
    target(2, seed=4, image_id=14, with_masks=[True, False]),
]
SEEDS = [100, 101, 102, 103, 104]


def network(norm: Literal["frozen", "batch"] = "frozen", **changes: Any) -> MaskXRCNN:
    backbone = dataclasses.replace(SMALL.backbone, norm=norm)
    return small_network(backbone=backbone, transfer=transfer(dropout=0.3), **changes).train()


def gradient(of: MaskXRCNN, parts: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Every loss, and the gradient of every parameter, of the five images in so many parts."""
    of.zero_grad(set_to_none=True)
    losses = Gradients(of, group=ALONE, parts=parts).add(
        IMAGES, TARGETS, seeds=SEEDS, seed=7, weighted=lambda losses: torch.stack(list(losses.values())).sum()
    )
    return losses, {name: p.grad.clone() for name, p in of.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("train_on", ["proposals", "ground_truth"])
@pytest.mark.parametrize("parts", [2, 3, 5])
def test_the_gradient_in_parts_is_that_of_all_images_at_once(
    parts: int, train_on: Literal["proposals", "ground_truth"]
) -> None:
    mask = dataclasses.replace(SMALL.mask, train_on=train_on, jitter=0.1)
    one = network(mask=mask)
    losses, whole = gradient(one, 1)
    in_parts, divided = gradient(one, parts)
    assert {name for name, _ in one.named_parameters() if name in whole} == divided.keys()
    assert any(value.abs().sum() > 0 for name, value in whole.items() if name.startswith("mask_weights."))
    for name, value in losses.items():
        torch.testing.assert_close(in_parts[name], value, rtol=1e-5, atol=1e-7)
    difference = {name: float((divided[name] - value).norm()) for name, value in whole.items()}
    length = float(torch.stack([value.norm() for value in whole.values()]).norm())
    assert sum(value**2 for value in difference.values()) ** 0.5 <= 1e-5 * length
    # Rounding may turn a ReLU at 0 on or off, which a single weight feels more; a wrong count is another number.
    for name, value in whole.items():
        assert difference[name] <= 1e-2 * float(value.norm()), name


def test_counting_what_the_parts_hold_moves_no_batch_statistics() -> None:
    one = network(norm="batch")
    norms = [m for m in one.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    alone = copy.deepcopy(one)
    gradient(one, 2)
    assert norms and {int(m.num_batches_tracked or 0) for m in norms} == {2}
    with torch.no_grad():
        for some in (slice(0, None, 2), slice(1, None, 2)):
            alone.losses(IMAGES[some], TARGETS[some], seeds=SEEDS[some])
    found = [m for m in alone.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for mine, theirs in zip(norms, found, strict=True):
        torch.testing.assert_close(mine.running_mean, theirs.running_mean)


def test_what_is_drawn_of_an_image_follows_from_its_seed_and_not_from_its_company(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: list[list[Tensor]] = []
    real = model.boxes.rois.sample

    def noted(*arguments: Any) -> tuple[Tensor, Tensor]:
        chosen, taken = real(*arguments)
        drawn.append([row[mine] for row, mine in zip(chosen, taken, strict=True)])
        return chosen, taken

    monkeypatch.setattr(model.boxes.rois, "sample", noted)
    monkeypatch.setattr(model.boxes.rpn_training, "sample", noted)
    one = network()

    def of(images: list[int], seeds: list[int]) -> list[Tensor]:
        drawn.clear()
        some: list[Target] = [TARGETS[i] for i in images]
        one.losses([IMAGES[i] for i in images], some, seeds=seeds)
        return [rows for step in drawn for rows in step]  # anchors of each image, then RoIs of each

    anchors_0, anchors_1, rois_0, rois_1 = of([0, 1], [5, 6])
    swapped = of([1, 0], [6, 5])
    assert torch.equal(anchors_0, swapped[1]) and torch.equal(anchors_1, swapped[0])
    assert torch.equal(rois_0, swapped[3]) and torch.equal(rois_1, swapped[2])
    # With fewer objects in the batch there are fewer places for them; those of the proposals stay.
    assert all(torch.equal(a, b) for a, b in zip(of([0], [5]), [anchors_0, rois_0], strict=True))
    assert not torch.equal(of([0], [8])[0], anchors_0)
