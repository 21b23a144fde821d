"""What only converted detectors of torchvision use, from the checkpoint to a reloaded file that predicts."""

import dataclasses
from pathlib import Path

import torch

from export.torchscript import export_checkpoint
from model.build import build_network
from model.checkpoint import load_network
from tests.export.tiny import CLASSES, CONFIG, save_network


def test_a_network_with_torchvisions_box_head_rounding_and_pooling_is_exported_as_it_is(
    tmp_path: Path,
) -> None:
    config = dataclasses.replace(
        CONFIG,
        input=dataclasses.replace(CONFIG.input, rounding="down"),
        rpn=dataclasses.replace(CONFIG.rpn, convolutions=2),
        box=dataclasses.replace(CONFIG.box, head="conv_fc", aligned=False),
    )
    torch.manual_seed(0)
    network = build_network(config, num_classes=CLASSES.num_classes)
    with torch.no_grad():
        network.box_predictor.cls_score.weight.mul_(100)
    save_network(tmp_path / "checkpoint.pt", network, config)
    export_checkpoint(tmp_path / "checkpoint.pt", tmp_path / "maskx.pt")  # scripted == eager before it writes
    scripted = torch.jit.load(tmp_path / "maskx.pt")
    eager, _, _ = load_network(tmp_path / "checkpoint.pt")
    image = torch.randint(0, 256, (3, 67, 101), dtype=torch.uint8)
    assert eager.canvas.size_of(image) == (63, 96)  # 64 x 96 to the nearest
    asked = (torch.tensor([[67, 101]]), torch.zeros(1), torch.tensor([8]))
    switches = (torch.ones((1, CLASSES.num_classes + 1), dtype=torch.bool), torch.ones(1, dtype=torch.bool))
    with torch.inference_mode():
        (served,) = scripted([image], *asked, *switches)
        (expected,) = eager.inference()([image], *asked, *switches)
    assert served["labels"].shape == (8,) and torch.equal(served["labels"], expected["labels"])
    torch.testing.assert_close(served["boxes"], expected["boxes"], rtol=0, atol=1e-3)
