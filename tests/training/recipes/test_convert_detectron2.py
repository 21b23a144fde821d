"""Networks of detectron2 itself, as its model zoo configures them, beside those converted from their files.

They need a checkout of detectron2, whose Python is imported and of which nothing is built: PEERS_DETECTRON2 is its
folder, PEERS_SITE one with what it imports (fvcore, iopath, omegaconf).
"""

import importlib
import os
import pickle
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from model.checkpoint import load_network
from tests.model.small_network import asked
from tests.training.recipes.torchvision_peer import Answer, answer_of_converted, differences
from training.recipes.convert.__main__ import convert

SIDE, CLASSES = 192, 8
FILES = {
    "fpn": "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml",
    "c4": "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml",
    "pose": "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml",
    "normalised": "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml",
}


@pytest.fixture(scope="module")
def detectron2() -> Any:
    """The function that builds a network of a configuration, and the one that gives a configuration."""
    root = Path(os.environ.get("PEERS_DETECTRON2", "") or "none")
    if not (root / "detectron2").is_dir():
        pytest.skip("PEERS_DETECTRON2 names no checkout of detectron2")
    before = list(sys.path)
    sys.path += [str(root), os.environ.get("PEERS_SITE", "")]
    if "detectron2._C" not in sys.modules:
        sys.modules["detectron2._C"] = ModuleType("detectron2._C")
    try:
        config = importlib.import_module("detectron2.config")
        modeling = importlib.import_module("detectron2.modeling")
    except ImportError as error:
        pytest.skip(f"detectron2 cannot be imported: {error}")
    finally:
        sys.path[:] = before
    return config.get_cfg, modeling.build_model, root


GAINS = {
    "cls_score": 3.0, "bbox_pred": 0.3, "anchor_deltas": 0.15, "fc1": 1.5, "fc2": 1.5, "deconv": 2.0, "conv": 0.6,
    "objectness_logits": 1.0, "predictor": 2.0,
}  # fmt: skip


def set_random(name: str, value: Tensor, *, c4: bool) -> None:
    """Activations of one size from layer to layer, so that differences are of rounding alone; in place."""
    layer, part = name.split(".")[-2:] if "." in name else ("", name)
    if part in ("running_mean", "bias"):
        value.normal_(std=0.05)
    elif part == "running_var":
        value.uniform_(0.7, 1.4)
    elif layer == "norm" and value.is_floating_point():
        last = {"stem": 0.02, "shortcut": 0.7, "conv3": 0.3}
        value.uniform_(0.75, 1.25).mul_(next((scale for key, scale in last.items() if key in name), 1.0))
    elif part == "weight":
        gain = GAINS.get(layer, 1.4) * (0.2 if c4 and layer == "cls_score" else 1.0)
        fan = value.shape[0] if layer in ("deconv", "score_lowres") else value[0].numel()
        value.normal_(std=gain * fan**-0.5)


def network(detectron2: Any, form: str) -> nn.Module:
    """As the model zoo has it, but of few classes and proposals, with random weights that detect something."""
    get_cfg, build_model, root = detectron2
    cfg = get_cfg()
    cfg.merge_from_file(str(root / "configs" / FILES[form]))
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 1 if form == "pose" else CLASSES
    cfg.MODEL.RPN.PRE_NMS_TOPK_TEST = cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 100 if form == "c4" else 200
    if form == "normalised":  # as the baselines of large-scale jitter
        cfg.MODEL.RESNETS.NORM = cfg.MODEL.FPN.NORM = "BN"
        cfg.MODEL.ROI_BOX_HEAD.NORM = cfg.MODEL.ROI_MASK_HEAD.NORM = "BN"
        cfg.MODEL.ROI_BOX_HEAD.NUM_CONV, cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 4, 1
        cfg.MODEL.RPN.CONV_DIMS = [-1, -1]
    torch.manual_seed(2)
    model: nn.Module = build_model(cfg).eval()
    for name, value in model.state_dict().items():
        set_random(name, value, c4=form == "c4")
    return model


def picture() -> Tensor:
    noise = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(4))
    smooth = nn.functional.interpolate(noise, size=(SIDE, SIDE), mode="bicubic")[0]
    return (smooth * 255).clamp(0, 255).to(torch.uint8)


@torch.no_grad()
def answer_of(model: Any, image: Tensor) -> tuple[Answer, Tensor | None]:
    """Its detections of an image in red, green, blue; masks before they are pasted, or maps of keypoints."""
    given = [{"image": image.flip(0), "height": SIDE, "width": SIDE}]
    (found,) = model.inference(given, do_postprocess=False)
    masks = found.pred_masks[:, 0] if found.has("pred_masks") else torch.zeros(len(found), 1, 1)
    maps = found.pred_keypoint_heatmaps if found.has("pred_keypoint_heatmaps") else None
    labels = found.pred_classes + 1
    return Answer(boxes=found.pred_boxes.tensor, scores=found.scores, labels=labels, masks=masks), maps


@pytest.mark.filterwarnings("ignore")  # detectron2's own, of torch's newer ways
@pytest.mark.parametrize("form", FILES)
def test_a_network_of_detectron2_is_converted_to_one_with_its_answers(
    form: str, detectron2: Any, tmp_path: Path
) -> None:
    model = network(detectron2, form)
    path, out = tmp_path / "model_final_0.pkl", tmp_path / "checkpoint.pt"
    arrays = {name: value.numpy() for name, value in model.state_dict().items()}
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "Detectron2 Model Zoo"}))
    count = 100 if form == "c4" else 200
    convert(
        path,
        out,
        classes="person" if form == "pose" else ",".join(f"class {k}" for k in range(CLASSES)),
        overrides=[
            f"model.input.min_size={SIDE}",
            f"model.rpn.pre_nms_test={count}",
            f"model.rpn.post_nms_test={count}",
        ],
    )
    ours, table, _ = load_network(out)
    image = picture()
    theirs, maps = answer_of(model, image)
    mine = answer_of_converted(ours.inference(), image, classes=table.num_classes)
    assert theirs.labels.numel() >= 20
    if maps is not None:
        (answer,) = ours.inference()(*asked([image], threshold=0.05, most=100, classes=1))
        assert answer["keypoints"].shape == (len(mine.labels), 17, 3)
        mine = Answer(
            boxes=mine.boxes, scores=mine.scores, labels=mine.labels, masks=theirs.masks[: len(mine.labels)]
        )
    found = differences(theirs, mine)
    print(form, found)
    assert found.alone == 0 and found.detections == theirs.labels.numel(), found
    assert found.boxes < 1e-2 and found.scores < 1e-4 and found.masks < 1e-3, found
    if maps is not None:
        assert ours.keypoint_branch is not None
        order = [int((theirs.boxes - box).abs().sum(1).argmin()) for box in mine.boxes]
        rois = torch.cat([torch.zeros(len(mine.boxes), 1), mine.boxes], dim=1)
        with torch.no_grad():
            own = ours.keypoint_branch(ours.backbone(ours.canvas([image], SIDE, SIDE)), rois)
        torch.testing.assert_close(own, maps[order], rtol=1e-3, atol=1e-3 * float(maps.abs().max()))
