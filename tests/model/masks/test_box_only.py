"""Objects without masks in the network's losses: what they move, what they never read, what they leave alone."""

import copy
import dataclasses
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from model.boxes.pooling import rois_of
from model.masks.box_only import BoxOnly
from model.network import MaskXRCNN
from model.targets import Target
from tests.model.small_network import SMALL, small_network, target, transfer

LOSSES = {"loss_projection", "loss_pairwise", "loss_pseudo_mask"}


def image(seed: int = 0) -> Tensor:
    """A picture of four flat colours, uint8 [3, 64, 64]: it has neighbours of like colour and of unlike."""
    generator = torch.Generator().manual_seed(seed)
    colours = torch.randint(0, 256, (3, 2, 2), dtype=torch.uint8, generator=generator)
    return colours.repeat_interleave(32, 1).repeat_interleave(32, 2)


def on_ground_truth(**changes: Any) -> MaskXRCNN:
    """A network whose mask RoIs are the ground-truth boxes, so that nothing is drawn at random."""
    return small_network(mask=dataclasses.replace(SMALL.mask, train_on="ground_truth"), **changes)


def teacher_of(network: MaskXRCNN) -> MaskXRCNN:
    """A copy of the network with other mask weights."""
    teacher = copy.deepcopy(network).requires_grad_(False).eval()
    torch.manual_seed(5)
    for parameter in teacher.mask_weights.parameters():
        parameter.copy_(torch.randn_like(parameter))
    return teacher


def everything(network: MaskXRCNN) -> BoxOnly:
    return BoxOnly(colour_threshold=0.3, margin=0.1, teacher=teacher_of(network))


def moved(network: nn.Module) -> set[str]:
    """First parts of the names of all parameters with a gradient other than zero."""
    return {
        name.split(".")[0]
        for name, parameter in network.named_parameters()
        if parameter.grad is not None and bool(parameter.grad.any())
    }


@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize("stop_gradient", [True, False])
def test_each_loss_moves_the_mask_side_and_the_features_and_w_det_only_without_stop_gradient(
    name: str, stop_gradient: bool
) -> None:
    network = on_ground_truth(transfer=transfer(stop_gradient=stop_gradient)).train()
    losses = network.losses([image()], [target(4, with_masks=False)], everything(network))
    losses[name].backward()
    wanted = {"mask_branch", "mask_weights", "backbone"}
    assert moved(network) == (wanted if stop_gradient else wanted | {"box_predictor"})


@pytest.mark.parametrize("stage", ["end_to_end", "mask"])
@pytest.mark.parametrize("train_on", ["ground_truth", "proposals"])
def test_the_three_losses_come_beside_the_others_on_either_kind_of_roi(
    stage: Literal["end_to_end", "mask"], train_on: Literal["ground_truth", "proposals"]
) -> None:
    network = small_network(mask=dataclasses.replace(SMALL.mask, train_on=train_on))
    network.set_stage(stage)
    network.train()
    without = set(network.losses([image()], [target(4)]))
    batch = [target(4, with_masks=[True, False, True, False]), target(0), target(3, with_masks=False)]
    losses = network.losses([image(i) for i in range(3)], batch, everything(network))
    assert set(losses) == without | LOSSES
    assert all(float(losses[name].detach()) > 0 for name in LOSSES)


def test_the_detector_stage_has_none_of_them() -> None:
    network = small_network()
    network.set_stage("detector")
    losses = network.train().losses([image()], [target(4, with_masks=False)], everything(network))
    assert not LOSSES & set(losses)


class NeverRead:
    """Stands where a mask would and fails at the first look."""

    def __getattribute__(self, name: str) -> Any:
        raise AssertionError(f"a mask of set B was asked for {name}")


@pytest.mark.parametrize("stage", ["end_to_end", "mask"])
def test_no_mask_of_set_b_is_ever_read(stage: Literal["end_to_end", "mask"]) -> None:
    network = on_ground_truth()
    network.set_stage(stage)
    network.train()
    batch = target(4, with_masks=[True, False, True, False])
    batch["masks"][1] = batch["masks"][3] = NeverRead()  # type: ignore[call-overload]
    for box_only, losses in ((None, set()), (everything(network), LOSSES)):
        assert LOSSES & set(network.losses([image()], [batch], box_only)) == losses
    with pytest.raises(AssertionError, match="a mask of set B"):
        network.losses([image()], [{**batch, "has_mask": torch.ones(4, dtype=torch.bool)}])


def only(batch: Target, wanted: list[int]) -> Target:
    return Target(
        image_id=1,
        boxes=batch["boxes"][wanted],
        labels=batch["labels"][wanted],
        has_mask=batch["has_mask"][wanted],
        masks=[batch["masks"][i] for i in wanted],
        crowd_boxes=batch["crowd_boxes"],
    )


def test_objects_with_masks_and_objects_without_do_not_enter_each_others_losses() -> None:
    network = on_ground_truth()
    network.set_stage("mask")
    network.eval()
    box_only = everything(network)
    mixed = target(4, with_masks=[True, False, True, False])
    together = network.losses([image()], [mixed], box_only)
    of_a = network.losses([image()], [only(mixed, [0, 2])], box_only)
    of_b = network.losses([image()], [only(mixed, [1, 3])], box_only)
    torch.testing.assert_close(together["loss_mask"], of_a["loss_mask"])
    for name in LOSSES:
        torch.testing.assert_close(together[name], of_b[name])
        assert float(of_a[name].detach()) == 0 < float(of_b[name].detach())


def test_the_other_losses_are_the_same_to_the_last_bit_with_them_and_without() -> None:
    batch = [target(4, with_masks=[True, False, True, False])]
    answers: list[dict[str, Tensor]] = []
    for wanted in (False, True):
        network = small_network().train()
        box_only = everything(network) if wanted else None
        torch.manual_seed(3)
        answers.append(network.losses([image()], batch, box_only))
    plain, with_them = answers
    assert set(with_them) - set(plain) == LOSSES
    assert all(torch.equal(plain[name], with_them[name]) for name in plain)


def test_the_target_is_the_teachers_own_mask_on_the_box_weighted_by_its_confidence() -> None:
    """In words other than the code's: served masks of the teacher, pixel by pixel."""
    network = on_ground_truth()
    network.set_stage("mask")
    network.eval()
    teacher = teacher_of(network)
    batch = target(3, with_masks=[False, True, False])
    loss = network.losses([image()], [batch], BoxOnly(teacher=teacher, mask_threshold=0.6))
    assert set(loss) == {"loss_mask", "loss_pseudo_mask"}
    wanted = 0.0
    for i in (0, 2):
        box, label = rois_of([batch["boxes"][i : i + 1]]), batch["labels"][i : i + 1]
        canvas = network.canvas([image()], 64, 64)
        with torch.no_grad():
            theirs = teacher.object_masks(None, canvas, box, label)[0]
            mine = network.object_masks(None, canvas, box, label)[0]
        sure = [float(p) for p in theirs.flatten() if p >= 0.6]
        weight = sum(sure) / len(sure) if sure else 0.0
        entropy = -torch.where(theirs >= 0.6, mine, 1 - mine).log().mean()
        wanted += weight * float(entropy) / 2
    assert float(loss["loss_pseudo_mask"].detach()) == pytest.approx(wanted, rel=1e-4)
    assert wanted > 0


def test_the_teacher_gets_no_gradient_and_keeps_its_statistics() -> None:
    network = on_ground_truth().train()
    teacher = teacher_of(network)
    before = copy.deepcopy(teacher.state_dict())
    box_only = BoxOnly(teacher=teacher)
    network.losses([image()], [target(3, with_masks=False)], box_only)["loss_pseudo_mask"].backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_a_frozen_detector_is_not_run_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    network = on_ground_truth()
    teacher = teacher_of(network)
    runs: list[int] = []
    forward = teacher.backbone.forward

    def counting(canvas: Tensor) -> Any:
        runs.append(1)
        return forward(canvas)

    monkeypatch.setattr(teacher.backbone, "forward", counting)
    for stage, times in (("mask", 0), ("end_to_end", 1)):
        runs.clear()
        network.set_stage(stage)  # type: ignore[arg-type]
        network.train().losses([image()], [target(3, with_masks=False)], BoxOnly(teacher=teacher))
        assert len(runs) == times, stage


def test_a_batch_without_set_b_reaches_every_mask_parameter_with_a_zero() -> None:
    network = on_ground_truth().train()
    losses = network.losses([image(), image()], [target(3), target(0)], everything(network))
    total = sum((losses[name] for name in LOSSES), torch.zeros(()))
    total.backward()
    assert float(total.detach()) == 0.0
    for name, parameter in network.named_parameters():
        if name.startswith(("mask_branch.", "mask_weights.")):
            assert parameter.grad is not None and not parameter.grad.any(), name
