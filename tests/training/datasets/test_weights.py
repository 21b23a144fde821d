"""Published weights: fetched by name from a server on loopback, checked by what is published, and converted."""

import hashlib
import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from model.checkpoint import load_network
from tests.training.datasets.file_server import Behaviour
from tests.training.recipes.detectron_peer import Kind, blobs, write_python2_pickle
from training.datasets import __main__ as command
from training.datasets import fetch
from training.datasets.weights import WEIGHTS, fetch_weights
from training.recipes.convert.__main__ import main as convert

Server = tuple[str, Behaviour]
PAPER, ZOO = "maskx_vg3k_r50", "detectron_mask_r50_fpn_1x"


def run(server: Server, root: Path, name: str) -> int:
    return command.main(["fetch", name, "--root", str(root), "--mirror", server[0]])


def test_weights_are_fetched_once_and_the_line_that_is_printed_converts_them(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_python2_pickle(server[1].folder / f"{PAPER}.pkl", blobs(Kind(masks="transfer", classes=3001)))
    assert run(server, tmp_path, PAPER) == 0
    said, path = capsys.readouterr().out, tmp_path / "weights" / f"{PAPER}.pkl"
    assert hashlib.sha256(path.read_bytes()).hexdigest() in said and "no digest is published" in said
    asked = len(server[1].requests)
    assert run(server, tmp_path, PAPER) == 0 and len(server[1].requests) == asked
    line = re.search(r"-m training.recipes.convert (.*) --out \S+", said)
    assert line
    assert convert([*line[1].split(), "--out", str(tmp_path / "checkpoint.pt")]) == 0
    _, table, contents = load_network(tmp_path / "checkpoint.pt")
    assert table.num_classes == 3001 and contents["model_config"]["transfer"]["kind"] == "transfer"


@pytest.mark.parametrize("right", [True, False])
def test_an_md5_beside_the_file_is_fetched_and_decides(
    right: bool, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body = b"weights" * 1000
    (server[1].folder / f"{ZOO}.pkl").write_bytes(body)
    digest = hashlib.md5(body if right else b"other", usedforsecurity=False).hexdigest()
    (server[1].folder / f"{ZOO}.pkl.md5sum").write_text(digest)
    assert run(server, tmp_path, ZOO) == (0 if right else 2)
    printed = capsys.readouterr()
    assert ("MD5 checked" in printed.out) == right
    assert right or f"expected md5:{digest}" in printed.err
    assert (tmp_path / "weights" / f"{ZOO}.pkl").exists() == right


def test_a_download_that_breaks_off_goes_on(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch.time, "sleep", lambda _: None)
    body = bytes(range(256)) * 900
    (server[1].folder / f"{PAPER}.pkl").write_bytes(body)
    server[1].cut_after = 100_000
    fetch_weights(PAPER, tmp_path, mirror=server[0])
    assert (tmp_path / "weights" / f"{PAPER}.pkl").read_bytes() == body
    assert [asked for _, asked in server[1].requests] == [None, None, "bytes=100000-", "bytes=200000-"]


def test_what_the_server_has_not_is_named(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(server, tmp_path, ZOO) == 2 and ".md5sum: the server answers 404" in capsys.readouterr().err
    assert (
        run(server, tmp_path, PAPER) == 2
        and f"{PAPER}.pkl: the server answers 404" in capsys.readouterr().err
    )
    (server[1].folder / f"{ZOO}.pkl.md5sum").write_text("<html>")
    assert run(server, tmp_path, ZOO) == 2 and "expected an MD5" in capsys.readouterr().err
    waits: list[float] = []
    server[1].failures = [503, 503]
    (server[1].folder / "small").write_bytes(b"x")
    request = fetch.urllib.request.Request(f"{server[0]}/small")
    with fetch.opened_by_patience(request, waits.append) as answer:
        assert answer.read() == b"x" and waits == [1.0, 2.0]


def test_every_name_has_its_own_address_and_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert len({known.url for known in WEIGHTS.values()}) == len(WEIGHTS)
    assert all(
        urlsplit(known.url).scheme == "https" and known.url.endswith(".pkl") for known in WEIGHTS.values()
    )
    assert command.main(["list"]) == 0
    listed = capsys.readouterr().out
    assert [name for name in WEIGHTS if name not in listed] == []
