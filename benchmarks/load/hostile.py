"""The section of hostile requests: each of them against a server with the tiny network, and how long each took."""

import threading
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from benchmarks.load.sections import Numbers
from benchmarks.load.setting import LoadSetting, say
from benchmarks.tables import shown, table
from tests.hostile.case import ANSWERED, BY_SERVER, Case, http
from tests.hostile.images import FORMATS, encoded
from tests.hostile.judge import (
    Offline,
    Outcome,
    Seen,
    all_cases,
    cases_for,
    channel_to,
    run,
    send,
    send_by_grpc,
)

AIM = 2.0
"""Seconds for the slowest answer."""
SHOWN = 5


def valid_cases() -> list[Case]:
    """Requests with nothing wrong, one of each format, that are sent between the hostile ones."""
    images = {name: encoded(name) for name in FORMATS}
    return [
        Case(group="valid", name=name, expect=ANSWERED, wire=http(data), entries={"data": data}, image=data)
        for name, data in images.items()
    ]


def offline_answers(torchscript: Path) -> Offline:
    """What the handler's Service answers to one image in this process; each image is asked about once."""
    from benchmarks.speed.ours import Ours

    service = Ours(torchscript, "cpu", version="1.0").service
    known: dict[bytes, tuple[int, bytes]] = {}
    lock = threading.Lock()

    def answer(image: bytes) -> tuple[int, bytes]:
        with lock:
            if image not in known:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # Pillow's, about broken images
                    (found,) = service.answer([{"body": image}])
                known[image] = (found.status, found.body)
            return known[image]

    return answer


def hostile_numbers(setting: LoadSetting) -> Numbers:
    """All cases over REST, those that have a counterpart over gRPC; batches of one, so that bytes can be compared."""
    cases = cases_for(setting.engines[0], all_cases())
    offline = offline_answers(setting.tiny.path)
    for case in [*cases, *valid_cases()]:
        if case.image:
            offline(case.image)  # now, so that the other process's work is not in the times
    with setting.served(setting.tiny, "hostile", batch_size=1) as served:
        before = served.worker()
        say(f"hostile requests: {len(cases)} over REST")
        begin = time.monotonic()
        rest = run(cases, lambda case: send(case, served.port("REST")), offline, valid_cases())
        middle = time.monotonic()
        by_map = [case for case in cases if case.entries is not None]
        say(f"hostile requests: {len(by_map)} over gRPC")
        channel = channel_to(served.port("gRPC"))
        try:
            grpc = run(by_map, lambda case: send_by_grpc(case, channel), offline, valid_cases())
        finally:
            channel.close()
        same = served.same_worker(before)
    counted = {"REST": _counted(rest, middle - begin), "gRPC": _counted(grpc, time.monotonic() - middle)}
    return counted | {"groups": _groups(rest.rows), "same_worker": same}


def _counted(outcome: Outcome, seconds: float) -> Numbers:
    rows = sorted(outcome.rows, key=lambda row: -row[1].seconds)[:SHOWN]
    slowest = [{"name": f"{case.group}: {case.name}", "seconds": seen.seconds} for case, seen, _ in rows]
    counts = {"requests": len(outcome.rows), "valid_between": outcome.valid, "wrong": outcome.wrong}
    return {**counts, "seconds": seconds, "slowest": slowest}


def _groups(rows: Sequence[tuple[Case, Seen, str]]) -> list[Numbers]:
    """By group: how many, what they were answered with, how many in a form of the server's own, and the slowest."""
    found = []
    for group in sorted({case.group for case, _, _ in rows}):
        mine = [(case, seen) for case, seen, _ in rows if case.group == group]
        by_server = [seen for case, seen in mine if case.expect == BY_SERVER and seen.status != 200]
        own = sum(b'{"error":' not in seen.body for seen in by_server)
        counted = sorted(Counter(seen.status for _, seen in mine).items())
        statuses = {str(status): count for status, count in counted}
        slowest = max(seen.seconds for _, seen in mine)
        about = {"group": group, "requests": len(mine), "statuses": statuses}
        found.append(about | {"own_form": own, "slowest": slowest})
    return found


def hostile_text(numbers: Numbers) -> str:
    """A line for each protocol, then the groups."""
    lines = []
    for protocol in ("REST", "gRPC"):
        one = numbers[protocol]
        slowest = ", ".join(f"{row['name']} ({shown(row['seconds'])})" for row in one["slowest"])
        wrong = "every one" if not one["wrong"] else f"all but {len(one['wrong'])}"
        lines.append(
            f"- {protocol}: {one['requests']} hostile requests and {one['valid_between']} valid ones between, 3 at "
            f"a time, in {one['seconds']:.0f} s; {wrong} answered as it should be. Slowest: {slowest}."
        )
        lines += [f"  - NOT as expected: {what}" for what in one["wrong"][:20]]
    worst = max(row["seconds"] for protocol in ("REST", "gRPC") for row in numbers[protocol]["slowest"])
    lines.append(f"- The aim for the slowest is {AIM:.0f} s: {'kept' if worst <= AIM else 'not kept'}.")
    worker = "the one" if numbers["same_worker"] else "NOT the one"
    lines.append(f"- The worker at the end is {worker} of the beginning.")
    rows = []
    for one in numbers["groups"]:
        answers = [f"{n} x {'hung up' if status == '0' else status}" for status, n in one["statuses"].items()]
        cells = (str(one["requests"]), ", ".join(answers), str(one["own_form"]), shown(one["slowest"]))
        rows.append((one["group"], *cells))
    headers = ("group, REST", "requests", "answered with", "in another form", "slowest")
    lines += ["", table(headers, rows)]
    told = "A 400 is the service's error, a 200 the offline network's answer byte for byte; what TorchServe answers "
    return "\n".join(lines) + f"\n{told}by itself is in another form, which the proxy replaces.\n"
