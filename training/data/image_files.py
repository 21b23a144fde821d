"""The images of a COCO annotation file: found in their folder, looked at by their headers, of the size annotated.

`decode_all` decodes them too, since a file may be broken behind a header that is whole.
"""

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from maskx_image import MAX_PIXELS, MAX_SIDE, ImageHeader, decode, read_header
from model.files import one_line
from training.data.findings import Tally, refuse
from training.data.tools import Reading
from training.images.names import NearNames, is_there

Progress = Callable[[int, int], None]
"""Called with (images checked, images in all), from the thread that loads."""

Size = tuple[int, int]
"""(height, width) in pixels."""

MOST_BROKEN, SHARE_BROKEN = 10, 0.01
"""A training goes on while fewer images than this are broken, or no more than this share of them."""

_CHUNK = 64
_DECODED_CHUNK = 4
_MOST_THREADS = 16
T = TypeVar("T")


class UnreadableImage(ValueError):
    """An image that is missing, broken or of another size than annotated; the message begins with its file."""


def too_many(broken: int, *, of: int) -> bool:
    """Whether so many broken images are no accident: 10 or more, and more than 1 % `of` those there are.

    One file among fifty is 2 % and costs no run. Ten that are more than one in a hundred are a disk that is going or a
    folder half copied, which somebody should mend before the training goes on.
    """
    return broken >= MOST_BROKEN and broken > SHARE_BROKEN * of


def annotated_size_is_upright(header: ImageHeader, width: int, height: int) -> bool | None:
    """Whether a picture annotated as width x height is the upright image, its stored pixels (False) or neither."""
    if header.upright_size == (width, height):
        return True
    return False if (header.width, header.height) == (width, height) else None


def check_image_files(
    names: Sequence[str],
    sizes: Sequence[Size | None],
    images_dir: Path,
    tally: Tally,
    source: str,
    progress: Progress | None,
    reading: Reading | None = None,
) -> list[Size]:
    """(height, width) of every picture as annotated, after a look at all headers in parallel threads.

    ValueError lists what is missing, broken or of another size, with near names of what is missing. Of a set that may
    be `without_some` these are counted, unless they are too many or have no size stated.
    """
    if not images_dir.is_dir():
        raise ValueError(f"no folder of images {images_dir}")
    reading = reading or Reading()
    checked: list[Size | None] = []
    problems: dict[int, str] = {}
    paths = [images_dir / name for name in names]
    headers = _of_each(_header_or_problem, paths, progress, chunk=_CHUNK, threads=4 * (os.cpu_count() or 1))
    for row, (path, size, header) in enumerate(zip(paths, sizes, headers, strict=True)):
        checked.append(size)
        if isinstance(header, str):
            problems[row] = header
            continue
        width, height = header.upright_size
        upright = size is None or annotated_size_is_upright(header, size[1], size[0])
        if size is not None and upright is None:
            stored = f", {header.width} x {header.height} as stored" if header.orientation > 4 else ""
            problems[row] = (
                f"{path}: is {width} x {height}{stored}; "
                f"expected {size[1]} x {size[0]}, as the annotation file says"
            )
        elif not upright:
            tally.add("picture annotated as stored, so not turned upright", "kept", f"{path}")
        checked[row] = size or (height, width)
    if reading.without_some and not too_many(len(problems), of=len(names)):
        for row in [row for row in problems if checked[row] is not None]:
            words = f"{problems.pop(row)}; others take its place"
            tally.add("image that could be read when the training began", "kept", words)
    refuse(f"images of {source}", _with_near_names(problems, names, images_dir))
    return [size for size in checked if size is not None]


def _with_near_names(problems: dict[int, str], names: Sequence[str], images_dir: Path) -> list[str]:
    """The problems, by row, with near names where a file is not there."""
    missing = [names[row] for row in problems if not is_there(images_dir / names[row])]
    near = NearNames(images_dir, names).of(missing) if missing else {}
    return [f"{words}{near.get(names[row], '')}" for row, words in problems.items()]


def decode_all(paths: Sequence[Path], progress: Progress | None = None) -> list[str]:
    """What is wrong with the images that cannot be decoded, a line each, in the order of `paths`.

    Every image is decoded whole, in as many threads as there are cores: Pillow's decoders let other threads work, and
    processes are no quicker. No more than an image to a thread is held.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    problems = _of_each(_decoding_problem, paths, progress, chunk=_DECODED_CHUNK, threads=cores)
    return [words for words in problems if words is not None]


def _of_each(
    look: Callable[[Path], T],
    paths: Sequence[Path],
    progress: Progress | None,
    *,
    chunk: int,
    threads: int,
) -> Iterator[T]:
    """What `look` says of every file, in order, by at most 16 threads."""
    chunks = [paths[start : start + chunk] for start in range(0, len(paths), chunk)]
    done = 0
    if progress is not None:
        progress(0, len(paths))  # from here on the time counts
    with ThreadPoolExecutor(min(_MOST_THREADS, threads)) as pool:
        for found in pool.map(lambda some: [look(path) for path in some], chunks):
            yield from found
            done += len(found)
            if progress is not None:
                progress(done, len(paths))


def _header_or_problem(path: Path) -> ImageHeader | str:
    try:
        require_end(path)
        with path.open("rb") as file:
            header = read_header(file)
    except OSError as error:
        return f"{path}: cannot be read ({error.strerror}); expected an image"
    except ValueError as error:  # ImageError, or a name that no file can have
        return f"{path}: {error}"
    if not is_a_size(header.height, header.width):
        return (
            f"{path}: is {header.width} x {header.height}; "
            f"expected at most {MAX_PIXELS} pixels and {MAX_SIDE} to a side"
        )
    return header


def require_end(path: Path) -> None:
    """ValueError where `path` is a pipe or a device, whose reading may never end; OSError where nothing is there."""
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise ValueError("a pipe or a device; expected a file")


def _decoding_problem(path: Path) -> str | None:
    header = _header_or_problem(path)
    if isinstance(header, str):
        return one_line(ValueError(header))
    try:
        require_end(path)
        decode(path.read_bytes())
    except (OSError, ValueError) as error:
        return one_line(ValueError(f"{path}: {error}"))
    return None


def is_a_size(height: int, width: int) -> bool:
    """Whether a picture may have these sides."""
    return min(height, width) > 0 and max(height, width) <= MAX_SIDE and height * width <= MAX_PIXELS
