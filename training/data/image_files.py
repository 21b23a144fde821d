"""The images of a COCO annotation file: found in their folder, looked at by their headers, of the size annotated."""

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from maskx_image import MAX_PIXELS, MAX_SIDE, ImageHeader, read_header
from training.data.findings import Tally, refuse

Progress = Callable[[int, int], None]
"""Called with (images checked, images in all), from the thread that loads."""

Size = tuple[int, int]
"""(height, width) in pixels."""

_CHUNK = 64


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
) -> list[Size]:
    """(height, width) of every picture as annotated, after a look at all headers in parallel threads."""
    if not images_dir.is_dir():
        raise ValueError(f"no folder of images {images_dir}")
    checked: list[Size] = []
    problems = []
    for name, size, header in zip(names, sizes, _headers(names, images_dir, progress), strict=True):
        if isinstance(header, str):
            problems.append(header)
            continue
        width, height = header.upright_size
        upright = size is None or annotated_size_is_upright(header, size[1], size[0])
        if size is not None and upright is None:
            stored = f", {header.width} x {header.height} as stored" if header.orientation > 4 else ""
            problems.append(
                f"{images_dir / name}: is {width} x {height}{stored}; "
                f"expected {size[1]} x {size[0]}, as the annotation file says"
            )
        elif not upright:
            tally.add("picture annotated as stored, so not turned upright", "kept", f"{images_dir / name}")
        checked.append(size or (height, width))
    refuse(f"images of {source}", problems)
    return checked


def _headers(
    names: Sequence[str], images_dir: Path, progress: Progress | None
) -> Iterator[ImageHeader | str]:
    """Of every image its header, or what is wrong with it, in order."""
    chunks = [names[start : start + _CHUNK] for start in range(0, len(names), _CHUNK)]
    done = 0
    if progress is not None:
        progress(0, len(names))  # from here on the time counts
    with ThreadPoolExecutor(min(16, 4 * (os.cpu_count() or 1))) as pool:
        for headers in pool.map(
            lambda chunk: [_header_or_problem(images_dir / name) for name in chunk], chunks
        ):
            yield from headers
            done += len(headers)
            if progress is not None:
                progress(done, len(names))


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


def is_a_size(height: int, width: int) -> bool:
    """Whether a picture may have these sides."""
    return min(height, width) > 0 and max(height, width) <= MAX_SIDE and height * width <= MAX_PIXELS
