"""Sections of the load report that measure speed: closed loop, open loop, and the overhead of being served.

Each has a `..._numbers` that measures and gives plain values, and a `..._text` that shows them, so that sections that
were measured apart can stand in one report. Of several servers each has its turn with the same load, round after round.
"""

import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.load.setting import (
    BATCH,
    BATCHES,
    CONCURRENCY,
    DELAY,
    PROTOCOLS,
    LoadSetting,
    Network,
    Side,
    closed,
    opened,
    say,
)
from benchmarks.load.times import Sample, summary, without_server
from benchmarks.machine import usable_cores
from benchmarks.tables import shown, table
from benchmarks.worker import Remote

BAR = 0.9
"""Requests a second served / in one process: what is to be reached at least."""
CLIENTS = (1, CONCURRENCY, 32)
"""Of the closed loop."""
OPEN_SHARES = (0.5, 0.8)
"""Rates of the open loop, as shares of what one process answers without a server."""
IN_PROCESS = "in process"

Numbers = dict[str, Any]
Load = Callable[[Remote], tuple[list[Sample], float]]
"""What a generator of load is told; samples, and its own seconds of the processor."""


@dataclass(kw_only=True)
class Tally:
    """All turns of one side: the rate of each, and what was counted in them together; seconds of the processor."""

    rates: list[float] = field(default_factory=list)
    counted: list[Sample] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    sent: int = 0
    client_cpu: float = 0.0
    server_cpu: float = 0.0

    def turn(self, side: Side, load: Load, *, warm_up: float, until: float) -> None:
        """One more; answers within the warm-up do not count, nor those after `until`."""
        before = side.served.cpu_seconds()
        samples, client_cpu = load(side.client)
        self.server_cpu += side.served.cpu_seconds() - before
        self.client_cpu += client_cpu
        self.sent += len(samples)
        found = summary(samples, warm_up=warm_up, until=until)
        self.rates.append(found["rate"])
        self.errors.update(found["errors"])
        self.counted += [one for one in samples if warm_up < one.end <= until and not one.outcome]

    def numbers(self) -> Numbers:
        """Latencies of all turns, the mean rate, and the processor's time by request."""
        by_request = {
            f"{name}_cpu_ms": 1000 * spent / max(self.sent, 1)
            for name, spent in (("client", self.client_cpu), ("server", self.server_cpu))
        }
        found = summary(self.counted, warm_up=0.0, until=float("inf"))
        found |= {"rate": statistics.fmean(self.rates), "errors": dict(self.errors)}
        return found | {"rates": self.rates} | by_request


def run_in(network: Network, sides: Sequence[Side], offline: Remote) -> None:
    """Each side is used for a while: Java runs slowly until it has compiled what is used much."""
    in_process(offline, BATCH, min(network.warm_up, 2.0))
    for side in sides:
        closed(side.client, CONCURRENCY, network.run_in)


def threads_of(sides: Sequence[Side]) -> int:
    """Of torch in a worker: what one process without a server is to compute with."""
    return int(sides[0].served.description()["threads"])


def in_process(offline: Remote, batch: int, seconds: float) -> float:
    """Images a second of one process without a server."""
    return Alone(batch=batch).turn(offline, seconds)


@dataclass(kw_only=True)
class Alone:
    """All turns of one process without a server, in batches of `batch`: rates, and when batches of each were done."""

    batch: int
    rates: list[float] = field(default_factory=list)
    ends: list[list[float]] = field(default_factory=list)

    def turn(self, offline: Remote, seconds: float) -> float:
        """One more; images a second."""
        found = offline.call("run", batch=self.batch, seconds=seconds, least=2)
        self.rates.append(float(found["images"] / found["seconds"]))
        self.ends.append(found["ends"])
        return self.rates[-1]

    def numbers(self, clients: int) -> Numbers:
        """The mean rate, and the latencies that so many clients would have if being served took no time."""
        samples = [
            one for ends in self.ends for one in without_server(ends, batch=self.batch, clients=clients)
        ]
        found = summary(samples, warm_up=0.0, until=float("inf"))
        return found | {"rate": statistics.fmean(self.rates), "rates": self.rates}


def closed_rounds(
    network: Network, sides: Sequence[Side], offline: Remote, *, clients: int, batch: int
) -> tuple[Alone, list[Tally]]:
    """In process, then each side, round after round: what one process did, and a tally of each side.

    A turn with more clients than saturate is longer by as much, as every answer then is later.
    """
    alone = Alone(batch=batch)
    tallies = [Tally() for _ in sides]
    longer = max(1.0, clients / CONCURRENCY)
    warm_up, end = longer * network.warm_up, longer * (network.warm_up + network.turn)
    for turn in range(network.rounds):
        say(f"closed: {network.name}, batch {batch}, {clients} clients, turn {turn + 1} of {network.rounds}")
        alone.turn(offline, network.turn)
        for side, tally in zip(sides, tallies, strict=True):
            tally.turn(side, lambda client: closed(client, clients, end), warm_up=warm_up, until=end)
    return alone, tallies


def closed_numbers(setting: LoadSetting) -> Numbers:
    """Each network as it is shipped, 1, 8 and 32 clients; in process no more images together than there are clients."""
    rows = []
    for network in setting.networks:
        with (
            setting.sides(network, "closed") as sides,
            setting.offline(network, threads_of(sides)) as offline,
        ):
            run_in(network, sides, offline)
            for clients in CLIENTS:
                alone, tallies = closed_rounds(
                    network, sides, offline, clients=clients, batch=min(BATCH, clients)
                )
                about: Numbers = {"network": network.name, "clients": clients}
                rows.append(about | {"server": IN_PROCESS, **alone.numbers(clients)})
                rows += [about | of_side(side, tally) for side, tally in zip(sides, tallies, strict=True)]
    return {"rows": rows}


def of_side(side: Side, tally: Tally) -> Numbers:
    """A row of the tables."""
    return {"server": side.engine, "protocol": side.protocol, **tally.numbers()}


def closed_text(numbers: Numbers) -> str:
    """A row for each number of clients, server and protocol, below what one process does."""
    rows, alone = [], 1.0
    for row in numbers["rows"]:
        asked = (row["network"], str(row["clients"]), row["server"])
        if row["server"] == IN_PROCESS:
            alone = row["rate"]
            rows.append((*asked, "-", "1.00", *rate_and_times(row), *["-"] * len(CPU)))
        else:
            ratio = f"{row['rate'] / alone:.2f}"
            rows.append((*asked, row["protocol"], ratio, *rate_and_times(row), *cpu_cells(row)))
    headers = ("network", "clients", "server", "protocol", "ratio", *RATE_AND_TIMES, *CPU)
    told = (
        "The batch size and delay that `make serve` chooses for this machine. Server and client share the cores, and "
        f"had turn about. The ratio is to {IN_PROCESS}: the handler's Service alone, in batches of {BATCH} (of fewer "
        "clients: of as many); its times are those of as many clients whom being served would cost nothing."
    )
    return f"{table(headers, rows)}\n{told}\n"


def open_numbers(setting: LoadSetting) -> Numbers:
    """Fixed rates, the same for every server: shares of what one process does, each network as it is shipped."""
    rows = []
    for network in setting.networks:
        with setting.sides(network, "open") as sides, setting.offline(network, threads_of(sides)) as offline:
            run_in(network, sides, offline)
            alone = in_process(offline, BATCH, network.turn)
            for share in OPEN_SHARES if network is setting.tiny else OPEN_SHARES[:1]:
                about = {"network": network.name, "share": share, "offered": share * alone}
                tallies = open_rounds(network, sides, share * alone)
                rows += [about | of_side(side, tally) for side, tally in zip(sides, tallies, strict=True)]
    return {"rows": rows}


def open_rounds(network: Network, sides: Sequence[Side], offered: float) -> list[Tally]:
    """Each side at the rate offered, round after round. Of few requests nothing can be told: 20 at least."""
    tallies = [Tally() for _ in sides]
    seconds = network.warm_up + max(network.turn, 20 / offered)
    for turn in range(network.rounds):
        say(f"open: {network.name}, {offered:.2f} a second, turn {turn + 1} of {network.rounds}")
        for side, tally in zip(sides, tallies, strict=True):
            tally.turn(
                side,
                lambda client: opened(client, offered, seconds),
                warm_up=network.warm_up,
                until=float("inf"),
            )
    return tallies


def open_text(numbers: Numbers) -> str:
    """A row for each rate, server and protocol."""
    rows = []
    for row in numbers["rows"]:
        offered = f"{row['offered']:.2f}/s ({100 * row['share']:.0f} %)"
        asked = (row["network"], offered, row["server"], row["protocol"])
        rows.append((*asked, *rate_and_times(row), *cpu_cells(row)))
    headers = ("network", "offered", "server", "protocol", *RATE_AND_TIMES, *CPU)
    told = f"Offered: as a share of what was answered {IN_PROCESS} just before, in batches of {BATCH}. Latencies count "
    return f"{table(headers, rows)}\n{told}from the moment a request was to begin.\n"


def overhead_numbers(setting: LoadSetting) -> Numbers:
    """Requests a second through the servers beside those of the same images in one process, in turns of one run."""
    found = []
    cores = usable_cores()
    for network in setting.networks:
        ways = [(BATCH, 1)] if network is not setting.tiny else [(batch, 1) for batch in BATCHES]
        for batch, workers in [*ways, (BATCH, cores)] if cores > 1 else ways:
            asked: Numbers = {"batch_size": batch, "batch_delay": DELAY, "workers": workers}
            with (
                setting.sides(network, "overhead", **asked) as sides,
                setting.offline(network, cores) as offline,
            ):
                threads = sides[0].served.description()["threads"]
                run_in(network, sides, offline)
                rounds = closed_rounds(network, sides, offline, clients=CONCURRENCY, batch=batch)
                about = {"network": network.name, "batch": batch, "workers": workers, "threads": threads}
                found += [about | one for one in overhead_rows(sides, *rounds)]
    return {"concurrency": CONCURRENCY, "delay": DELAY, "threads": cores, "rows": found}


def overhead_rows(sides: Sequence[Side], alone: Alone, tallies: Sequence[Tally]) -> list[Numbers]:
    """A row for each server, of both protocols."""
    rows: dict[str, Numbers] = {}
    for side, tally in zip(sides, tallies, strict=True):
        empty: Numbers = {"rates": {IN_PROCESS: alone.rates}, "ratios": {}, "times": {}}
        row = rows.setdefault(side.engine, {"server": side.engine, **empty})
        times = tally.numbers()
        row["rates"][side.protocol] = times["rates"]
        row["ratios"][side.protocol] = times["rate"] / statistics.fmean(alone.rates)
        row["times"][side.protocol] = times
    return list(rows.values())


def overhead_text(numbers: Numbers) -> str:
    """Rates and ratios, then latencies, then what the ratios say."""
    rates, times = [], []
    for row in numbers["rows"]:
        way = (row["network"], row["server"], str(row["batch"]), f"{row['workers']} x {row['threads']}")
        cells = [*way, _spread(row["rates"][IN_PROCESS])]
        for protocol in PROTOCOLS:
            cells += [_spread(row["rates"][protocol]), f"**{row['ratios'][protocol]:.2f}**"]
            found = row["times"][protocol]
            times.append((*way, protocol, *rate_and_times(found), *cpu_cells(found)))
        rates.append(cells)
    ways = ("network", "server", "batchSize", "workers x threads")
    headers = (*ways, IN_PROCESS, "REST", "ratio", "gRPC", "ratio")
    below = [
        f"{row['network']}, {row['server']}, batchSize {row['batch']}, workers {row['workers']}, {protocol} "
        f"({ratio:.2f})"
        for row in numbers["rows"]
        for protocol, ratio in row["ratios"].items()
        if ratio < BAR
    ]
    lines = [
        table(headers, rates),
        f"Requests a second, mean of turns (lowest to highest); {numbers['concurrency']} clients in a closed loop, "
        f"maxBatchDelay {numbers['delay']} ms. In process: the handler's Service with {numbers['threads']} threads, in "
        "batches of exactly batchSize images, nobody else at work. The ratio is served / in "
        f"process; the bar is {BAR}: " + (f"below it: {'; '.join(below)}." if below else "reached by all."),
        "",
        table((*ways, "protocol", *RATE_AND_TIMES, *CPU), times),
        *[
            _recommended(numbers["rows"], *which)
            for which in dict.fromkeys((r["network"], r["server"]) for r in numbers["rows"])
        ],
    ]
    return "\n".join(lines) + "\n"


def _recommended(rows: Sequence[Numbers], network: str, server: str) -> str:
    """The smallest batch within 2 % of the best rate: more only makes everybody wait longer."""
    mine = [row for row in rows if (row["network"], row["server"], row["workers"]) == (network, server, 1)]
    rates = {row["batch"]: statistics.fmean(row["rates"]["REST"]) for row in mine}
    best = max(rates.values())
    chosen = min(batch for batch, rate in rates.items() if rate >= 0.98 * best)
    return f"- {network}, {server}: batchSize {chosen} is the smallest within 2 % of the best rate over REST."


def _spread(rates: Sequence[float]) -> str:
    return f"{statistics.fmean(rates):.2f} ({min(rates):.2f} to {max(rates):.2f})"


RATE_AND_TIMES = ("requests/s", "requests", "p50", "p90", "p99", "p99.9", "slowest", "errors")


def rate_and_times(found: Numbers) -> tuple[str, ...]:
    """Cells under RATE_AND_TIMES; "-" where there are too few requests for a percentile."""
    times = [found[name] for name in ("p50", "p90", "p99", "p99.9", "max")]
    return (
        f"{found['rate']:.2f}",
        str(found["requests"]),
        *("-" if seconds is None else shown(seconds) for seconds in times),
        shown_errors(found["errors"]),
    )


CPU = ("client's CPU", "server's CPU")


def cpu_cells(found: Numbers) -> tuple[str, str]:
    """Cells under CPU: milliseconds of the processor by request."""
    return (f"{found['client_cpu_ms']:.1f} ms", f"{found['server_cpu_ms']:.1f} ms")


def shown_errors(errors: dict[str, int]) -> str:
    """ "0", or what happened how often."""
    return ", ".join(f"{count} x {name}" for name, count in sorted(errors.items())) or "0"
