"""The part "engines" of `make bench`: compiled beside TorchScript and beside what a user would take."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.engines.agreement import agreement
from benchmarks.engines.dense import BOUNDS
from benchmarks.engines.side import COMPILED, DENSE_STAGES, STAGE_OF, TORCHSCRIPT
from benchmarks.engines.started import FLOAT32_ALONE, Sides, default_peers, named, sides_of
from benchmarks.speed.floor import SIDES
from benchmarks.speed.setting import CLASSES, PEER, Setting, interleaved, say
from benchmarks.tables import Part, Times, shown, speed_up, table, times_of
from benchmarks.worker import Remote, apart

MANY = 3000
Row = dict[str, Times]
"""Of one thing that is asked, each side's times of an image."""


def engines(setting: Setting) -> list[Part]:
    """All of them on the network for 80 classes, our two engines on that for 3 000 as well."""
    if setting.device != "cpu":
        return [Part("Engines", "Compared on the CPU alone; for a GPU see `make gpu-check`.\n", {})]
    peers = default_peers(CLASSES) if setting.peers is None else setting.peers
    rows: dict[str, Row] = {}
    with sides_of(setting, CLASSES, peers) as sides:
        same = differences(setting, sides)
        rows |= of_sizes(setting, sides)
        memory_of_one = peaks(sides)
        rows |= of_batches(setting, sides)
        costs = cost(setting, sides, memory_of_one, peaks(sides))
        # At the end: from then on TorchScript goes stage by stage, and holds its weights a second time.
        parts = [breakdown(setting, sides), costs]
    if not setting.quick:
        with sides_of(setting, MANY, ()) as many:
            rows[f"1080p, {MANY} classes"] = interleaved(
                many.remotes, [setting.picture("1080p")], setting.rounds
            )
    return [whole(rows, sides.skipped), *parts, same]


def of_sizes(setting: Setting, sides: Sides) -> dict[str, Row]:
    """One image of each size; torchvision's forms answer the 1080p alone, for their time and memory."""
    rows = {}
    for size in ("1080p",) if setting.quick else ("1080p", "480p", "12MP"):
        say(f"engines: one image of {size}")
        running = sides.remotes if size == "1080p" else sides.chosen(sides.staged())
        rows[size] = interleaved(running, [setting.picture(size)], setting.rounds)
    return rows


def of_batches(setting: Setting, sides: Sides) -> dict[str, Row]:
    """Several 1080p images at once, by our two engines."""
    rows = {}
    for batch in (4,) if setting.quick else (4, 8):
        say(f"engines: batch of {batch}")
        files = [setting.picture("1080p", seed) for seed in range(batch)]
        running = sides.chosen(sides.ours())
        rounds = max(setting.rounds - 1, 1)
        times = interleaved(running, files, rounds, warm_up=1 if batch == 4 and not setting.quick else 0)
        rows[f"1080p, batch of {batch}"] = {
            name: Times(tuple(one / batch for one in of.seconds)) for name, of in times.items()
        }
    return rows


def whole(rows: Mapping[str, Row], skipped: Mapping[str, str]) -> Part:
    """Seconds an image of every side, and what the compiled engine gains over each."""
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    cells = [
        [name, *[shown(row[name].median) if name in row else "-" for row in rows.values()]] for name in names
    ]
    text = table(["time an image", *rows], cells)
    gains: list[list[str]] = []
    ratios: dict[str, float] = {}
    for name in names:
        precision = name.split()[-1]
        for mine in [own for own in names if own.startswith(COMPILED)]:
            if mine == name or (name != PEER and not mine.endswith(precision)):
                continue
            of_rows = {key: gain(row, name, mine) for key, row in rows.items()}
            gains.append([f"{name} / {mine}", *[f"{one:.2f}x" if one else "-" for one in of_rows.values()]])
            ratios |= {f"{key}, {name} / {mine}": one for key, one in of_rows.items() if one}
    if gains:
        text += "\n" + table(["how many times as long", *rows], gains)
    text += "".join(f"- {name} was left out: {reason}\n" for name, reason in skipped.items())
    text += (
        "- bytes of a JPEG to JSON, medians, sides in turns; the dense parts (trunk, box head, mask head) by the "
        "engine that is named, all else of our network by the handler's own code; torchvision with its own\n"
        f"- {', '.join(FLOAT32_ALONE)} has no bfloat16 convolutions on a CPU\n"
    )
    numbers = {key: times_of(row) for key, row in rows.items()} | {"skipped": dict(skipped)}
    return Part("Engines: bytes in to JSON out", text, numbers, ratios)


def gain(row: Row, other: str, mine: str) -> float | None:
    """How many times as long the other takes, where both were timed."""
    return speed_up(row[other], row[mine]) if other in row and mine in row else None


def breakdown(setting: Setting, sides: Sides) -> Part:
    """Where the time of a 1080p request goes, engine by engine, beside the machine's rate of matrix products."""
    file, flops = setting.picture("1080p"), setting.network(CLASSES)["flops"]
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in sides.staged()}
    say("engines: where the time goes")
    for _ in range(setting.rounds):
        for name, of in runs.items():
            of.append(sides.remotes[name].call("breakdown", files=[file]))
    medians = {
        name: {stage: Times(tuple(run[stage] for run in of)).median for stage in of[0]}
        for name, of in runs.items()
    }
    rates = {}
    for precision in setting.precisions:
        say(f"matrix-multiplication rate in {precision}")
        found = apart("benchmarks.speed.floor:matmul_rates", precision=precision, device="cpu")
        rates[precision] = max(found[str(side)] for side in SIDES)
    text, ratios, shares = breakdown_table(medians, rates, flops)
    numbers = {"seconds": medians, "rates": rates, "flops": flops, "shares": shares}
    return Part("Engines: where the time of a 1080p request goes", text, numbers, ratios)


def breakdown_table(
    medians: Mapping[str, Mapping[str, float]], rates: Mapping[str, float], flops: Mapping[str, int]
) -> tuple[str, dict[str, float], dict[str, dict[str, float]]]:
    """The table; the network's share of the rate in our engines, as ratios; all shares, by side and dense part.

    Args:
        medians: of each side, seconds of each stage and "whole".
        rates: FLOP/s of matrix products by precision.
        flops: operations of one image by module (`floor.network_flops`).
    """
    operations = {part: sum(flops.get(one, 0) for one in of) for part, of in DENSE_STAGES.items()}
    network = [name for name in STAGE_OF.values() if name not in ("resize", "run lengths")]
    rows, ratios, shares = [], {}, {}
    order = [*DENSE_STAGES, *[name for name in STAGE_OF.values() if name not in DENSE_STAGES], "all else"]
    for name, of in medians.items():
        rate = rates[name.split()[-1]]
        share = {part: operations[part] / rate / of[part] for part in DENSE_STAGES}
        share["network"] = flops["whole"] / rate / sum(of[stage] for stage in network)
        cells = [
            shown(of[stage]) + (f" ({100 * share[stage]:.0f} %)" if stage in share else "") for stage in order
        ]
        rows.append([name, *cells, shown(of["whole"]), f"{100 * share['network']:.0f} %"])
        shares[name] = share
        if name.split()[0] in (TORCHSCRIPT, COMPILED):
            ratios[f"network by {name}, share of the matrix-multiplication rate"] = share["network"]
    text = table(["engine", *order, "whole", "network's share"], rows)
    told = ", ".join(f"{rate / 1e9:.0f} GFLOP/s in {precision}" for precision, rate in rates.items())
    counted = ", ".join(f"{part} {count / 1e9:.0f}" for part, count in operations.items())
    text += (
        f"\nIn brackets the share of the best measured rate of matrix products ({told}) that a part reaches, by its "
        f"operations as they are defined (GFLOP: {counted}); Winograd's form may pass 100 %. The trunk is backbone and "
        "RPN head; crops for the box head stand with the NMS of the proposals. The network's share is that of all that "
        "lies between resizing and run lengths. TorchScript goes stage by stage here.\n"
    )
    return text, ratios, shares


def peaks(sides: Sides) -> dict[str, float]:
    """MiB that each of our sides held at most until now."""
    return {name: side.call("memory")["peak_mib"] for name, side in sides.chosen(sides.ours()).items()}


def cost(setting: Setting, sides: Sides, one: Mapping[str, float], batch: Mapping[str, float]) -> Part:
    """Start, memory and files of our two engines."""
    largest = 4 if setting.quick else 8
    rows, numbers = [], {}
    for name in sides.ours():
        began, precision = sides.began[name], name.split()[-1]
        package = sides.packages[precision].get("path") if name.startswith(COMPILED) else None
        size = archive_mib(setting.of(CLASSES), package)
        compiling = f"{sides.packages[precision]['seconds']:.0f} s" if package else "-"
        cells = [f"{began['ready']:.1f} s", shown(began["first"])]
        cells += [f"{mib:.0f}" for mib in (began["loaded_mib"], one[name], batch[name])]
        rows.append([name, *cells, f"{size:.1f}", compiling])
        peak = {"peak_one_mib": one[name], "peak_batch_mib": batch[name], "archive_mib": size}
        about = {**sides.packages[precision], "path": Path(package).name} if package else None
        numbers[name] = {**began, **peak, "package": about}  # a result names no machine's folders
    headers = ["engine", "ready after", "first request", "MiB loaded", "MiB at most, one 1080p"]
    headers += [f"MiB at most, batch of {largest}", "MiB of the archive", "compiling the package"]
    text = table(headers, rows)
    for precision, package in sides.packages.items():
        record = package.get("record", {})
        if record:
            parts = ", ".join(record["parts"])
            left = "".join(f"; {name} left out: {why}" for name, why in record.get("left_out", {}).items())
            text += f"- the package in {precision} has {parts}{left}\n"
    text += "- ready: from the start of the process, PyTorch's import included, to the loaded network\n"
    return Part("Engines: start, memory, files", text, numbers)


def archive_mib(folder: Path, package: str | None) -> float:
    """MiB of the .mar with the network of `folder`, and with the package where there is one."""
    asked = {"torchscript": str(folder / "maskx.pt"), "out": str(folder / "maskx.mar"), "package": package}
    found: float = apart("benchmarks.engines.packaged:archive_mib", **asked)
    return found


def differences(setting: Setting, sides: Sides) -> Part:
    """Whether all engines compute the same: the parts' numbers, and what was found."""
    file = setting.picture("1080p")
    names = sides.staged()
    bodies = {name: sides.remotes[name].call("bodies", files=[file])[0].encode() for name in names}
    reference = bodies[named(TORCHSCRIPT, setting.precisions[0])]
    rows, numbers = [], {}
    for name in names:
        agree = agreement(reference, bodies[name])
        parts = own_differences(sides.remotes[name], file) if name not in sides.ours() else {}
        bound = BOUNDS[name.split()[-1]]
        cells = [f"{one:.1e}{' **beyond the bound**' if not one <= bound else ''}" for one in parts.values()]
        rows.append([name, f"{100 * agree:.0f} %", *(cells or ["-"] * 3)])
        numbers[name] = {"agreement": agree, "differences": parts}
    text = table(["engine", "detections alike", "trunk", "box head", "mask head"], rows)
    text += (
        f"\nDetections of the 1080p photograph that TorchScript in {setting.precisions[0]} found too (class, box and "
        "mask with an IoU of 0.9); and how far each part's answer is from eager float32 (root mean squares, the "
        f"difference's over the answer's), with bounds of {BOUNDS['float32']:g} and {BOUNDS['bfloat16']:g}. Random "
        "weights have many detections that are equally good, so that not all are alike where the numbers are. The "
        "package is verified when it is made.\n"
    )
    return Part("Engines: the same answers", text, numbers)


def own_differences(side: Remote, file: str) -> dict[str, float]:
    """Of each part, in the order of the table."""
    found: dict[str, Any] = side.call("differences", files=[file])
    return {name: float(found[name]) for name in ("trunk", "box_head", "mask_head")}
