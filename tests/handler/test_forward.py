"""What fails in the network costs only the image at fault, and memory that runs out costs nobody an answer."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from maskx_answer import Detections
from maskx_errors import MaskxError
from maskx_forward import DeviceLost, is_lost_device, is_out_of_memory, predict_each
from maskx_image import DecodedImage
from maskx_model import ServedModel
from maskx_parameters import Parameters
from maskx_service import Service
from maskx_settings import Limits
from tests.served.standin import (
    ALWAYS_OUT_OF_MEMORY,
    DEVICE_FAULT,
    NETWORK_FAULT,
    OUT_OF_MEMORY_ABOVE_TWO,
    plain,
    png,
    scene,
)

PARAMETERS = Parameters(score_threshold=0.5, max_detections=100)


@pytest.fixture
def calls(model: ServedModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images the network was given each time."""
    counts: list[int] = []
    predict = model.predict

    def counted(images: Sequence[np.ndarray], *others: Any) -> list[Detections]:
        counts.append(len(images))
        return predict(images, *others)

    monkeypatch.setattr(model, "predict", counted)
    return counts


def decoded(pixels: np.ndarray) -> DecodedImage:
    return DecodedImage(pixels=pixels, height=pixels.shape[0], width=pixels.shape[1])


def found(model: ServedModel, images: Sequence[np.ndarray]) -> list[str]:
    """Of each image the place of its red object, or the type of its error."""
    answers = predict_each(model, [decoded(image) for image in images], [PARAMETERS] * len(images))
    return [one.kind.name if isinstance(one, MaskxError) else str(int(one.boxes[0, 0])) for one in answers]


REDS = [scene(red=(i, 2, 9, 7)) for i in range(8)]
RIGHT = [str(i) for i in range(8)]


def test_a_network_fault_costs_its_own_image_alone(model: ServedModel, calls: list[int]) -> None:
    images = [*REDS[:3], plain(NETWORK_FAULT), *REDS[3:6]]
    assert found(model, images) == [*RIGHT[:3], "InternalError", *RIGHT[3:6]]
    assert calls == [7, 1, 1, 1, 1, 1, 1, 1]


def test_a_fault_goes_to_the_log_with_its_cause_and_to_the_caller_without(
    model: ServedModel, caplog: pytest.LogCaptureFixture
) -> None:
    (error,) = predict_each(model, [decoded(plain(NETWORK_FAULT))], [PARAMETERS])
    assert isinstance(error, MaskxError) and "network fault" not in error.message
    assert "network fault" in caplog.text and "Traceback" in caplog.text


def test_where_memory_runs_out_halves_are_tried_until_it_is_enough(
    model: ServedModel, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """8 fail, and the half of 4 with the big image; its halves of 2 do not."""
    freed: list[int] = []
    monkeypatch.setattr(model, "free_memory", lambda: freed.append(len(calls)))
    images = [plain(OUT_OF_MEMORY_ABOVE_TWO), *REDS[1:]]
    answers = predict_each(model, [decoded(image) for image in images], [PARAMETERS] * 8)
    assert not any(isinstance(one, MaskxError) for one in answers)
    assert [int(one.boxes[0, 0]) for one in answers[1:] if isinstance(one, Detections)] == list(range(1, 8))
    assert calls == [8, 4, 2, 2, 4]
    assert freed == [1, 2]  # after each failure, before the next try


def test_an_image_too_big_even_alone_is_told_so_and_the_others_are_answered(model: ServedModel) -> None:
    assert found(model, [*REDS[:5], plain(ALWAYS_OUT_OF_MEMORY)]) == [*RIGHT[:5], "OutOfMemory"]


@pytest.mark.parametrize(
    "colours", [(NETWORK_FAULT, ALWAYS_OUT_OF_MEMORY), (ALWAYS_OUT_OF_MEMORY, NETWORK_FAULT)]
)
def test_both_kinds_of_failure_in_one_batch_stay_apart(
    model: ServedModel, colours: tuple[tuple[int, int, int], tuple[int, int, int]]
) -> None:
    kinds = {NETWORK_FAULT: "InternalError", ALWAYS_OUT_OF_MEMORY: "OutOfMemory"}
    images = [REDS[0], plain(colours[0]), REDS[2], plain(colours[1])]
    assert found(model, images) == ["0", kinds[colours[0]], "2", kinds[colours[1]]]


def test_a_lost_device_is_tried_no_more(model: ServedModel, calls: list[int]) -> None:
    with pytest.raises(DeviceLost):
        found(model, [*REDS[:3], plain(DEVICE_FAULT)])
    assert calls == [4]


def test_a_device_that_no_longer_answers_is_lost_whatever_the_error_says(
    model: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "device_answers", lambda: False)
    with pytest.raises(DeviceLost):
        found(model, [plain(NETWORK_FAULT)])


def test_once_the_device_is_lost_every_image_has_a_503_and_bad_requests_keep_their_400(
    model: ServedModel, calls: list[int]
) -> None:
    service = Service(model, Limits(), name="maskx", version="1")
    requests = [{"body": png(REDS[0])}, {"body": b"?"}, {"body": png(plain(DEVICE_FAULT))}]
    assert [answer.status for answer in service.answer(requests)] == [503, 400, 503]
    assert service.lost
    assert [answer.kind for answer in service.answer(requests[:1])] == ["Restarting"]
    assert calls == [2]  # the network was not asked again


def test_pytorchs_own_out_of_memory_is_known_in_eager_mode_and_in_torchscript() -> None:
    @torch.jit.script
    def much(x: torch.Tensor) -> torch.Tensor:
        return torch.empty([1 << 50], device=x.device)

    def eager(x: torch.Tensor) -> torch.Tensor:
        return torch.empty([1 << 50], device=x.device)

    for ask in (much, eager):
        with pytest.raises(RuntimeError) as raised:
            ask(torch.zeros(1))
        assert is_out_of_memory(raised.value) and not is_lost_device(raised.value)
    assert is_out_of_memory(MemoryError())


@pytest.mark.parametrize(
    ("message", "lost"),
    [
        ("CUDA error: device-side assert triggered", True),
        ("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be ...", True),
        ("CUDA error: invalid configuration argument", False),
        ("CUDA out of memory. Tried to allocate 2.00 GiB", False),
        ("illegal memory access in the user's image", False),
        ('Traceback\n    raise RuntimeError("device-side assert")\nRuntimeError: CUDA says no', False),
    ],
)
def test_a_lost_device_is_told_by_what_cuda_says_of_it(message: str, lost: bool) -> None:
    assert is_lost_device(RuntimeError(message)) is lost


def test_a_cpu_answers_and_its_memory_is_that_of_the_process(model: ServedModel) -> None:
    assert model.device_answers()
    before = model.memory_taken()
    block = np.ones(64 << 20, np.uint8)
    assert model.memory_taken() - before > len(block) / 2
    assert before > len(block) / 2
