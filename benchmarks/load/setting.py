"""What one load test is about: the networks, the images, how long each turn takes."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.command import progress
from benchmarks.load.client import samples_of
from benchmarks.load.server import Served, pack
from benchmarks.load.times import Sample
from benchmarks.worker import Remote, prepared_apart
from server.processes import TORCHSERVE

PROTOCOLS = ("REST", "gRPC")
CONCURRENCY = 8
"""Clients of the closed loop that saturates, as the bar of the overhead is set for."""
BATCH = 4
"""What `make serve` chooses on a CPU."""
BATCHES = (1, BATCH, 8)
DELAY = 1
"""maxBatchDelay in ms: what is lost where a request is alone."""
MOST = 200_000
"""Requests of one turn at most; turns are bounded by time, and this is for a server that answers at once."""

LARGE_CLASSES = 80

say = partial(progress, "load")


@dataclass(frozen=True, kw_only=True)
class Network:
    """A maskx.pt and how long it is measured, in seconds.

    turn, rounds: of one turn, and turns. warm_up: of each turn, dropped. run_in: before the first turn, per protocol.
    """

    name: str
    path: Path
    turn: float
    rounds: int
    warm_up: float
    run_in: float


@dataclass(frozen=True, kw_only=True)
class Side:
    """A server that runs, asked over one protocol by a generator of load of its own."""

    engine: str
    protocol: str
    served: Served
    client: Remote


@dataclass(frozen=True, kw_only=True)
class LoadSetting:
    """folder: for what is made on the way. images: files that are sent. quick: to see that it works.

    engines: the servers under test, see `server.processes.ENGINES`.
    """

    folder: Path
    images: tuple[str, ...]
    networks: tuple[Network, ...]
    quick: bool
    engines: tuple[str, ...] = (TORCHSERVE,)

    @property
    def tiny(self) -> Network:
        """The small one, in which the server's own cost shows most."""
        return self.networks[0]

    def served(self, network: Network, name: str, **settings: Any) -> Served:
        """The network's archive with the shipped model-config.yaml, to be entered: the first of the engines.

        `settings` are those of `server.life.start`, without which the server is as `make serve` starts it; "changes"
        among them are changes of model-config.yaml.
        """
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        archive = pack(network.path, folder / "archive", **settings.pop("changes", {}))
        return Served(archive, folder / "serve", **{"engine": self.engines[0], **settings})

    @contextmanager
    def sides(self, network: Network, name: str, **settings: Any) -> Iterator[list[Side]]:
        """Every server over every protocol, in the order of their turns; the servers run beside each other."""
        with ExitStack() as stack:
            servers = {}
            for engine in self.engines:
                served = self.served(network, f"{name}-{engine}", engine=engine, **settings)
                servers[engine] = stack.enter_context(served)
            yield [
                Side(engine=engine, protocol=protocol, served=served, client=stack.enter_context(client))
                for protocol in PROTOCOLS
                for engine, served in servers.items()
                for client in [self.client(served, protocol)]
            ]

    def client(self, served: Served, protocol: str) -> Remote:
        """A generator of load for a server that runs."""
        return client_of(served, protocol, self.images)

    def offline(self, network: Network, threads: int) -> Remote:
        """The in-process side."""
        target = "benchmarks.load.offline:Offline"
        return Remote(target, path=str(network.path), images=list(self.images), threads=threads)


def client_of(served: Served, protocol: str, images: Sequence[str]) -> Remote:
    """A generator of load in a process without torch, which would cost it memory and time."""
    target = "benchmarks.load.client:LoadClient"
    return Remote(target, protocol=protocol, port=served.port(protocol), images=list(images))


def closed(client: Remote, concurrency: int, seconds: float, most: int = MOST) -> tuple[list[Sample], float]:
    """Samples of a closed loop, and what the generator took of the processor in seconds."""
    answer = client.call("closed", concurrency=concurrency, seconds=seconds, most=most)
    return samples_of(answer), answer["cpu"]


def opened(client: Remote, rate: float, seconds: float) -> tuple[list[Sample], float]:
    """Samples of an open loop, and what the generator took of the processor in seconds."""
    answer = client.call("open", rate=rate, seconds=seconds, most=MOST)
    return samples_of(answer), answer["cpu"]


def given_images(folder: Path, count: int) -> tuple[str, ...]:
    """The first JPEGs and PNGs of a folder. Raises ValueError where it has none."""
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not paths:
        raise ValueError(f"--images {folder} holds no .jpg and no .png; name a folder of photographs")
    return tuple(str(path) for path in paths[:count])


def tiny_network(path: Path, *, quick: bool) -> Network:
    """The trained maskx.pt that `make archive` leaves. Raises ValueError where there is none."""
    if not path.is_file():
        raise ValueError(f"there is no {path}; make it with make archive, or name one with --tiny")
    # many short turns, as a shared machine's speed drifts within minutes
    turn, rounds, run_in = (4, 1, 1) if quick else (3, 6, 12)
    return Network(name="tiny", path=path, turn=turn, rounds=rounds, warm_up=1, run_in=run_in)


def large_network(folder: Path, picture: str, *, min_size: int, max_size: int, quick: bool) -> Network:
    """R-50-FPN with calibrated random weights, made anew: `benchmarks.speed.network.prepare`."""
    say(f"calibrating ResNet-50 at {min_size}")
    prepared_apart(folder, picture, LARGE_CLASSES, min_size=min_size, max_size=max_size)
    turn, rounds, warm_up = (4, 1, 1) if quick else (20, 2, 8)
    name, path = f"ResNet-50 at {min_size}", folder / "maskx.pt"
    return Network(name=name, path=path, turn=turn, rounds=rounds, warm_up=warm_up, run_in=warm_up)
