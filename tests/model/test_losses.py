"""Losses and mask targets against plain definitions."""

import dataclasses

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import roi_align

from model.boxes.ground_truth import FlatMasks, flat_masks
from model.boxes.head import decode_boxes, encode_boxes
from model.boxes.sampling import random_bits, sample
from model.losses import box_loss, class_loss, own_total
from model.masks.targets import mask_targets
from model.targets import mask_windows
from tests.model.small_network import SMALL, image, small_network, target


def masks_of_image(boxes: Tensor, masks: list[Tensor], height: int, width: int) -> FlatMasks:
    """The masks of one image, each in the window of its object's box."""
    shapes = [(height, width)] * len(masks)
    pixels, places = flat_masks([{"masks": masks}], boxes, [True] * len(masks), shapes)  # type: ignore[typeddict-item]
    return FlatMasks(pixels=pixels, places=places)


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
    window = torch.tensor([[5.0, 7, 33, 35]])
    got = mask_targets(window, torch.tensor([0]), masks_of_image(window, [mask], 50, 50), 28)
    assert torch.equal(got[0], mask.float())


def test_a_roi_beyond_the_object_sees_nothing_there() -> None:
    mask = torch.ones((10, 10), dtype=torch.uint8)
    masks = masks_of_image(torch.tensor([[10.0, 10, 20, 20]]), [mask], 50, 50)
    got = mask_targets(torch.tensor([[0.0, 0, 20, 20]]), torch.tensor([0]), masks, 20)[0]
    expected = torch.zeros(20, 20)
    expected[10:, 10:] = 1
    assert torch.equal(got, expected)


def test_each_roi_gets_the_mask_of_its_own_object() -> None:
    masks = [torch.zeros((8, 8), dtype=torch.uint8), torch.ones((8, 8), dtype=torch.uint8)]
    windows = torch.tensor([[0.0, 0, 8, 8], [0, 0, 8, 8]])
    got = mask_targets(windows[[0, 1, 0]], torch.tensor([1, 0, 1]), masks_of_image(windows, masks, 8, 8), 4)
    assert got.mean(dim=(1, 2)).tolist() == [1.0, 0.0, 1.0]


def by_roi_align(boxes: Tensor, objects: Tensor, masks: list[Tensor], windows: Tensor, size: int) -> Tensor:
    """The targets by torchvision's operator, object by object; a ring of zeros keeps the border from spreading."""
    targets = boxes.new_zeros((boxes.shape[0], size, size))
    for n in torch.unique(objects).tolist():
        mine = torch.where(objects == n)[0]
        crop = F.pad(masks[n].float()[None, None], (1, 1, 1, 1))
        corner = windows[n, :2].float() - 1.0
        local = boxes[mine] - torch.cat([corner, corner])
        targets[mine] = roi_align(crop, [local], (size, size), 1.0, 2, aligned=True)[:, 0]
    return (targets >= 0.5).float()


def test_targets_are_those_of_roi_align_object_by_object() -> None:
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(12, 2, generator=generator) * 60 - 4
    objects = torch.cat([corner, corner + 1 + torch.rand(12, 2, generator=generator) * 50], dim=1).clamp(
        0, 80
    )
    windows = mask_windows(objects, 80, 80)
    masks = [
        (F.avg_pool2d(torch.rand(1, h, w, generator=generator), 3, 1, 1)[0] > 0.4).to(torch.uint8)
        for w, h in (windows[:, 2:] - windows[:, :2]).tolist()
    ]
    matched = torch.randint(12, (300,), generator=generator)
    rois = objects[matched] + torch.randn(300, 4, generator=generator) * 6
    rois = torch.cat(
        [torch.minimum(rois[:, :2], rois[:, 2:]), torch.maximum(rois[:, :2], rois[:, 2:])], dim=1
    )
    got = mask_targets(rois, matched, masks_of_image(objects, masks, 80, 80), 14)
    wanted = by_roi_align(rois, matched, masks, windows, 14)
    assert 0.1 < float(wanted.mean()) < 0.9
    assert int((got != wanted).sum()) <= 2  # of 58 800; a mean of exactly 0.5 is rounded either way


def test_losses_over_nothing_are_zero_and_differentiable() -> None:
    logits = torch.zeros((0, 4), requires_grad=True)
    of_class = class_loss(logits, torch.zeros(0, dtype=torch.int64), own_total(0))
    (of_class + box_loss(logits, torch.zeros((0, 4)), own_total(0))).backward()
    assert logits.grad is not None


@pytest.mark.parametrize(
    ("beta", "losses"),
    [
        (1.0, (0.125, 1.5)),  # Fast R-CNN, eq. 3: e^2 / 2 below an error of 1, e - 1 / 2 from there on
        (1 / 9, (0.5 - 1 / 18, 2 - 1 / 18)),  # torchvision: e^2 * 9 / 2 below 1/9, e - 1 / 18 from there on
        (0.0, (0.5, 2.0)),
    ],
)
def test_the_box_loss_of_an_error_of_a_half_and_of_two(beta: float, losses: tuple[float, float]) -> None:
    for error, loss in zip((0.5, 2.0), losses, strict=True):
        deltas = torch.tensor([[error, 0.0, 0.0, 0.0]])
        assert float(box_loss(torch.zeros(1, 4), deltas, 1.0, beta)) == pytest.approx(loss)


def test_the_beta_of_the_configuration_is_that_of_the_box_loss_alone() -> None:
    """A loss of beta 1 is nowhere larger than of beta 1/9, and smaller where an error is."""
    losses = []
    for beta in (1.0, 1 / 9):
        network = small_network(box=dataclasses.replace(SMALL.box, smooth_l1_beta=beta)).train()
        losses.append(network.losses([image()], [target(3)], seeds=[1]))
    of_box = [found.pop("loss_box").item() for found in losses]
    assert of_box[0] < of_box[1]
    assert all(torch.equal(one, losses[1][name]) for name, one in losses[0].items())


def test_sampling_keeps_the_fraction_of_foreground() -> None:
    labels = torch.tensor([1] * 30 + [0] * 100 + [-1] * 50)
    few = torch.tensor([1] * 30 + [0] + [-1] * 149)
    both = torch.stack([labels, few])
    bits = random_bits(torch.tensor([3, 4]), 1, torch.arange(180))
    chosen, taken = sample(both, bits, 40, 0.25)
    drawn = [both[i, chosen[i, taken[i]]] for i in range(2)]
    assert [int((d > 0).sum()) for d in drawn] == [10, 10] and [d.numel() for d in drawn] == [40, 11]
    assert not any(bool((d == -1).any()) for d in drawn)
    assert chosen[0, taken[0]].unique().numel() == 40
    assert not bool((both[:, :0] > 0).any()) and bool((both.gather(1, chosen)[:, :10] > 0).all())


def test_what_is_drawn_is_even_and_each_image_and_stream_draws_its_own() -> None:
    """Of 100 candidates 10 are drawn 4 000 times: each comes 400 times, with a deviation of 19."""
    seeds = torch.arange(4000) * 7919
    labels = torch.zeros((4000, 100), dtype=torch.int64)
    one, other = (random_bits(seeds, stream, torch.arange(100)) for stream in (1, 2))
    assert bool((one >= 0).all()) and one.unique().numel() == one.numel()
    (chosen, taken), (others, _) = (sample(labels, bits, 10, 0.0) for bits in (one, other))
    assert bool(taken.all())
    times = torch.zeros(100, dtype=torch.int64).scatter_add_(
        0, chosen.flatten(), torch.ones_like(chosen.flatten())
    )
    assert int(times.min()) > 300 and int(times.max()) < 500
    shared = (chosen[:, :, None] == others[:, None, :]).any(2).float().mean()
    assert 0.08 < float(shared) < 0.12
    again = random_bits(seeds[5:6], 1, torch.arange(40))
    assert torch.equal(again[0], one[5, :40])


def test_random_bits_are_splitmix64() -> None:
    """Against the same in Python's whole numbers."""
    limit = 2**64

    def mixed(state: int) -> int:
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % limit
        state = (state ^ state >> 27) * 0x94D049BB133111EB % limit
        return state ^ state >> 31

    golden = 0x9E3779B97F4A7C15
    seeds = [0, 12345, 2**63 - 1]
    got = random_bits(torch.tensor(seeds), 2, torch.tensor([0, 9]))
    wanted = [
        [mixed((mixed((seed + 2 * golden) % limit) + (k + 1) * golden) % limit) % 2**63 for k in (0, 9)]
        for seed in seeds
    ]
    assert got.tolist() == wanted
