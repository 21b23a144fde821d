"""The parts about classes and memory; every figure of memory is a fresh process's."""

from contextlib import ExitStack
from typing import Any

from benchmarks.speed.setting import CLASSES, OURS, PEER, Setting, ours_in, say
from benchmarks.tables import Part, Times, shown, speed_up, table, times_of
from benchmarks.worker import Remote, apart

MANY_CLASSES = (80, 1203, 3000)
"""COCO, LVIS, and the Visual Genome classes of the paper's large run."""


def classes(setting: Setting) -> Part:
    """80, 1 203 and 3 000 classes at equal surviving pairs: time and peak memory of a fresh process."""
    counts = (80, 3000) if setting.quick else MANY_CLASSES
    file = setting.picture("1080p")
    precisions = setting.precisions[-1:] if setting.quick else setting.precisions
    names = [*map(ours_in, precisions), PEER]
    for count in counts:
        setting.network(count)
    times: dict[str, dict[int, Times]] = {}
    peaks: dict[str, dict[int, float]] = {}
    for name in names:
        # One side at a time, its class counts in turns: all of them at once would not fit a small machine.
        say(f"classes: {name}")
        with ExitStack() as stack:
            remotes: dict[int, Remote] = {}
            for count in counts:
                remote = setting.peer(count) if name == PEER else setting.ours(count, name.split()[1])
                remotes[count] = stack.enter_context(remote)
            seconds: dict[int, list[float]] = {count: [] for count in counts}
            for number in range(setting.rounds + (name != PEER)):
                for count, remote in remotes.items():
                    warm_up = 0 if number else 1 if name == PEER else 3
                    run = remote.call("time", files=[file], warm_up=warm_up)
                    seconds[count].append(run["seconds"])
            times[name] = {count: Times(tuple(of)) for count, of in seconds.items()}
            peaks[name] = {count: remote.call("memory")["peak_mib"] for count, remote in remotes.items()}
    rows = []
    for count in counts:
        about = setting.network(count)
        cells = []
        for name in names:
            cells += [shown(times[name][count].median), f"{peaks[name][count]:.0f} MiB"]
        rows.append([str(count), f"{about['pairs_ours']} / {about['pairs']}", *cells])
    most = counts[-1]
    last = [f"{most} / {counts[0]}", ""]
    ratios = {}
    for name in names:
        ratio = speed_up(times[name][most], times[name][counts[0]])
        last += [f"**{ratio:.2f}x**", f"{peaks[name][most] / peaks[name][counts[0]]:.2f}x"]
        ratios[f"{most} classes / {counts[0]} classes, {name}"] = ratio
    headers = ["classes", "pairs, maskx / torchvision"]
    for name in names:
        headers += [name, "peak"]
    text = table(headers, [*rows, last])
    text += "\nPeak memory of a fresh process, weights and PyTorch included.\n"
    numbers = {"seconds": {name: times_of(of) for name, of in times.items()}, "peak_mib": peaks}
    numbers |= {key: {n: setting.network(n)[key] for n in counts} for key in ("pairs", "pairs_ours")}
    title = "Classes: one 1080p JPEG, bytes in to JSON out, at equal surviving pairs"
    return Part(title, text, numbers, ratios)


def memory(setting: Setting) -> Part:
    """Peak of one 1080p request and of a batch of 8, each in a fresh process; growth over many requests."""
    setting.network(CLASSES)
    rows: list[list[str]] = []
    numbers: dict[str, Any] = {}
    precisions = setting.precisions[-1:] if setting.quick else setting.precisions
    for name in [*map(ours_in, precisions), PEER]:
        cells = [name]
        for batch in (1, 8):
            if batch == 8 and (name == PEER or setting.quick):
                cells.append("-")
                continue
            say(f"memory: {name}, batch of {batch}")
            files = [setting.picture("1080p", seed) for seed in range(batch)]
            side = setting.peer(CLASSES) if name == PEER else setting.ours(CLASSES, name.split()[1])
            with side:
                loaded = side.call("memory")["resident_mib"]
                side.call("time", files=files)
                found = side.call("memory")
            numbers[f"{name}, batch {batch}"] = {"loaded_mib": loaded, **found}
            if batch == 1:
                cells.append(f"{loaded:.0f}")
            cells.append(f"{found['peak_mib']:.0f}")
        rows.append(cells)
    text = table(["MiB", "loaded", "peak, one 1080p JPEG", "peak, batch of 8"], rows)
    grown, sentence = growth(setting)
    return Part("Memory of a fresh process", f"{text}\n{sentence}", {"peaks": numbers, "growth": grown})


def growth(setting: Setting) -> tuple[dict[str, Any], str]:
    """Memory held after the first tenth of many requests and after the last; a sentence that says so."""
    path = setting.folder / "small" / "maskx.pt"
    apart("benchmarks.speed.network:prepare_small", path=str(path))
    small = Remote(OURS, path=str(path), device=setting.device, precision=setting.precisions[0])
    big = setting.ours(CLASSES, setting.precisions[-1])
    numbers: dict[str, Any] = {}
    lines = []
    few, many = (10, 100) if setting.quick else (60, 1000)
    above = f"the network above in {setting.precisions[-1]}, 1080p"
    for what, side, picture, threshold, requests in (
        ("a small network, 480p", small, "480p", 0.0, many),
        (above, big, "1080p", 0.05, few),
    ):
        say(f"memory: {requests} requests, {what}")
        with side:
            held = []
            for _ in range(10):
                side.call("many", file=setting.picture(picture), requests=requests // 10, threshold=threshold)
                held.append(round(side.call("memory", settled=True)["resident_mib"], 1))
        numbers[what] = {"requests": requests, "held_mib_after_each_tenth": held}
        lines.append(
            f"- {requests} requests, {what}: {held[0]:.1f} MiB held after the first tenth, {held[4]:.1f} after half, "
            f"{held[-1]:.1f} after the last ({held[-1] - held[0]:+.1f})\n"
        )
    return numbers, "".join(lines)
