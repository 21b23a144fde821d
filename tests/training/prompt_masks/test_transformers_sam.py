"""Folders that transformers has written: tiny networks of random weights, where the package is installed."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from training.prompt_masks import load_segmenter, pixel_masks

SIDE = 64


def image() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8)


BOXES = np.array([[2, 3, 20, 30], [0, 0, 30, 40], [10, 10, 15, 38]], np.float32)


def tiny_sam(transformers: Any) -> Any:
    config = transformers.SamConfig(
        vision_config={
            "hidden_size": 16, "output_channels": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
            "image_size": SIDE, "patch_size": 16, "mlp_dim": 32, "global_attn_indexes": [0], "window_size": 2,
            "num_pos_feats": 16,
        },
        prompt_encoder_config={"hidden_size": 32, "image_size": SIDE, "image_embedding_size": SIDE // 16},
        mask_decoder_config={
            "hidden_size": 32, "num_attention_heads": 2, "mlp_dim": 32, "iou_head_hidden_dim": 32,
        },
    )  # fmt: skip
    return transformers.SamModel(config)


def tiny_sam2(transformers: Any) -> Any:
    config = transformers.Sam2Config(
        vision_config={
            "backbone_config": {
                "model_type": "sam2_hiera_det_model", "hidden_size": 8, "num_attention_heads": 1,
                "image_size": [SIDE, SIDE], "blocks_per_stage": [1, 1, 2, 1], "embed_dim_per_stage": [8, 16, 32, 64],
                "num_attention_heads_per_stage": [1, 1, 1, 1],
                "global_attention_blocks": [3], "window_positional_embedding_background_size": [2, 2],
            },
            "backbone_channel_list": [64, 32, 16, 8],
            "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
            "fpn_hidden_size": 32,
        },
        prompt_encoder_config={"hidden_size": 32, "image_size": SIDE},
        mask_decoder_config={
            "hidden_size": 32, "num_attention_heads": 2, "mlp_dim": 32, "iou_head_hidden_dim": 32,
        },
    )  # fmt: skip
    return transformers.Sam2Model(config)


@pytest.mark.parametrize("make", [tiny_sam, tiny_sam2])
def test_boxes_together_have_the_masks_that_each_has_alone(tmp_path: Path, make: Any) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    import torch

    torch.manual_seed(0)
    net = make(transformers)
    for weights in net.parameters():
        torch.nn.init.normal_(weights, std=0.3)  # else all logits are near 0
    net.save_pretrained(tmp_path / "net")
    segmenter = load_segmenter(tmp_path / "net", device="cpu")
    embedding = segmenter.embed(image())
    together = segmenter.masks(embedding, BOXES)
    assert together.logits.shape == (3, SIDE // 4, SIDE // 4) and together.quality.shape == (3,)
    for row, box in enumerate(BOXES):
        alone = segmenter.masks(embedding, box[None])
        np.testing.assert_allclose(alone.logits[0], together.logits[row], atol=1e-4)
        np.testing.assert_allclose(alone.quality[0], together.quality[row], atol=1e-4)
    assert abs(together.logits[0] - together.logits[1]).max() > 1e-3  # else the box would mean nothing
    prior = np.full((3, SIDE // 4, SIDE // 4), 9, np.float32)
    assert abs(segmenter.masks(embedding, BOXES, prior).logits - together.logits).max() > 1e-4
    assert len(pixel_masks(together, embedding, BOXES)) == 3
    assert len(segmenter.masks(embedding, BOXES[:0]).quality) == 0


@pytest.fixture
def described(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    return tmp_path


def test_a_missing_transformers_is_named(described: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match="needs that package, which is not installed .*: pip install"):
        load_segmenter(described)


def test_another_network_of_transformers_is_refused(described: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    with pytest.raises(ValueError, match="model_type 'bert'; expected sam, sam2, sam2_video"):
        load_segmenter(described)
    (described / "config.json").write_text(json.dumps({"model_type": "sam"}))
    with pytest.raises(ValueError, match="transformers cannot load it"):
        load_segmenter(described)
