"""Where the paper's code and torchvision's differ about anchors, proposals, RoIs and the box head's start.

The numbers are worked out from seg_every_thing's definitions: lib/roi_data/rpn.py, lib/ops/generate_proposals.py,
lib/ops/collect_and_distribute_fpn_rpn_proposals.py and lib/modeling/fast_rcnn_heads.py.
"""

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import model.network
from model.boxes.ground_truth import GroundTruth, ground_truth
from model.boxes.head import BoxHead
from model.boxes.rois import OWN_BOXES, RoIs, Sampling, sampled
from model.boxes.rpn_training import anchor_labels, best_together, level_anchors, proposed
from model.boxes.sampling import inside, match_anchors
from model.build import build_network, rpn
from model.config import BoxConfig, MaskConfig, ModelConfig, RpnConfig, model_config_from_dict, to_dict
from model.targets import Target
from tests.model.boxes.test_rpn import pyramid
from tests.model.boxes.test_rpn_training import CANVAS, TARGETS, batch_of, truth
from tests.model.small_network import SMALL, image, same_when_scripted, small_network, target

# ---- anchors ----


def test_an_anchor_is_inside_as_long_as_its_last_pixel_is() -> None:
    """Detectron: x1 >= -t and x2 < width + t, where x2 is the last pixel, so that ours ends at x2 + 1."""
    anchors = torch.tensor(
        [[0.0, 0, 32, 32], [-1, 0, 31, 32], [40, 20, 64, 48], [40, 20, 65, 48], [40, 20, 64, 49]]
    )
    sizes = torch.tensor([[48, 64], [64, 64]])
    assert inside(anchors, sizes, 0).tolist() == [
        [True, False, True, False, False],
        [True, False, True, False, True],
    ]
    assert bool(inside(anchors, sizes, 1).all())


def test_anchors_that_are_left_out_neither_count_nor_surpass_others() -> None:
    """Met best by the anchor that reaches out, an IoU of 0.82; without it the second best, 0.5, is foreground."""
    anchors = torch.tensor([[-4.0, 0, 36, 40], [0, 0, 40, 20], [0, 0, 8, 8], [44, 0, 52, 8]])
    objects, present, crowds = (
        torch.tensor([[[0.0, 0, 40, 40]]]),
        torch.tensor([[True]]),
        torch.zeros(1, 0, 4),
    )
    usual, _ = match_anchors(anchors, objects, present, crowds, 0.7, 0.3)
    assert usual.tolist() == [[1, -1, 0, 0]]
    taking_part = inside(anchors, torch.tensor([[48, 64]]), 0)
    paper, matched = match_anchors(anchors, objects, present, crowds, 0.7, 0.3, taking_part)
    assert paper.tolist() == [[-1, 1, 0, 0]] and int(matched[0, 1]) == 0


def built(**changes: Any) -> Any:
    settings = {"pre_nms_train": 80, "pre_nms_test": 300, "post_nms_train": 60, "post_nms_test": 200}
    config = dataclasses.replace(
        SMALL, rpn=RpnConfig(anchor_sizes=(8, 16, 32, 48, 64), **(settings | changes))
    )
    torch.manual_seed(0)
    made = rpn(config, 8)
    torch.nn.init.normal_(made.head.bbox_pred.weight, std=0.3)
    torch.nn.init.normal_(made.head.cls_logits.weight, std=0.1)
    return made.eval()


def test_the_rpn_learns_from_anchors_inside_their_own_image_alone() -> None:
    paper, usual, known = built(straddle=0), built(), truth()
    anchors = torch.cat(level_anchors(paper, pyramid(3), *CANVAS))
    within = inside(anchors, known.sizes, 0)
    assert not torch.equal(within[0], within[2])  # images of other sizes on the same canvas
    labels, _ = anchor_labels(paper, anchors, known)
    assert bool((labels[~within] == -1).all()) and int((labels > 0).sum()) > 3
    assert bool((anchor_labels(usual, anchors, known)[0][~within] != -1).any())


@pytest.mark.parametrize(("spacing", "far"), [("canvas", 48), ("stride", 64)])
def test_anchors_are_as_far_apart_as_the_stride_or_as_the_canvas_by_its_cells(spacing: str, far: int) -> None:
    """The coarsest level of 96 pixels has 2 rows: 96 // 2 is 48, its stride is 64 (of 800 pixels 13: 61 and 64)."""
    module = built(spacing=spacing)
    levels = pyramid(1)
    assert levels[4].shape[2:] == (2, 2) and CANVAS == (96, 128)
    coarsest = level_anchors(module, levels, *CANVAS)[4].view(2, 2, 3, 4)
    assert (coarsest[1, 0] - coarsest[0, 0]).tolist() == [[0, far, 0, far]] * 3
    assert (coarsest[0, 1] - coarsest[0, 0]).tolist() == [[64, 0, 64, 0]] * 3


@torch.no_grad()
def test_answers_are_placed_on_the_anchors_of_training() -> None:
    """With the canvas' distances instead they would not be: the coarsest level has proposals too."""
    levels, known = pyramid(2), truth(TARGETS[:2])
    batch = batch_of({str(k): level for k, level in enumerate(levels)}, known)
    module, other = built(spacing="stride"), built()
    boxes, valid = proposed(module, batch)
    answers, counts = module.proposals(levels, *CANVAS, known.sizes.float())
    for i, own in enumerate(answers.split(counts)):
        torch.testing.assert_close(own, boxes[i, valid[i]])
    assert not torch.equal(answers, other.proposals(levels, *CANVAS, known.sizes.float())[0])


def test_a_network_with_the_stride_between_its_anchors_is_exported() -> None:
    made = small_network(rpn=dataclasses.replace(SMALL.rpn, spacing="stride")).eval()
    same_when_scripted(made.inference())


# ---- proposals ----


def test_a_pair_of_images_shares_the_best_proposals_of_both() -> None:
    none = -math.inf
    scores = torch.tensor(
        [[0.9, 0.8, 0.1], [0.5, 0.4, 0.3], [0.7, 0.2, none]]
    )  # the first and the last are a pair
    together = best_together(scores, 2, 3)
    assert together.tolist() == [
        *torch.tensor([[0.9, 0.8, none], [0.5, 0.4, 0.3], [0.7, none, none]]).tolist()
    ]
    assert torch.equal(best_together(scores, 1, 3), scores)


@pytest.mark.parametrize(("processes", "parts"), [(1, 2), (2, 1), (2, 2), (4, 1), (8, 1)])
def test_the_pairs_of_a_batch_are_the_same_whoever_has_its_images(processes: int, parts: int) -> None:
    """Of 16 images, which processes take by turns (`training.data.sampler`), and their parts too."""
    scores = torch.rand(16, 5, generator=torch.Generator().manual_seed(0))
    whole = best_together(scores, 2, 4)
    assert (whole > -math.inf).view(2, 8, 5).sum((0, 2)).tolist() == [4] * 8
    for process in range(processes):
        for part in range(parts):
            mine = slice(process + processes * part, None, processes * parts)
            assert torch.equal(best_together(scores[mine], 2, 4), whole[mine])


@pytest.mark.parametrize("batched", [False, True])
@torch.no_grad()
def test_images_share_their_proposals_in_training_and_not_when_held_still(batched: bool) -> None:
    levels = {str(k): level for k, level in enumerate(pyramid(2))}
    batch = batch_of(levels, truth(TARGETS[:2]))
    counts = {}
    for images in (1, 2):
        module = built(images_together=images)
        module.batched = batched
        counts[images] = [proposed(module.train(mode), batch)[1].sum(1) for mode in (True, False)]
    assert counts[1][0].tolist() == [60, 60] and int(counts[2][0].sum()) == 60
    assert torch.equal(counts[1][1], counts[2][1])


@torch.no_grad()
def test_a_frozen_detector_gives_as_many_proposals_as_it_is_told() -> None:
    levels = {str(k): level for k, level in enumerate(pyramid(1))}
    batch = batch_of(levels, truth(TARGETS[1:2]))
    (usual,), (few,) = (proposed(built(post_nms_frozen=count), batch)[0] for count in (None, 30))
    assert few.shape[0] == 30 < usual.shape[0] and torch.equal(few, usual[:30])
    assert proposed(built(post_nms_frozen=30).train(), batch)[0].shape[1] == 60


def c4(**fields: Any) -> ModelConfig:
    return ModelConfig(
        rpn=RpnConfig(**fields),
        box=BoxConfig(head="res5", roi_size=14, width=192),
        mask=MaskConfig(head="res5", roi_size=7, mlp="none"),
        backbone=dataclasses.replace(SMALL.backbone, norm="group"),
    )


def test_one_level_looks_at_more_anchors_than_each_of_several_unless_told() -> None:
    def before(config: ModelConfig) -> dict[str, int]:
        found: dict[str, int] = build_network(config, num_classes=2).rpn._pre_nms_top_n  # type: ignore[assignment]
        return found

    pyramid_of = dataclasses.replace(SMALL, rpn=RpnConfig())
    assert before(pyramid_of) == {"training": 2000, "testing": 1000}
    assert before(c4()) == {"training": 12_000, "testing": 6_000}
    assert before(c4(pre_nms_train=2000, pre_nms_test=1000)) == {"training": 2000, "testing": 1000}
    assert model_config_from_dict(to_dict(c4())) == c4()


# ---- RoIs of the stage-wise mask branch ----


def overlapping() -> GroundTruth:
    """An object of A, and one of B beside it at an IoU of 36 * 40 / (2 * 1600 - 1440) = 0.82."""
    known: Target = target(2, with_masks=[True, False])
    known["boxes"] = torch.tensor([[0.0, 0, 40, 40], [4, 0, 44, 40]])
    known["masks"] = [torch.ones((40, 40), dtype=torch.uint8), torch.zeros((0, 0), dtype=torch.uint8)]
    size = [(64, 64)]
    return ground_truth([known], shapes=size, sizes=size, seeds=[5], device=torch.device("cpu"))


def drawn(known: GroundTruth) -> RoIs:
    """Of a proposal on the object of B, one on nothing, and the objects' own boxes."""
    proposals = torch.tensor([[[4.0, 0, 44, 40], [50, 50, 60, 60]]])
    form = Sampling(
        rois_per_image=8,
        positive_fraction=0.5,
        foreground_iou=0.5,
        masks_on_ground_truth=False,
        mask_box_jitter=0,
    )
    return sampled(proposals, torch.tensor([[True, True]]), known, form)


def test_rois_of_the_paper_know_no_object_of_set_b() -> None:
    known = overlapping()
    usual, paper = drawn(known), drawn(known.of_set_a())
    assert usual.boxes[usual.with_mask].tolist() == [[0, 0, 40, 40]] and usual.without_mask.numel() == 2
    of_a = sorted(paper.boxes[paper.with_mask].tolist())
    assert of_a == [[0, 0, 40, 40], [4, 0, 44, 40]] and paper.without_mask.numel() == 0
    assert paper.objects[paper.with_mask].tolist() == [0, 0]
    assert paper.labels.tolist() == [*[int(known.labels[0, 0])] * 2, 0] and OWN_BOXES > 2


@pytest.mark.parametrize(("stage_rois", "stage", "alone"), [
    ("set_a", "mask", True), ("set_a", "end_to_end", False), ("all", "mask", False),
])  # fmt: skip
def test_set_b_is_unknown_where_masks_are_trained_alone_and_only_there(
    stage_rois: Any, stage: Any, alone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []

    def watched(boxes: Tensor, valid: Tensor, known: GroundTruth, form: Sampling) -> RoIs:
        seen.append(known.labels)
        return sampled(boxes, valid, known, form)

    monkeypatch.setattr(model.network, "sampled", watched)
    network = small_network(mask=dataclasses.replace(SMALL.mask, stage_rois=stage_rois))
    network.set_stage(stage)
    known = target(3, with_masks=[True, False, True])
    network.train().losses([image()], [known], seeds=[1])
    labels = known["labels"].tolist()
    assert seen[0].tolist() == [[labels[0], 0, labels[2]] if alone else labels]


# ---- fc6 and fc7 ----


@pytest.mark.parametrize("head", ["fc", "conv_fc"])
def test_fully_connected_layers_start_as_xavier_fill(head: Any) -> None:
    """Uniform in +-sqrt(3 / fan-in): variance 1 / fan-in, biases 0. Torch's own have a third of the variance."""
    made: dict[str, BoxHead] = {}
    for init in ("torch", "xavier"):
        made[init] = small_network(box=dataclasses.replace(SMALL.box, head=head, init=init)).box_head
    for name, layer in made["xavier"].named_modules():
        if isinstance(layer, torch.nn.Linear):
            bound = math.sqrt(3 / layer.in_features)
            assert 0.95 * bound < float(layer.weight.abs().max().detach()) <= bound
            assert float(layer.weight.detach().var()) * layer.in_features == pytest.approx(1, rel=0.1)
            assert not bool(layer.bias.any())
            usual = made["torch"].get_submodule(name)
            assert isinstance(usual, torch.nn.Linear) and bool(usual.bias.any())
            assert float(usual.weight.detach().var()) * layer.in_features == pytest.approx(1 / 3, rel=0.1)
