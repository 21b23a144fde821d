"""Files of images under near names: `data.names=lenient` takes them, and an error names them.

A name is near where it differs in the separator (a\\b.jpg), the encoding (NFC and NFD, percent-encoded, UTF-8 read as
another code page, a space as + or _), case, the suffix among those of images, leading folders that one of the two has
and the other has not, or the eight digits that Label Studio puts before an upload (1a2b3c4d-b.jpg). Two near files are
none: which is meant is not known. Nor is a file taken that is another image's own.
"""

import contextlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, unquote

from maskx_image import SUFFIXES
from training.data.findings import Tally
from training.data.tools import Reading, found_name

MOST_FILES = 2_000_000
"""A folder of more files is not searched."""
SHOWN = 3
"""Near files that are named where it is not known which is meant."""
_UPLOAD = re.compile(r"([0-9a-f]{8})-(?=.)", re.IGNORECASE)
_CODE_PAGES = ("cp1252", "latin-1", "cp437")
"""As which names in UTF-8 are read by mistake: Windows' own, the web's, and that of ZIP archives."""


def find_names(
    names: list[str],
    image_ids: Sequence[int],
    images_dir: Path,
    guessed: Collection[str],
    reading: Reading,
    tally: Tally,
) -> None:
    """Put in place of names what lies in the folder for them, and count it.

    Names of another machine (with backslashes, or `guessed` from an address) are looked for without their leading
    folders whatever `reading` says; under `reading.names` "lenient" every name whose file is not there is.
    """
    for row, name in enumerate(names):
        if "\\" in name or name in guessed:
            names[row] = found = found_name(name, images_dir)
            if found != name:
                words = f"image {image_ids[row]}: file_name {name!r}; {found} is there and taken"
                tally.add("file name of another machine, found in the folder", "kept", words)
    if reading.names == "lenient" and images_dir.is_dir():
        missing = [row for row, name in enumerate(names) if not is_there(images_dir / name)]
        near = NearNames(images_dir, names).of([names[row] for row in missing]) if missing else {}
        for row in missing:
            one = near[names[row]]
            if one.file is not None:
                words = (
                    f"image {image_ids[row]}: file_name {names[row]!r}; {one.file!r} is there and taken "
                    f"({one.differences()})"
                )
                tally.add("file of a near name, as data.names=lenient says", "kept", words)
                names[row] = one.file


def is_there(path: Path) -> bool:
    """Whether there is a file; of a name that no file can have there is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


class NearNames:
    """The files of a folder by what their names have in common with near ones; the folder is read once.

    Args:
        images_dir: with all folders in it, links among them.
        names: of all images; a file under one of them is its own image's, and near to no other.
    """

    def __init__(self, images_dir: Path, names: Collection[str]) -> None:
        own = {os.path.normpath(name) for name in names}
        self._whole: dict[str, list[str]] = {}
        self._ends: dict[str, list[str]] = {}
        """Files by all that near names share of them, and by its ends, which lack leading folders."""
        for count, file in enumerate(_files(images_dir)):
            if count == MOST_FILES:
                self._whole, self._ends = {}, {}
                break
            if os.path.normpath(file) not in own:
                for form in _forms(file):
                    digits, ends = _shared(form)
                    for mark in (digits, "#") if digits else ("",):
                        _add(self._whole, f"{mark}:{ends[0]}", file)
                        for end in ends[1:]:
                            _add(self._ends, f"{mark}:{end}", file)

    def of(self, missing: Sequence[str]) -> dict[str, "Near"]:
        """What is near to each of the missing names."""
        near = {name: self._near(name) for name in missing}
        wanted = Counter(files[0] for files in near.values() if len(files) == 1)
        return {
            name: Near(name, tuple(files), images=wanted[files[0]] if len(files) == 1 else 1)
            for name, files in near.items()
        }

    def _near(self, name: str) -> list[str]:
        found: set[str] = set()
        for form in _forms(name):
            digits, ends = _shared(form)
            for mark in (digits, "") if digits else ("", "#"):
                found.update(self._ends.get(f"{mark}:{ends[0]}", ()))
                for end in ends:
                    found.update(self._whole.get(f"{mark}:{end}", ()))
        return sorted(found)


def _add(files: dict[str, list[str]], key: str, file: str) -> None:
    """Put a file under a key, which keeps no more than tell that the one that is meant is not known."""
    kept = files.setdefault(key, [])
    if len(kept) <= SHOWN and file not in kept:
        kept.append(file)


@dataclass(frozen=True)
class Near:
    """The files that are near to a name, and to how many names of images that have none the only one is near."""

    name: str
    files: tuple[str, ...]
    images: int

    @property
    def file(self) -> str | None:
        """The one that is meant; None where there is none, or where it is not known."""
        return self.files[0] if len(self.files) == 1 and self.images == 1 else None

    def __str__(self) -> str:
        """For an error, after what it says of the missing file; empty where nothing is near."""
        listed = ", ".join(self.files[:SHOWN]) + (" and more" if len(self.files) > SHOWN else "")
        if len(self.files) > 1:
            return f"; near: {listed}, and which is meant is not known"
        if self.images > 1:
            return f"; near: {listed}, but to {self.images} images, and whose it is is not known"
        return f"; near: {listed} ({self.differences()}); data.names=lenient takes it" if self.files else ""

    def differences(self) -> str:
        """In what kinds of things the name and the first file differ."""
        kinds = ["separator"] if "\\" in self.name else []
        name, file = self.name.replace("\\", "/"), self.files[0]
        if _path_of(name) != name:
            name = _path_of(name)
            kinds.append("address")
        if "%" in name and unquote(name) != name:
            name = unquote(name)
            kinds.append("encoding")
        one, other = (_parts(text) for text in (name, file))
        if len(one) != len(other):
            kinds.append("folder")
        depth = min(len(one), len(other))
        mine, theirs = _stem(one[-1]), _stem(other[-1])
        if mine[1].lower() != theirs[1].lower():
            kinds.append("prefix of an upload")
        if mine[2].lower() != theirs[2].lower():
            kinds.append("suffix")
        cores = (*one[-depth:-1], mine[0]), (*other[-depth:-1], theirs[0])
        folded = [[part.casefold() for part in core] for core in cores]
        if folded[0] != folded[1] and "encoding" not in kinds:
            kinds.append("encoding")
        elif cores[0] != cores[1] or ("suffix" not in kinds and mine[2] != theirs[2]):
            kinds.append("case")
        return ", ".join(kinds or ["folder"])  # ../b.jpg


def _forms(name: str) -> list[tuple[str, ...]]:
    """The parts of a name, without what near names may differ in; several where its encoding can be read otherwise."""
    texts = [name] if "?" not in name else [name, _path_of(name)]
    if "%" in name:
        texts += [plain for text in texts if (plain := unquote(text)) not in texts]
    if not name.isascii() or not texts[-1].isascii():
        texts += [again for text in texts for again in _read_otherwise(text)]
    forms = []
    for text in texts:
        folded = unicodedata.normalize("NFC", text).replace("\\", "/").casefold()
        folded = unicodedata.normalize("NFC", folded).replace(" ", "_").replace("+", "_")
        forms.append(_parts(folded))
    return list(dict.fromkeys(forms))


def _path_of(name: str) -> str:
    """The path in an address: `?d=` of Label Studio's local storage, else what stands before a question mark."""
    path, _, query = name.partition("?")
    return parse_qs(query).get("d", [path])[0]


def _parts(name: str) -> tuple[str, ...]:
    return tuple(part for part in name.split("/") if part not in ("", ".", "..")) or (name,)


def _read_otherwise(text: str) -> Iterator[str]:
    """The text behind one that was read in a wrong code page; of bytes that are no UTF-8, as another code page."""
    for page in _CODE_PAGES:
        with contextlib.suppress(UnicodeError):
            yield text.encode(page).decode("utf-8")
        if any("\udc80" <= letter <= "\udcff" for letter in text):
            with contextlib.suppress(UnicodeError):
                yield os.fsencode(text).decode(page)


def _stem(last: str) -> tuple[str, str, str]:
    """Of a file's name: what near names share, the digits of an upload before it, the suffix of an image."""
    upload = _UPLOAD.match(last)
    rest = last[upload.end() :] if upload else last
    stem, dot, suffix = rest.rpartition(".")
    if not stem or dot + suffix.lower() not in SUFFIXES:
        stem, suffix = rest, ""
    return stem, upload[1] if upload else "", suffix


def _shared(form: tuple[str, ...]) -> tuple[str, list[str]]:
    """The digits of an upload, and what near names share of a form: with all its folders, with one fewer, ..., none."""
    stem, digits, _ = _stem(form[-1])
    path = [*form[:-1], stem]
    return digits, ["/".join(path[start:]) for start in range(len(path))]


def _files(images_dir: Path) -> Iterator[str]:
    """All files of a folder and of those in it, as names with slashes; a folder that links lead to twice, once."""
    seen: set[tuple[int, int]] = set()
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        try:
            here = os.stat(images_dir / folder)
            if (here.st_dev, here.st_ino) in seen:
                continue
            seen.add((here.st_dev, here.st_ino))
            with os.scandir(images_dir / folder) as entries:
                for entry in entries:
                    name = f"{folder}/{entry.name}" if folder else entry.name
                    if entry.is_dir():
                        waiting.append(name)
                    else:
                        yield name
        except OSError:  # a folder that may not be read has nothing to offer
            continue
