"""Which precision a training computes in."""

import pytest
import torch

from training.run import under_bfloat16


@pytest.mark.parametrize("supported", [True, False])
def test_auto_takes_bfloat16_only_where_the_processor_computes_it(
    monkeypatch: pytest.MonkeyPatch, supported: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: supported, raising=False)
    cpu = torch.device("cpu")
    assert under_bfloat16("auto", cpu) is supported
    assert under_bfloat16("bfloat16", cpu) is True
    assert under_bfloat16("float32", cpu) is False


def test_auto_is_float32_where_torch_cannot_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported", raising=False)
    assert under_bfloat16("auto", torch.device("cpu")) is False
