"""The tiny network with keypoints, as a checkpoint and as an exported file."""

import dataclasses
from pathlib import Path

import torch

from export.torchscript import export_checkpoint
from model.build import build_network
from model.checkpoint import save_checkpoint
from model.config import to_dict
from model.keypoints.layout import KeypointsConfig
from tests.export.tiny import CLASSES, CONFIG

NAMES = ("tip", "left_end", "right_end")
KEYPOINTS = KeypointsConfig(
    layout="own",
    names=NAMES,
    skeleton=(("tip", "left_end"), ("tip", "right_end")),
    classes=("a", "c", "d"),
    width=8,
    convolutions=2,
    roi_size=7,
)


def write_keypoint_checkpoint(path: Path) -> None:
    """Random weights, the same always; classes differ in scores, keypoints in place."""
    config = dataclasses.replace(CONFIG, keypoints=KEYPOINTS)
    torch.manual_seed(0)
    network = build_network(config, num_classes=CLASSES.num_classes)
    with torch.no_grad():
        network.box_predictor.cls_score.weight.mul_(100)
        for name, parameter in network.mask_weights.named_parameters():
            if name.endswith(("weight", "agnostic")):
                parameter.copy_(torch.randn_like(parameter))
        assert network.keypoint_branch is not None
        network.keypoint_branch.deconv.weight.mul_(200)
    contents = {
        "format": 1,
        "model": network.state_dict(),
        "model_config": to_dict(config),
        "training_config": {},
        "classes": CLASSES.to_dict(),
        "step": 0,
    }
    save_checkpoint(path, contents)


def write_keypoint_model(folder: Path) -> Path:
    """`folder`/maskx.pt, exported from `folder`/checkpoint.pt."""
    write_keypoint_checkpoint(folder / "checkpoint.pt")
    export_checkpoint(folder / "checkpoint.pt", folder / "maskx.pt")
    return folder / "maskx.pt"
