"""Which precision a training computes in."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import training.run
from model.checkpoint import load_checkpoint
from tests.training.tiny_set import tiny_changes, write_tiny_set
from training.run import under_bfloat16
from training.train import main


@pytest.mark.parametrize("supported", [True, False])
def test_auto_takes_bfloat16_only_where_the_processor_computes_it(
    monkeypatch: pytest.MonkeyPatch, supported: bool
) -> None:
    monkeypatch.setattr(training.run, "cpu_multiplies_bfloat16", lambda: supported)
    cpu = torch.device("cpu")
    assert under_bfloat16("auto", cpu) is supported
    assert under_bfloat16("bfloat16", cpu) is True
    assert under_bfloat16("float32", cpu) is False


@pytest.mark.parametrize("missing", ["_is_avx512_bf16_supported", "_is_mkldnn_bf16_supported"])
def test_auto_is_float32_where_torch_cannot_tell(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    onednn = SimpleNamespace(_is_mkldnn_bf16_supported=lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    monkeypatch.setattr(torch.ops, "mkldnn", onednn)
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    assert under_bfloat16("auto", torch.device("cpu")) is True  # else what follows proves nothing
    monkeypatch.delattr(onednn if "mkldnn" in missing else torch.cpu, missing)
    assert under_bfloat16("auto", torch.device("cpu")) is False


def test_a_run_that_goes_on_on_another_processor_computes_as_it_began_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tiny_set(tmp_path)

    constant = ["schedule.decay=none", "schedule.warmup_steps=0"]

    def run(out: str, *words: str, bfloat16_here: bool) -> dict[str, Tensor]:
        monkeypatch.setattr(training.run, "cpu_multiplies_bfloat16", lambda: bfloat16_here)
        changes = [*tiny_changes(tmp_path, tmp_path / out), "schedule.mask_steps=0", *constant, *words]
        assert main(changes) == 0
        contents = load_checkpoint(tmp_path / out / "checkpoint.pt")
        assert contents["precision"] == ("float32" if out == "float32" else "bfloat16")
        weights: dict[str, Tensor] = contents["model"]
        return weights

    run("moved", "precision=auto", "schedule.detector_steps=1", bfloat16_here=True)
    assert "precision auto" not in capsys.readouterr().err
    two = ["schedule.detector_steps=2"]
    moved = run("moved", "precision=auto", "--resume", *two, bfloat16_here=False)
    assert "precision auto was bfloat16 where this run began, and stays so" in capsys.readouterr().err
    stayed = run("bfloat16", "precision=bfloat16", *two, bfloat16_here=True)
    other = run("float32", "precision=auto", *two, bfloat16_here=False)
    assert all(torch.equal(moved[key], value) for key, value in stayed.items())
    assert any(not torch.equal(moved[key], value) for key, value in other.items())  # else it proves nothing
