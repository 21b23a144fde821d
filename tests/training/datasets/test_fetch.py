"""Downloads against a server on loopback that breaks off, forgets and changes; archives that are broken or hostile."""

import hashlib
import io
import shutil
import tarfile
import zipfile
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.training.datasets.file_server import Behaviour
from training.datasets import fetch
from training.datasets.fetch import Download, download, unpack

BODY = np.random.default_rng(0).bytes(3_000_000)
Server = tuple[str, Behaviour]
Pack = Callable[[Path, dict[str, bytes]], Path]


@pytest.fixture
def item(server: Server) -> Download:
    (server[1].folder / "set.bin").write_bytes(BODY)
    return of(server[0])


def of(address: str, body: bytes = BODY, kind: str = "sha256") -> Download:
    return Download(
        url=f"{address}/set.bin",
        bytes=len(body),
        digest=f"{kind}:{hashlib.new(kind, body).hexdigest()}",
        into=".",
    )


@pytest.fixture
def waits() -> list[float]:
    """How long was slept, where its `append` takes the place of sleep."""
    return []


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---- downloads ----


@pytest.mark.parametrize("kind", ["sha256", "md5"])
def test_a_file_is_fetched_once_and_nothing_else_is_left(
    server: Server, tmp_path: Path, item: Download, kind: str
) -> None:
    item = of(server[0], kind=kind)
    path = download(item, tmp_path / "new" / "folder")
    assert path.read_bytes() == BODY and names(path.parent) == ["set.bin"]
    assert download(item, path.parent) == path
    assert len(server[1].requests) == 1


def test_a_connection_that_breaks_again_and_again_is_gone_on_with_to_the_same_bytes(
    server: Server, tmp_path: Path, item: Download, waits: list[float]
) -> None:
    server[1].cut_after = 700_000
    path = download(item, tmp_path / "out", sleep=waits.append)
    assert path.read_bytes() == BODY
    assert [asked for _, asked in server[1].requests] == [
        None, "bytes=700000-", "bytes=1400000-", "bytes=2100000-", "bytes=2800000-"
    ]  # fmt: skip
    assert waits == [1.0] * 4


def test_a_second_run_asks_only_for_what_the_first_did_not_bring(
    server: Server, tmp_path: Path, item: Download
) -> None:
    def killed(_: float) -> None:
        raise KeyboardInterrupt

    server[1].cut_after = 1_000_000
    with pytest.raises(KeyboardInterrupt):
        download(item, tmp_path / "out", sleep=killed)
    assert names(tmp_path / "out") == ["set.bin.part", "set.bin.part.etag"]
    server[1].cut_after = None
    assert download(item, tmp_path / "out").read_bytes() == BODY
    assert server[1].requests[-1] == ("/set.bin", "bytes=1000000-") and len(server[1].requests) == 2
    assert names(tmp_path / "out") == ["set.bin"]


def part_of(tmp_path: Path, content: bytes, etag: str | None) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "set.bin.part").write_bytes(content)
    if etag:
        (folder / "set.bin.part.etag").write_text(etag)
    return folder


@pytest.mark.parametrize(
    ("content", "etag", "ranges", "asked"),
    [
        (b"x" * 1000, '"older"', True, "bytes=1000-"),  # of another version: not joined with this one
        (BODY[:1000], '"one"', False, "bytes=1000-"),  # a server without ranges sends it all again
        (BODY + b"more", '"one"', True, None),  # longer than the file: begun anew
    ],
)
def test_a_part_that_cannot_be_gone_on_with_is_replaced_by_the_whole(
    server: Server, tmp_path: Path, item: Download, content: bytes, etag: str, ranges: bool, asked: str | None
) -> None:
    server[1].ranges = ranges
    assert download(item, part_of(tmp_path, content, etag)).read_bytes() == BODY
    assert server[1].requests == [("/set.bin", asked)]


@pytest.mark.parametrize("etag", ['W/"weak"', None])
def test_a_server_without_a_strong_etag_is_gone_on_with_and_the_digest_decides(
    server: Server, tmp_path: Path, item: Download, waits: list[float], etag: str | None
) -> None:
    server[1].etag, server[1].cut_after = etag, 2_000_000
    assert download(item, tmp_path / "out", sleep=waits.append).read_bytes() == BODY
    assert server[1].statuses == [200, 206]
    (tmp_path / "out" / "set.bin").unlink()
    (tmp_path / "out" / "set.bin.part").write_bytes(b"x" * 2_999_000)
    with pytest.raises(ValueError, match="its digest is sha256:.*expected sha256:"):
        download(item, tmp_path / "out", sleep=waits.append)


def test_another_part_than_asked_for_is_not_appended(
    server: Server, tmp_path: Path, item: Download, waits: list[float]
) -> None:
    server[1].shift = 5
    folder = part_of(tmp_path, BODY[:1000], '"one"')
    with pytest.raises(
        ValueError, match="the server sent the part bytes 1005-2999999/3000000 instead of bytes 1000-"
    ):
        download(item, folder, sleep=waits.append)
    assert (folder / "set.bin.part").read_bytes() == BODY[:1000]


def test_a_shorter_file_than_the_part_at_the_server_is_noticed(
    server: Server, tmp_path: Path, item: Download, waits: list[float]
) -> None:
    """416 to the rest: the part is not of this file. The whole of it is then asked for, and has another size."""
    (server[1].folder / "set.bin").write_bytes(BODY[:500])
    folder = part_of(tmp_path, BODY[:1000], '"one"')
    with pytest.raises(ValueError, match="offers 500 bytes; expected 3000000"):
        download(item, folder, sleep=waits.append)


def test_a_wrong_digest_keeps_the_file_under_another_name(
    server: Server, tmp_path: Path, item: Download
) -> None:
    (server[1].folder / "set.bin").write_bytes(BODY[::-1])
    with pytest.raises(
        ValueError, match=rf"{hashlib.sha256(BODY[::-1]).hexdigest()}; expected {item.digest}"
    ):
        download(item, tmp_path / "out")
    assert "set.bin.refused" in names(tmp_path / "out") and "set.bin" not in names(tmp_path / "out")
    assert "set.bin.part" not in names(tmp_path / "out")


def test_a_file_of_another_size_that_is_there_is_neither_taken_nor_replaced(
    server: Server, tmp_path: Path, item: Download
) -> None:
    (tmp_path / "set.bin").write_bytes(b"mine")
    with pytest.raises(ValueError, match="has 4 bytes; expected 3000000"):
        download(item, tmp_path)
    assert (tmp_path / "set.bin").read_bytes() == b"mine" and not server[1].requests


def test_errors_that_pass_are_waited_for_longer_and_longer(
    server: Server, tmp_path: Path, item: Download, waits: list[float]
) -> None:
    server[1].failures = [503, 429, 500]
    assert download(item, tmp_path / "out", sleep=waits.append).read_bytes() == BODY
    assert waits == [2.0, 4.0, 8.0]


def test_a_server_that_stays_away_is_given_up_with_what_is_there(
    tmp_path: Path, waits: list[float], server: Server
) -> None:
    (server[1].folder / "set.bin").write_bytes(BODY)
    server[1].failures = [503] * 99
    with pytest.raises(ValueError, match=r"answers 503 .*6 times without a byte; 0 of 3000000 bytes"):
        download(of(server[0]), tmp_path / "out", sleep=waits.append)
    assert len(server[1].requests) == 6
    with pytest.raises(ValueError, match="no connection"):
        download(of("http://127.0.0.1:9"), tmp_path / "out", sleep=waits.append)


def test_errors_that_stay_end_at_once(
    server: Server, tmp_path: Path, item: Download, waits: list[float]
) -> None:
    server[1].failures = [403]
    with pytest.raises(ValueError, match=r"/set\.bin: the server answers 403"):
        download(item, tmp_path / "out", sleep=waits.append)
    assert not waits
    with pytest.raises(ValueError, match="begins with http:// or https://"):
        download(item, tmp_path / "out", url="file:///etc/passwd")


def test_a_full_disk_is_named_before_a_byte_is_asked_for(
    server: Server, tmp_path: Path, item: Download, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    folder = part_of(tmp_path, BODY[:1_000_000], '"one"')
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 1_999_999))
    with pytest.raises(ValueError, match=r"set\.bin needs 0\.00 GB more"):
        download(item, folder)
    assert not server[1].requests
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 2_000_000))  # enough for what is missing
    assert download(item, folder).read_bytes() == BODY


def test_progress_is_shown_in_mebibytes_from_where_it_goes_on(
    server: Server, tmp_path: Path, item: Download, capsys: pytest.CaptureFixture[str]
) -> None:
    download(item, part_of(tmp_path, BODY[: 1 << 20], '"one"'))
    assert "set.bin: 2/2 MiB (100 %)" in capsys.readouterr().err


# ---- archives ----


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("images")
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def tarred(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


FILES = {"images/a.jpg": b"a" * 100, "images/b.jpg": b"b" * 200, "c.json": b"{}"}


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_unpacking_goes_on_after_one_that_was_broken_off(tmp_path: Path, pack: Pack) -> None:
    archive = pack(tmp_path / "set", FILES)
    out = tmp_path / "out"
    assert unpack(archive, out) == 3
    assert {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()} == FILES
    (out / "images" / "a.jpg").write_bytes(b"half")
    (out / "c.json").unlink()
    assert unpack(archive, out) == 2
    assert (out / "images" / "a.jpg").read_bytes() == b"a" * 100 and (out / "c.json").is_file()
    assert unpack(archive, out) == 0


@pytest.mark.parametrize("pack", [zipped, tarred])
@pytest.mark.parametrize("name", ["../up.jpg", "/abs.jpg", "images/../../up.jpg"])
def test_a_member_that_would_land_outside_is_refused_before_anything_is_written(
    tmp_path: Path, pack: Pack, name: str
) -> None:
    archive = pack(tmp_path / "set", {"first.jpg": b"1", name: b"2"})
    with pytest.raises(ValueError, match="would land outside its folder"):
        unpack(archive, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir()) and not (tmp_path / "up.jpg").exists()


def test_a_link_in_a_tar_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        archive.addfile(link)
    with pytest.raises(ValueError, match="link is no plain file"):
        unpack(tmp_path / "set.tar", tmp_path / "out")


def test_a_broken_archive_is_refused_and_leaves_no_half_file_under_its_name(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "set.zip", {"a.bin": BODY})
    content = bytearray(archive.read_bytes())
    content[1_000_000] ^= 255
    archive.write_bytes(content)
    with pytest.raises(ValueError, match=r"set\.zip: is broken"):
        unpack(archive, tmp_path / "out")
    assert not (tmp_path / "out" / "a.bin").exists()
    (tmp_path / "cut.tar").write_bytes(tarred(tmp_path / "set.tar", {"a.bin": BODY}).read_bytes()[:2000])
    (tmp_path / "text.zip").write_text("<html>not found</html>")
    for name, said in (
        ("cut.tar", "is broken"),
        ("text.zip", "is broken"),
        ("nowhere.zip", "no such archive"),
    ):
        with pytest.raises(ValueError, match=f"{name}: {said}"):
            unpack(tmp_path / name, tmp_path / "out")


def test_room_for_the_unpacked_files_is_asked_for_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = zipped(tmp_path / "set.zip", FILES)
    asked: list[int] = []
    monkeypatch.setattr(fetch, "require_space", lambda folder, needed, what: asked.append(needed))
    unpack(archive, tmp_path / "out")
    (tmp_path / "out" / "images" / "b.jpg").unlink()
    unpack(archive, tmp_path / "out")
    assert asked == [302, 200]
