"""A network small enough to be exported in seconds, and what an export costs left out where it is not the question."""

import dataclasses
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import export.torchscript
from export.archive import ROOT
from export.verify import Answer, Case
from model.build import build_network
from model.checkpoint import save_checkpoint
from model.classes import ClassTable
from model.config import (
    BackboneConfig,
    BoxConfig,
    InputConfig,
    MaskConfig,
    ModelConfig,
    RpnConfig,
    TransferConfig,
    to_dict,
)
from model.network import MaskXRCNN

CLASSES = ClassTable(
    ids=(2, 3, 7, 11, 90), names=("a", "b", "c", "d", "e\u00e9"), has_mask=(True, False, True, False, True)
)

CONFIG = ModelConfig(
    input=InputConfig(min_size=64, max_size=96),
    backbone=BackboneConfig(name="small", weights="none", norm="batch", fpn_channels=8),
    rpn=RpnConfig(anchor_sizes=(8, 16, 32, 64, 128), pre_nms_test=60, post_nms_test=20),
    box=BoxConfig(width=16, detections_per_image=30, candidates_per_image=200),
    mask=MaskConfig(width=8, convolutions=1, roi_size=7),
    transfer=TransferConfig(layers=1, normalise=True, residual=True),
)


def tiny_network(transfer: TransferConfig = CONFIG.transfer, *, config: ModelConfig = CONFIG) -> MaskXRCNN:
    """Random weights, the same always; w_det and T large enough that classes differ in scores and masks."""
    torch.manual_seed(0)
    network = build_network(dataclasses.replace(config, transfer=transfer), num_classes=CLASSES.num_classes)
    with torch.no_grad():
        network.box_predictor.cls_score.weight.mul_(100)
        for name, parameter in network.mask_weights.named_parameters():
            if name.endswith(("weight", "agnostic")):
                parameter.copy_(torch.randn_like(parameter))
    return network.eval()


def save_network(
    path: Path, network: MaskXRCNN, config: ModelConfig = CONFIG, classes: ClassTable = CLASSES, **more: Any
) -> Path:
    """A checkpoint of a network that was not trained, with `more` in it."""
    contents = {"format": 1, "model": network.state_dict(), "model_config": to_dict(config), "step": 0}
    save_checkpoint(path, {**contents, "training_config": {}, "classes": classes.to_dict(), **more})
    return path


def answers_here(data: bytes, cases: list[Case]) -> list[Answer]:
    """As `export.verify.answers_of_fresh_process`, in this process, which spares the start of another one."""
    loaded, answers = torch.jit.load(io.BytesIO(data)), []
    with torch.inference_mode():
        for loaded.batched in (False, True):
            answers += [loaded(*case) for case in cases]
    return answers


def unverified(network: MaskXRCNN, metadata: dict[str, Any]) -> bytes:
    """`export_network` without its verification, for whoever only wants a file: tests/export have what it compares."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(export.torchscript, "verify", lambda *_: None)
        return export.torchscript.export_network(network, metadata)


def run_module(
    module: str, *arguments: object, root: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    """`python -m module arguments` in the folder `root`."""
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=root,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
