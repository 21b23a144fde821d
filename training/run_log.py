"""The record of a run: `log.csv` for every reader, TensorBoard for those who watch curves.

`broken_images.csv` is there where images could not be read: a row for each time.
"""

import csv
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Self

from torch.utils.tensorboard import SummaryWriter

from model.files import write_whole
from training.config import LossWeightsConfig

LOSSES = tuple(field.name for field in fields(LossWeightsConfig) if field.name != "loss_keypoint")
"""Of every network; further ones are told to `RunLog`."""
COLUMNS = ("step", "stage", "learning_rate", "images_per_second", "gradient_norm", "loss", *LOSSES)


class RunLog:
    """Collects the figures of steps and writes their mean as one row.

    Args:
        folder: of the run; `log.csv` and `tensorboard/` are written there.
        step: steps already done. Rows of later steps, which a killed run has left, are dropped, and so is
            everything where `step` is 0.
        tensorboard: write event files too.
        more: names of further losses, each a column.
    """

    def __init__(self, folder: Path, *, step: int, tensorboard: bool, more: Sequence[str] = ()) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "log.csv"
        _keep_rows_up_to(self.path, step)
        self._broken = folder / "broken_images.csv"
        _keep_rows_up_to(self._broken, step)
        events = folder / "tensorboard"
        if step == 0:
            shutil.rmtree(events, ignore_errors=True)
        self._file = self.path.open("a", newline="", encoding="utf-8")
        self._rows = csv.DictWriter(self._file, (*COLUMNS, *more))
        if self.path.stat().st_size == 0:
            self._rows.writeheader()
        self._events = SummaryWriter(str(events), purge_step=step + 1) if tensorboard else None
        self._sums: dict[str, float] = {}
        self._steps = self._images = 0
        self._since = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self._file.close()
        if self._events is not None:
            self._events.close()

    def add(self, figures: Mapping[str, float], *, images: int) -> None:
        """The figures of one step (`gradient_norm`, `loss` and the single losses), on `images` images."""
        for name, value in figures.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._steps += 1
        self._images += images

    def write(self, step: int, *, stage: str, learning_rate: float) -> None:
        """A row for `step`: the mean of what came in since the last row; none where nothing did."""
        if self._steps == 0:
            return
        now = time.monotonic()
        figures = {name: total / self._steps for name, total in self._sums.items()}
        figures["images_per_second"] = self._images / max(now - self._since, 1e-9)
        figures["learning_rate"] = learning_rate
        row = {name: f"{value:.6g}" for name, value in figures.items()}
        self._rows.writerow({"step": step, "stage": stage, **row})
        self._file.flush()
        if self._events is not None:
            for name, value in figures.items():
                self._events.add_scalar(name, value, step)
        self._sums, self._steps, self._images, self._since = {}, 0, 0, now

    def broken(self, step: int, problems: Sequence[str], *, times: int) -> None:
        """A row of `broken_images.csv` for each image that could not be read for `step`; with them there are `times`.

        No such row stays at the next start where the step was not done.
        """
        if not problems:
            return
        new = not self._broken.exists()
        with self._broken.open("a", newline="", encoding="utf-8", errors="backslashreplace") as file:
            rows = csv.writer(file)
            if new:
                rows.writerow(("step", "count", "image"))
            first = times - len(problems) + 1
            rows.writerows((step, count, words) for count, words in enumerate(problems, start=first))
        if self._events is not None:
            self._events.add_scalar("broken_images", times, step)


def _keep_rows_up_to(path: Path, step: int) -> None:
    """Rewrite the CSV without the rows after `step`, and without a last line that was cut off."""
    if step == 0 or not path.is_file():
        path.unlink(missing_ok=True)
        return
    header, *lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and int(line.split(",", 1)[0]) <= step]
    write_whole(path, header + "".join(kept))
