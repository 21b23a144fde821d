"""With many classes T is computed for the labels that occur, and nothing else about the mask weights changes."""

from typing import Any

import pytest
import torch
from torch import Tensor

from model.config import TransferConfig
from model.masks import weight_transfer
from model.masks.weight_transfer import MaskWeights

CLASSES, BOX_WIDTH, MASK_WIDTH = 300, 6, 4
LABELS = torch.tensor([7, 299, 7, 1, 300])


def made(**options: Any) -> MaskWeights:
    torch.manual_seed(0)
    return MaskWeights(
        TransferConfig(**options), num_classes=CLASSES, box_width=BOX_WIDTH, mask_width=MASK_WIDTH
    )


def detection_weights() -> tuple[Tensor, Tensor]:
    drawn = torch.Generator().manual_seed(1)
    cls = torch.randn(CLASSES + 1, BOX_WIDTH, generator=drawn).requires_grad_()
    return cls, torch.randn(4 * (CLASSES + 1), BOX_WIDTH, generator=drawn).requires_grad_()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"layers": 3, "input": "box"},
        {"stop_gradient": False},
        {"normalise": True, "residual": True, "input": "cls", "layers": 1},
        {"kind": "class_agnostic"},
        {"kind": "class_specific"},
        {"kept_rows": True, "residual": True},
    ],
)
def test_weights_and_gradients_are_those_of_t_on_all_classes(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    found = []
    for few in (0, 1000):
        monkeypatch.setattr(weight_transfer, "FEW_CLASSES", few)
        weights, given = made(**changes), detection_weights()
        if weights.is_kept is not None:
            weights.keep_rows([7], torch.full((1, MASK_WIDTH), 2.0), torch.tensor([3.0]))
        rows, bias = weights.of_labels(*given, LABELS)
        (rows.square().sum() + bias.sum()).backward()  # type: ignore[no-untyped-call]
        gradients = [p.grad for p in [*weights.parameters(), *given] if p.grad is not None]
        found.append([rows, bias, *gradients])
    assert len(found[0]) == len(found[1])
    for some, every in zip(*found, strict=True):
        torch.testing.assert_close(some, every, rtol=1e-5, atol=1e-6)
    assert found[0][0].shape == (5, MASK_WIDTH)


@pytest.mark.parametrize(("options", "rows"), [({}, 4), ({"noise": 0.1}, CLASSES + 1)])
def test_t_sees_the_labels_that_occur_and_no_others_but_for_noise_which_all_measure(
    options: dict[str, float], rows: int
) -> None:
    weights, seen = made(**options), []
    assert weights.transfer is not None
    weights.transfer.register_forward_pre_hook(lambda _m, given: seen.append(given[0].shape[0]))
    weights.of_labels(*detection_weights(), LABELS)
    assert seen == [rows]


def test_without_a_label_every_parameter_of_t_still_gets_a_gradient() -> None:
    """Distributed workers would otherwise wait for it."""
    weights = made()
    rows, _ = weights.of_labels(*detection_weights(), LABELS[:0])
    rows.sum().backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and not p.grad.any() for p in weights.parameters())
