"""What a network may be made of, from a checkpoint to a reloaded file that predicts."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from export.torchscript import export_checkpoint
from model.build import build_network
from model.config import MaskConfig, TransferConfig
from tests.export.tiny import CLASSES, CONFIG, save_network
from tests.model.small_network import asked

SPECIFIC = TransferConfig(kind="class_specific", layers=1)
OPTIONS: dict[str, dict[str, Any]] = {
    "mlp head, class-specific": {
        "mask": MaskConfig(width=8, head="mlp", mlp="none", roi_size=7), "transfer": SPECIFIC,
    },
    "hourglass with prior and transfer": {
        "mask": MaskConfig(width=8, head="hourglass20", roi_size=16, prior="cam"),
        "transfer": TransferConfig(layers=1), "box": replace(CONFIG.box, head="conv"),
    },
    "8 convolutions, softmax": {
        "mask": MaskConfig(width=8, convolutions=8, loss="softmax"), "transfer": SPECIFIC,
    },
    "torchvision's box head, rounding and pooling": {
        "input": replace(CONFIG.input, rounding="down"), "rpn": replace(CONFIG.rpn, convolutions=2),
        "box": replace(CONFIG.box, head="conv_fc", aligned=False),
    },
}  # fmt: skip


@pytest.mark.parametrize("option", OPTIONS)
def test_a_checkpoint_becomes_a_file_that_predicts_as_it_does_at_its_own_mask_side(
    option: str, tmp_path: Path
) -> None:
    config = replace(CONFIG, **OPTIONS[option])
    torch.manual_seed(0)
    network = build_network(config, num_classes=CLASSES.num_classes)
    with torch.no_grad():
        network.box_predictor.cls_score.weight.mul_(100)
        for name, parameter in network.mask_weights.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.1 if name == "bias" else 1.0))
    checkpoint = save_network(tmp_path / "checkpoint.pt", network, config)
    export_checkpoint(checkpoint, tmp_path / "maskx.pt")  # which compares before it writes
    extra: dict[str, str | bytes] = {"metadata.json": ""}
    model = torch.jit.load(tmp_path / "maskx.pt", _extra_files=extra)
    assert json.loads(extra["metadata.json"])["mask_size"] == 2 * config.mask.roi_size
    photograph = torch.randint(0, 256, (3, 67, 101), dtype=torch.uint8)
    assert network.canvas.size_of(photograph) == ((63, 96) if config.input.rounding == "down" else (64, 96))
    question = asked([photograph], most=8)
    with torch.inference_mode():
        (answer,) = model(*question)
        (expected,) = network.eval().inference()(*question)
    assert answer["labels"].shape == (8,) and torch.equal(answer["labels"], expected["labels"])
    torch.testing.assert_close(answer["boxes"], expected["boxes"], rtol=0, atol=1e-3)
    runs = answer["rle_counts"].tensor_split(answer["rle_offsets"][1:-1])
    assert [int(run.sum()) for run in runs] == [67 * 101] * 8
    assert sum(int(run[1::2].sum()) for run in runs) > 0
