"""Downloads that can be broken off at any time, and archives unpacked file by file.

A download grows in NAME.part; it gets its name only when size and digest are those of the table. A second run
goes on where the first ended (HTTP Range, with If-Range so that parts of two versions are never joined).
"""

import hashlib
import http.client
import shutil
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from training.progress import Progress, progress

_CHUNK = 1 << 20
_TIMEOUT = 60.0
_PATIENCE = 6
"""Tries one after the other that bring no byte, before a download is given up; a second run goes on with it."""
_RETRIED = (408, 429, 500, 502, 503, 504)


@dataclass(frozen=True, kw_only=True)
class Download:
    """One file of a data set."""

    url: str
    bytes: int
    digest: str
    """"sha256:..." or "md5:...", hexadecimal; "" where nobody published one."""
    into: str
    """Folder below the root of the data into which the archive is unpacked."""
    file: str = ""
    """Name that the file is given; that of the address where there is none."""

    @property
    def name(self) -> str:
        """Name of the file."""
        return self.file or self.url.rpartition("/")[2]


class _BrokenOff(Exception):
    """A try ended early; the next one goes on."""


def download(
    item: Download, folder: Path, *, url: str | None = None, sleep: Callable[[float], None] = time.sleep
) -> Path:
    """The file of `item` in `folder`, fetched where it is not there yet.

    Args:
        url: another address of the same file (a mirror).
        sleep: waits between two tries (1, 2, 4, ... 32 seconds).

    Raises:
        ValueError: a file of that name and another size is there, the disk has no room, the address refuses,
            the server offers another file, or the digest differs (the file is then kept as NAME.refused).
    """
    path, part = folder / item.name, folder / f"{item.name}.part"
    if not (url or item.url).startswith(("http://", "https://")):
        raise ValueError(f"{url or item.url}: expected an address that begins with http:// or https://")
    if path.is_file():
        if path.stat().st_size == item.bytes:
            return path
        raise ValueError(
            f"{path}: has {path.stat().st_size} bytes; expected {item.bytes}. Move it away to fetch it anew"
        )
    folder.mkdir(parents=True, exist_ok=True)
    _fetch(item, part, url or item.url, sleep)
    seen = _digest(part, item) if item.digest else ""
    if seen != item.digest:
        refused = part.replace(path.with_name(f"{path.name}.refused"))
        raise ValueError(
            f"{refused}: its digest is {seen}; expected {item.digest}. Remove it and fetch again; if it stays the "
            f"same, the file at {url or item.url} is another one (renamed to {path.name} it is taken as it is)"
        )
    part.replace(path)
    _validator(part).unlink(missing_ok=True)
    return path


def _fetch(item: Download, part: Path, url: str, sleep: Callable[[float], None]) -> None:
    """`part` with all bytes of `item`."""
    if part.is_file() and part.stat().st_size > item.bytes:
        part.unlink()
    tries = 0
    with progress(range(item.bytes >> 20), item.name, unit="MiB", done=_size(part) >> 20) as shown:
        while (before := _size(part)) < item.bytes:
            require_space(part.parent, item.bytes - before, item.name)
            try:
                _one_try(item, part, url, shown)
                why = "the connection ended early"
            except _BrokenOff as broken:
                why = str(broken)
            if _size(part) >= item.bytes:
                break
            tries = 0 if _size(part) > before else tries + 1
            if tries >= _PATIENCE:
                raise ValueError(
                    f"{url}: {why}, {_PATIENCE} times without a byte; {_size(part)} of {item.bytes} bytes are in "
                    f"{part}, and a second run goes on from there"
                )
            shown.say(f"{item.name}: {why}; trying again")
            sleep(float(2 ** min(tries, 5)))


def _one_try(item: Download, part: Path, url: str, shown: Progress[Any]) -> None:
    """Append to `part` what one connection brings."""
    have = _size(part)
    request = urllib.request.Request(url, headers={"User-Agent": "maskx", "Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
        if _validator(part).is_file():
            request.add_header("If-Range", _validator(part).read_text(encoding="ascii"))
    with _opened(request, part) as answer:
        whole = answer.status != 206
        start, total = (0, answer.headers["Content-Length"]) if whole else _range(answer, have)
        if total is not None and int(total) != item.bytes:
            raise ValueError(
                f"{url}: the server offers {total} bytes; expected {item.bytes}: it is another file"
            )
        validator = answer.headers["ETag"] or answer.headers["Last-Modified"]
        if validator and not validator.startswith("W/"):  # a weak one must not be used in If-Range
            _validator(part).write_text(validator, encoding="ascii")
        else:
            _validator(part).unlink(missing_ok=True)
        with part.open("wb" if whole else "ab") as file:
            _copy(answer, file, item.bytes - start, shown)


def _copy(answer: http.client.HTTPResponse, file: IO[bytes], most: int, shown: Progress[Any]) -> None:
    while most > 0:
        try:
            piece = answer.read(min(_CHUNK, most))
        except (http.client.HTTPException, OSError) as error:
            raise _BrokenOff(f"the connection broke ({type(error).__name__})") from error
        if not piece:
            return
        try:
            file.write(piece)
            file.flush()
        except OSError as error:
            raise ValueError(f"{file.name}: cannot be written ({error.strerror})") from error
        most -= len(piece)
        shown.advance((file.tell() >> 20) - shown.done)


@contextmanager
def opened_by_patience(
    request: urllib.request.Request, sleep: Callable[[float], None] = time.sleep
) -> Iterator[http.client.HTTPResponse]:
    """The answer to a small request, asked for again where another try may help; ValueError where none came."""
    request.add_header("User-Agent", "maskx")
    for tries in range(1, _PATIENCE + 1):
        try:
            answer = urllib.request.urlopen(request, timeout=_TIMEOUT)
            break
        except urllib.error.HTTPError as error:
            error.close()
            why = f"the server answers {error.code} ({error.reason})"
            if error.code not in _RETRIED:
                raise ValueError(f"{request.full_url}: {why}") from None
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            why = f"no connection ({getattr(error, 'reason', error)})"
        if tries == _PATIENCE:
            raise ValueError(f"{request.full_url}: {why}, {_PATIENCE} times")
        sleep(float(2 ** min(tries - 1, 5)))
    with answer:
        yield answer


@contextmanager
def _opened(request: urllib.request.Request, part: Path) -> Iterator[http.client.HTTPResponse]:
    """The answer to a request; _BrokenOff where another try may help, ValueError where none will."""
    url = request.full_url
    try:
        answer = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # nothing beyond what is here, yet not all is here: another file
            part.unlink(missing_ok=True)
            raise _BrokenOff("the server has no such part") from None
        if error.code in _RETRIED:
            raise _BrokenOff(f"the server answers {error.code} ({error.reason})") from None
        raise ValueError(f"{url}: the server answers {error.code} ({error.reason})") from None
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        raise _BrokenOff(f"no connection ({getattr(error, 'reason', error)})") from error
    with answer:
        yield answer


def _range(answer: http.client.HTTPResponse, have: int) -> tuple[int, str]:
    """(first byte, size of the whole file) of a 206; _BrokenOff where it is not what was asked for."""
    unit, _, rest = (answer.headers["Content-Range"] or "").partition(" ")
    span, _, total = rest.partition("/")
    if unit != "bytes" or span.partition("-")[0] != str(have) or not total.isdecimal():
        raise _BrokenOff(f"the server sent the part {unit} {rest} instead of bytes {have}-")
    return have, total


def _validator(part: Path) -> Path:
    return part.with_name(f"{part.name}.etag")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _digest(path: Path, item: Download) -> str:
    kind = item.digest.partition(":")[0]
    sum_ = hashlib.new(kind, usedforsecurity=False)
    with (
        path.open("rb") as file,
        progress(range(item.bytes >> 20), f"checking {item.name}", unit="MiB") as shown,
    ):
        while piece := file.read(_CHUNK):
            sum_.update(piece)
            shown.advance((file.tell() >> 20) - shown.done)
    return f"{kind}:{sum_.hexdigest()}"


def require_space(folder: Path, needed: int, what: str) -> None:
    """ValueError where the disk of `folder` has less than `needed` bytes left."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ValueError(
            f"{folder}: {what} needs {gigabytes(needed)} more; the disk has {gigabytes(free)} left"
        )


def gigabytes(count: int) -> str:
    """Bytes as "1.25 GB"."""
    return f"{count / 1e9:.2f} GB"


def unpack(archive: Path, folder: Path) -> int:
    """Unpack a .zip or .tar into `folder`; the number of files that were not there yet with their size.

    Every file is written under another name first, so a second run goes on after one that was broken off.

    Raises:
        ValueError: no such archive or a broken one, a member that would land outside `folder` or is not a plain
            file, or no room on the disk.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with _members(archive) as (members, opened):
            wanted = [(folder / _safe(name, archive), size, key) for name, size, key in members]
            missing = [one for one in wanted if not (one[0].is_file() and one[0].stat().st_size == one[1])]
            require_space(folder, sum(size for _, size, _ in missing), f"unpacking {archive.name}")
            for path, _, key in progress(missing, f"unpacking {archive.name}", unit="files"):
                path.parent.mkdir(parents=True, exist_ok=True)
                unfinished = path.with_name(f".{path.name}.unfinished")
                with opened(key) as source, unfinished.open("wb") as target:
                    shutil.copyfileobj(source, target, _CHUNK)
                unfinished.replace(path)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise ValueError(f"{archive}: is broken ({error}); remove it and fetch it again") from error
    return len(missing)


_Members = tuple[list[tuple[str, int, Any]], Callable[[Any], AbstractContextManager[IO[bytes]]]]


@contextmanager
def _members(archive: Path) -> Iterator[_Members]:
    """((name, size, key) of every file, a function that opens a key)."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as packed:
            yield (
                [(one.filename, one.file_size, one) for one in packed.infolist() if not one.is_dir()],
                packed.open,
            )
        return
    if not archive.is_file():
        raise ValueError(f"{archive}: no such archive")
    with tarfile.open(archive) as tar:
        files = [one for one in tar if not one.isdir()]
        for one in files:
            if not one.isreg():
                raise ValueError(f"{archive}: {one.name} is no plain file")
        extract = cast(Callable[[Any], IO[bytes]], tar.extractfile)  # never None: all are plain files
        yield [(one.name, one.size, one) for one in files], extract


def _safe(name: str, archive: Path) -> Path:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{archive}: the member {name!r} would land outside its folder")
    return Path(path)
