"""Images that break in the middle of a training: deleted, cut short, of another size, out of reach for a while.

Each costs its own place in a batch, never the run: another image, drawn from the run's seed and the place alone, is
read there, so that neither the number of reading processes nor a stop in between changes which. The other places keep
their images and draws. Every such image is named and counted; too many (`training.data.image_files.too_many`), or a
place for which none of several images can be read, as where a disk is gone, stop the run.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from torch.utils.data import Dataset

from model.files import one_line
from training.data.coco import Sample
from training.data.image_files import UnreadableImage, too_many
from training.data.sampler import stand_in
from training.distributed import Group
from training.run_log import RunLog

TRIES = 5
"""Images that are tried for one place. With 1 % of them broken, all five are once in 10^10 places."""


class Problem(NamedTuple):
    """An image that could not be read: its row in the data set, and why, in a line that begins with its file."""

    row: int
    words: str


class Samples(Protocol):
    """A data set whose samples are asked for by (row, sample seed)."""

    def __len__(self) -> int: ...

    def __getitem__(self, place: tuple[int, int], /) -> Sample: ...


class Drawn(NamedTuple):
    """What was read for a place in a batch (None: nothing could be), and what could not be read before it."""

    sample: Sample | None
    problems: tuple[Problem, ...]


class TooManyBroken(ValueError):
    """Too many images cannot be read; the run stops before the step that met them, in all its processes."""


class WithStandIns(Dataset[Drawn]):
    """A data set in which other images stand in for those that cannot be read."""

    def __init__(self, data: Samples) -> None:
        self._data = data

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, place: tuple[int, int]) -> Drawn:
        """The sample of (row, sample seed), or of the first row drawn in its place that can be read."""
        row, seed = place
        problems: list[Problem] = []
        for attempt in range(TRIES):
            try:
                return Drawn(self._data[row, seed], tuple(problems))
            except UnreadableImage as error:
                problems.append(Problem(row, one_line(error)))
            row = stand_in(sample_seed=seed, attempt=attempt, size=len(self))
        return Drawn(None, tuple(problems))


class BrokenImages:
    """Which images of a run could not be read, over all its processes and all its starts.

    Args:
        images: in the data set.
        position: images seen when this process took the run up.
        saved: `state` of when its checkpoint was written; None of a new run.
    """

    def __init__(self, *, images: int, position: int, saved: Mapping[str, Any] | None) -> None:
        self._images = images
        self._position = position
        self._times: int = 0 if saved is None else saved["times"]
        self._rows: set[int] = set() if saved is None else set(saved["rows"])
        self._met: list[tuple[int, Problem]] = []
        """Since this start: the step, 1 first, and what was met on the way to it."""
        self._told: set[int] = set()

    def meet(
        self, problems: Sequence[Problem], *, complete: bool, step: int, seen: int, group: Group
    ) -> None:
        """Count what this process's share of `step` (1 first) met; called by all processes, for every step.

        Args:
            complete: whether there is an image in every place.
            seen: images of the run, those of this step among them.

        Raises:
            TooManyBroken: in all processes, where one of them or all together have met too much.
        """
        if not group.largest(int(bool(problems))):
            return
        shares = group.gathered((tuple(problems), complete))
        self._met += [(step, problem) for others, _ in shares for problem in others]
        incomplete = [others for others, whole in shares if not whole]
        if incomplete:
            raise TooManyBroken(
                f"step {step}: none of {TRIES} images tried for one place could be read, as where a disk is gone; "
                f"the last: {incomplete[0][-1].words}"
            )
        files, of = len({problem.row for _, problem in self._met}), min(seen - self._position, self._images)
        if too_many(files, of=of):
            raise TooManyBroken(
                f"step {step}: {files} of {of} images could not be read since this start, more than one in a hundred; "
                f"the last: {self._met[-1][1].words}"
            )

    def tell(self, step: int, log: RunLog | None, say: Callable[[str], None]) -> None:
        """Write down what `step` met, and warn of every file that was not met before since this start."""
        met = [problem for at, problem in self._met if at == step]
        times = self.times(step)
        if log is not None:
            log.broken(step, [problem.words for problem in met], times=times)
        for problem in met:
            if problem.row not in self._told:
                self._told.add(problem.row)
                say(f"warning: step {step}: {problem.words}; another image takes its place ({times} so far)")

    def times(self, step: int) -> int:
        """How often in the first `step` steps of the run an image could not be read."""
        return self._times + sum(at <= step for at, _ in self._met)

    def state(self, step: int) -> dict[str, Any]:
        """What a checkpoint written after `step` steps keeps; empty where nothing was met."""
        rows = self._rows | {problem.row for at, problem in self._met if at <= step}
        return {"broken_images": {"times": self.times(step), "rows": sorted(rows)}} if rows else {}

    def summary(self, step: int) -> str:
        """A line for the end of a run; empty where nothing was met."""
        state = self.state(step).get("broken_images")
        if state is None:
            return ""
        return (
            f"{len(state['rows'])} images could not be read, {state['times']} times in all, and others took their "
            "places; broken_images.csv beside the checkpoint names them"
        )
