"""The table of docs/speed.md, "Compiled", out of a result of the bench.

    python -m benchmarks.engines.page benchmarks/results/cpu-2026-11-29.json

prints it; every figure is one of that file's.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.tables import shown, table

WHOLE = "Engines: bytes in to JSON out"
COST = "Engines: start, memory, files"
BREAKDOWN = "Engines: where the time of a 1080p request goes"
COST_ROWS = {
    "ready": "ready after",
    "loaded_mib": "memory at load",
    "peak_one_mib": "peak memory, one 1080p request",
    "peak_batch_mib": "peak memory, the largest batch",
    "archive_mib": "size of the archive",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    options = parser().parse_args(arguments)
    try:
        print(page_table(json.loads(options.result.read_text(encoding="utf-8"))))
    except (OSError, ValueError) as error:
        print(f"error: {options.result} is no result of the bench: {error}", file=sys.stderr)
        return 2
    except KeyError as error:
        print(
            f"error: {options.result} has no part {error}; run make bench with --parts engines",
            file=sys.stderr,
        )
        return 2
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    told = (__doc__ or "").splitlines()[0]
    made = argparse.ArgumentParser(prog="python -m benchmarks.engines.page", description=told)
    made.add_argument("result", type=Path, help="the .json that the bench wrote beside its tables")
    return made


def page_table(result: Mapping[str, Any]) -> str:
    """A row for each engine's side, a column for each thing that was asked; below it what our two engines cost."""
    parts = result["parts"]
    rows = {key: row for key, row in parts[WHOLE].items() if key != "skipped"}
    shares = parts[BREAKDOWN]["shares"]
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    cells = []
    for name in names:
        times = [shown(row[name]["median"]) if name in row else "-" for row in rows.values()]
        share = f"{100 * shares[name]['network']:.0f} %" if name in shares else "-"
        cells.append([name, *times, share])
    text = table(["time an image", *rows, "share of the machine's rate"], cells)
    cost = parts[COST]
    lines = [
        [what, *[f"{of[key]:.1f} s" if key == "ready" else f"{of[key]:.0f} MiB" for of in cost.values()]]
        for key, what in COST_ROWS.items()
    ]
    return text + "\n" + table(["", *cost], lines)


if __name__ == "__main__":
    sys.exit(main())
