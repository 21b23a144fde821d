"""The tiny network with keypoints, as a checkpoint and as an exported file."""

import dataclasses
from pathlib import Path

import torch

from export.torchscript import export_checkpoint
from model.keypoints.layout import KeypointsConfig
from tests.export.tiny import CONFIG, save_network, tiny_network

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
    network = tiny_network(config=config)
    assert network.keypoint_branch is not None
    with torch.no_grad():
        network.keypoint_branch.deconv.weight.mul_(200)
    save_network(path, network, config)


def write_keypoint_model(folder: Path) -> Path:
    """`folder`/maskx.pt, exported from `folder`/checkpoint.pt."""
    write_keypoint_checkpoint(folder / "checkpoint.pt")
    export_checkpoint(folder / "checkpoint.pt", folder / "maskx.pt")
    return folder / "maskx.pt"
