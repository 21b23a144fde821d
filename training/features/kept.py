"""Stage "mask" on kept features: trunk and RPN run once for each view of an image, not once for each step.

The frozen detector sees the same in all steps that have the same view (`augment.views`), in every run on it, whatever
its set A, mask branch and T are: `data.features` is a folder that they share. In it each detector, data set and
augmentation has a folder of its own, named by the digest of all that the features follow from, with a file for each
view. A view is made when a run first comes to it, by one process while others wait, and is whole or not there. What
comes out of a run is to the last bit what it would be without.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from model.canvas import canvas_side
from model.config import to_dict as model_to_dict
from model.files import one_line
from training.data.coco import CocoDataset, Sample
from training.data.sampler import view_at, view_seed
from training.features.view_file import ViewFile, write_view
from training.locks import locked
from training.progress import progress
from training.run import Run

MASK_SIDE = ("mask_branch.", "mask_weights.", "keypoint_branch.")
SPARE = 2**28
"""Bytes that must stay free on the disk."""


class KeptViews(Dataset[Sample]):
    """A data set of which images and what the detector sees of them come from files, and targets as ever.

    Args:
        data: the set itself.
        folder: of the views' files, all of which are there.
        views: their number, `augment.views`.
        seed: of the run.
    """

    def __init__(self, data: CocoDataset, folder: Path, *, views: int, seed: int) -> None:
        self._data = data
        self._folder = folder
        self._views = views
        self._seed = seed
        self._files: dict[int, ViewFile] = {}

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, place: tuple[int, int]) -> Sample:
        """Image and target of (row, seed of one of its views)."""
        row, seed = place
        view = [view_seed(seed=self._seed, row=row, view=k) for k in range(self._views)].index(seed)
        if view not in self._files:  # each reading process opens its own
            self._files[view] = ViewFile(view_path(self._folder, view))
        image, *seen = self._files[view][row]
        target = self._data.augmented_target(row, seed)
        target["seen"] = seen
        return image, target


def kept_views(run: Run, data: CocoDataset, *, stopped: Callable[[], bool] = lambda: False) -> KeptViews:
    """The views that are left of the run's stage, made where they are not there yet.

    Args:
        run: in stage "mask", with `data.features` and `augment.views` set.
        data: trained on.
        stopped: asked between images; once it is true the views that are not whole are left undone.

    Raises:
        ValueError: no room on the disk, or an image that cannot be read.
    """
    config = run.config
    settings = settings_of(run, data)
    folder = Path(config.data.features) / _short(settings)
    schedule = config.schedule
    left = schedule.steps("mask") - schedule.steps_done(run.step)["mask"]
    first, last = run.images_seen, run.images_seen + left * schedule.batch_size - 1
    views, size = config.augment.views, len(data)
    passes = range(first // size, last // size + 1)
    wanted = {view_at(epoch * size, size=size, views=views) for epoch in passes}
    missing = [view for view in sorted(wanted) if not view_path(folder, view).is_file()]
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / "lock", wait=True):
            missing = [view for view in missing if not view_path(folder, view).is_file()]
            if missing:
                _make(run, data, folder, missing, settings, stopped)
    return KeptViews(data, folder, views=views, seed=config.seed)


def view_path(folder: Path, view: int) -> Path:
    """The file of a view."""
    return folder / f"view{view}.bin"


def settings_of(run: Run, data: CocoDataset) -> dict[str, str]:
    """All that the features follow from, by name, each as a word or a digest."""
    config = run.config
    weights = hashlib.sha256()
    for name, value in run.network.state_dict().items():
        if not name.startswith(MASK_SIDE):
            weights.update(name.encode())
            weights.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    form = {k: v for k, v in model_to_dict(config.model).items() if k in ("input", "backbone", "rpn", "box")}
    augment = vars(config.augment) | {"views": None, "swapped_classes": None}
    files = [
        (str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in map(data.path, range(len(data)))
    ]
    return {
        "weights of the detector": weights.hexdigest(),
        "form of the detector": _digest(form),
        "images": _digest(files),
        "augmentation": _digest(augment),
        "seed": str(config.seed),
        "precision": f"{run.precision}, channels_last {config.channels_last}, {run.device.type}",
        "torch": str(torch.__version__),
    }


class _Stopped(Exception):
    """The run is to end."""


def _make(
    run: Run,
    data: CocoDataset,
    folder: Path,
    views: list[int],
    settings: dict[str, str],
    stopped: Callable[[], bool],
) -> None:
    """Write the files of `views`; the folder's lock is held."""
    for path in folder.glob(".*.unfinished"):
        path.unlink(missing_ok=True)
    said = f"{folder}: what the frozen detector sees of {len(data)} images, {len(views)} views"
    needed = len(views) * bytes_of_view(run, data)
    free = shutil.disk_usage(folder).free
    if needed + SPARE > free:
        raise ValueError(
            f"{said}: {_gigabytes(needed)}, but the disk has {_gigabytes(free)} free; free some, set augment.views "
            "lower, or leave data.features out, which trains the same and takes longer"
        )
    others = [path for path in folder.parent.iterdir() if path.is_dir() and path != folder]
    print(f"{said}: {_gigabytes(needed)}, made once" + _unlike(others, settings), flush=True)
    with progress(range(len(views) * len(data)), "detector", unit="images") as shown:
        for view in views:

            def records(view: int = view) -> Iterator[list[Tensor]]:
                for row in range(len(data)):
                    if stopped():
                        raise _Stopped
                    yield record(run, data, row, view)
                    shown.advance()

            try:
                write_view(view_path(folder, view), records(), settings)
            except _Stopped:
                return
            except OSError as error:
                raise ValueError(f"{view_path(folder, view)}: {one_line(error)}") from error


def record(run: Run, data: CocoDataset, row: int, view: int) -> list[Tensor]:
    """What is kept of a view of the image at `row`: the changed image itself, whose colours some losses look at, and
    what the detector sees of it."""
    image, _ = data[row, view_seed(seed=run.config.seed, row=row, view=view)]
    return [image, *(tensor.cpu() for tensor in run.seen(image.to(run.device)))]


def bytes_of_view(run: Run, data: CocoDataset) -> int:
    """About how many bytes a view takes: as many for a pixel of every canvas as the first image's has."""
    image, *seen = record(run, data, 0, 0)
    step = run.network.canvas.step

    def area(row: int) -> int:
        height, width = run.network.canvas.size_of(image.new_empty((3, *data.size(row)), device="meta"))
        return canvas_side(height, step) * canvas_side(width, step)

    each = sum(tensor.numel() * tensor.element_size() for tensor in seen) / area(0)
    pixels = sum(3 * height * width for height, width in map(data.size, range(len(data))))
    return int(each * sum(map(area, range(len(data))))) + pixels


def _unlike(folders: list[Path], settings: dict[str, str]) -> str:
    """In what the features that lie beside these, if any, are of another kind."""
    for path in sorted(folders):
        for file in sorted(path.glob("view*.bin"))[:1]:
            before = ViewFile(file).settings
            names = [name for name in settings if settings[name] != before.get(name)]
            return f" (those in {path} differ in: {', '.join(names)}; remove them if no run needs them)"
    return ""


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _short(settings: dict[str, str]) -> str:
    return _digest(settings)[:12]


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2g} GB" if count >= 1e8 else f"{count / 1e6:.2g} MB"
