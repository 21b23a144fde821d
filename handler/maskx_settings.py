"""model-config.yaml as read by the server, checked: a misspelt key is an error here, where the server ignores it.

Keys are those that TorchServe 0.12 reads for a model, and one section of this handler's own, `maskx`.
"""

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from maskx_compiled import ENGINES
from maskx_engine import PRECISIONS
from maskx_image import MAX_PIXELS, MAX_SIDE

SERVER_KEYS = {
    "minWorkers",
    "maxWorkers",
    "batchSize",
    "maxBatchDelay",
    "responseTimeout",
    "startupTimeout",
    "deviceType",
    "deviceIds",
    "maxRetryTimeoutInSec",
    "clientTimeoutInMills",
    "jobQueueSize",
    "useJobTicket",
}
"""What TorchServe reads and this model can make use of."""

DEVICE_TYPES = ("cpu", "gpu")

DECODES = ("auto", "cpu", "gpu")
"""Who decodes ordinary JPEGs; auto is the CPU without a GPU, and with one whichever a try shows to be faster."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a single request may cost, from section `maskx`.

    max_pixels, max_side: of an image, checked from its header before it is decoded. max_image_bytes: of an image as it
    is sent, base64 undone; the server's max_request_size must leave room for it. max_images: of one request.
    max_answer_bytes: of one answer before compression, images of one request together; must stay below the server's
    max_response_size, for an answer above that kills the worker. images_together: decoded, and given to the network,
    at once, whatever number of requests they come from; bounds the memory. max_tiles, max_tiled_pixels: of an image
    that is looked at in tiles; all of them must be computed within the server's responseTimeout.
    """

    max_pixels: int = MAX_PIXELS
    max_side: int = MAX_SIDE
    max_image_bytes: int = 32_000_000
    max_images: int = 8
    max_answer_bytes: int = 6_000_000
    images_together: int = 16
    max_tiles: int = 64
    max_tiled_pixels: int = 2 * MAX_PIXELS


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What of model-config.yaml concerns the handler; `device_type` is "cpu", "gpu" or "" (take what there is).

    `precision` is what the network computes in, see `maskx_engine.choose_precision`; `engine` is one of
    `maskx_compiled.ENGINES`, `decode` one of DECODES.
    """

    device_type: str
    precision: str
    engine: str
    decode: str
    limits: Limits


def read_settings(config: Mapping[str, Any] | None) -> Settings:
    """Checks model-config.yaml, already parsed, and takes out what concerns the handler.

    Raises ValueError: an unknown key or a value that is not allowed, with what is.
    """
    config = config or {}
    _refuse_unknown(config, {*SERVER_KEYS, "maskx"}, "model-config.yaml")
    device_type = config.get("deviceType", "")
    if device_type != "":
        _one_of(DEVICE_TYPES, device_type, "deviceType")
    for key in ("batchSize", "maxBatchDelay", "minWorkers", "maxWorkers", "jobQueueSize"):
        if key in config:
            _positive(config[key], f"model-config.yaml: {key}")
    section = config.get("maskx") or {}
    if not isinstance(section, Mapping):
        raise ValueError(f"model-config.yaml: maskx is {section!r}; a section of keys and values is expected")
    limits = {field.name for field in fields(Limits)}
    _refuse_unknown(section, {"precision", "engine", "decode", *limits}, "model-config.yaml, section maskx")
    precision = _one_of(PRECISIONS, section.get("precision", "auto"), "maskx.precision")
    engine = _one_of(ENGINES, section.get("engine", "auto"), "maskx.engine")
    decode = _one_of(DECODES, section.get("decode", "auto"), "maskx.decode")
    given = {key: section[key] for key in limits & section.keys()}
    for key, value in given.items():
        _positive(value, f"model-config.yaml: maskx.{key}")
    return Settings(
        device_type=device_type, precision=precision, engine=engine, decode=decode, limits=Limits(**given)
    )


def _one_of(allowed: Sequence[str], value: Any, key: str) -> str:
    if value not in allowed:
        raise ValueError(f"model-config.yaml: {key} is {value!r}; allowed are {', '.join(allowed)}")
    return str(value)


def _refuse_unknown(given: Mapping[str, Any], known: Collection[str], where: str) -> None:
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(known))}"
            raise ValueError(f"{where}: unknown key {key!r}; {hint}")


def _positive(value: Any, what: str) -> None:
    """TorchServe reads a maxBatchDelay of 0 as 100, and workers of 0 as one per core: say what is meant."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{what} is {value!r}; a whole number of at least 1 is expected")
