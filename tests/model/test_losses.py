"""Losses and mask targets against plain definitions."""

import torch
from torchvision.models.detection._utils import BoxCoder

from model.box_coding import decode_boxes, encode_boxes
from model.losses import box_loss, class_loss, mask_targets, own_total
from model.sampling import sample


def test_boxes_come_back_from_their_deltas() -> None:
    torch.manual_seed(0)
    corner = torch.rand(20, 2) * 50
    proposals = torch.cat([corner, corner + 5 + torch.rand(20, 2) * 40], dim=1)
    boxes = proposals + torch.randn(20, 4)
    torch.testing.assert_close(decode_boxes(encode_boxes(boxes, proposals), proposals), boxes)


def test_box_coding_is_torchvisions() -> None:
    proposals = torch.tensor([[3.0, 4, 20, 30]])
    deltas = torch.tensor([[0.3, -0.2, 0.7, -1.1]])
    expected = BoxCoder((10.0, 10.0, 5.0, 5.0)).decode(deltas, [proposals])[0]
    torch.testing.assert_close(decode_boxes(deltas, proposals), expected)


def test_the_target_of_a_roi_equal_to_its_window_is_the_mask_itself() -> None:
    mask = (torch.arange(28 * 28).reshape(28, 28) % 3 == 0).to(torch.uint8)
    window = torch.tensor([[5, 7, 33, 35]])
    got = mask_targets(window.float(), torch.tensor([0]), [mask], window, 28)
    assert torch.equal(got[0], mask.float())


def test_a_roi_beyond_the_object_sees_nothing_there() -> None:
    mask = torch.ones((10, 10), dtype=torch.uint8)
    window = torch.tensor([[10, 10, 20, 20]])
    got = mask_targets(torch.tensor([[0.0, 0, 20, 20]]), torch.tensor([0]), [mask], window, 20)[0]
    expected = torch.zeros(20, 20)
    expected[10:, 10:] = 1
    assert torch.equal(got, expected)


def test_each_roi_gets_the_mask_of_its_own_object() -> None:
    masks = [torch.zeros((8, 8), dtype=torch.uint8), torch.ones((8, 8), dtype=torch.uint8)]
    windows = torch.tensor([[0, 0, 8, 8], [0, 0, 8, 8]])
    got = mask_targets(windows[[0, 1, 0]].float(), torch.tensor([1, 0, 1]), masks, windows, 4)
    assert got.mean(dim=(1, 2)).tolist() == [1.0, 0.0, 1.0]


def test_losses_over_nothing_are_zero_and_differentiable() -> None:
    logits = torch.zeros((0, 4), requires_grad=True)
    (
        class_loss(logits, torch.zeros(0, dtype=torch.int64), own_total(0))
        + box_loss(logits, torch.zeros((0, 4)), own_total(0))
    ).backward()
    assert logits.grad is not None


def test_sampling_keeps_the_fraction_of_foreground() -> None:
    labels = torch.tensor([1] * 30 + [0] * 100 + [-1] * 50)
    chosen = sample(labels, 40, 0.25)
    assert chosen.unique().numel() == 40
    assert int((labels[chosen] > 0).sum()) == 10 and int((labels[chosen] == -1).sum()) == 0
    assert int((labels[sample(labels[:31], 40, 0.25)] > 0).sum()) == 10
