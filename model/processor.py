"""What the processor of this machine computes by itself."""

import os

import torch


def cpu_multiplies_bfloat16() -> bool:
    """Whether oneDNN, which computes on a CPU, multiplies bfloat16 by instructions made for it.

    The rule, and the reason for each part of it, are those of `maskx_engine.cpu_multiplies_bfloat16` in handler/, which
    is not to be imported here.
    """
    on_processor = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    in_onednn = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    if on_processor is None or in_onednn is None or not (on_processor() and in_onednn()):
        return False
    told = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or ""
    return told.upper() not in ("AVX512_CORE", "AVX512_CORE_VNNI")
