"""The bench's network as a compiled package, made as `export.compiled` makes it, without a checkpoint."""

import hashlib
import json
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.command import progress
from benchmarks.engines.dense import cast, network_in
from benchmarks.speed.network import config_of_size
from export import compiled
from export.archive import build_archive
from export.compiler import CompileError, package, require_compiler, require_torch
from model.files import write_whole


def make_package(folder: str, precision: str, device: str = "cpu") -> dict[str, Any]:
    """Writes `maskx-<precision>.pt2` of the network in `folder`; parts that are no faster on `device` are left out.

    Returns:
        "path"; or, where it cannot be made, "reason", one line; "seconds" that it took; "record" of the package.
    """
    begin = time.monotonic()
    path, out = Path(folder) / "maskx.pt", Path(folder) / f"maskx-{precision}.pt2"
    try:
        require_torch()
        require_compiler()
        data = path.read_bytes()
        about = json.loads((path.parent / "about.json").read_text(encoding="utf-8"))
        served = network_in(path, config_of_size(about["min_size"], about["max_size"]), about["classes"])
        cast(served.to(device), precision)
        wanted = compiled.Wanted(precision=precision, device=torch.device(device).type)
        with tempfile.TemporaryDirectory() as where:
            made = compiled.compiled_parts(served, data, wanted, Path(where), partial(progress, "bench"))
            if not made.code:
                return {"reason": f"no part is in it: {made.left_out}", "seconds": time.monotonic() - begin}
            record = compiled.record_of(served, made, wanted, precision, hashlib.sha256(data).hexdigest())
            text = json.dumps(record, indent=1, sort_keys=True) + "\n"
            write_whole(out, package(made.code, compiled.RECORD, text))
    except (ValueError, CompileError) as error:
        return {"reason": str(error).splitlines()[0], "seconds": time.monotonic() - begin}
    return {"path": str(out), "seconds": time.monotonic() - begin, "record": record}


def archive_mib(torchscript: str, out: str, package: str | None) -> float:
    """MiB of the archive with the TorchScript file, and with the package where one is named."""
    path = Path(out)
    build_archive(Path(torchscript), path, package=Path(package) if package else None)
    return path.stat().st_size / 2**20
