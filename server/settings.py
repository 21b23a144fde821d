"""What a start goes by: the archive (.mar) as it is before TorchServe has it, config.properties, the environment.

For batch size, delay and workers TorchServe 0.12 was seen to heed the first of these that says something: the
parameters of a registration, the archive's model-config.yaml, `models=` in config.properties, its own defaults
(1 image, 100 ms). So the shipped model-config.yaml leaves them out, and a start sets them here, for its machine.
"""

import hashlib
import json
import re
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .hardware import core_count
from .processes import HOST, Batching, Ports

MODEL = "maskx"
MANIFEST = "MAR-INF/MANIFEST.json"
VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""A version stands in addresses and in a file's name."""

HERE = Path(__file__).resolve().parent
INSTALLED = (HERE / "serve_config").is_dir()
"""Whether this is the installed package, with serve_config/ inside; in the repository and in the serving image it lies
beside the package."""
SHIPPED = (HERE if INSTALLED else HERE.parent) / "serve_config"
PROGRAM = f"python -m {__package__}"
MAKE = "make archive in a clone of maskx" if INSTALLED else "make archive"
SETUP = 'pip install "maskx[serve]"' if INSTALLED else "make setup"
LIGHT_SETUP = 'pip install "maskx[light]"' if INSTALLED else "pip install -r requirements/light.txt"
TRACES_SETUP = 'pip install "maskx[traces]"' if INSTALLED else "pip install -r requirements/traces.txt"
"""For messages: how an archive is made, and how what a server needs is installed."""
CONFIG = SHIPPED / "config.properties"
METRICS = SHIPPED / "metrics.yaml"
LOGGING = SHIPPED / "log4j2.xml"

CPU_BATCH = 4
"""More images at once make a CPU no faster per image, and every caller waits for the whole batch."""
GPU_BATCH = 8
DELAY = 1
"""Milliseconds that even a lone request waits for others; what queued while the last batch was computed is batched
anyway. TorchServe takes 0 for 100."""

MOST_WORKERS = 4
CORES_A_WORKER = 4
"""A worker's Python, which feeds the GPU, decoding and answers keep about this many busy."""
WORKER_MEMORY = 6 << 30
"""Bytes of a GPU's memory for one worker: 2.7 to 3.7 GiB were seen (ResNet-50-FPN at 800, batches of 8)."""

QUEUE = 100
MOST_WAITING = 512
"""Requests that may wait. Each holds its body in Java's memory, 33 MB at most and some 0.2 to 3 MB as a photograph."""

ORIGIN = re.compile(r"\*|https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?|https?://\[[0-9A-Fa-f:]+\](:[0-9]{1,5})?")
"""Of a page that may ask, as its browser names it; `*` for any page."""
CORS_METHODS = "POST, PUT, OPTIONS"
CORS_HEADERS = (
    "content-type, authorization, score_threshold, score-threshold, max_detections, max-detections, categories, "
    "mask_format, mask-format, output, tiles, traceparent, x-request-id"
)
"""What a page's request may have: `*` would leave Authorization out."""

HANDED_DOWN = re.compile(
    r"PATH|HOME|LANG|LANGUAGE|LC_\w+|TZ|USER|LOGNAME|VIRTUAL_ENV|JAVA_TOOL_OPTIONS|LD_LIBRARY_PATH|LD_PRELOAD|XDG_CACHE_HOME|"
    r"PYTHON(?!PATH$)\w*|(CUDA|NVIDIA|NCCL|CUBLAS|CUDNN|OMP|GOMP|KMP|MKL|DNNL|ONEDNN|ATEN|TORCH|PYTORCH|MALLOC|MASKX)_\w+"
)
"""Variables that Java and the worker get; no other, so that a secret under whatever name stays with who starts them.
Of these, config.properties hides from the worker what sounds like a secret."""
SPIN = {"GOMP_SPINCOUNT": "1000"}
"""Rounds of a loop in which torch's threads wait for each other with their core in hand: tens of microseconds, what
libgomp itself takes where it knows of too few cores. Its 300 000 of otherwise are 7 ms of a core after every operation,
in which the front, the decoders and every other program wait."""
SPIN_SAID = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
TELEMETRY = "OTEL_"
"""How the variables begin that the light server's front gets, and no worker: they may hold a collector's secret."""


def start_command(flags: str = "") -> str:
    """How to start a server from here, for messages."""
    if INSTALLED:
        return f"maskx serve {flags}".rstrip()
    return f"make serve SERVE_ARGS={flags}" if flags else "make serve"


@dataclass(frozen=True, kw_only=True)
class Contents:
    """The model's version, and its model-config.yaml, parsed."""

    version: str
    settings: Mapping[str, Any]


def checked_copy(archive: Path, copy: Path) -> bool:
    """Copies the archive and compares the copy with the sha256 beside the archive; False where there is none.

    Raises ValueError: there is no archive, or the two do not agree; then there is no copy either.
    """
    if not archive.is_file():
        raise ValueError(f"there is no {archive}; make it with {MAKE}, or name one with --archive")
    shutil.copyfile(archive, copy)
    beside = archive.with_name(archive.name + ".sha256")
    if not beside.is_file():
        return False
    with open(copy, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    expected = (beside.read_text().split() or ["nothing"])[0]
    if digest != expected:
        copy.unlink()
        raise ValueError(
            f"{archive} has sha256 {digest}, but {beside.name} says {expected}: it was changed or not copied whole. "
            f"Make it again ({MAKE}), or copy both files again"
        )
    return True


def read_contents(archive: Path) -> Contents:
    """What is in an archive. Raises ValueError where it is not one of this project, or is damaged."""
    try:
        with zipfile.ZipFile(archive) as file:
            model = json.loads(file.read(MANIFEST))["model"]
            name, version = str(model["modelName"]), str(model["modelVersion"])
            configuration = model.get("configFile")
            settings = yaml.safe_load(file.read(configuration)) if configuration else {}
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile, yaml.YAMLError) as error:
        raise ValueError(
            f"{archive} cannot be read as an archive of make archive: {type(error).__name__}: {error}. Make it again, "
            "or copy it again"
        ) from error
    if name != MODEL:
        raise ValueError(f"{archive} holds the model {name!r}, and only {MODEL} is served here")
    if VERSION.fullmatch(version) is None:
        raise ValueError(
            f"{archive} has version {version!r}; letters, digits, dots, hyphens and underscores are allowed, at most 64"
        )
    if not isinstance(settings, dict):
        raise ValueError(f"{archive} has a {configuration} that is no section of keys and values")
    return Contents(version=version, settings=settings)


def effective_config(
    shipped: str,
    ports: Ports,
    *,
    state: Path,
    with_tokens: bool,
    model_api: bool = False,
    version: str = "1.0",
    batching: Batching | None = None,
    cors_origin: str = "",
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
        cors_origin: of the web page that may ask from a browser, "*" for any page, "" for none.

    Raises:
        ValueError: `cors_origin` is something else, or the shipped file lacks a key that is to be replaced, so that a
            misspelt key is not left to work.
    """
    if cors_origin and ORIGIN.fullmatch(cors_origin) is None:
        raise ValueError(
            f"--cors-origin is {cors_origin!r}; the one origin of a page is expected, such as http://localhost:3000, "
            "or * for any page. Several origins take the proxy (MASKX_CORS, deploy/nginx)"
        )
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
        "job_queue_size": str(QUEUE if batching is None else batching.queue),
        "metrics_config": str(state / METRICS.name),
        "models": _models(version, batching),
        "cors_allowed_origin": cors_origin,
        "cors_allowed_methods": CORS_METHODS if cors_origin else "",
        "cors_allowed_headers": CORS_HEADERS if cors_origin else "",
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
    for_one_gpu: int = 1,
    batch_size: int | None = None,
    batch_delay: int | None = None,
    workers: int | None = None,
) -> Batching:
    """Batch size, delay, workers and queue: as asked for, else as the archive says, else what suits the machine.

    A CPU gets one worker, whose threads use all cores, so that a lone request is answered soonest and the network lies
    in memory once. With several workers a CPU's cores are dealt out, see `threads_of`.

    A GPU gets as many as `workers_of_a_gpu` says. TorchServe's worker takes a batch, answers it, and only then takes
    the next; so the GPU waits while its only worker decodes and writes, and threads inside the worker cannot help: the
    next batch has not come yet. (TorchServe's asyncCommunication would hand it over, but in batches of 1.) With
    several, one computes while the others decode. A lone request is answered by one of them, with all decoding threads
    and nothing to compile, so it should not be slower than with one worker; on a GPU that is still to be measured.

    What finds no place in the queue is refused at once with 503. Clients that ask again at once are then refused
    thousands of times a second and take the cores from the workers, so with a GPU there are 16 places for every
    request that is being computed, up to `MOST_WAITING`.

    Args:
        settings: the archive's model-config.yaml.
        gpus: as TorchServe counts them, see `gpu_count`.
        for_one_gpu: workers that suit each GPU.
        batch_size, batch_delay (ms), workers: as asked for.

    Raises:
        ValueError: a number is not positive, or the archive says another, which would win.
    """
    on_gpu = gpus > 0 and settings.get("deviceType") != "cpu"
    chosen = {}
    for name, key, asked, suits in (
        ("batch_size", "batchSize", batch_size, GPU_BATCH if on_gpu else CPU_BATCH),
        ("batch_delay", "maxBatchDelay", batch_delay, DELAY),
        ("workers", "minWorkers", workers, gpus * for_one_gpu if on_gpu else 1),
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
    queue = settings.get("jobQueueSize")
    if not isinstance(queue, int):
        in_work = chosen["workers"] * chosen["batch_size"]
        queue = min(max(16 * in_work, QUEUE), MOST_WAITING) if on_gpu else QUEUE
    return Batching(**chosen, queue=queue, on_gpu=on_gpu)


def workers_of_a_gpu(gpus: int, *, cores: int, memory: int) -> int:
    """Workers that share one GPU: one for `CORES_A_WORKER` of its share of the cores, as many as its memory has room
    for, 1 to `MOST_WORKERS`.

    Args:
        gpus: at least 1, or 0 where there is none, which also gives 1.
        cores: of the machine.
        memory: of the smallest GPU, in bytes; 0 where nobody knows, which gives 1.
    """
    by_cores = cores // (CORES_A_WORKER * max(gpus, 1))
    return max(min(by_cores, memory // WORKER_MEMORY, MOST_WORKERS), 1)


def threads_of(batching: Batching, environment: Mapping[str, str]) -> dict[str, str]:
    """What tells a worker's threads how to wait, and several workers to share the cores; nothing where somebody has
    said it already.

    PyTorch's threads wait for each other spinning, see `SPIN`: where another program has one of two cores, the thread
    on the other burns it for nothing. The small network of `make demo` in batches of 1 answered 0.3 to 0.5 images a
    second and took 350 to 610 ms of the processor for each on two cores that 13 others wanted, and 27 to 58 with 14 to
    15 ms with this (one process, turns of 6 s).

    With as many threads in every worker as there are cores, two workers on 2 cores answered 22 requests a second where
    they answer 77 with one thread each, and one worker with two answers 47 (the same network, one run, before `SPIN`).
    Workers of a GPU have next to nothing for those threads to do and get one each; those that decode are others, and
    each worker has them for all cores, for they do not spin.
    """
    said = {} if any(name in environment for name in SPIN_SAID) else dict(SPIN)
    if batching.workers == 1 or "OMP_NUM_THREADS" in environment:
        return said
    return said | {
        "OMP_NUM_THREADS": "1" if batching.on_gpu else str(max(core_count() // batching.workers, 1))
    }


def handed_down(environment: Mapping[str, str]) -> dict[str, str]:
    """Of the environment, what TorchServe and its workers get."""
    return {name: value for name, value in environment.items() if HANDED_DOWN.fullmatch(name)}


def telemetry_of(environment: Mapping[str, str]) -> dict[str, str]:
    """Of the environment, what says where the light server sends its traces."""
    return {name: value for name, value in environment.items() if name.startswith(TELEMETRY)}


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
