"""What the network has run before the first request comes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import maskx_handler
from maskx_model import ServedModel
from maskx_parameters import Parameters
from maskx_warm_up import MOST_TOGETHER, warm_up_network
from tests.served.standin import write_standin


@pytest.fixture
def model(tmp_path: Path) -> ServedModel:
    return ServedModel(write_standin(tmp_path / "maskx.pt"), torch.device("cpu"), precision="float32")


Seen = tuple[tuple[int, ...], tuple[Parameters, ...]]


def runs(model: ServedModel, batch_size: int, monkeypatch: pytest.MonkeyPatch) -> list[Seen]:
    """Of each run the shape of its images, which is one, and its wishes."""
    seen: list[Seen] = []

    def predict(images: Sequence[np.ndarray], wishes: Sequence[Parameters]) -> Any:
        (shape,) = {image.shape for image in images}
        assert len(images) == len(wishes)
        seen.append((shape, tuple(wishes)))

    monkeypatch.setattr(model, "predict", predict)
    assert warm_up_network(model, batch_size) == len(seen)
    return seen


OBJECTS = Parameters(score_threshold=0.0, max_detections=100)
NOTHING = Parameters(score_threshold=2.0, max_detections=100)
NO_MASKS = Parameters(score_threshold=0.0, max_detections=100, mask_format="none")


def test_on_a_cpu_three_runs_with_objects_without_and_without_masks(
    model: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert runs(model, 8, monkeypatch) == [((80, 80, 3), (one,)) for one in (OBJECTS, NOTHING, NO_MASKS)]


def test_on_a_gpu_every_canvas_has_run_in_every_number_with_objects_and_with_unequal_wishes(
    model: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "device", torch.device("cuda", 0))
    seen = runs(model, 8, monkeypatch)
    shapes = {(80, 80, 3), (80, 107, 3), (107, 80, 3)}
    for together in range(1, 9):
        of_number = [one for one in seen if len(one[1]) == together]
        assert {shape for shape, wishes in of_number if set(wishes) == {OBJECTS}} == shapes
        if together > 2:
            unequal = {OBJECTS, NOTHING, NO_MASKS}
            assert {shape for shape, wishes in of_number if set(wishes) == unequal} == shapes
    assert len(seen) == 5 + 7 * 6


def test_a_huge_batch_size_does_not_make_the_start_endless(
    model: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "device", torch.device("cuda", 0))
    assert max(len(wishes) for _, wishes in runs(model, 1000, monkeypatch)) == MOST_TOGETHER


def test_a_batch_that_memory_is_too_small_for_ends_the_warm_up_and_not_the_start(
    model: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "device", torch.device("cuda", 0))
    freed: list[bool] = []
    monkeypatch.setattr(model, "free_memory", lambda: freed.append(True))

    def predict(images: Sequence[np.ndarray], wishes: Sequence[Parameters]) -> None:
        if len(images) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(model, "predict", predict)
    assert warm_up_network(model, 8) == 5 + 2 * 6 and freed == [True]


@pytest.mark.parametrize(
    ("message", "from_how_many"), [("CUDA out of memory", 1), ("CUDA error: no kernel image", 2)]
)
def test_a_network_that_fails_otherwise_or_with_one_image_is_not_served(
    model: ServedModel, monkeypatch: pytest.MonkeyPatch, message: str, from_how_many: int
) -> None:
    monkeypatch.setattr(model, "device", torch.device("cuda", 0))

    def predict(images: Sequence[np.ndarray], wishes: Sequence[Parameters]) -> None:
        if len(images) >= from_how_many:
            raise RuntimeError(message)

    monkeypatch.setattr(model, "predict", predict)
    with pytest.raises(RuntimeError, match=message):
        warm_up_network(model, 8)


def test_the_runs_of_the_warm_up_find_something_nothing_and_something_without_masks(
    model: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    predict = model.predict

    def watched(*arguments: Any) -> Any:
        found.append(predict(*arguments)[0])
        return [found[-1]]

    monkeypatch.setattr(model, "predict", watched)
    warm_up_network(model)
    objects, nothing, no_masks = found
    assert len(objects.labels) == len(no_masks.labels) > 0 == len(nothing.labels)
    assert len(objects.rle_counts) > 0 == len(no_masks.rle_counts)


def test_the_handler_warms_up_for_the_batches_that_torchserve_was_started_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.handler.test_handler import context_of

    write_standin(tmp_path / "maskx.pt")
    asked: list[int] = []

    def warmed(model: ServedModel, batch_size: int = 1) -> int:
        asked.append(batch_size)
        return 0

    monkeypatch.setattr(maskx_handler, "warm_up_network", warmed)
    maskx_handler.MaskXHandler().initialize(context_of(tmp_path, {"deviceType": "cpu"}))
    assert asked == [8]
