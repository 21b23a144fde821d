"""The network as a whole: which loss moves what, frozen stages, empty images, what is never computed."""

import copy
import dataclasses

import pytest
import torch

from model.boxes.sampling import match_anchors, match_to_objects
from tests.model.operations import LargestTensor
from tests.model.small_network import SMALL, image, small_network, target, transfer


def gradients(network: torch.nn.Module, prefix: str) -> float:
    return sum(
        float(p.grad.abs().sum())
        for name, p in network.named_parameters()
        if name.startswith(prefix) and p.grad is not None
    )


@pytest.mark.parametrize("stop_gradient", [True, False])
def test_mask_loss_moves_the_detection_weights_only_without_stop_gradient(stop_gradient: bool) -> None:
    """Sec. 3.2 and Table 1d: w_det is held still for T, or set-A classes would drift away from set B."""
    network = small_network(transfer=transfer(stop_gradient=stop_gradient)).train()
    network.losses([image()], [target(4)])["loss_mask"].backward()
    assert gradients(network, "mask_weights.") > 0
    moved = network.box_predictor.cls_score.weight.grad is not None
    assert moved is not stop_gradient
    assert (network.box_predictor.bbox_pred.weight.grad is not None) is not stop_gradient


@pytest.mark.parametrize("stage", ["end_to_end", "detector", "mask"])
def test_images_without_objects_give_finite_losses(stage: str) -> None:
    network = small_network()
    network.set_stage(stage)  # type: ignore[arg-type]
    network.train()
    losses = network.losses([image(), image(50, 70)], [target(0), target(0)])
    assert losses and all(bool(torch.isfinite(loss)) for loss in losses.values())
    sum(losses.values(), torch.zeros(())).backward()


def test_a_roi_of_set_a_never_learns_from_a_mask_of_set_b() -> None:
    """Two objects share a box: only the set-A one gives a target, and it is its own mask."""
    network = small_network(mask=dataclasses.replace(SMALL.mask, train_on="ground_truth"))
    network.set_stage("mask")
    network.train()
    pair = target(2, with_masks=[True, True])
    pair["boxes"][1] = pair["boxes"][0]
    pair["masks"][0] = torch.ones_like(pair["masks"][0])
    pair["masks"][1] = torch.zeros_like(pair["masks"][0])
    alone = copy.deepcopy(pair)
    alone["has_mask"][1] = False
    only_first = {key: value[:1] for key, value in alone.items() if key != "image_id"}
    first = network.losses([image()], [{**only_first, "crowd_boxes": torch.zeros(0, 4), "image_id": 1}])  # type: ignore[list-item, typeddict-item]
    masked = network.losses([image()], [alone])
    mixed = network.losses([image()], [pair])
    torch.testing.assert_close(masked["loss_mask"], first["loss_mask"])
    assert abs(float((mixed["loss_mask"] - first["loss_mask"]).detach())) > 1e-4


def test_stages_go_back_and_forth() -> None:
    network = small_network()
    trainable = {name for name, p in network.named_parameters() if p.requires_grad}
    network.set_stage("mask")
    assert set(network.train().losses([image()], [target(2)])) == {"loss_mask"}
    network.set_stage("detector")
    assert "loss_mask" not in network.train().losses([image()], [target(2)])
    network.set_stage("end_to_end")
    assert {name for name, p in network.named_parameters() if p.requires_grad} == trainable
    with pytest.raises(ValueError, match="end_to_end"):
        network.set_stage("masks")  # type: ignore[arg-type]


def test_a_small_network_learns_one_image_by_heart() -> None:
    """Boxes, labels and masks of one image are found again after training on it alone."""
    network = small_network(transfer=transfer(residual=True, normalise=True, layers=1)).train()
    picture = torch.full((3, 64, 64), 30, dtype=torch.uint8)
    picture[0, 10:40, 8:32] = 250
    picture[1, 20:56, 36:60] = 250
    mask = torch.ones((30, 24), dtype=torch.uint8)
    mask[:15] = 0
    wanted = target(0)
    wanted["boxes"] = torch.tensor([[8.0, 10, 32, 40], [36, 20, 60, 56]])
    wanted["labels"] = torch.tensor([2, 4])
    wanted["has_mask"] = torch.tensor([True, False])
    wanted["masks"] = [mask, torch.zeros((0, 0), dtype=torch.uint8)]
    optimiser = torch.optim.AdamW(network.parameters())
    for step in range(200):
        optimiser.param_groups[0]["lr"] = 1e-3 * (1 - step / 200)  # at 3e-3 it is a matter of rounding
        optimiser.zero_grad()
        sum(network.losses([picture], [wanted]).values(), torch.zeros(())).backward()
        optimiser.step()
    network.eval()
    network.score_threshold = 0.3
    answer = network([picture])[0]
    assert set(answer["labels"].tolist()) == {2, 4}
    first = int(answer["labels"].tolist().index(2))
    assert (answer["boxes"][first] - wanted["boxes"][0]).abs().max() < 4
    begin, end = answer["rle_offsets"][first : first + 2].tolist()
    runs = answer["rle_counts"][begin:end]
    assert int(runs.sum()) == 64 * 64
    assert abs(int(runs[1::2].sum()) - 15 * 24) < 90


def test_crowd_regions_are_no_negatives() -> None:
    proposals = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30], [50, 50, 60, 60]])
    boxes, labels = torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([3])
    crowd = torch.tensor([[18.0, 18, 40, 40]])
    found, _ = match_to_objects(proposals[None], boxes[None], labels[None], crowd[None], 0.5)
    assert found.tolist() == [[3, -1, 0]]
    of_anchors, _ = match_anchors(proposals, boxes[None], labels[None] > 0, crowd[None], 0.7, 0.3)
    assert of_anchors.tolist() == [[1, -1, 0]]


def largest_tensor_of_the_mask_loss(num_classes: int) -> int:
    """Largest tensor, in numbers, that a mask-stage step makes."""
    network = small_network(
        num_classes=num_classes, mask=dataclasses.replace(SMALL.mask, train_on="ground_truth", mlp="none")
    )
    network.set_stage("mask")
    network.train()
    with LargestTensor() as largest:
        network.losses([image()], [target(8, classes=num_classes)])["loss_mask"].backward()
    return largest.numel


def test_no_tensor_of_classes_times_rois_times_pixels_is_made_in_training() -> None:
    """3 000 classes: 8 RoIs x 28 x 28 x 3 000 would be 18.8 million numbers."""
    few, many = largest_tensor_of_the_mask_loss(5), largest_tensor_of_the_mask_loss(3000)
    assert many <= max(few, 3001 * (32 + 4 * 32))  # w_det itself is the largest
    assert few > 8 * 28 * 28


def test_no_tensor_of_proposals_times_classes_times_four_is_made_in_detection() -> None:
    network = small_network(num_classes=3000, mask=dataclasses.replace(SMALL.mask, mlp="none")).eval()
    network.box_predictor.candidates_per_image = 100
    network.detections_per_image = 5
    with LargestTensor() as largest:
        network([image()])
    assert SMALL.rpn.post_nms_test * 3001 <= largest.numel < SMALL.rpn.post_nms_test * 3001 * 4


def test_losses_ask_for_a_target_per_image() -> None:
    with pytest.raises(ValueError, match="2 images came with 1 targets"):
        small_network().losses([image(), image()], [target(1)])
