"""The images of a run over many: which files, their names, and their ids in COCO results."""

import glob
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
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


def find_images(inputs: Sequence[str]) -> list[tuple[Path, str]]:
    """Path and name of each file, sorted by name, from files, folders (with all below) and patterns such as "a/*.jpg".

    Files named one by one are taken whatever their suffix is, of folders those with an image's.

    Raises ValueError: an input is neither file, folder nor pattern, or holds no image; two files have one name.
    """
    found: dict[Path, str] = {}
    for given in inputs:
        path = Path(given)
        if path.is_dir():
            files = [f for f in path.rglob("*") if f.suffix.lower() in SUFFIXES and f.is_file()]
            if not files:
                raise ValueError(f"there is no image in the folder {path} ({', '.join(SUFFIXES)})")
            found.update((f, f.relative_to(path).as_posix()) for f in files)
        elif path.is_file():
            found[path] = path.name
        elif glob.has_magic(given):
            matches = [Path(f) for f in glob.glob(given, recursive=True)]
            files = [f for f in matches if f.suffix.lower() in SUFFIXES and f.is_file()]
            if not files:
                raise ValueError(f"no image is named like {given!r}")
            found.update((f, f.name) for f in files)
        else:
            raise ValueError(f"there is no file {given}")
    twice = [name for name, count in Counter(found.values()).items() if count > 1]
    if twice:
        names = f"{len(twice)} names belong to several files, {twice[0]} is one"
        raise ValueError(f"{names}; give their folder instead")
    return sorted(found.items(), key=lambda one: one[1])


def numbered(found: Sequence[tuple[Path, str]]) -> list[ImageFile]:
    """The files with ids from 1 on, in their order."""
    return [ImageFile(path, name, number) for number, (path, name) in enumerate(found, 1)]


def identified(found: Sequence[tuple[Path, str]], images: Mapping[str, int], source: Path) -> list[ImageFile]:
    """The files with the ids that `images` has for their names, or else for the last part of their names.

    Raises ValueError: a file that `images` does not have; `source` is named then.
    """
    missing = [name for _, name in found if name not in images and Path(name).name not in images]
    if missing:
        raise ValueError(
            f"{source} has no image named {missing[0]}"
            + (f", nor {len(missing) - 1} others of the files given" if len(missing) > 1 else "")
        )
    return [ImageFile(path, name, images.get(name, images.get(Path(name).name, 0))) for path, name in found]


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
