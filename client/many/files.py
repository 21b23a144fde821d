"""The images of a run over many: which files, their names, and their ids in COCO results."""

import glob
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskx_image import SUFFIXES


@dataclass(frozen=True)
class ImageFile:
    """A file of a run; `name` is that within the folder given (with /), or the file's own; `image_id` its COCO id."""

    path: Path
    name: str
    image_id: int


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def find_images(inputs: Sequence[str], say: Callable[[str], None] = _say) -> list[tuple[Path, str]]:
    """Path and name of each file, sorted by name, from files, folders (with all below) and patterns such as "a/*.jpg".

    Files named one by one are taken whatever their suffix is, of folders and patterns those with an image's; `say` is
    told in a line how many others there are, by their suffixes.

    Raises ValueError: an input is neither file, folder nor pattern, or holds no image; two files have one name.
    """
    found: dict[Path, str] = {}
    for given in inputs:
        path = Path(given)
        if path.is_dir():
            files, others = _sorted_out(path.rglob("*"))
            if not files:
                raise ValueError(
                    f"there is no image in the folder {path}{_counted(others)} ({', '.join(SUFFIXES)})"
                )
            found.update((f, f.relative_to(path).as_posix()) for f in files)
        elif path.is_file():
            found[path] = path.name
            others = Counter()
        elif glob.has_magic(given):
            files, others = _sorted_out(Path(f) for f in glob.glob(given, recursive=True))
            if not files:
                raise ValueError(f"no image is named like {given!r}{_counted(others)}")
            found.update((f, f.name) for f in files)
        else:
            raise ValueError(f"there is no file {given}")
        if others:
            say(f"left out of {given}{_counted(others)}; name such a file by itself to send it")
    twice = [name for name, count in Counter(found.values()).items() if count > 1]
    if twice:
        names = f"{len(twice)} names belong to several files, {twice[0]} is one"
        raise ValueError(f"{names}; give their folder instead")
    return sorted(found.items(), key=lambda one: one[1])


def _sorted_out(paths: Iterable[Path]) -> tuple[list[Path], Counter[str]]:
    """Those that are images by their suffix; and how many others there are of each suffix. Folders are neither."""
    files, others = [], Counter[str]()
    for path in paths:
        if path.suffix.lower() in SUFFIXES and path.is_file():
            files.append(path)
        elif path.is_symlink() and not path.is_file():
            others["linked folders" if path.is_dir() else "links to nothing"] += 1
        elif not path.is_dir():
            others[path.suffix.lower() or "without a suffix"] += 1
    return files, others


def _counted(others: Counter[str]) -> str:
    if not others:
        return ""
    kinds = ", ".join(f"{count} {kind}" for kind, count in others.most_common(8))
    more = f" and {len(others) - 8} other kinds" if len(others) > 8 else ""
    return f": {others.total()} that are no images by their names ({kinds}{more})"


def numbered(found: Sequence[tuple[Path, str]]) -> list[ImageFile]:
    """The files with ids from 1 on, in their order."""
    return [ImageFile(path, name, number) for number, (path, name) in enumerate(found, 1)]


def identified(found: Sequence[tuple[Path, str]], images: Mapping[str, int], source: Path) -> list[ImageFile]:
    """The files with the ids that `images` has for their names, or else for the last part of their names.

    Raises ValueError: a file that `images` does not have, or two that would have one id; `source` is named then.
    """
    missing = [name for _, name in found if name not in images and Path(name).name not in images]
    if missing:
        raise ValueError(
            f"{source} has no image named {missing[0]}"
            + (f", nor {len(missing) - 1} others of the files given" if len(missing) > 1 else "")
        )
    files = [ImageFile(path, name, images.get(name, images.get(Path(name).name, 0))) for path, name in found]
    first: dict[int, str] = {}
    for file in files:
        if first.setdefault(file.image_id, file.name) != file.name:
            raise ValueError(
                f"{first[file.image_id]} and {file.name} would both be image {file.image_id} of {source}, which knows "
                f"{Path(file.name).name} without its folder; ask for each folder by itself, or name the "
                "files there as here"
            )
    return files


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path to write to, which becomes `path` when all is written."""
    unfinished = path.with_name(path.name + ".unfinished")
    yield unfinished
    unfinished.replace(path)


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises ValueError: it cannot be read, or is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error


def image_ids(path: Path) -> dict[str, int]:
    """File name -> id, of the `images` of a COCO file. Raises ValueError: the file has none, or two of one name."""
    content = read_json(path)
    images = content.get("images") if isinstance(content, dict) else None
    try:
        pairs = [(str(one["file_name"]), int(one["id"])) for one in images or ()]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: an entry of images lacks file_name or id ({error})") from error
    if not pairs:
        raise ValueError(f"{path} has no images; expected a COCO file, or the images list of an earlier run")
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError(f"{path} has two images of one file_name")
    return dict(pairs)
