"""A machine and a check as reports name them."""

from pathlib import Path
from typing import Any

from benchmarks.gpu_check.setting import CheckSetting

MACHINE: dict[str, Any] = {
    "date": "2026-01-02 03:04 UTC", "processor": "P", "cores": 2, "memory_gib": 8, "system": "S", "torch": "T",
    "torchvision": "V", "python": "3", "load_before": 0.1, "flags": [], "threads": 2,
}  # fmt: skip


def setting_in(folder: Path) -> CheckSetting:
    """A short check on the CPU."""
    return CheckSetting(folder=str(folder / "work"), device="cpu", precisions=("float32",), short=True)
