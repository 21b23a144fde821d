"""Sections of the load report that measure speed: closed loop, open loop, and the overhead of being served.

Each has a `..._numbers` that measures and gives plain values, and a `..._text` that shows them, so that sections that
were measured apart can stand in one report.
"""

import statistics
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import closing
from typing import Any

from benchmarks.load.setting import (
    BATCH,
    BATCHES,
    CONCURRENCY,
    DELAY,
    PROTOCOLS,
    LoadSetting,
    Network,
    closed,
    opened,
    say,
)
from benchmarks.load.times import Sample, summary
from benchmarks.machine import usable_cores
from benchmarks.tables import shown, table
from benchmarks.worker import Remote

BAR = 0.9
"""Requests a second served / in one process: what is to be reached at least."""
OPEN_SHARES = (0.5, 0.8)
"""Rates of the open loop, as shares of what the closed loop reached."""

Numbers = dict[str, Any]


def asked_in_turn(setting: LoadSetting, name: str) -> Generator[tuple[Network, str, Remote], None, None]:
    """A client of each protocol for each network as it is shipped, its server started for the section `name`."""
    for network in setting.networks:
        with setting.served(network, name) as served:
            for protocol in PROTOCOLS:
                with setting.client(served, protocol) as client:
                    yield network, protocol, client


def closed_turn(network: Network, client: Remote, clients: int) -> tuple[Numbers, list[Sample]]:
    """A closed loop of the network's length, its warm-up not counted: numbers, the client's CPU among them; samples."""
    length = network.warm_up + network.turn
    samples, cpu = closed(client, clients, length)
    found = summary(samples, warm_up=network.warm_up, until=length)
    counted = [one for one in samples if network.warm_up < one.end <= length and not one.outcome]
    return found | {"client_cpu_ms": 1000 * cpu / max(len(samples), 1)}, counted


def closed_numbers(setting: LoadSetting) -> Numbers:
    """Each network as it is shipped, 1, 4 and 8 clients; the large one 1 alone: 8 are measured with the overhead."""
    rows = []
    with closing(asked_in_turn(setting, "closed")) as asked:
        for network, protocol, client in asked:
            for count in (1, 4, CONCURRENCY) if network is setting.tiny else (1,):
                say(f"closed loop: {network.name}, {protocol}, {count} clients")
                about = {"network": network.name, "protocol": protocol, "clients": count}
                rows.append(about | closed_turn(network, client, count)[0])
    return {"rows": rows}


def closed_text(numbers: Numbers) -> str:
    """A row for each number of clients."""
    rows = []
    for row in numbers["rows"]:
        asked = (row["network"], row["protocol"], str(row["clients"]))
        rows.append((*asked, *rate_and_times(row), f"{row['client_cpu_ms']:.1f} ms"))
    headers = ("network", "protocol", "clients", *RATE_AND_TIMES, "client's CPU a request")
    told = "The batch size and delay that `make serve` chooses for this machine. Server and client share the cores."
    return f"{table(headers, rows)}\n{told}\n"


def open_numbers(setting: LoadSetting) -> Numbers:
    """Fixed rates: shares of what 8 clients reach just before, each network as it is shipped."""
    rows = []
    with closing(asked_in_turn(setting, "open")) as asked:
        for network, protocol, client in asked:
            reached = closed_turn(network, client, CONCURRENCY)[0]["rate"]
            for share in OPEN_SHARES if network is setting.tiny else OPEN_SHARES[:1]:
                offered = share * reached
                say(f"open loop: {network.name}, {protocol}, {offered:.2f} a second")
                # Of few requests nothing can be told: the slow network is asked for longer.
                seconds = max(network.turn, 20 / offered) if reached else network.turn
                samples = opened(client, max(offered, 0.1), network.warm_up + seconds)
                about = {"network": network.name, "protocol": protocol, "share": share, "offered": offered}
                rows.append(about | summary(samples, warm_up=network.warm_up, until=float("inf")))
    return {"rows": rows}


def open_text(numbers: Numbers) -> str:
    """A row for each rate."""
    rows = []
    for row in numbers["rows"]:
        offered = f"{row['offered']:.2f}/s ({100 * row['share']:.0f} %)"
        rows.append((row["network"], row["protocol"], offered, *rate_and_times(row)))
    headers = ("network", "protocol", "offered", *RATE_AND_TIMES)
    told = "Offered: as a share of what 8 clients in a closed loop reached just before. Latencies count from the "
    return f"{table(headers, rows)}\n{told}moment a request was to begin.\n"


def overhead_numbers(setting: LoadSetting) -> Numbers:
    """Requests a second through TorchServe beside those of the same images in one process, in turns of one run."""
    found = []
    cores = usable_cores()
    for network in setting.networks:
        ways = [(BATCH, 1)] if network is not setting.tiny else [(batch, 1) for batch in BATCHES]
        for batch, workers in [*ways, (BATCH, cores)] if cores > 1 else ways:
            asked: Numbers = {"batch_size": batch, "batch_delay": DELAY, "workers": workers}
            with setting.served(network, "overhead", **asked) as served:
                threads = served.description()["threads"]
                with (
                    setting.offline(network, cores) as offline,
                    setting.client(served, "REST") as rest,
                    setting.client(served, "gRPC") as grpc,
                ):
                    clients = {"REST": rest, "gRPC": grpc}
                    about = {"network": network.name, "batch": batch, "workers": workers, "threads": threads}
                    found.append(about | _turns(network, batch, offline, clients))
    return {"concurrency": CONCURRENCY, "delay": DELAY, "threads": cores, "rows": found}


def _turns(network: Network, batch: int, offline: Any, clients: dict[str, Any]) -> Numbers:
    """In-process, REST, gRPC, in-process, ...: the rates of every turn, and the latencies of all turns together.

    Before the first turn each protocol is used for a while: Java runs slowly until it has compiled what is used much.
    """
    rates: dict[str, list[float]] = {"in process": [], **{name: [] for name in clients}}
    windows: dict[str, list[Sample]] = {name: [] for name in clients}
    errors: dict[str, Counter[str]] = {name: Counter() for name in clients}
    cpu = dict.fromkeys(clients, 0.0)
    for client in clients.values():
        closed(client, CONCURRENCY, network.run_in)
    for turn in range(network.rounds):
        say(f"overhead: {network.name}, batches of {batch}, turn {turn + 1} of {network.rounds}")
        if turn == 0:
            offline.call("run", batch=batch, seconds=min(network.warm_up, 2.0))
        alone = offline.call("run", batch=batch, seconds=network.turn, least=2)
        rates["in process"].append(alone["images"] / alone["seconds"])
        for name, client in clients.items():
            found, samples = closed_turn(network, client, CONCURRENCY)
            cpu[name] += found["client_cpu_ms"] / network.rounds
            rates[name].append(found["rate"])
            errors[name].update(found["errors"])
            windows[name] += samples
    mean = {name: statistics.fmean(of) for name, of in rates.items()}
    times = {
        name: {**summary(samples, warm_up=0.0, until=float("inf")), "errors": dict(errors[name])}
        for name, samples in windows.items()
    }
    ratios = {name: mean[name] / mean["in process"] for name in clients}
    return {"rates": rates, "ratios": ratios, "client_cpu_ms": cpu, "times": times}


def overhead_text(numbers: Numbers) -> str:
    """Rates and ratios, then latencies, then what the ratios say."""
    rates, times = [], []
    for row in numbers["rows"]:
        way = f"{row['workers']} x {row['threads']}"
        cells = [row["network"], str(row["batch"]), way, _spread(row["rates"]["in process"])]
        for protocol in PROTOCOLS:
            cells += [_spread(row["rates"][protocol]), f"**{row['ratios'][protocol]:.2f}**"]
            found = {**row["times"][protocol], "rate": statistics.fmean(row["rates"][protocol])}
            times.append((row["network"], str(row["batch"]), way, protocol, *rate_and_times(found)))
        cells.append(" / ".join(f"{row['client_cpu_ms'][protocol]:.1f}" for protocol in PROTOCOLS))
        rates.append(cells)
    ways = ("network", "batchSize", "workers x threads")
    headers = (*ways, "in process", "REST", "ratio", "gRPC", "ratio", "client's CPU, ms a request")
    below = [
        f"{row['network']}, batchSize {row['batch']}, workers {row['workers']}, {protocol} ({ratio:.2f})"
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
        table((*ways, "protocol", *RATE_AND_TIMES), times),
        *[
            _recommended(numbers["rows"], name)
            for name in dict.fromkeys(r["network"] for r in numbers["rows"])
        ],
    ]
    return "\n".join(lines) + "\n"


def _recommended(rows: Sequence[Numbers], network: str) -> str:
    """The smallest batch within 2 % of the best rate: more only makes everybody wait longer."""
    mine = [row for row in rows if (row["network"], row["workers"]) == (network, 1)]
    rates = {row["batch"]: statistics.fmean(row["rates"]["REST"]) for row in mine}
    best = max(rates.values())
    chosen = min(batch for batch, rate in rates.items() if rate >= 0.98 * best)
    return f"- {network}: batchSize {chosen} is the smallest within 2 % of the best rate over REST."


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


def shown_errors(errors: dict[str, int]) -> str:
    """ "0", or what happened how often."""
    return ", ".join(f"{count} x {name}" for name, count in sorted(errors.items())) or "0"
