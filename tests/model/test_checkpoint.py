"""Checkpoints: whole or not at all, read without running code, and refused by name where they do not fit."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from model import checkpoint
from model.build import build_network
from model.checkpoint import (
    load_checkpoint,
    load_detector,
    load_network,
    without_pretrained,
)
from model.classes import ClassTable
from model.config import BackboneConfig, BoxConfig, InputConfig, MaskConfig, ModelConfig, to_dict
from model.files import remove_unfinished
from model.network import MaskXRCNN
from tests.export.tiny import save_network

CLASSES = ClassTable(ids=(3, 5), names=("brick", "tile"), has_mask=(True, False))
CONFIG = ModelConfig(
    input=InputConfig(min_size=64, max_size=64),
    backbone=BackboneConfig(name="small", weights="none", norm="batch", fpn_channels=8),
    box=BoxConfig(width=8),
    mask=MaskConfig(width=8, convolutions=1),
)


def tiny(config: ModelConfig = CONFIG, *, seed: int = 0) -> MaskXRCNN:
    torch.manual_seed(seed)
    return build_network(config, num_classes=CLASSES.num_classes)


def save(path: Path, network: MaskXRCNN | None = None, **changes: Any) -> None:
    save_network(path, network or tiny(), CONFIG, CLASSES, **changes)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "checkpoint.pt"


def test_a_network_comes_back_with_its_weights_classes_and_step(path: Path) -> None:
    network = tiny()
    save(path, network, step=7)
    loaded, classes, whole = load_network(path)
    assert classes == CLASSES and whole["step"] == 7 and not loaded.training
    before, after = network.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert [p.name for p in path.parent.iterdir()] == ["checkpoint.pt"]


def test_a_network_loads_where_its_pretrained_weights_cannot_be_had(path: Path) -> None:
    """Evaluating needs no download: the checkpoint's weights replace whatever the backbone started from."""
    config = to_dict(CONFIG)
    config["backbone"]["weights"] = "gone/away.pt"
    save(path, model_config=config)
    load_network(path)


@pytest.mark.parametrize("moment", ["save", "fsync", "replace"])
def test_a_writer_that_fails_at_any_moment_leaves_the_old_file(
    path: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(path, step=1)

    def fail(*arguments: Any) -> None:
        if moment == "save":
            arguments[1].write(b"half of a file")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(
        *{"save": (torch, "save"), "fsync": (os, "fsync"), "replace": (os, "replace")}[moment], fail
    )
    with pytest.raises(ValueError, match=r"checkpoint.pt could not be written: No space left on device"):
        save(path, step=2)
    assert load_checkpoint(path)["step"] == 1
    assert [p.name for p in path.parent.iterdir()] == ["checkpoint.pt"]


def test_the_file_is_on_the_disk_before_it_takes_the_name(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    def noting(name: str, function: Any) -> None:
        def noted(*arguments: Any) -> None:
            order.append(name)
            function(*arguments)

        monkeypatch.setattr(os, name, noted)

    noting("fsync", os.fsync)
    noting("replace", os.replace)
    save(path)
    assert order[:2] == ["fsync", "replace"]


def test_others_may_read_a_checkpoint_as_they_may_any_new_file(path: Path, tmp_path: Path) -> None:
    save(path)
    (tmp_path / "ordinary").touch()
    assert path.stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_what_killed_writers_left_is_taken_away_and_nothing_else(path: Path) -> None:
    save(path)
    for name in (".checkpoint.pt.abc.unfinished", "log.csv"):
        (path.parent / name).touch()
    remove_unfinished(path)
    assert sorted(p.name for p in path.parent.iterdir()) == ["checkpoint.pt", "log.csv"]


class RunsCode:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("executed",)


def test_a_checkpoint_from_a_stranger_runs_no_code(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.parent.mkdir()
    monkeypatch.chdir(path.parent)
    torch.save({"format": RunsCode()}, path)
    with pytest.raises(ValueError, match=r"checkpoint.pt: not a checkpoint that can be read"):
        load_checkpoint(path)
    assert not Path("executed").exists()
    pickle.loads(pickle.dumps(RunsCode()))
    assert Path("executed").exists()  # else the lines above prove nothing


def test_a_file_that_is_no_checkpoint_is_refused_in_one_line(path: Path) -> None:
    with pytest.raises(ValueError, match="no such checkpoint"):
        load_checkpoint(path)
    save(path)
    whole = path.read_bytes()
    for data in (b"", b"text", whole[: len(whole) // 2]):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="not a checkpoint that can be read") as caught:
            load_checkpoint(path)
        assert "\n" not in str(caught.value)
    torch.save(tiny().state_dict(), path)
    with pytest.raises(ValueError, match="not a checkpoint of this project; expected the keys"):
        load_checkpoint(path)


def test_a_newer_format_is_refused(path: Path) -> None:
    save(path, format=2)
    with pytest.raises(ValueError, match="checkpoint of format 2; this version reads 1"):
        load_checkpoint(path)


def test_weights_of_another_configuration_are_named(path: Path) -> None:
    config = to_dict(CONFIG)
    config["box"]["width"] = 16
    save(path, model_config=config)
    with pytest.raises(ValueError, match=r"of another shape .*box_head"):
        load_network(path)


def test_a_detector_is_taken_over_without_its_mask_branch(path: Path) -> None:
    detector, network = tiny(seed=1), tiny(seed=2)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    save(path, detector)
    load_detector(network, path, CLASSES)
    mask_side = [key for key in before if key.startswith(("mask_branch.", "mask_weights."))]
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key] if key in mask_side else detector.state_dict()[key]), key
    moved = [key for key in mask_side if not torch.equal(before[key], detector.state_dict()[key])]
    assert moved, "the two mask branches should differ, else this proves nothing"


def test_a_detector_of_other_classes_is_refused_and_another_split_is_not(path: Path) -> None:
    save(path)
    split = ClassTable(ids=(3, 5), names=("brick", "tile"), has_mask=(False, True))
    load_detector(tiny(), path, split)
    others = ClassTable(ids=(3, 5), names=("brick", "slab"), has_mask=(True, False))
    with pytest.raises(
        ValueError, match=r"a detector of 2 classes \(brick, tile\); the data has 2 \(brick, slab\)"
    ):
        load_detector(tiny(), path, others)


def test_only_the_start_of_the_backbone_is_left_out_of_a_configuration_to_load() -> None:
    config = ModelConfig(backbone=BackboneConfig(name="resnet101", weights="imagenet", trainable_layers=2))
    kept = without_pretrained(config)
    assert kept.backbone == BackboneConfig(name="resnet101", weights="none", trainable_layers=2)
    assert checkpoint.FORMAT == 1
