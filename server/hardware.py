"""What this machine has to serve with: cores, GPUs as TorchServe counts them, their memory."""

import math
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
"""A container's share of the cores: quota and period in microseconds, or "max"."""


def core_count() -> int:
    """Cores that a server started here may use: those of its affinity, in a container its share of them; at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = CPU_MAX.read_text().split()
        return max(min(cores, math.ceil(int(quota) / int(period))), 1)
    except (OSError, ValueError, ZeroDivisionError):  # no such file; "max"; another system's form
        return cores


def gpu_count(environment: Mapping[str, str] | None = None) -> int:
    """GPUs as TorchServe counts them: those of CUDA_VISIBLE_DEVICES, else those of nvidia-smi; without either, 0."""
    environment = os.environ if environment is None else environment
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([gpu for gpu in visible.split(",") if gpu.strip() not in ("", "-1")])
    return len(_asked_of_gpus("index", environment))


def gpu_memory(environment: Mapping[str, str] | None = None) -> int:
    """Bytes of memory of the smallest GPU, whether visible or not; 0 where nvidia-smi does not tell."""
    environment = os.environ if environment is None else environment
    mebibytes = [int(size) for size in _asked_of_gpus("memory.total", environment) if size.isdigit()]
    return min(mebibytes, default=0) << 20


def _asked_of_gpus(what: str, environment: Mapping[str, str]) -> list[str]:
    """What nvidia-smi says of every GPU; nothing where there is no such program, or it fails."""
    program = shutil.which("nvidia-smi", path=environment.get("PATH", ""))
    if program is None:
        return []
    try:
        done = subprocess.run(
            [program, f"--query-gpu={what}", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.split() if done.returncode == 0 else []
