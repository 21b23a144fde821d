"""The parts about time: stages and whole, image sizes, batches, masks alone, and the floor."""

from typing import Any

from benchmarks.machine import available_gib
from benchmarks.pictures import SIZES
from benchmarks.speed.floor import SIDES
from benchmarks.speed.setting import CLASSES, PEER, SCRIPTED, Setting, interleaved, ours_in, say, started
from benchmarks.tables import Part, Times, shown, shown_times, speed_up, table, times_of
from benchmarks.worker import Remote, apart

NETWORK_STAGES = ("backbone", "RPN", "box head", "mask head")
STAGES = ("decode", "resize", *NETWORK_STAGES, "run lengths", "strings", "JSON", "rest of predict")
PEER_12MP_GIB = 14.0
"""torchvision holds 100 float32 masks of 12 megapixels twice while it pastes them."""


def speed(setting: Setting) -> list[Part]:
    """Whole and stages, sizes, batches, masks alone, floor: all with the same processes."""
    with started(setting, scripted=not setting.quick) as sides:
        parts = [whole(setting, sides), sizes(setting, sides), batches(setting, sides), masks(setting, sides)]
    return [*parts, floor(setting, parts[0], setting.network(CLASSES))]


def whole(setting: Setting, sides: dict[str, Remote]) -> Part:
    """One 1080p JPEG, 100 detections: whole, and in runs of their own the stages."""
    file = setting.picture("1080p")
    say("one 1080p image, whole")
    times = interleaved(sides, [file], 2 * setting.rounds)
    say("one 1080p image, stages")
    staged = [name for name in sides if name != SCRIPTED]
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in staged}
    for _ in range(setting.rounds):
        for name in staged:
            runs[name].append(sides[name].call("stages", files=[file]))
    stages = {
        name: {stage: Times(tuple(run.get(stage, 0.0) for run in runs[name])) for stage in STAGES}
        for name in staged
    }
    found = {name: side.call("time", files=[file])["detections"][0] for name, side in sides.items()}
    pairs = {PEER: sides[PEER].call("pairs", file=file), "maskx": setting.network(CLASSES)["pairs_ours"]}
    runs_per_column = sides[ours_in(setting.precisions[0])].call("runs_per_column", file=file)
    medians = {stage: [stages[name][stage].median for name in staged] for stage in STAGES}
    rows = [[stage, *[shown(one) if one > 0 else "-" for one in of]] for stage, of in medians.items()]
    rows.append(["**whole**", *[f"**{shown(times[name].median)}**" for name in staged]])
    rows.append(["fastest whole", *[shown(times[name].least) for name in staged]])
    others = [
        f"{SCRIPTED}: {shown_times(times[SCRIPTED])}, {speed_up(times[SCRIPTED], times[name]):.1f} times {name}"
        for name in staged
        if SCRIPTED in times and name != PEER
    ]
    text = table(["stage", *staged], rows) + "\n"
    text += "".join(f"- {line}\n" for line in others)
    text += (
        f"- detections: {_listed(found)}; (proposal, class) pairs above 0.05: {_listed(pairs)}\n"
        f"- object runs per image column of a box, median: {runs_per_column:.2f}\n"
        "- stages are medians of runs of their own (with the profiler on our side, hooks on torchvision's); for "
        '"run lengths" and "strings" torchvision pastes masks into the image and has pycocotools encode them\n'
    )
    numbers = {"whole": times_of(times), "stages": {name: times_of(of) for name, of in stages.items()}}
    numbers |= {"detections": found, "pairs": pairs, "runs_per_column": runs_per_column}
    ratios = {
        f"1080p whole, torchvision eager / maskx {one}": speed_up(times[PEER], times[ours_in(one)])
        for one in setting.precisions
    }
    return Part("Bytes in to JSON out: one 1080p JPEG, batch 1", text, numbers, ratios)


def sizes(setting: Setting, sides: dict[str, Remote]) -> Part:
    """One image of every size."""
    rows, numbers = [], {}
    chosen = ["480p"] if setting.quick else list(SIZES)
    for size in chosen:
        running = dict(sides)
        if size == "12MP":
            running.pop(SCRIPTED, None)
            if setting.device == "cpu" and available_gib() <= PEER_12MP_GIB:
                running.pop(PEER)
        say(f"one image of {size}")
        times = interleaved(running, [setting.picture(size)], setting.rounds)
        cells = [shown_times(times[name]) if name in times else "-" for name in sides]
        ours = [times[ours_in(precision)] for precision in setting.precisions]
        gains = [f"{speed_up(times[PEER], of):.1f}x" if PEER in times else "-" for of in ours]
        width, height = SIZES[size]
        rows.append([f"{size} ({width} x {height})", *cells, *gains])
        numbers[size] = times_of(times)
    headers = ["image", *sides, *[f"eager / {p}" for p in setting.precisions]]
    text = table(headers, rows)
    text += "\nMedian (fastest). At 12MP the scripted form is left out"
    text += f", and torchvision wholly where less than {PEER_12MP_GIB:.0f} GiB are free.\n"
    return Part(title="Image sizes, batch 1", text=text, numbers=numbers)


def batches(setting: Setting, sides: dict[str, Remote]) -> Part:
    """Several 1080p images at once: seconds an image."""
    rows, numbers = [], {}
    names = [name for name in sides if name != SCRIPTED]
    for batch in (1, 4) if setting.quick else (1, 4, 8):
        with_peer = batch == 1 or (batch == 4 and not setting.quick)
        running = {name: sides[name] for name in names if with_peer or name != PEER}
        say(f"batch of {batch}")
        files = [setting.picture("1080p", seed) for seed in range(batch)]
        times = interleaved(running, files, max(setting.rounds - 1, 1), warm_up=1)
        median = {name: of.median for name, of in times.items()}
        cells = {name: f"{shown(of / batch)} ({batch / of:.2f}/s)" for name, of in median.items()}
        rows.append([str(batch), *[cells.get(name, "-") for name in names]])
        numbers[str(batch)] = times_of(times)
    text = table(["batch", *names], rows)
    if not setting.quick:
        text += "\ntorchvision is left out at 8, for its time and memory.\n"
    title = "Batches of 1080p JPEGs: time an image (images a second)"
    return Part(title=title, text=text, numbers=numbers)


def masks(setting: Setting, sides: dict[str, Remote]) -> Part:
    """Mask probabilities and boxes -> COCO's compressed run lengths, the same 100 of them on both sides."""
    say("masks alone")
    path = str(setting.folder / "masks.pt")
    count = sides[PEER].call("write_masks", file=setting.picture("1080p"), out=path)
    width, height = SIZES["1080p"]
    ours = sides[ours_in(setting.precisions[0])]
    mine: list[float] = []
    theirs: list[float] = []
    for _ in range(setting.rounds + 1):
        arguments = {"masks": path, "height": height, "width": width}
        mine += ours.call("time_masks", **arguments, repeat=20)[3:]
        theirs += sides[PEER].call("time_masks", **arguments, repeat=1)
    times = {"maskx": Times(tuple(mine)), "torchvision paste + pycocotools encode": Times(tuple(theirs))}
    rows = [[name, shown(one.median), shown(one.least)] for name, one in times.items()]
    ratio = speed_up(*reversed(times.values()))
    title = f"Masks to compressed run lengths alone: 1080p, {count} detections"
    ratios = {"masks to RLE strings, torchvision paste + encode / maskx": ratio}
    return Part(title, table(["", "median", "fastest"], rows), times_of(times), ratios)


def floor(setting: Setting, measured: Part, about: dict[str, Any]) -> Part:
    """Operations of the network over the best matrix-multiplication rate, against the stages' times."""
    flops = about["flops"]["whole"]
    rows, numbers, ratios = [], {}, {}
    for precision in setting.precisions:
        say(f"matrix-multiplication rate in {precision}")
        rates = apart("benchmarks.speed.floor:matmul_rates", precision=precision, device=setting.device)
        best = max(rates.values())
        stages = measured.numbers["stages"][ours_in(precision)]
        median, least = (sum(stages[stage][which] for stage in NETWORK_STAGES) for which in ("median", "min"))
        least_time = flops / best
        shares = [f"{100 * least_time / seconds:.0f} %" for seconds in (median, least)]
        rate = [f"{rates[str(side)] / 1e9:.0f}" for side in SIDES]
        rows.append([precision, *rate, shown(least_time), shown(median), *shares])
        measured_at = {"floor_seconds": least_time, "network_median": median, "network_min": least}
        numbers[precision] = {"rates": rates, **measured_at}
        ratios[f"network in {precision}, share of the matrix-multiplication rate"] = least_time / median
    headers = ["precision", *[f"n = {n}, GFLOP/s" for n in SIDES], "floor", "network"]
    headers += ["share", "share, fastest"]
    text = table(headers, rows)
    text += (
        f"\nThe network (backbone, RPN, box head, mask head) at 1080p has {flops / 1e9:.0f} GFLOP, convolutions "
        "counted by their definition: computed with fewer multiplications (Winograd), a share may pass 100 %. The "
        "network's time contains RoIAlign, NMS and sorting, which count no operation.\n"
    )
    by_part = ", ".join(f"{n} {v / 1e9:.1f}" for n, v in about["flops"].items() if n != "whole")
    text += f"By module, GFLOP: {by_part}.\n"
    return Part("The floor", text, {"flops": about["flops"], "precisions": numbers}, ratios)


def _listed(values: dict[str, int]) -> str:
    return ", ".join(f"{value} ({name})" for name, value in values.items())
