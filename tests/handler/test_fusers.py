"""Nothing is compiled or rewritten by what requests bring."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import maskx_engine
from export import fresh_process
from maskx_engine import fusers, fusers_off
from maskx_model import ServedModel
from tests.served.standin import write_standin


@pytest.fixture(autouse=True)
def as_pytorch_starts() -> Iterator[None]:
    """Fusers on, and two rounds of watching shapes; afterwards as the handler wants it."""
    torch._C._jit_set_texpr_fuser_enabled(True)
    torch._C._jit_override_can_fuse_on_gpu(True)
    torch.jit.set_fusion_strategy([("STATIC", 2), ("DYNAMIC", 10)])
    yield
    fusers_off()


def test_whoever_loads_a_model_has_the_fusers_off_and_says_what_pytorch_says(tmp_path: Path) -> None:
    assert fusers() == "on"
    model = ServedModel(write_standin(tmp_path / "maskx.pt"), torch.device("cpu"), precision="float32")
    assert fusers() == model.description()["fusers"] == "off"
    assert not torch._C._jit_can_fuse_on_gpu()
    torch._C._jit_override_can_fuse_on_gpu(True)
    assert model.description()["fusers"] == "on", "a constant, not what PyTorch says"


def test_the_verification_turns_off_what_the_handler_turns_off() -> None:
    assert fusers() == "on"
    fresh_process.fusers_off()
    assert fusers() == "off"


def test_a_switch_that_this_pytorch_does_not_have_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch._C, "_jit_override_can_fuse_on_cpu_legacy")
    monkeypatch.delattr(torch._C, "_jit_can_fuse_on_cpu_legacy")
    fusers_off()
    fresh_process.fusers_off()
    assert fusers() == "off"


def plans(switch: Callable[[], None]) -> list[str]:
    """The graphs that a method was run by, for images of several sizes, some with nothing in them."""
    switch()

    @torch.jit.script
    def heads(images: list[Tensor], threshold: float) -> list[Tensor]:
        answers: list[Tensor] = []
        for image in images:
            found = image.flatten()[torch.where(image.flatten() > threshold)[0]]
            found = (found * 2 + 1).sigmoid() * found - 0.5
            answers.append(found / found.max() if found.numel() > 0 else found)
        return answers

    seen = []
    with torch.inference_mode():
        for side, threshold in ((4, 0.0), (4, 0.0), (5, 2.0), (9, 0.5), (6, 2.0), (4, 0.1)):
            heads([torch.rand(side, side + 1)] * (side - 3), threshold)
            seen.append(str(torch.jit.last_executed_optimized_graph()))
    return seen


def test_a_method_is_run_by_one_plan_whatever_it_is_given() -> None:
    settled = plans(fusers_off)
    assert len(set(settled)) == 1 and "prim::profile" not in settled[0]


def test_without_the_switches_pytorch_rewrites_a_method_after_it_ran() -> None:
    """Else the test above proves nothing."""
    assert len(set(plans(lambda: None))) > 1


def test_with_the_fusers_alone_off_what_watched_shapes_runs_for_ever() -> None:
    def switches_alone() -> None:
        for name in maskx_engine._FUSERS.values():
            getattr(torch._C, name)(False)

    assert "prim::profile" in plans(switches_alone)[-1]
