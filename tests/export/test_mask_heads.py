"""Mask heads, class-specific weights and the prior, from the checkpoint to a reloaded file that predicts."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from export.torchscript import export_checkpoint
from model.build import build_network
from model.config import MaskConfig, TransferConfig
from tests.export.tiny import CLASSES, CONFIG, save_network


@pytest.mark.parametrize(
    ("mask", "kind", "box_head"),
    [
        ({"head": "mlp", "mlp": "none", "roi_size": 7}, "class_specific", "fc"),
        ({"head": "hourglass20", "roi_size": 16, "prior": "cam"}, "transfer", "conv"),
        ({"convolutions": 8, "roi_size": 14, "loss": "softmax"}, "class_specific", "fc"),
    ],
    ids=["mlp head, class-specific", "hourglass with prior and transfer", "8 convolutions, softmax"],
)
def test_a_checkpoint_becomes_a_file_that_predicts_at_its_own_mask_side(
    mask: dict[str, Any], kind: str, box_head: str, tmp_path: Path
) -> None:
    config = dataclasses.replace(
        CONFIG,
        mask=MaskConfig(**{"width": 8, **mask}),
        transfer=TransferConfig(kind=kind, layers=1),  # type: ignore[arg-type]
        box=dataclasses.replace(CONFIG.box, head=box_head),  # type: ignore[arg-type]
    )
    torch.manual_seed(0)
    network = build_network(config, num_classes=CLASSES.num_classes)
    with torch.no_grad():
        network.box_predictor.cls_score.weight.mul_(100)
        for name, parameter in network.mask_weights.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.1 if name == "bias" else 1.0))
    save_network(tmp_path / "checkpoint.pt", network, config)
    export_checkpoint(tmp_path / "checkpoint.pt", tmp_path / "maskx.pt")  # which compares before it writes
    extra: dict[str, str | bytes] = {"metadata.json": ""}
    model = torch.jit.load(tmp_path / "maskx.pt", _extra_files=extra)
    assert json.loads(extra["metadata.json"])["mask_size"] == 2 * mask["roi_size"]
    labels = CLASSES.num_classes + 1
    everything = torch.ones(1, labels, dtype=torch.bool)
    photograph = torch.randint(0, 256, (3, 70, 90), dtype=torch.uint8)
    with torch.inference_mode():
        (answer,) = model(
            [photograph],
            torch.tensor([[70, 90]]),
            torch.zeros(1),
            torch.tensor([8]),
            everything,
            torch.ones(1, dtype=torch.bool),
        )
    assert answer["labels"].shape == (8,)
    runs = answer["rle_counts"].tensor_split(answer["rle_offsets"][1:-1])
    assert [int(run.sum()) for run in runs] == [70 * 90] * 8
    assert sum(int(run[1::2].sum()) for run in runs) > 0
