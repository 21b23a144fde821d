"""The C4 form, other poolings and timm's backbones as they are served."""

import dataclasses
import importlib.util
import io
from typing import Any

import pytest
import torch

from export.metadata import build_metadata
from export.torchscript import export_network
from maskx_engine import ready_to_run
from model.build import build_network
from model.serving import REDUCIBLE, prepared_for_serving
from tests.export.tiny import CLASSES, CONFIG

CONFIGURATIONS: dict[str, dict[str, dict[str, Any]]] = {
    "C4, masks on conv5, bicubic RoIAlign, focal loss": {
        "backbone": {"norm": "group"},
        "box": {"head": "res5", "width": 192, "roi_size": 4, "pooling": "bicubic", "loss": "focal"},
        "mask": {"head": "res5", "roi_size": 4, "pooling": "bicubic"},
    },
    "timm, RoIPool": {
        "backbone": {"name": "timm:test_efficientnet", "norm": "sync"},
        "box": {"pooling": "roi_pool"},
        "mask": {"pooling": "roi_pool"},
    },
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_served_form_runs_in_the_handlers_engine_in_both_precisions(name: str) -> None:
    """That it is exported as it was trained, tests/training/test_options.py has for all but timm."""
    if name.startswith("timm") and importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed: requirements/timm.txt")
    changes = {
        section: dataclasses.replace(getattr(CONFIG, section), **fields)
        for section, fields in CONFIGURATIONS[name].items()
    }
    torch.manual_seed(0)
    network = build_network(dataclasses.replace(CONFIG, **changes), num_classes=CLASSES.num_classes).eval()
    with torch.no_grad():
        network.box_predictor.cls_score.weight.mul_(10)
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(prepared_for_serving(network.inference())), buffer)
    photograph = torch.randint(0, 256, (3, 70, 90), dtype=torch.uint8)
    scores = []
    for precision in ("float32", "bfloat16"):
        loaded = torch.jit.load(io.BytesIO(buffer.getvalue()))
        model = ready_to_run(loaded, torch.device("cpu"), precision, REDUCIBLE)
        with torch.inference_mode():
            (answer,) = model(
                [photograph],
                torch.tensor([[70, 90]]),
                torch.zeros(1),
                torch.tensor([8]),
                torch.ones(1, CLASSES.num_classes + 1, dtype=torch.bool),
                torch.ones(1, dtype=torch.bool),
            )
        assert answer["labels"].shape == (8,) and answer["boxes"].dtype == torch.float32
        runs = answer["rle_counts"].tensor_split(answer["rle_offsets"][1:-1])
        assert [int(run.sum()) for run in runs] == [70 * 90] * 8
        scores.append(answer["scores"])
    torch.testing.assert_close(scores[1], scores[0], atol=0.1, rtol=0)


@pytest.mark.skipif(
    importlib.util.find_spec("timm") is None, reason="timm is not installed: requirements/timm.txt"
)
def test_a_network_on_timm_is_exported_as_it_is_and_needs_no_timm_then() -> None:
    backbone = dataclasses.replace(CONFIG.backbone, name="timm:test_resnet")
    torch.manual_seed(0)
    network = build_network(dataclasses.replace(CONFIG, backbone=backbone), num_classes=CLASSES.num_classes)
    metadata = build_metadata(CLASSES, mask_size=14, max_detections=30, min_size=64, max_size=96)
    data = export_network(network.eval(), metadata)  # eager == scripted == reloaded elsewhere, or it raises
    assert hasattr(torch.jit.load(io.BytesIO(data)), "backbone")
