"""TorchServe on this machine: the trained network, then ResNet-50, over REST and gRPC with 1, 8, 24 and 96 clients."""

import shutil
import subprocess
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from benchmarks.gpu_check.parts.answers import empty_images, of_sizes
from benchmarks.gpu_check.setting import CheckSetting, Clock, Keep, first_line, measured, say
from benchmarks.load.sections import RATE_AND_TIMES, rate_and_times
from benchmarks.load.server import Served, pack
from benchmarks.load.setting import PROTOCOLS, client_of, closed
from benchmarks.load.times import Sample, summary
from benchmarks.tables import Part, table
from benchmarks.worker import Remote

CLIENTS = (1, 24, 8, 96)
"""Those that bars are set for first."""
TRAINED, LARGE = "trained", "ResNet-50"
START = 32.0
"""Seconds that a server needs to start, to be run in and to end."""
PAUSE = 0.3
"""Seconds between two looks at the GPU."""
RUN_IN, RUN_IN_MOST = 3.0, 96
"""Seconds and requests before the first turn, so that every size and batch was seen once; their errors count."""
FAILED = "no answer at all: "
"""Begins the note of a server that did not start or was lost; it counts as a request without a 200."""
Numbers = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Turn:
    """Seconds of one number of clients, and those at its beginning that do not count."""

    seconds: float
    warm_up: float


class Watch:
    """The GPU's busy share and memory by nvidia-smi, while it is entered; nothing where there is none."""

    def __init__(self) -> None:
        self.busy: list[float] = []
        self.mib: list[float] = []
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        program = shutil.which("nvidia-smi")
        if program is not None:
            self._thread = threading.Thread(target=self._look, args=(program,), daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join(timeout=20)

    def _look(self, program: str) -> None:
        # A run for each look: what it writes in a loop of its own may lie in a pipe's buffer to the end.
        command = [program, "--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits"]
        while not self._ended.is_set():
            done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
            values = [word.strip() for word in (done.stdout.splitlines() or [""])[0].split(",")]
            if len(values) == 2 and all(word.isdigit() for word in values):
                self.busy.append(float(values[0]))
                self.mib.append(float(values[1]))
            self._ended.wait(PAUSE)

    def numbers(self) -> Numbers:
        """Means and the most; None where nothing was told. The first look is of the time before."""
        busy = self.busy[1:]
        mean = sum(busy) / len(busy) if busy else None
        return {"busy_percent": mean, "memory_mib": max(self.mib, default=None)}


def measure(setting: CheckSetting, seconds: float, keep: Keep) -> Part:
    """A server after the other; each row is kept as soon as it is there."""
    clock = Clock(seconds)
    folder = Path(setting.folder) / "served"
    shutil.rmtree(folder, ignore_errors=True)
    rows: list[Numbers] = []
    notes: list[str] = []

    def news() -> None:
        keep(shown_part(setting, rows, notes))

    def ask(network: str, workers: int, images: list[str], turns: list[tuple[str, int]], turn: Turn) -> None:
        try:
            one_server(setting, network, workers, images, turns, turn, rows, notes, news)
        except (ValueError, OSError, RuntimeError) as error:
            notes.append(f"{FAILED}{network}: {first_line(error)}")
            news()

    turns = [("REST", 8), ("gRPC", 8)] if setting.short else [("REST", 24), ("gRPC", 24), ("REST", 1)]
    turn = Turn(seconds=1.5 if setting.short else 3.0, warm_up=0.5)
    ask(TRAINED, 0, images_for_trained(setting, folder), turns, turn)
    counts = (1, 4) if setting.short else CLIENTS
    turns = [(protocol, clients) for protocol in PROTOCOLS for clients in counts]
    images = list(setting.coco_sized())
    for number, workers in enumerate(setting.workers):
        servers_left = len(setting.workers) - number
        a_turn = (clock.left / servers_left - START) / len(turns)
        if a_turn < 1.5 and not setting.short:
            notes.append(f"{LARGE}, {workers or 'its own number of'} workers: no time was left")
            continue
        length = 3.0 if setting.short else min(max(a_turn, 2.5), 8.0)
        ask(LARGE, workers, images, turns, Turn(seconds=length, warm_up=min(1.0, length / 3)))
    return shown_part(setting, rows, notes)


def images_for_trained(setting: CheckSetting, folder: Path) -> list[str]:
    """Images of the drawn set, images without objects, and sizes never seen, as files."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = sorted((setting.shapes / "val").glob("*.png"))[:16]
    paths = [str(path) for path in drawn]
    more = [*empty_images(), *of_sizes([path.read_bytes() for path in drawn], 12)]
    for number, data in enumerate(more):
        path = folder / f"more-{number}.jpg"
        path.write_bytes(data)
        paths.append(str(path))
    return paths


def one_server(
    setting: CheckSetting,
    network: str,
    workers: int,
    images: list[str],
    turns: list[tuple[str, int]],
    turn: Turn,
    rows: list[Numbers],
    notes: list[str],
    news: Callable[[], None],
) -> None:
    """Starts a server, asks it in every turn, stops it. Raises ValueError where it does not start."""
    folder = Path(setting.folder) / "served" / f"{network.lower()}-{workers}"
    path = setting.trained_path if network == TRAINED else setting.large / "maskx.pt"
    changes = {} if setting.on_gpu else {"deviceType": "cpu"}
    archive = pack(path, folder / "archive", **changes)
    say(f"TorchServe: {network}, workers {workers or 'as it chooses'}")
    with ExitStack() as stack:
        settings = {"workers": workers} if workers else {}
        server = stack.enter_context(Served(archive, folder / "serve", **settings))
        described = server.description()
        clients: dict[str, Remote] = {}

        def row(protocol: str, count: int | None, asked: tuple[list[Sample], float], found: Numbers) -> None:
            samples, cpu = asked
            about = {"network": network, "workers": workers, "protocol": protocol, "clients": count}
            about |= {key: described.get(key) for key in ("device", "precision")}
            about |= {"sent": len(samples), "client_cpu_ms": 1000 * cpu / max(len(samples), 1)}
            rows.append(about | found)

        for protocol in dict.fromkeys(protocol for protocol, _ in turns):
            try:
                clients[protocol] = stack.enter_context(client_of(server, protocol, images))
                for count in (4,) if setting.short else (1, 24):
                    asked = closed(clients[protocol], count, RUN_IN, RUN_IN_MOST)
                    found = summary(asked[0], warm_up=0.0, until=float("inf"))
                    # Before the first turn: `clients` is None, and no bar looks at it.
                    row(protocol, None, asked, {**found, "busy_percent": None, "memory_mib": None})
            except (RuntimeError, OSError) as error:
                clients.pop(protocol, None)
                notes.append(f"{network}, {protocol}: {first_line(error)}")
        for protocol, count in turns:
            if protocol in clients:
                with Watch() as watch:
                    asked = closed(clients[protocol], count, turn.seconds)
                found = summary(asked[0], warm_up=turn.warm_up, until=turn.seconds)
                row(protocol, count, asked, {**found, **watch.numbers()})
                news()


def shown_part(setting: CheckSetting, rows: list[Numbers], notes: list[str]) -> Part:
    """A row for each turn."""
    cells = []
    for row in rows:
        busy, mib = row["busy_percent"], row["memory_mib"]
        whom = (f"{row['network']}, {row['precision']}", str(row["workers"] or "auto"), row["protocol"])
        clients = "run in" if row["clients"] is None else str(row["clients"])
        gpu = ("-" if busy is None else f"{busy:.0f} %", "-" if mib is None else f"{mib:.0f}")
        cells.append((*whom, clients, *rate_and_times(row), *gpu, f"{row['client_cpu_ms']:.1f} ms"))
    headers = ["network", "workers", "protocol", "clients", *RATE_AND_TIMES]
    headers += ["GPU busy", "its memory, MiB", "client's CPU a request"]
    text = table(headers, cells) if cells else ""
    devices = ", ".join(sorted({str(row["device"]) for row in rows})) or "-"
    text += (
        f"\nClosed loop over loopback, client and server on the same cores; the network on {devices}. The trained "
        "network is sent images of the drawn set, images without objects and sizes never seen; ResNet-50 JPEGs of "
        "COCO's sizes. Errors count the warm-up too.\n"
    )
    text += "".join(f"- {note}\n" for note in notes)
    bars: dict[str, float] = {}
    of_rest = [row for row in rows if row["clients"] and (row["network"], row["protocol"]) == (LARGE, "REST")]
    if of_rest:
        bars["served"] = max(row["rate"] for row in of_rest)
    alone = [row for row in of_rest if row["clients"] == 1 and row["p50"]]
    if alone:
        best = min(alone, key=lambda row: float(row["p50"]))
        bars["served p50"] = 1000 * best["p50"]
        if best["p99"] is not None:
            bars["served p99"] = best["p99"] / best["p50"]
    errors = sum(sum(row["errors"].values()) for row in rows)
    asked, not_200 = sum(row["sent"] for row in rows), errors + sum(one.startswith(FAILED) for one in notes)
    numbers = measured(bars, asked=asked, not_200=not_200, rows=rows, notes=notes)
    return Part("TorchServe, REST and gRPC", text, numbers)
