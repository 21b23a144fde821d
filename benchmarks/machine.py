"""What a result was measured on: processor, cores, memory, versions, threads, date."""

import datetime
import os
import platform
from pathlib import Path
from typing import Any

import torch
import torchvision

FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile", "asimd", "bf16")
"""The processor's abilities that decide the precision, as /proc/cpuinfo names them."""


def describe(device: torch.device) -> dict[str, Any]:
    """Plain values for a table's head and for JSON."""
    lines = _cpuinfo()
    flags = set((lines.get("flags") or lines.get("Features") or "").split())
    found: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": lines.get("model name") or platform.processor() or platform.machine(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "flags": [flag for flag in FLAGS if flag in flags],
        "memory_gib": round(_memory_kib("MemTotal") / 2**20, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "load_before": round(os.getloadavg()[0], 2),
    }
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
        found["gpu_memory_gib"] = round(torch.cuda.get_device_properties(device).total_memory / 2**30, 1)
        found["cuda"] = torch.version.cuda
    return found


def about(device: str) -> dict[str, Any]:
    """The same with the precisions that the device computes by itself."""
    where = torch.device(device)
    return {**describe(where), "native_precisions": native_precisions(where)}


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def native_precisions(device: torch.device) -> list[str]:
    """The precisions that the device computes by itself, float32 first."""
    if device.type == "cuda":
        return ["float32", "float16", *(["bfloat16"] if torch.cuda.is_bf16_supported() else [])]
    flags = set((_cpuinfo().get("flags") or _cpuinfo().get("Features") or "").split())
    return ["float32", *(["bfloat16"] if flags & {"avx512_bf16", "amx_bf16", "bf16"} else [])]


def available_gib() -> float:
    """Memory that new processes can have, in GiB; infinite where the system does not say."""
    kib = _memory_kib("MemAvailable")
    return kib / 2**20 if kib else float("inf")


def _cpuinfo() -> dict[str, str]:
    """The first processor's lines of /proc/cpuinfo; empty where there is none."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").split("\n\n")[0].splitlines() if path.exists() else []
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _memory_kib(name: str) -> int:
    path = Path("/proc/meminfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), 0)
