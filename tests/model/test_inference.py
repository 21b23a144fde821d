"""The served form of the network: scripted equal to eager, batches, thresholds, class filters, baked T."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import batched_nms, clip_boxes_to_image

from model.boxes.head import decode_boxes
from model.inference import Inference
from tests.model.small_network import asked, image, same_when_scripted, small_network, transfer

CLASSES = 5


@torch.no_grad()
def ask(served: torch.nn.Module, images: list[Tensor], **changes: Any) -> list[dict[str, Tensor]]:
    answers: list[dict[str, Tensor]] = served(*asked(images, **changes))
    return answers


@pytest.fixture(scope="module")
def served() -> Inference:
    network = small_network(CLASSES, transfer=transfer(normalise=True))
    network.train()
    for seed in range(3):  # batch statistics that are not the initial ones
        network.backbone(network.canvas([image(seed=seed)], 64, 64))
    return network.eval().inference()


def same(a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float) -> None:
    assert a["labels"].tolist() == b["labels"].tolist()
    torch.testing.assert_close(a["scores"], b["scores"], atol=tolerance, rtol=0)
    torch.testing.assert_close(a["boxes"], b["boxes"], atol=tolerance * 100, rtol=0)


def test_scripted_equals_eager_exactly(served: Inference) -> None:
    images = [image(), image(48, 90, seed=1), image(200, 130, seed=2)]
    answer, *_ = same_when_scripted(served, asked(images))
    assert set(answer) == {"boxes", "scores", "labels", "rle_counts", "rle_offsets"}


def test_an_image_gets_the_same_answer_alone_and_in_any_batch_in_order(served: Inference) -> None:
    images = [image(64, 64, 0), image(64, 90, 1), image(64, 64, 2), image(90, 64, 3), image(64, 90, 4)]
    alone = [ask(served, [x])[0] for x in images]
    together = ask(served, images)
    assert not torch.equal(alone[0]["boxes"], alone[2]["boxes"])
    for one, all_ in zip(alone, together, strict=True):
        same(one, all_, 1e-4)
    for one, all_ in zip(reversed(alone), ask(served, images[::-1]), strict=True):
        same(one, all_, 1e-4)


def test_answers_are_in_the_originals_pixels(served: Inference) -> None:
    """The decoder may scale an image down: boxes and masks follow the size of the original."""
    small = ask(served, [image()])[0]
    large = ask(served, [image()], sizes=[[192, 320]])[0]
    torch.testing.assert_close(large["boxes"], small["boxes"] * torch.tensor([5.0, 3.0, 5.0, 3.0]))
    offsets = large["rle_offsets"].tolist()
    for begin, end in itertools.pairwise(offsets):
        assert int(large["rle_counts"][begin:end].sum()) == 192 * 320


def test_thresholds_counts_and_classes_are_obeyed(served: Inference) -> None:
    everything = ask(served, [image()])[0]
    assert len(everything["labels"]) == 20
    assert bool((everything["scores"].diff() <= 0).all())
    assert len(ask(served, [image()], most=3)[0]["labels"]) == 3
    assert len(ask(served, [image()], most=0)[0]["labels"]) == 0
    middle = float(everything["scores"][7])
    above = ask(served, [image()], threshold=middle)[0]
    assert len(above["scores"]) == 7 and bool((above["scores"] > middle).all())
    assert set(ask(served, [image()], labels=[2, 5])[0]["labels"].tolist()) <= {2, 5}
    assert len(ask(served, [image()], labels=[])[0]["labels"]) == 0


def test_classes_are_filtered_before_the_best_are_taken(served: Inference) -> None:
    """A filter that came last would leave fewer than 5 of the class asked for."""
    everything = ask(served, [image()], most=5)[0]["labels"].tolist()
    asked = next(label for label in range(1, CLASSES + 1) if everything.count(label) < 5)
    assert ask(served, [image()], most=5, labels=[asked])[0]["labels"].tolist() == [asked] * 5


def test_without_masks_the_boxes_stay_and_no_run_is_made(served: Inference) -> None:
    bare = ask(served, [image()], with_masks=False)[0]
    full = ask(served, [image()])[0]
    torch.testing.assert_close(bare["boxes"], full["boxes"])
    assert bare["rle_counts"].numel() == 0 and bare["rle_offsets"].tolist() == [0] * 21
    assert full["rle_counts"].numel() > 0


def test_fewer_candidates_than_k_give_the_straightforward_answer(served: Inference) -> None:
    """Against all classes decoded for all proposals."""
    features, proposals = torch.randn(30, 32), torch.rand(30, 2) * 30
    boxes = torch.cat([proposals, proposals + 8 + torch.rand(30, 2) * 20], dim=1)
    logits = served.box_predictor(features)
    asked = torch.ones(6, dtype=torch.bool)
    box = served.box_predictor
    got = box.found_in_image(boxes, features, logits, torch.tensor([64.0, 64.0]), 0.1, 50, asked)
    deltas = box.bbox_pred(features).view(30, 6, 4)
    score = logits.softmax(dim=1)
    pairs = [(r, c) for r in range(30) for c in range(1, 6) if score[r, c] > 0.1]
    assert 5 < len(pairs) < box.candidates_per_image
    all_boxes = torch.stack([decode_boxes(deltas[r : r + 1, c], boxes[r : r + 1])[0] for r, c in pairs])
    all_boxes = clip_boxes_to_image(all_boxes, (64, 64))
    all_scores = torch.stack([score[r, c] for r, c in pairs])
    all_labels = torch.tensor([c for _, c in pairs])
    keep = batched_nms(all_boxes, all_scores, all_labels, box.nms_iou)[:50]
    torch.testing.assert_close(got[0], all_boxes[keep])
    torch.testing.assert_close(got[1], all_scores[keep])
    assert torch.equal(got[2], all_labels[keep])


@pytest.mark.parametrize("rows", [3, 40])
def test_deltas_of_one_class_equal_the_rows_of_the_whole_layer(served: Inference, rows: int) -> None:
    features, labels = torch.randn(rows, 32), torch.randint(0, 6, (rows,))
    whole = served.box_predictor.bbox_pred(features).view(rows, 6, 4)
    picked = served.box_predictor.deltas_of(features, labels)
    torch.testing.assert_close(picked, whole[torch.arange(rows), labels])


def test_row_c_of_the_table_is_t_at_label_c() -> None:
    network = small_network(CLASSES).eval()
    table = network.inference().mask_table
    assert network.mask_weights.transfer is not None
    cls, box = network.box_predictor.cls_score.weight, network.box_predictor.bbox_pred.weight
    for label in range(CLASSES + 1):
        w_det = torch.cat([cls[label], box[4 * label : 4 * label + 4].reshape(-1)])
        torch.testing.assert_close(table[label], network.mask_weights.transfer(w_det[None])[0])
    assert not torch.allclose(table[1], table[2])


def test_masks_on_given_boxes_are_those_of_the_detections() -> None:
    network = small_network(CLASSES).eval()
    answer = network([image(70, 90)])[0]
    with torch.no_grad():
        found = network.inference().masks_on_boxes([image(70, 90)], [answer["boxes"]], [answer["labels"]])
    counts, offsets = found[0]
    begins = answer["rle_offsets"].tolist()
    same_masks = 0
    for i in range(len(begins) - 1):
        a = answer["rle_counts"][begins[i] : begins[i + 1]]
        b = counts[int(offsets[i]) : int(offsets[i + 1])]
        same_masks += int(a.shape == b.shape and bool((a - b).abs().sum() <= 4))
    assert same_masks >= 0.9 * (len(begins) - 1)


def test_every_stage_has_its_name_in_a_profile(served: Inference) -> None:
    scripted = torch.jit.freeze(torch.jit.script(served))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as profile:
        ask(scripted, [image()])
    named = {event.key for event in profile.key_averages() if event.key.startswith("maskx::")}
    stages = ("resize", "backbone", "rpn", "box_head", "mask_head", "run_lengths")
    assert named == {f"maskx::{stage}" for stage in stages}
