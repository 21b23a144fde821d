"""One part of the check in a process of its own: what it found goes into a file, again and again as it comes.

python -m benchmarks.gpu_check.one_part NAME SECONDS RESULT SETTING
"""

import importlib
import json
import sys
import traceback
import warnings
from dataclasses import asdict
from pathlib import Path

from benchmarks.gpu_check.setting import CheckSetting, first_line
from benchmarks.tables import Part
from model.files import write_whole


def main(arguments: list[str]) -> int:
    """0 where the part came to its end; 1 where it failed, its error then stands in the result."""
    name, seconds, result, setting = arguments
    path = Path(result)
    kept: list[Part] = []

    def keep(part: Part) -> None:
        kept[:] = [part]
        write_result(path, part)

    warnings.simplefilter("ignore", FutureWarning)  # TorchScript's deprecation is known, see pyproject.toml
    try:
        # Not imported above: what one part needs and the machine lacks costs that part alone.
        part = importlib.import_module(f"benchmarks.gpu_check.parts.{name}").measure(
            CheckSetting.from_json(setting), float(seconds), keep
        )
    except Exception as error:
        traceback.print_exc()
        write_result(path, kept[0] if kept else None, error=first_line(error))
        return 1
    write_result(path, part, finished=True)
    return 0


def write_result(path: Path, part: Part | None, *, finished: bool = False, error: str = "") -> None:
    """Whole or not at all."""
    content = {"finished": finished, "error": error, "part": None if part is None else asdict(part)}
    write_whole(path, json.dumps(content))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
