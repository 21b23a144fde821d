"""maskx.pt: what is in it, that it is the same twice, and that nothing is written where something is wrong."""

import io
import json
import re
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import export.torchscript
from export.archive import ROOT
from export.files import records_of
from export.torchscript import export_checkpoint, main, without_source_paths
from model.network import MaskXRCNN
from tests.export.tiny import CLASSES, run_module, tiny_network


def test_the_metadata_say_what_the_labels_mean(exported: Path) -> None:
    extra: dict[str, str | bytes] = {"metadata.json": ""}
    torch.jit.load(exported, _extra_files=extra)
    metadata = json.loads(extra["metadata.json"])
    assert metadata["format_version"] == 1
    assert metadata["categories"] == [
        {"label": 1, "id": 2, "name": "a", "mask_supervised": True, "mask_source": "masks"},
        {"label": 2, "id": 3, "name": "b", "mask_supervised": False, "mask_source": "boxes"},
        {"label": 3, "id": 7, "name": "c", "mask_supervised": True, "mask_source": "masks"},
        {"label": 4, "id": 11, "name": "d", "mask_supervised": False, "mask_source": "boxes"},
        {"label": 5, "id": 90, "name": "e\u00e9", "mask_supervised": True, "mask_source": "masks"},
    ]
    assert metadata["mask_size"] == 14
    assert metadata["defaults"] == {"score_threshold": 0.5, "max_detections": 30}
    assert metadata["input"] == {"min_size": 64, "max_size": 96}
    assert set(metadata["versions"]) == {"torch", "torchvision", "maskx"}


def test_the_metadata_say_whose_operators_the_file_wants_and_it_wants_no_others(exported: Path) -> None:
    extra: dict[str, str | bytes] = {"metadata.json": ""}
    torch.jit.load(exported, _extra_files=extra)
    requires = json.loads(extra["metadata.json"])["requires"]
    with zipfile.ZipFile(exported) as archive:
        code = "".join(archive.read(n).decode() for n in archive.namelist() if n.endswith(".py"))
    called = set(re.findall(r"(?<![.\w])ops\.(\w+)\.", code))
    assert (
        called - {"aten", "prim", "profiler"} == set(requires) == {"torchvision"}
    )  # the first three are torch's own
    assert "import torchvision" in requires["torchvision"] and (ROOT / "export" / "cpp").is_dir()


def test_with_what_the_metadata_require_the_file_loads_and_without_it_does_not(exported: Path) -> None:
    """In processes of their own: torchvision's operators stay once they are there."""
    said = []
    for first in ("", "import torchvision; "):
        code = f"{first}import sys, torch; torch.jit.load(sys.argv[1]); print('loaded')"
        words = [sys.executable, "-W", "ignore", "-c", code, str(exported)]
        said.append(subprocess.run(words, capture_output=True, text=True, check=False))
    assert "torchvision::" in said[0].stderr and said[0].returncode != 0
    assert said[1].stdout == "loaded\n", said[1].stderr


def test_the_file_is_float32_and_not_frozen_and_needs_no_gradient(exported: Path) -> None:
    model = torch.jit.load(exported)
    parameters = dict(model.named_parameters())
    assert "box_head.fc6.weight" in parameters
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in parameters.values())
    assert not model.training
    assert model.mask_table.shape == (CLASSES.num_classes + 1, 8)


def test_the_network_keeps_its_gradients_after_an_export(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export.torchscript, "verify", lambda *_: None)
    network = tiny_network()
    before = {name: p.requires_grad for name, p in network.named_parameters()}
    export.torchscript.export_network(network, {"format_version": 1})
    assert {name: p.requires_grad for name, p in network.named_parameters()} == before
    assert any(before.values())


def test_no_path_of_a_source_file_is_in_the_file(exported: Path) -> None:
    assert not [name for name in records_of(exported) if name.endswith(".debug_pkl")]
    data = exported.read_bytes()
    assert str(ROOT).encode() not in data
    assert str(Path(torch.__file__).parent).encode() not in data


def test_tensors_are_stored_at_multiples_of_64_bytes(exported: Path) -> None:
    """So that a memory-mapped file needs no copy."""
    data = exported.read_bytes()
    tensors = 0
    with zipfile.ZipFile(exported) as archive:
        assert archive.testzip() is None
        for entry in archive.infolist():
            assert entry.compress_type == zipfile.ZIP_STORED
            if "/data/" in entry.filename:
                name, extra = struct.unpack_from("<HH", data, entry.header_offset + 26)
                assert (entry.header_offset + 30 + name + extra) % 64 == 0
                tensors += 1
    assert tensors > 20


def test_the_code_shown_in_an_error_survives_without_the_debug_records(exported: Path) -> None:
    model = torch.jit.load(exported)
    empty = torch.zeros(0, dtype=torch.int64)
    with pytest.raises(RuntimeError, match=r"(?s)canvas.*size_of"):
        model([torch.zeros(3)], empty, empty, empty, empty, torch.ones(1, dtype=torch.bool))


def test_debug_records_are_all_that_is_taken_out() -> None:
    class Doubled(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * x

    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(Doubled()), buffer, _extra_files={"note": "kept"})
    with zipfile.ZipFile(buffer) as archive:
        before = set(archive.namelist())
    data = without_source_paths(buffer.getvalue())
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        after = set(archive.namelist())
    assert {name.rpartition(".")[2] for name in before - after} == {"debug_pkl"}
    assert after < before
    extra: dict[str, str | bytes] = {"note": ""}
    model = torch.jit.load(io.BytesIO(data), _extra_files=extra)
    assert extra["note"] == b"kept"
    assert model(torch.ones(2)).tolist() == [2, 2]


def test_the_same_checkpoint_gives_the_same_bytes_in_another_folder_and_process(
    checkpoint: Path, exported: Path, tmp_path: Path
) -> None:
    for package in ("model", "export"):
        shutil.copytree(ROOT / package, tmp_path / "else where" / package)
    moved = tmp_path / "moved.pt"
    shutil.copy(checkpoint, moved)
    out = tmp_path / "other.pt"
    arguments = ("--checkpoint", moved, "--out", out)
    done = run_module("export.torchscript", *arguments, root=tmp_path / "else where", PYTHONHASHSEED="77")
    assert done.returncode == 0, done.stderr
    assert out.read_bytes() == exported.read_bytes()


def shifted_table(network: MaskXRCNN) -> MaskXRCNN:
    """A network whose served table is one row off."""
    inference = network.inference

    def broken() -> torch.nn.Module:
        served = inference()
        served.mask_table.copy_(served.mask_table.roll(1, 0))
        return served

    network.inference = broken  # type: ignore[method-assign, assignment]
    return network


def test_a_table_one_row_off_is_not_written(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load: Callable[..., tuple[MaskXRCNN, object, object]] = export.torchscript.load_network
    out = tmp_path / "maskx.pt"
    out.write_bytes(b"the old file")

    def load_broken(path: Path) -> tuple[MaskXRCNN, object, object]:
        network, classes, contents = load(path)
        return shifted_table(network), classes, contents

    monkeypatch.setattr(export.torchscript, "load_network", load_broken)
    assert main(["--checkpoint", str(checkpoint), "--out", str(out)]) == 1
    assert "row 0 of the baked mask table" in capsys.readouterr().err
    assert out.read_bytes() == b"the old file"
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("content", [None, b"", b"not a checkpoint", b"PK\x03\x04 torn"])
def test_what_is_missing_or_no_checkpoint_is_named(
    content: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "checkpoint.pt"
    if content is not None:
        path.write_bytes(content)
    assert main(["--checkpoint", str(path), "--out", str(tmp_path / "maskx.pt")]) == 2
    error = capsys.readouterr().err
    assert str(path) in error and ("there is no checkpoint" in error) == (content is None)
    assert list(tmp_path.iterdir()) == [path] * path.exists()


def test_an_exported_file_given_as_checkpoint_is_refused(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="exported already"):
        export_checkpoint(exported, tmp_path / "maskx.pt")
