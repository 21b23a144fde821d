"""torchvision's Mask R-CNNs as checkpoints of ours: the same detections, whatever the age of the file."""

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import WeightsEnum
from torchvision.models.detection import MaskRCNN, maskrcnn_resnet50_fpn, maskrcnn_resnet50_fpn_v2
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead
from torchvision.models.detection.rpn import RPNHead

from model.backbones.torchvision_state import EPSILON, has_old_names, with_epsilon, with_present_names
from model.checkpoint import load_checkpoint, load_network
from model.torchvision_weights import torchvision_config
from tests.model.small_network import target
from tests.training.recipes.torchvision_peer import (
    answer_of_converted,
    answer_of_peer,
    conversion_overrides,
    differences,
    small_peer,
)
from training.recipes import convert_torchvision
from training.recipes.convert_torchvision import HUB_NAMES, categories, convert, loaded, main

SIDE = 64
NAMES = ["ape", "bee", "cat", "dog", "elk"]
SIZES = [(64, 64), (67, 101), (90, 50)]
"""The second is resized to 63 x 96 by torchvision, and by Detectron to 64 x 96."""


def peer(kind: str) -> tuple[MaskRCNN, list[str]]:
    """A network of torchvision with random weights that detects something, and what its weights do not show."""
    torch.manual_seed(0)
    if kind == "resnet18":
        model, overrides = small_peer(len(NAMES), side=SIDE), conversion_overrides(SIDE)
        model.transform.max_size = 96
    else:
        make: Callable[..., MaskRCNN] = maskrcnn_resnet50_fpn if kind == "v1" else maskrcnn_resnet50_fpn_v2
        model = make(
            weights=None,
            weights_backbone=None,
            num_classes=len(NAMES) + 1,
            min_size=SIDE,
            max_size=96,
            rpn_pre_nms_top_n_test=60,
            rpn_post_nms_top_n_test=60,
        )
        overrides = [
            f"model.input.min_size={SIDE}",
            "model.rpn.pre_nms_test=60",
            "model.rpn.post_nms_test=60",
        ]
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.weight.mul_(30)
        model.roi_heads.box_predictor.bbox_pred.weight.mul_(10)
    overrides = [key for key in overrides if not key.startswith("model.input.max_size")]
    return model.eval(), [*overrides, "model.input.max_size=96"]


def converted(model: MaskRCNN, folder: Path, overrides: list[str], **options: Any) -> Path:
    """The checkpoint made of a network of torchvision."""
    given, out = folder / "model.pth", folder / "checkpoint.pt"
    torch.save(options.pop("state", model.state_dict()), given)
    table = convert(str(given), out, classes=",".join(NAMES), overrides=overrides, **options)
    assert (table.names, table.ids) == (tuple(NAMES), (1, 2, 3, 4, 5))
    return out


def picture(height: int, width: int) -> Tensor:
    noise = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(height))
    smooth = nn.functional.avg_pool2d(noise, 5, 1, 2)[0]
    return ((smooth - 0.4) * 1200).clamp(0, 255).to(torch.uint8)


def require_equal(model: MaskRCNN, checkpoint: Path, sizes: list[tuple[int, int]]) -> None:
    network, classes, _ = load_network(checkpoint)
    served = network.inference()
    for height, width in sizes:
        image = picture(height, width)
        theirs = answer_of_peer(model, image)
        ours = answer_of_converted(served, image, classes=classes.num_classes)
        assert theirs.labels.numel() >= 20 and theirs.masks.std() > 0.01
        found = differences(theirs, ours)
        assert found.detections == theirs.labels.numel() and found.equal, (height, width, found)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[MaskRCNN, Path, list[str]]:
    """The small network of torchvision, its file, and what the file does not show."""
    model, overrides = peer("resnet18")
    path = tmp_path_factory.mktemp("torchvision") / "model.pth"
    torch.save(model.state_dict(), path)
    return model, path, overrides


@pytest.mark.parametrize("kind", ["v1", "v2", "resnet18"])
def test_detections_of_a_converted_network_equal_torchvisions(kind: str, tmp_path: Path) -> None:
    model, overrides = peer(kind)
    require_equal(model, converted(model, tmp_path, overrides), SIZES if kind == "resnet18" else SIZES[1:2])


def test_a_converted_v2_head_on_a_small_network_can_be_trained_on(tmp_path: Path) -> None:
    model, overrides = peer("resnet18")
    model.roi_heads.box_head = FastRCNNConvFCHead((64, 7, 7), [64] * 4, [256], norm_layer=nn.BatchNorm2d)
    model.rpn.head = RPNHead(64, 3, conv_depth=2)
    out = converted(model.eval(), tmp_path, overrides)
    require_equal(model, out, SIZES[1:2])
    network, _, _ = load_network(out)
    losses = network.train().losses([picture(64, 64)], [target(3, classes=5)])
    sum(losses.values()).backward()  # type: ignore[union-attr]
    for module in (network.box_head, network.mask_branch, network.rpn.head):
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in module.parameters())


def old_state(model: nn.Module) -> dict[str, Tensor]:
    """The names of 2019, as the published file has them."""
    state = {}
    for key, value in model.state_dict().items():
        key = re.sub(r"(fpn\.(?:inner|layer)_blocks\.\d+)\.0\.", r"\1.", key).replace(
            "head.conv.0.0.", "head.conv."
        )
        key = re.sub(r"mask_head\.(\d+)\.0\.", lambda m: f"mask_head.mask_fcn{int(m[1]) + 1}.", key)
        state[key] = value
    return state


def test_a_file_of_2019_has_old_names_and_norms_of_epsilon_zero(tmp_path: Path) -> None:
    model, overrides = peer("resnet18")
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_var is not None
            module.running_var.mul_(1e-4)  # small enough for the epsilon to matter
            nn.init.uniform_(module.weight, 0.005, 0.01)
            module.eps = 1e-20  # as good as none; torch 2.11 refuses 0 itself
    state = old_state(model)
    assert "roi_heads.mask_head.mask_fcn2.bias" in state and has_old_names(state)
    require_equal(model, converted(model, tmp_path, overrides, state=state), SIZES[:1])
    # Of one that was trained on from such a file nothing shows it.
    require_equal(model, converted(model, tmp_path, overrides, epsilon=0.0), SIZES[:1])
    wrong = converted(model, tmp_path, overrides)
    with pytest.raises(AssertionError):
        require_equal(model, wrong, SIZES[:1])


def test_a_channel_without_variance_is_refused_where_its_epsilon_is_zero() -> None:
    state = {"bn.running_var": torch.tensor([0.0, 1.0]), "bn.weight": torch.ones(2)}
    assert with_epsilon(state, EPSILON) is state
    with pytest.raises(ValueError, match="bn has channels without variance"):
        with_epsilon(state, 0.0)


def test_checkpoints_of_torchvisions_training_and_of_several_gpus_are_read(
    small: tuple[MaskRCNN, Path, list[str]], tmp_path: Path
) -> None:
    model, plain, _ = small
    torch.save(
        {"model": model.state_dict(), "epoch": 3, "args": argparse.Namespace(lr=0.02)},
        tmp_path / "model_3.pth",
    )
    torch.save({f"module.{k}": v for k, v in model.state_dict().items()}, tmp_path / "parallel.pth")
    expected = loaded(str(plain))
    for name in ("model_3.pth", "parallel.pth"):
        found = loaded(str(tmp_path / name))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_labels_without_a_class_are_left_out_or_kept_as_one_asks(
    small: tuple[MaskRCNN, Path, list[str]], tmp_path: Path
) -> None:
    """With a label left out the scores of others grow by its share, which is nothing for one that is never scored."""
    model, path, overrides = small
    out = tmp_path / "checkpoint.pt"
    names = "ape,N/A,cat,N/A,elk"
    kept = convert(str(path), out, classes=names, keep_unused=True, overrides=overrides)
    assert kept.names == ("ape", "N/A 2", "cat", "N/A 4", "elk")
    require_equal(model, out, SIZES[:1])
    silent, _ = peer("resnet18")
    with torch.no_grad():
        silent.roi_heads.box_predictor.cls_score.bias[[2, 4]] = -1000.0
    torch.save(silent.state_dict(), tmp_path / "silent.pth")
    table = convert(str(tmp_path / "silent.pth"), out, classes=names, overrides=overrides)
    assert (table.names, table.ids) == (("ape", "cat", "elk"), (1, 3, 5))
    network, _, _ = load_network(out)
    theirs = answer_of_peer(silent, picture(64, 64))
    ours = answer_of_converted(network.inference(), picture(64, 64), classes=3)
    assert set(theirs.labels.tolist()) <= {1, 3, 5} and theirs.labels.numel() >= 20
    there = torch.tensor(table.ids)[ours.labels - 1]
    found = differences(theirs, type(ours)(**{**vars(ours), "labels": there}))
    assert found.detections == theirs.labels.numel() and found.equal, found


def test_classes_are_cocos_or_named_by_text_file_or_annotations(tmp_path: Path) -> None:
    coco = categories("", rows=91)
    assert all(label == category_id for label, (category_id, _) in coco.items())
    used = {label: name for label, (_, name) in coco.items() if name != "N/A"}
    assert len(used) == 80 and (used[1], used[13], used[90]) == ("person", "stop sign", "toothbrush")
    (tmp_path / "names.txt").write_text("# in order\nape\n\nbee\n", encoding="utf-8")
    assert categories(str(tmp_path / "names.txt"), rows=3) == {1: (1, "ape"), 2: (2, "bee")}

    def of_ids(ids: list[int], rows: int) -> dict[int, tuple[int, str]]:
        listed = [{"id": i, "name": f"c{i}"} for i in ids]
        (tmp_path / "a.json").write_text(json.dumps({"categories": listed}), encoding="utf-8")
        return categories(str(tmp_path / "a.json"), rows=rows)

    # labels are the ids, as in torchvision's own training
    assert of_ids([7, 2], rows=8) == {2: (2, "c2"), 7: (7, "c7")}
    assert of_ids([70, 20], rows=3) == {1: (20, "c20"), 2: (70, "c70")}
    with pytest.raises(ValueError, match="2 categories, ids 20 to 70; the weights have the labels 1 to 3"):
        of_ids([70, 20], rows=4)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ("", "the weights have 5 labels, and COCO's have 90: name them with --classes"),
        ("a,b", "2 class names .* for 5 labels"),
        ("a,b,c,d,a", "two labels have the name 'a'"),
        ("missing.json", "not a COCO file"),
    ],
)
def test_classes_that_do_not_fit_are_refused(classes: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        categories(classes, rows=6)


def without(prefix: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: {key: value for key, value in state.items() if not key.startswith(prefix)}


def with_shape(key: str, *shape: int) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: {**state, key: torch.zeros(shape)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("roi_heads.mask_predictor"), r"mask branch \(a Faster R-CNN has none\)"),
        (without("backbone.fpn"), "feature pyramid on four stages"),
        (without("backbone.body.layer4"), "backbone.body is none of resnet18, "),
        (without("roi_heads.box_head"), "neither two fully connected layers nor 4 convolutions"),
        (with_shape("rpn.head.cls_logits.weight", 9, 64, 1, 1), "9 anchors at each place; expected 3"),
        (with_shape("roi_heads.mask_head.1.0.weight", 32, 64, 3, 3), r"layers of \[32, 64\] channels"),
        (with_shape("roi_heads.box_head.fc6.weight", 256, 70), "reads 70 numbers"),
    ],
)
def test_weights_of_another_network_are_refused_by_what_is_missing(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    message: str,
    small: tuple[MaskRCNN, Path, list[str]],
) -> None:
    with pytest.raises(ValueError, match=message):
        torchvision_config(change(with_present_names(small[0].state_dict())))


def test_weights_of_the_hub_are_asked_for_by_name(
    small: tuple[MaskRCNN, Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def of_hub(weights: WeightsEnum, *arguments: Any, **options: Any) -> dict[str, Tensor]:
        asked.append((str(weights), options["check_hash"]))
        return small[0].state_dict()

    monkeypatch.setattr(WeightsEnum, "get_state_dict", of_hub)
    assert loaded(HUB_NAMES[1]).keys() == small[0].state_dict().keys()
    assert asked == [("MaskRCNN_ResNet50_FPN_V2_Weights.COCO_V1", True)]

    def unreachable(weights: WeightsEnum, *arguments: Any, **options: Any) -> dict[str, Tensor]:
        raise URLError("no network")

    monkeypatch.setattr(WeightsEnum, "get_state_dict", unreachable)
    with pytest.raises(
        ValueError, match=r"could not be downloaded .*maskrcnn_resnet50_fpn_coco-bf2d0c1e\.pth"
    ):
        loaded(HUB_NAMES[0])
    for name in ("coco", "ResNet50_Weights.IMAGENET1K_V1", "MaskRCNN_ResNet50_FPN_Weights.COCO_V9"):
        with pytest.raises(
            ValueError, match="neither a file nor one of MaskRCNN_ResNet50_FPN_Weights.COCO_V1"
        ):
            loaded(name)


def test_the_command_writes_a_checkpoint_or_names_the_mistake_in_one_line(
    small: tuple[MaskRCNN, Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "converted" / "checkpoint.pt"
    arguments = ["--weights", str(small[1]), "--out", str(out), "--classes", ",".join(NAMES)]
    assert main([*arguments, *small[2], "data.val_images=photos"]) == 0
    assert "5 classes (ape, bee, cat, dog, ...)" in capsys.readouterr().out
    contents = load_checkpoint(out)
    assert contents["training_config"]["data"]["val_images"] == "photos"
    assert contents["model_config"]["rpn"]["anchor_sizes"] == [16, 32, 64, 96, 128]
    assert contents["classes"]["has_mask"] == [True] * 5
    for mistake in (["model.rpn.anchor_size=3"], ["--weights", "gone.pth"]):
        assert main([*arguments, *mistake]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert convert_torchvision.UNUSED == "N/A"
