"""The keypoint branch (Mask R-CNN, Sec. 5): targets, loss, decoding, stages, and scripted == eager."""

import dataclasses
import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_iou

from model.boxes.pooling import rois_of
from model.build import build_network
from model.classes import ClassTable
from model.config import ModelConfig, model_config_from_dict, to_dict
from model.keypoints.head import keypoint_cells, keypoint_loss, keypoints_of
from model.keypoints.layout import COCO_NAMES, COCO_SIGMAS, KeypointsConfig, keypoint_labels
from model.losses import own_total
from model.network import MaskXRCNN
from model.serving import prepared_for_serving
from model.targets import Target
from tests.model.backbones.test_c4 import SMALL_C4
from tests.model.small_network import (
    SMALL,
    Arguments,
    asked,
    image,
    same_when_scripted,
    small_network,
    target,
)

NAMES = ("head", "left_hand", "right_hand")
CONFIG = KeypointsConfig(layout="own", names=NAMES, width=8, convolutions=2, roi_size=7)


def network_with_keypoints(**changes: Any) -> MaskXRCNN:
    return small_network(keypoints=dataclasses.replace(CONFIG, **changes))


def with_keypoints(count: int, *, visible: bool = True, seed: int = 0, **options: Any) -> Target:
    """A target whose keypoints lie somewhere in their object's box."""
    made = target(count, seed=seed, **options)
    boxes = made["boxes"]
    share = torch.rand(count, len(NAMES), 2, generator=torch.Generator().manual_seed(seed))
    at = boxes[:, None, :2] + share * (boxes[:, None, 2:] - boxes[:, None, :2])
    seen = torch.full((count, len(NAMES), 1), 2.0 if visible else 0.0)
    made["keypoints"] = torch.cat([at, seen], dim=2)
    made["mirrored"] = torch.tensor([0, 2, 1])
    return made


# ---- targets and loss ----


def test_a_keypoint_is_the_one_cell_of_the_roi_that_it_lies_in() -> None:
    boxes = torch.tensor([[10.0, 20.0, 38.0, 48.0]])  # cells of half a pixel
    at = torch.tensor(
        [[[10.0, 20.0, 2.0], [37.9, 20.6, 1.0], [38.0, 48.0, 2.0], [24.0, 34.0, 0.0], [9.9, 30.0, 2.0]]]
    )
    assert keypoint_cells(at, boxes, 56).tolist() == [[0, 56 + 55, 56 * 56 - 1, -1, -1]]


def test_the_loss_is_a_softmax_over_all_pixels_of_the_labelled_keypoints_alone() -> None:
    logits = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    cells = torch.tensor([[5, -1, 0], [-1, -1, 15]])
    by_hand = sum(
        -math.log(float(torch.softmax(logits[r, k].flatten(), 0)[cells[r, k]]))
        for r, k in ((0, 0), (0, 2), (1, 2))
    )
    assert float(keypoint_loss(logits, cells, 3.0)) == pytest.approx(by_hand / 3, rel=1e-5)


# ---- decoding ----


def test_the_place_that_a_target_was_made_from_is_found_within_half_a_cell() -> None:
    boxes = torch.tensor([[10.0, 20.0, 66.0, 132.0], [0.0, 0.0, 14.0, 28.0]])
    at = torch.tensor([[[33.3, 77.7]], [[5.2, 20.9]]])
    cells = keypoint_cells(torch.cat([at, torch.full((2, 1, 1), 2.0)], dim=2), boxes, 28)
    logits = 9.0 * F.one_hot(cells, 28 * 28).float().view(2, 1, 28, 28)
    found = keypoints_of(logits, boxes)
    cell = (boxes[:, 2:] - boxes[:, :2]) / 28
    assert bool(((found[:, 0, :2] - at[:, 0]).abs() <= cell / 2 + 1e-5).all())
    assert bool((found[:, 0, 2] > 0.9).all())


def test_between_cells_the_peak_of_a_gaussian_is_found_exactly() -> None:
    x, y, side = 17.3, 8.9, 28
    columns, rows = torch.arange(side) + 0.5, torch.arange(side) + 0.5
    logits = -((columns[None, :] - x) ** 2 + (rows[:, None] - y) ** 2) / 8
    found = keypoints_of(logits[None, None], torch.tensor([[0.0, 0.0, 28.0, 28.0]]))[0, 0]
    assert found[:2].tolist() == pytest.approx([x, y], abs=1e-4)


@pytest.mark.parametrize("cell", [0, 27, 27 * 28, 28 * 28 - 1])
def test_a_peak_in_a_corner_stays_in_its_cell(cell: int) -> None:
    logits = 5.0 * F.one_hot(torch.tensor([[cell]]), 28 * 28).float().view(1, 1, 28, 28)
    found = keypoints_of(logits, torch.tensor([[0.0, 0.0, 28.0, 28.0]]))[0, 0]
    assert found[:2].tolist() == [cell % 28 + 0.5, cell // 28 + 0.5]


def test_the_score_is_the_share_of_probability_around_the_place() -> None:
    flat = keypoints_of(torch.zeros(1, 1, 28, 28), torch.tensor([[0.0, 0.0, 28.0, 28.0]]))
    assert float(flat[0, 0, 2]) == pytest.approx(4 / 28**2, rel=1e-4)  # the first cell, with three neighbours


# ---- in the network ----


def test_the_head_is_the_papers_and_its_maps_have_four_times_the_crops_side() -> None:
    branch = small_network(keypoints=KeypointsConfig(layout="coco")).keypoint_branch
    assert branch is not None
    convolutions = [m for m in branch.convs if isinstance(m, torch.nn.Conv2d)]
    assert [m.out_channels for m in convolutions] == [512] * 8
    features = {str(k): torch.zeros(1, 16, 16 >> k, 16 >> k) for k in range(4)}
    assert branch(features, rois_of([torch.tensor([[0.0, 0.0, 30.0, 30.0]])])).shape == (1, 17, 56, 56)


@pytest.mark.parametrize(("stage", "trained"), [("end_to_end", True), ("mask", True), ("detector", False)])
def test_keypoints_are_trained_where_masks_are(stage: Any, trained: bool) -> None:
    network = network_with_keypoints().train()
    network.set_stage(stage)
    losses = network.losses([image(), image(seed=1)], [with_keypoints(3), with_keypoints(2, seed=1)])
    assert ("loss_keypoint" in losses) == trained
    sum(losses.values(), torch.zeros(())).backward()  # type: ignore[no-untyped-call]
    assert network.keypoint_branch is not None
    moved = [
        p.grad is not None and bool(p.grad.abs().sum() > 0) for p in network.keypoint_branch.parameters()
    ]
    assert moved == [trained] * len(moved)
    reaches_backbone = any(p.grad is not None for p in network.backbone.parameters())
    assert reaches_backbone == (stage != "mask")


@pytest.mark.parametrize("count", [0, 3])
def test_without_a_labelled_keypoint_the_loss_is_a_zero_that_reaches_the_branch(count: int) -> None:
    network = network_with_keypoints().train()
    loss = network.losses([image()], [with_keypoints(count, visible=False)])["loss_keypoint"]
    loss.backward()  # type: ignore[no-untyped-call]
    assert network.keypoint_branch is not None
    assert float(loss.detach()) == 0.0
    assert all(p.grad is not None and not p.grad.any() for p in network.keypoint_branch.parameters())


def test_background_rois_teach_no_keypoints(monkeypatch: pytest.MonkeyPatch) -> None:
    network, made = network_with_keypoints().train(), with_keypoints(3)
    branch = network.keypoint_branch
    assert branch is not None
    seen: list[Tensor] = []
    forward = branch.forward

    def noted(features: Any, rois: Tensor, rows: int = 0) -> Tensor:
        seen.append(box_iou(rois[:, 1:], made["boxes"]).amax(dim=1))
        return forward(features, rois, rows)

    monkeypatch.setattr(branch, "forward", noted)
    network.losses([image()], [made])
    assert seen[0].numel() >= 3 and float(seen[0].min()) >= 0.5


def test_objects_of_set_b_teach_keypoints_too() -> None:
    network = network_with_keypoints().train()
    losses = network.losses([image()], [with_keypoints(3, with_masks=False)])
    assert float(losses["loss_mask"].detach()) == 0.0
    assert float(losses["loss_keypoint"].detach()) > 0


def test_the_loss_counts_keypoints_so_that_parts_of_a_batch_add_up_to_the_whole() -> None:
    network = network_with_keypoints().train()
    network.set_stage("mask")
    network.sampling = dataclasses.replace(network.sampling, masks_on_ground_truth=True)
    images, targets = [image(), image(seed=1)], [with_keypoints(3), with_keypoints(1, seed=1)]
    whole = network.losses(images, targets)["loss_keypoint"]
    asked: list[float] = []

    def told(count: int | Tensor) -> float:
        asked.append(float(count))
        return 1.0

    parts = [
        network.losses([i], [t], total=told)["loss_keypoint"] for i, t in zip(images, targets, strict=True)
    ]
    together = torch.stack(parts).sum() / (asked[1] + asked[3])
    assert float(together.detach()) == pytest.approx(float(whole.detach()), rel=1e-4)
    assert own_total(0) == 1.0


def enlarged(images: list[Tensor], masks: bool = True) -> Arguments:
    sizes = [[2 * i.shape[1], 3 * i.shape[2]] for i in images]
    return asked(images, sizes=sizes, most=6, with_masks=masks)


@torch.inference_mode()
def answer_of(network: MaskXRCNN, masks: bool = True) -> dict[str, Tensor]:
    (answer,) = network.eval().inference()(*enlarged([image()], masks))
    return dict(answer)


def test_scripted_keypoints_are_exactly_the_eager_ones() -> None:
    network = network_with_keypoints().eval()
    answers = same_when_scripted(
        prepared_for_serving(network.inference()), enlarged([image(), image(60, 80, seed=2), image(seed=3)])
    )
    assert all(answer["keypoints"].shape == (6, 3, 3) for answer in answers)


def test_keypoints_lie_in_their_boxes_in_pixels_of_the_original() -> None:
    answer = answer_of(network_with_keypoints())
    low, high = answer["boxes"][:, None, :2], answer["boxes"][:, None, 2:]
    at = answer["keypoints"][:, :, :2]
    assert bool(((at >= low - 1e-3) & (at <= high + 1e-3)).all())
    assert float(answer["boxes"].max()) > 96  # else the originals' pixels are not seen


def test_keypoints_are_found_on_the_one_level_of_the_c4_form_too() -> None:
    c4 = build_network(dataclasses.replace(SMALL_C4, keypoints=CONFIG), num_classes=5)
    assert float(c4.train().losses([image()], [with_keypoints(3)])["loss_keypoint"].detach()) > 0
    of_c4, of_fpn = answer_of(c4), answer_of(network_with_keypoints())
    assert of_c4["keypoints"].shape == of_fpn["keypoints"].shape == (6, 3, 3)
    assert bool((of_c4["keypoints"][:, :, 2] > 0).all())


def test_keypoints_are_answered_without_masks_too() -> None:
    network = network_with_keypoints()
    with_masks, without = (answer_of(network, masks) for masks in (True, False))
    assert torch.equal(with_masks["keypoints"], without["keypoints"]) and without["rle_counts"].numel() == 0


def test_only_the_classes_that_have_keypoints_get_some() -> None:
    network = network_with_keypoints()
    with torch.no_grad():
        network.box_predictor.cls_score.weight.mul_(100)  # so that classes differ
    everywhere = answer_of(network)
    labels = everywhere["labels"].unique().tolist()
    assert len(labels) > 1
    network.set_keypoint_labels(labels[:1])
    answer = answer_of(network)
    mine = answer["labels"] == labels[0]
    assert torch.allclose(answer["keypoints"][mine], everywhere["keypoints"][mine], atol=1e-4)
    assert not answer["keypoints"][~mine].any() and everywhere["keypoints"][~mine].any()


def test_an_image_without_detections_has_no_keypoints() -> None:
    served = network_with_keypoints().eval().inference()
    with torch.inference_mode():
        (answer,) = served(*asked([image()], threshold=2.0))
    assert answer["keypoints"].shape == (0, 3, 3)


def test_a_network_without_keypoints_answers_as_before() -> None:
    assert set(answer_of(small_network())) == {"boxes", "scores", "labels", "rle_counts", "rle_offsets"}
    assert not [name for name in small_network().state_dict() if name.startswith("keypoint")]


# ---- configuration ----


def test_cocos_layout_has_its_17_keypoints_which_left_and_right_exchange() -> None:
    config = KeypointsConfig(layout="coco")
    assert len(config.all_names) == len(config.all_sigmas) == len(COCO_NAMES) == len(COCO_SIGMAS) == 17
    assert [COCO_NAMES[i] for i in config.mirrored[:3]] == ["nose", "right_eye", "left_eye"]
    assert all(config.mirrored[config.mirrored[k]] == k for k in range(17)) and len(config.lines) == 19


def test_pairs_that_are_given_stand_in_for_left_and_right() -> None:
    config = KeypointsConfig(layout="own", names=("tip", "port", "star"), flip_pairs=(("port", "star"),))
    assert config.mirrored == (0, 2, 1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layout": "own"}, "names is empty"),
        ({"names": ("a",)}, 'belong to layout "own"'),
        ({"layout": "coco", "names": ("a",)}, 'belong to layout "own"'),
        ({"classes": ("person",)}, "layout is none"),
        ({"layout": "own", "names": ("a", "a")}, "a name of its own"),
        ({"layout": "own", "names": ("a", "b"), "sigmas": (0.1,)}, "1 sigmas for 2 names"),
        ({"layout": "own", "names": ("a",), "sigmas": (0.0,)}, "above 0"),
        ({"layout": "own", "names": ("a",), "skeleton": (("a", "z"),)}, "skeleton has ['z']"),
        (
            {"layout": "own", "names": ("a", "b", "c"), "flip_pairs": (("a", "b"), ("b", "c"))},
            "one mirror image",
        ),
        ({"layout": "coco", "roi_size": 0}, "roi_size 0"),
    ],
)
def test_keypoints_that_make_no_sense_are_refused_by_name(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        KeypointsConfig(**fields)


def test_names_pairs_and_sigmas_travel_in_plain_values_and_old_configurations_have_none() -> None:
    config = dataclasses.replace(
        SMALL,
        keypoints=dataclasses.replace(CONFIG, sigmas=(0.1, 0.2, 0.3), skeleton=(("head", "left_hand"),)),
    )
    plain = to_dict(config)
    assert model_config_from_dict(plain) == config
    del plain["keypoints"]
    assert model_config_from_dict(plain) == dataclasses.replace(config, keypoints=KeypointsConfig())
    assert not ModelConfig().keypoints.used


def test_an_unknown_class_with_keypoints_is_named() -> None:
    table = ClassTable(ids=(1, 2), names=("person", "dog"), has_mask=(True, True))
    assert keypoint_labels(CONFIG, table) == [1, 2]
    assert keypoint_labels(dataclasses.replace(CONFIG, classes=("dog",)), table) == [2]
    with pytest.raises(ValueError, match=r"model.keypoints.classes: no class is called 'dgo'"):
        keypoint_labels(dataclasses.replace(CONFIG, classes=("dgo",)), table)
