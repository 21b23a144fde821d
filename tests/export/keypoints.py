"""The tiny network with keypoints, as a checkpoint and as an exported file."""

import dataclasses
from pathlib import Path

import torch

from export.metadata import build_metadata
from model.keypoints.layout import KeypointsConfig
from model.network import MaskXRCNN
from tests.export.tiny import CLASSES, CONFIG, save_network, tiny_network, unverified

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


def write_keypoint_checkpoint(path: Path) -> MaskXRCNN:
    """Random weights, the same always; classes differ in scores, keypoints in place."""
    config = dataclasses.replace(CONFIG, keypoints=KEYPOINTS)
    network = tiny_network(config=config)
    assert network.keypoint_branch is not None
    with torch.no_grad():
        network.keypoint_branch.deconv.weight.mul_(200)
    save_network(path, network, config)
    return network


def write_keypoint_model(folder: Path) -> Path:
    """`folder`/maskx.pt, exported from `folder`/checkpoint.pt."""
    network = write_keypoint_checkpoint(folder / "checkpoint.pt")
    sizes = {"mask_size": 14, "max_detections": 30, "min_size": 64, "max_size": 96}
    metadata = build_metadata(CLASSES, **sizes, keypoints=KEYPOINTS)
    (folder / "maskx.pt").write_bytes(unverified(network, metadata))
    return folder / "maskx.pt"
