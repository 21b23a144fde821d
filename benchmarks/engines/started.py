"""The sides of the comparison of engines, each in its own process, and why one is not there."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.engines.side import (
    COMPILED,
    ONNX_RUNTIME,
    OPENVINO,
    OPTIMISED,
    TORCH_COMPILE,
    TORCHSCRIPT,
)
from benchmarks.speed.setting import CLASSES, PEER, Setting, say
from benchmarks.worker import Remote, apart

ENGINE = "benchmarks.engines.side:EngineSide"
PEER_COMPILED = "torchvision compiled"
PEERS = (ONNX_RUNTIME, OPENVINO, OPTIMISED, PEER_COMPILED)
"""Beside ours and torchvision's eager form."""
MORE_PEERS = (TORCH_COMPILE,)
"""Only where they are asked for: our own parts under torch.compile, which AOTInductor compiles ahead of time."""
FLOAT32_ALONE = (ONNX_RUNTIME,)
"""Has no bfloat16 convolution on a CPU."""


@dataclass
class Sides:
    """remotes: by the name that tables give them, ours first. skipped: why a side is not there, by its name.

    began: of each side, seconds until it was ready, seconds of its first request, and MiB held when it was ready.
    packages: what `make_package` told, by precision.
    """

    remotes: dict[str, Remote] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    began: dict[str, dict[str, float]] = field(default_factory=dict)
    packages: dict[str, dict[str, Any]] = field(default_factory=dict)

    def ours(self) -> list[str]:
        """Names of our two engines' sides."""
        return [name for name in self.remotes if name.split()[0] in (TORCHSCRIPT, COMPILED)]

    def staged(self) -> list[str]:
        """Names of the sides that run our network."""
        return [name for name in self.remotes if not name.startswith("torchvision")]

    def chosen(self, names: Sequence[str]) -> dict[str, Remote]:
        """The sides of these names that are there."""
        return {name: self.remotes[name] for name in names if name in self.remotes}


def named(engine: str, precision: str) -> str:
    """What tables call a side."""
    return f"{engine} {precision}"


@contextlib.contextmanager
def sides_of(setting: Setting, classes: int, peers: Sequence[str]) -> Iterator[Sides]:
    """All sides of the network for so many classes; each starts when no other computes, and is asked for one answer."""
    setting.network(classes)
    sides = Sides()
    for precision in setting.precisions:
        say(f"compiling the package in {precision}, {classes} classes")
        given = {"folder": str(setting.of(classes)), "precision": precision}
        try:
            sides.packages[precision] = apart("benchmarks.engines.packaged:make_package", **given)
        except RuntimeError as error:  # its process failed in a way that nobody foresaw
            sides.packages[precision] = {"reason": last_line(error)}
    with contextlib.ExitStack() as stack:
        for name, target, options in wanted(setting, classes, peers, sides.packages):
            if isinstance(options, str):
                sides.skipped[name] = options
                continue
            say(f"starting {name}")
            begin = time.monotonic()
            try:
                remote = stack.enter_context(Remote(target, **options))
                ready = time.monotonic() - begin
                held = remote.call("memory")["resident_mib"]
                first = remote.call("time", files=[setting.picture("1080p")])["seconds"]
            except RuntimeError as error:
                sides.skipped[name] = last_line(error)
                continue
            sides.remotes[name] = remote
            sides.began[name] = {"ready": ready, "first": first, "loaded_mib": held}
        for name, reason in sides.skipped.items():
            say(f"{name} is left out: {reason}")
        yield sides


def wanted(
    setting: Setting, classes: int, peers: Sequence[str], packages: dict[str, dict[str, Any]]
) -> Iterator[tuple[str, str, dict[str, Any] | str]]:
    """Of every side its name, its class, and the class's arguments or why it is not started."""
    folder = str(setting.of(classes))
    for engine in (TORCHSCRIPT, COMPILED, *[peer for peer in peers if peer != PEER_COMPILED]):
        for precision in setting.precisions:
            if engine in FLOAT32_ALONE and precision != "float32":
                continue
            own: dict[str, Any] = {"folder": folder, "engine": engine, "precision": precision}
            package = packages[precision] if engine == COMPILED else {"path": ""}
            options: dict[str, Any] | str = package.get("reason", "")
            if not options:
                options = own | {"package": package["path"]}
            yield named(engine, precision), ENGINE, options
    sizes = {"min_size": setting.min_size, "max_size": setting.max_size}
    peer = {"weights": str(Path(folder) / "peer.pt"), "classes": classes, "device": "cpu", **sizes}
    if peers:
        yield PEER, "benchmarks.speed.peer:Peer", peer
    if PEER_COMPILED in peers:
        for precision in setting.precisions:
            target = "benchmarks.engines.torchvision_compiled:CompiledPeer"
            yield named(PEER_COMPILED, precision), target, {**peer, "precision": precision}


def last_line(error: BaseException) -> str:
    """What a side's own error says, without its traceback."""
    return [line for line in str(error).splitlines() if line.strip()][-1].strip()


def default_peers(classes: int) -> Sequence[str]:
    """Peers are measured on one network alone."""
    return PEERS if classes == CLASSES else ()
