"""What is run before the first request comes, and who is chosen to decode."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import maskx_handler
import maskx_served
import maskx_warm_up
from maskx_cuda_decode import CudaDecoder, cuda_decoder
from maskx_model import ServedModel
from maskx_parameters import Parameters
from maskx_service import Service
from maskx_warm_up import MOST_TOGETHER, choose_decoding, warm_up_network
from tests.handler.test_cuda_decode import by_torchvision, no_decoder
from tests.handler.test_handler import context_of

Seen = tuple[tuple[int, ...], tuple[Parameters, ...]]


def runs(model: ServedModel, batch_size: int, monkeypatch: pytest.MonkeyPatch) -> list[Seen]:
    """Of each run the shape of its images, which is one, and their parameters."""
    seen: list[Seen] = []

    def predict(images: Sequence[np.ndarray], parameters: Sequence[Parameters]) -> Any:
        (shape,) = {image.shape for image in images}
        assert len(images) == len(parameters)
        seen.append((shape, tuple(parameters)))

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


def test_on_a_gpu_every_canvas_has_run_in_every_number_with_objects_and_with_unequal_parameters(
    model: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "device", torch.device("cuda", 0))
    seen = runs(model, 8, monkeypatch)
    shapes = {(80, 80, 3), (80, 107, 3), (107, 80, 3)}
    for together in range(1, 9):
        of_number = [one for one in seen if len(one[1]) == together]
        assert {shape for shape, parameters in of_number if set(parameters) == {OBJECTS}} == shapes
        if together > 2:
            unequal = {OBJECTS, NOTHING, NO_MASKS}
            assert {shape for shape, parameters in of_number if set(parameters) == unequal} == shapes
    assert len(seen) == 5 + 7 * 6


def test_a_huge_batch_size_does_not_make_the_start_endless(
    model: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "device", torch.device("cuda", 0))
    assert max(len(parameters) for _, parameters in runs(model, 1000, monkeypatch)) == MOST_TOGETHER


def test_a_batch_that_memory_is_too_small_for_ends_the_warm_up_and_not_the_start(
    model: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "device", torch.device("cuda", 0))
    freed: list[bool] = []
    monkeypatch.setattr(model, "free_memory", lambda: freed.append(True))

    def predict(images: Sequence[np.ndarray], parameters: Sequence[Parameters]) -> None:
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

    def predict(images: Sequence[np.ndarray], parameters: Sequence[Parameters]) -> None:
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
    standin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def warmed(model: ServedModel, batch_size: int = 1) -> int:
        asked.append(batch_size)
        return 0

    monkeypatch.setattr(maskx_served, "warm_up_network", warmed)
    maskx_handler.MaskXHandler().initialize(context_of(standin.parent, {"deviceType": "cpu"}))
    assert asked == [8]


class OnGpu:
    """The model's place for the choice: says that it runs on a GPU."""

    device = torch.device("cuda", 0)

    def __init__(self) -> None:
        self.brought: list[int] = []

    def bring(self, images: Sequence[Any]) -> None:
        self.brought.append(len(images))


def chosen(
    service: Service,
    asked: str,
    seconds: Sequence[float],
    monkeypatch: pytest.MonkeyPatch,
    decode: Any = by_torchvision,
) -> dict[str, Any]:
    monkeypatch.setattr(maskx_warm_up, "LARGE", (64, 48))
    times = iter([one for one in seconds for _ in range(maskx_warm_up.TRIES)])
    measured = maskx_warm_up._seconds

    def timed(*arguments: Any) -> float:
        assert measured(*arguments) > 0
        return next(times)

    monkeypatch.setattr(maskx_warm_up, "_seconds", timed)
    model: Any = OnGpu()
    return choose_decoding(service, model, asked, together=3, make=lambda device: CudaDecoder(decode))


@pytest.mark.parametrize(("cpu", "gpu"), [(0.02, 0.004), (0.004, 0.02)])
def test_auto_keeps_the_faster_way_and_reports_both(
    service: Service, monkeypatch: pytest.MonkeyPatch, cpu: float, gpu: float
) -> None:
    report = chosen(service, "auto", [cpu, gpu], monkeypatch)
    faster = "gpu" if gpu < cpu else "cpu"
    assert report == {"asked": "auto", "by": faster, "images": 3, "cpu_ms": 1e3 * cpu, "gpu_ms": 1e3 * gpu}
    assert (service.cuda_decoder is not None) == (faster == "gpu")


def test_what_was_asked_for_is_done_even_where_it_is_slower(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert chosen(service, "gpu", [0.004, 0.02], monkeypatch)["by"] == "gpu"
    assert service.cuda_decoder is not None
    assert chosen(service, "cpu", [], monkeypatch) == {"asked": "cpu", "by": "cpu"}
    assert service.cuda_decoder is None


def test_a_gpu_that_cannot_decode_is_no_error_for_auto_and_one_for_gpu(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = chosen(service, "auto", [], monkeypatch, no_decoder)
    assert report["by"] == "cpu" and "failed on a photograph" in report["reason"]
    with pytest.raises(
        ValueError, match=r"maskx\.decode is gpu, but the GPU cannot decode: .*; set auto or cpu"
    ):
        chosen(service, "gpu", [], monkeypatch, no_decoder)
    assert service.cuda_decoder is None


def test_a_cpu_is_never_asked_to_decode_like_a_gpu(service: Service, model: ServedModel) -> None:
    assert choose_decoding(service, model, "auto", together=2) == {"asked": "auto", "by": "cpu"}
    with pytest.raises(ValueError, match="on a CUDA device, and this one is cpu"):
        choose_decoding(service, model, "gpu", together=2)
    with pytest.raises(ValueError, match="this one is meta"):
        cuda_decoder(torch.device("meta"))
