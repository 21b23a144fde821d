"""config.properties and the environment of one start, made from what is shipped and from the machine.

For batch size, delay and workers TorchServe 0.12 was seen to heed the first of these that says something: the
parameters of a registration, the archive's model-config.yaml, `models=` in config.properties, its own defaults
(1 image, 100 ms). So the shipped model-config.yaml leaves them out, and a start sets them here, for its machine.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from serve_config.archives import MODEL
from serve_config.ports import HOST, Ports
from serve_config.processes import Batching

SHIPPED = Path(__file__).resolve().parent
CONFIG = SHIPPED / "config.properties"
METRICS = SHIPPED / "metrics.yaml"
LOGGING = SHIPPED / "log4j2.xml"

CPU_BATCH = 4
"""More images at once make a CPU no faster per image, and every caller waits for the whole batch."""
GPU_BATCH = 8
CORES_OF_A_WORKER = 4
"""For each of these that a GPU has, it gets a worker, up to MOST_WORKERS: TorchServe hands a worker its next batch when
it has answered the last, so the card waits for one worker's decoding and writing unless another computes meanwhile."""
MOST_WORKERS = 4
"""On one GPU: each takes 2.7 to 3.7 GiB of it with ResNet-50 at 800 pixels."""
DELAY = 1
"""Milliseconds that even a lone request waits for others; what queued while the last batch was computed is batched
anyway. TorchServe takes 0 for 100."""

HANDED_DOWN = re.compile(
    r"PATH|HOME|LANG|LANGUAGE|LC_\w+|TZ|USER|LOGNAME|VIRTUAL_ENV|JAVA_TOOL_OPTIONS|LD_LIBRARY_PATH|LD_PRELOAD|XDG_CACHE_HOME|"
    r"PYTHON(?!PATH$)\w*|(CUDA|NVIDIA|NCCL|CUBLAS|CUDNN|OMP|GOMP|KMP|MKL|DNNL|ONEDNN|ATEN|TORCH|PYTORCH|MALLOC|MASKX)_\w+"
)
"""Variables that Java and the worker get; no other, so that a secret under whatever name stays with who starts them.
Of these, config.properties hides from the worker what sounds like a secret."""


def effective_config(
    shipped: str,
    ports: Ports,
    *,
    state: Path,
    with_tokens: bool,
    model_api: bool = False,
    version: str = "1.0",
    batching: Batching | None = None,
) -> str:
    """The shipped config.properties with this server's ports, folders and batching, still on loopback.

    Args:
        shipped: the file's text.
        ports: of this server.
        state: its folder; the model store and metrics.yaml lie in it.
        with_tokens: whether TorchServe asks for its own tokens.
        model_api: whether models can be registered and removed, out of the model store alone.
        version: of the archive that is served from the start.
        batching: of that archive; None leaves it to the archive.

    Raises:
        ValueError: the shipped file lacks a key that is to be replaced, so that a misspelt key is not left to work.
    """
    state = state.resolve()
    settings = {
        "inference_address": f"http://{HOST}:{ports.inference}",
        "management_address": f"http://{HOST}:{ports.management}",
        "metrics_address": f"http://{HOST}:{ports.metrics}",
        "grpc_inference_address": HOST,
        "grpc_inference_port": str(ports.grpc),
        "grpc_management_address": HOST,
        "grpc_management_port": str(ports.grpc_management),
        "disable_token_authorization": "false" if with_tokens else "true",
        "enable_model_api": "true" if model_api else "false",
        "allowed_urls": f"file://{_literally(str(state / 'model-store'))}/.*",
        "metrics_config": str(state / METRICS.name),
        "models": _models(version, batching),
    }
    lines = shipped.splitlines()
    for key, value in settings.items():
        places = [place for place, line in enumerate(lines) if line.startswith(f"{key}=")]
        if len(places) != 1:
            raise ValueError(f"{CONFIG.name} must set {key} once, and sets it {len(places)} times")
        escaped = value.replace("\\", "\\\\")  # a backslash begins an escape in such a file
        lines[places[0]] = f"{key}={escaped}"
    return "\n".join(lines) + "\n"


def batching_for(
    settings: Mapping[str, Any],
    *,
    gpus: int,
    batch_size: int | None = None,
    batch_delay: int | None = None,
    workers: int | None = None,
) -> Batching:
    """Batch size, delay and workers: as asked for, else as the archive says, else what suits the machine.

    A CPU gets one worker, whose threads use all cores, so that a lone request is answered soonest and the network lies
    in memory once; a GPU gets as many as keep it busy, see CORES_OF_A_WORKER. With several workers a CPU's cores are
    dealt out, see `threads_of`.

    Args:
        settings: the archive's model-config.yaml.
        gpus: as TorchServe counts them, see `gpu_count`.
        batch_size, batch_delay (ms), workers: as asked for.

    Raises:
        ValueError: a number is not positive, or the archive says another, which would win.
    """
    on_gpu = gpus > 0 and settings.get("deviceType") != "cpu"
    chosen = {}
    for name, key, asked, suits in (
        ("batch_size", "batchSize", batch_size, GPU_BATCH if on_gpu else CPU_BATCH),
        ("batch_delay", "maxBatchDelay", batch_delay, DELAY),
        ("workers", "minWorkers", workers, gpus * workers_of_gpu(gpus) if on_gpu else 1),
    ):
        flag, said = f"--{name.replace('_', '-')}", settings.get(key)
        if asked is not None and asked < 1:
            raise ValueError(f"{flag} is {asked}; a whole number of at least 1 is expected")
        if asked is not None and said not in (None, asked):
            raise ValueError(
                f"{flag} is {asked}, but the archive's model-config.yaml says {key}: {said}, which TorchServe heeds "
                f"first; take {key} out of it and make the archive again, or leave {flag} out"
            )
        chosen[name] = suits if asked is None and not isinstance(said, int) else (asked or int(said or suits))
    return Batching(**chosen)


def workers_of_gpu(gpus: int) -> int:
    """Workers of each of so many GPUs on this machine's cores."""
    return min(max(_cores() // (CORES_OF_A_WORKER * gpus), 1), MOST_WORKERS)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_of(batching: Batching, environment: Mapping[str, str]) -> dict[str, str]:
    """What tells several workers to share the cores; nothing for one, or where somebody has said it already.

    PyTorch's threads wait for each other spinning: with as many in every worker as there are cores, two workers on 2
    cores answered 22 requests a second where they answer 77 with one thread each, and one worker with two answers 47
    (the small network of `make demo`, batches of 1, one run).
    """
    if batching.workers == 1 or "OMP_NUM_THREADS" in environment:
        return {}
    return {"OMP_NUM_THREADS": str(max(_cores() // batching.workers, 1))}


def gpu_count(environment: Mapping[str, str] | None = None) -> int:
    """GPUs as TorchServe counts them: those of CUDA_VISIBLE_DEVICES, else those of nvidia-smi; without either, 0."""
    environment = os.environ if environment is None else environment
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([one for one in visible.split(",") if one.strip() not in ("", "-1")])
    program = shutil.which("nvidia-smi", path=environment.get("PATH", ""))
    if program is None:
        return 0
    try:
        done = subprocess.run(
            [program, "--query-gpu=index", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return len(done.stdout.split()) if done.returncode == 0 else 0


def handed_down(environment: Mapping[str, str]) -> dict[str, str]:
    """Of the environment, what TorchServe and its workers get."""
    return {name: value for name, value in environment.items() if HANDED_DOWN.fullmatch(name)}


def _models(version: str, batching: Batching | None) -> str:
    if batching is None:
        return "{}"
    entry = {
        "defaultVersion": True,
        "marName": f"{MODEL}.mar",
        "minWorkers": batching.workers,
        "maxWorkers": batching.workers,
        "batchSize": batching.batch_size,
        "maxBatchDelay": batching.batch_delay,
    }
    return json.dumps({MODEL: {version: entry}}, separators=(",", ":"))


def _literally(path: str) -> str:
    """A path as a regular expression that fits it alone."""
    return re.sub(r"([\\.+*?()\[\]{}^$|])", r"\\\1", path)
