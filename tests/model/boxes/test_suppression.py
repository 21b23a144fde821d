"""Suppression: all boxes of a batch at once against torchvision's operator on each group by itself."""

import pytest
import torch
from torch import Tensor
from torchvision.ops import nms

from model.boxes.suppression import (
    kept_by_operator,
    kept_by_rounds,
    kept_in_groups,
    kept_one_by_one,
    nms_by_class,
    nms_by_level,
)


def crowded(groups: int, count: int, seed: int = 0) -> Tensor:
    """Boxes [groups, count, 4] around a few centres, so that most are suppressed."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.rand(groups, 12, 2, generator=generator) * 300
    of_box = torch.randint(0, 12, (groups, count), generator=generator)
    corner = centres.gather(1, of_box.unsqueeze(2).expand(-1, -1, 2))
    corner = corner + torch.randn(groups, count, 2, generator=generator) * 6
    side = 30 + torch.rand(groups, count, 2, generator=generator) * 20
    return torch.cat([corner, corner + side], dim=2).clamp(0, 340)


def one_by_one(boxes: Tensor, valid: Tensor, iou: float, labels: Tensor) -> Tensor:
    keep = torch.zeros_like(valid)
    for group in range(boxes.shape[0]):
        for label in labels[group].unique():
            mine = torch.where(valid[group] & (labels[group] == label))[0]
            keep[group, mine[nms(boxes[group, mine], -mine.float(), iou)]] = True
    return keep


@pytest.mark.parametrize("iou", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("classes", [1, 4])
def test_all_at_once_keeps_what_the_operator_keeps_group_by_group(iou: float, classes: int) -> None:
    boxes = crowded(5, 300)
    torch.manual_seed(1)
    valid, labels = torch.rand(5, 300) > 0.2, torch.randint(0, classes, (5, 300))
    expected = one_by_one(boxes, valid, iou, labels)
    keep, counts = kept_in_groups(boxes, valid, iou, labels)
    assert torch.equal(keep, expected) and counts == expected.sum(1).tolist()
    assert 20 < int(keep.sum()) < int(valid.sum()) - 100
    assert torch.equal(kept_by_operator(boxes, valid, iou, labels), expected)
    above, counts = kept_in_groups(boxes, valid, iou, labels, largest=299)
    assert torch.equal(above, expected) and counts == expected.sum(1).tolist()
    if classes == 1:
        assert torch.equal(kept_in_groups(boxes, valid, iou)[0], expected)


def test_a_chain_longer_than_the_passes_between_two_looks_is_settled() -> None:
    """Each box overlaps its two neighbours alone: every second one stays, and the last is right in the last pass."""
    start = torch.arange(99.0) * 4
    chain = torch.stack([start, torch.zeros(99), start + 10, torch.full((99,), 10.0)], dim=1)[None]
    keep, counts = kept_in_groups(chain, torch.ones(1, 99, dtype=torch.bool), 0.4, passes=5)
    assert keep[0].tolist() == [i % 2 == 0 for i in range(99)] and counts == [50]


def test_what_is_no_box_is_not_kept_and_suppresses_nothing() -> None:
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 10], [5, 5, 5, 5], [float("nan"), 0, 10, 10]]])
    valid = torch.tensor([[False, True, True, False]])
    for keep in (kept_in_groups(boxes, valid, 0.5)[0], kept_by_operator(boxes, valid, 0.5)):
        assert keep.tolist() == [[False, True, True, False]]


def test_rounds_of_suppression_keep_what_greedy_suppression_keeps() -> None:
    boxes = crowded(3, 400)
    scores = torch.arange(400, 0, -1).float().expand(3, -1)
    valid = torch.rand(3, 400, generator=torch.Generator().manual_seed(1)) > 0.1
    valid[2] = False
    boxes[0, ~valid[0]] = float("nan")
    kept = kept_by_rounds(boxes, valid, 0.7)
    assert torch.equal(kept, kept_one_by_one(boxes, scores, valid, 0.7))
    assert torch.equal(kept[1:], one_by_one(boxes[1:], valid[1:], 0.7, torch.zeros(2, 400)))
    assert 20 < int(kept[1].sum()) < 300 and not bool(kept[2].any())


def test_after_too_few_rounds_no_two_boxes_that_stay_overlap() -> None:
    boxes = crowded(1, 400)
    valid = torch.ones((1, 400), dtype=torch.bool)
    few, all_of_them = kept_by_rounds(boxes, valid, 0.4, rounds=3), kept_by_rounds(boxes, valid, 0.4)
    assert bool((few <= all_of_them).all()) and int(few.sum()) < int(all_of_them.sum())


def test_scripted_it_keeps_the_same() -> None:
    boxes, valid = crowded(2, 60), torch.ones(2, 60, dtype=torch.bool)
    scripted = torch.jit.script(kept_in_groups)
    for largest in (2048, 10):
        keep, counts = scripted(boxes, valid, 0.5, None, 3, largest)
        expected, its_counts = kept_in_groups(boxes, valid, 0.5)
        assert torch.equal(keep, expected) and counts == its_counts


@pytest.mark.parametrize("classes", [1, 3000])
def test_suppression_within_classes_is_that_of_each_class_alone(classes: int) -> None:
    torch.manual_seed(5)
    corner = torch.rand(400, 2) * 60 + torch.tensor([1200.0, 700.0])
    boxes = torch.cat([corner, corner + 4 + torch.rand(400, 2) * 60], dim=1)
    scores, labels = torch.rand(400), torch.randint(max(classes - 4, 0), classes, (400,)) + 1
    kept = []
    for label in labels.unique():
        mine = torch.where(labels == label)[0]
        kept += mine[nms(boxes[mine], scores[mine], 0.5)].tolist()
    expected = sorted(kept, key=lambda i: -float(scores[i]))
    assert nms_by_class(boxes, scores, labels, 0.5).tolist() == expected
    assert len(expected) < 400
    assert nms_by_class(boxes[:0], scores[:0], labels[:0], 0.5).shape == (0,)


def test_boxes_of_other_levels_suppress_nothing() -> None:
    box = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 11]])
    score = torch.tensor([0.5, 0.9])
    assert nms_by_level([box, box], [score, score + 0.05], 0.7).tolist() == [3, 1]
