"""The trained network of the check: the one that was given, else one trained here on the drawn set; and that set."""

import contextlib
import csv
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import ROOT
from benchmarks.gpu_check.setting import CheckSetting, Clock, Keep, measured, say
from benchmarks.tables import Part, table
from training.drawn.shapes import ShapesConfig, write_shapes

VALIDATION = 200
"""Images of the drawn set that it is judged on, the very ones of `make data`."""
EXPORT_SECONDS = 25.0
"""Kept back for the export."""
STEPS = (240, 120)
"""Of the detector and of the mask branch, on a GPU: some 50 s; the preset has five times as many."""
SHORT_STEPS = (3, 2)


def measure(setting: CheckSetting, seconds: float, keep: Keep) -> Part:
    """Draws the set, takes or trains the network, exports it. Raises ValueError where that cannot be done."""
    clock = Clock(seconds)
    rows: list[tuple[str, str]] = []
    given = setting.trained or setting.checkpoint
    few = (48, 16) if setting.short else (320 if given else 1600, VALIDATION)
    begin = time.monotonic()
    write_shapes(setting.shapes, ShapesConfig(train=few[0], val=few[1]))
    rows.append(("the drawn set", f"{few[0]} + {few[1]} images, {time.monotonic() - begin:.0f} s"))
    folder = setting.trained_path.parent
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    begin = time.monotonic()
    numbers: dict[str, Any] = {"images": few}
    if setting.checkpoint:
        shutil.copyfile(setting.checkpoint, setting.checkpoint_path)
        rows.append(("weights", "given (--checkpoint)"))
    elif setting.trained:
        rows.append(("weights", "given (--maskx-pt)"))
    else:
        numbers["loss"] = loss = trained_here(setting, folder, clock)
        took = f"{time.monotonic() - begin:.0f} s"
        rows.append(("weights", f"trained here, {took}, loss at the end {loss:.3f}"))
    begin = time.monotonic()
    if setting.trained:
        shutil.copyfile(setting.trained, setting.trained_path)
        rows.append(("maskx.pt", "as given, not exported by this version"))
    else:
        exported(setting)
        rows.append(("maskx.pt", f"exported and verified on the CPU, {time.monotonic() - begin:.0f} s"))
    return Part("The trained network", table(("what", "how"), rows), measured(**numbers))


def trained_here(setting: CheckSetting, folder: Path, clock: Clock) -> float:
    """Trains the shapes preset for a few hundred steps, or as many as there is time for; the loss at the end.

    A training that the time does not suffice for is stopped as a user would, so that it leaves its checkpoint: the
    network has then no mask branch worth the name, which the report's AP shows.
    """
    detector, mask = SHORT_STEPS if setting.short else STEPS
    run = folder / "run"
    command = training_command(
        setting,
        run,
        f"schedule.detector_steps={detector}",
        f"schedule.mask_steps={mask}",
        f"schedule.warmup_steps={min(50, detector)}",
        f"device={'cuda' if setting.on_gpu else 'cpu'}",
        f"data.workers={2 if setting.short else min(8, os.cpu_count() or 1)}",
    )
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL)
    try:
        process.wait(timeout=max(clock.left - EXPORT_SECONDS, 10))
    except subprocess.TimeoutExpired:
        say("the training is stopped: its time is up")
        process.terminate()
        process.wait(timeout=30)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    if process.returncode not in (0, 143):
        raise ValueError(f"the training ended with status {process.returncode}; its own error stands above")
    shutil.copyfile(run / "checkpoint.pt", setting.checkpoint_path)
    return list(losses_of(run).values())[-1]


def training_command(setting: CheckSetting, folder: Path, *changes: str) -> list[str]:
    """Trains the shapes preset on the drawn set, the loss of every step in `folder`/log.csv."""
    shapes = setting.shapes
    sets = [f"data.{name}_images={shapes / name}" for name in ("train", "val")]
    sets += [f"data.{name}_annotations={shapes / name}.json" for name in ("train", "val")]
    return [
        *[sys.executable, "-m", "training.train", "--config", "training/presets/shapes.toml"],
        *[f"output.dir={folder}", "output.log_every=1", "output.tensorboard=false"],
        *[*sets, f"data.mask_classes={shapes / 'mask_classes.txt'}", *changes],
    ]


def losses_of(folder: Path) -> dict[int, float]:
    """By step, of a training that may still be running; none where it has logged nothing."""
    path = folder / "log.csv"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    whole = [line for line in lines if line.endswith("\n")]
    return {int(row["step"]): float(row["loss"]) for row in csv.DictReader(whole)}


def exported(setting: CheckSetting) -> None:
    """checkpoint.pt -> maskx.pt. Raises ValueError with what the export says."""
    command = [sys.executable, "-m", "export.torchscript"]
    command += ["--checkpoint", str(setting.checkpoint_path), "--out", str(setting.trained_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise ValueError(f"the export failed ({done.returncode}): {said[-1] if said else 'it said nothing'}")
