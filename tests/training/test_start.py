"""Fine-tuning from a checkpoint or an archive: what is taken over, rows of classes by their names."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from export.metadata import build_metadata, metadata_json
from model.build import build_network
from model.checkpoint import load_checkpoint, load_network
from model.classes import ClassTable
from model.config import ModelConfig
from model.network import MaskXRCNN
from model.serving import prepared_for_serving
from tests.export.tiny import save_network
from tests.model.small_network import image
from tests.training.tiny_set import tiny_changes, tiny_config
from training.start import new_labels, read_start, take_over
from training.train import main

BEFORE = ClassTable(ids=(1, 5, 9), names=("slab", "brick", "stone"), has_mask=(True, False, True))
PREDICTOR = "box_predictor."


def model(*changes: str) -> ModelConfig:
    return tiny_config(Path("unused"), Path("unused"), *changes).model


def drawn(config: ModelConfig, classes: int, seed: int) -> MaskXRCNN:
    """A network no weight of which is where it began."""
    torch.manual_seed(seed)
    network = build_network(config, num_classes=classes)
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if name.startswith(("backbone.", "box_", "mask_", "rpn.")) and value.is_floating_point():
                value.copy_(
                    torch.rand_like(value) + 0.5 if "running_var" in name else torch.randn_like(value) * 0.1
                )
    return network.eval()


def archived(path: Path, network: MaskXRCNN, classes: ClassTable = BEFORE) -> Path:
    """A .mar with the exported network of nothing but what is read of it, without the checks of export."""
    metadata = build_metadata(classes, mask_size=28, max_detections=10, min_size=64, max_size=64)
    scripted = torch.jit.script(prepared_for_serving(network.inference()))
    torch.jit.save(scripted, path.with_suffix(".pt"), _extra_files={"metadata.json": metadata_json(metadata)})
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(path.with_suffix(".pt"), "maskx.pt")
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps({"model": {"serializedFile": "maskx.pt"}}))
    return path


NOW = ClassTable(ids=(1, 2, 3), names=("brick", "tile", "slab"), has_mask=(True, True, False))


def rows(weights: dict[str, Tensor], name: str, label: int) -> Tensor:
    value = weights[name]
    return value.reshape(4, value.shape[0] // 4, -1)[label]


def test_rows_go_by_name_new_classes_start_anew_and_all_else_is_taken_over(tmp_path: Path) -> None:
    config = model()
    given, network = drawn(config, 3, seed=1), drawn(config, 3, seed=2)
    fresh = {name: value.clone() for name, value in network.state_dict().items()}
    start = read_start(save_network(tmp_path / "start.pt", given, config, BEFORE))
    said = take_over(network, start, config, NOW)
    assert "2 of 3 classes are known by name, new: tile" in said and "start anew" not in said
    theirs, ours = given.state_dict(), network.state_dict()
    of_classes = [name for name in ours if name.startswith(PREDICTOR)]
    assert len(of_classes) == 4
    for name in of_classes:
        for label, before in ((0, 0), (1, 2), (3, 1)):  # background, brick, slab
            assert torch.equal(rows(ours, name, label), rows(theirs, name, before)), name
        assert torch.equal(rows(ours, name, 2), rows(fresh, name, 2)), name
    rest = ours.keys() - set(of_classes)
    assert all(torch.equal(ours[name], theirs[name]) for name in rest)
    assert any(not torch.equal(fresh[name], theirs[name]) for name in rest)
    assert new_labels(start, NOW) == (2,)
    with pytest.raises(ValueError, match="knows all 3 classes"):
        new_labels(start, BEFORE)


@pytest.mark.parametrize(
    ("before", "now", "named"),
    [
        ("model.transfer.input=cls", "model.transfer.input=random", "mask_weights.transfer"),
        ("model.mask.width=8", "model.mask.width=16", "mask_branch."),
        ("model.transfer.normalise=true", "model.transfer.normalise=false", "mask_weights.transfer"),
    ],
)
def test_what_does_not_fit_starts_anew_and_is_named(
    before: str, now: str, named: str, tmp_path: Path
) -> None:
    old, new = model(before), model(now)
    given, network = drawn(old, 3, seed=1), drawn(new, 3, seed=2)
    fresh = {name: value.clone() for name, value in network.state_dict().items()}
    said = take_over(network, read_start(save_network(tmp_path / "start.pt", given, old, BEFORE)), new, NOW)
    assert f"start anew ({named}" in said.replace("mask_weights.rows, ", "")
    for name, value in network.state_dict().items():
        if name.startswith(named):
            assert torch.equal(value, fresh[name]) or named == "mask_branch.", name
        elif name.startswith("backbone."):
            assert torch.equal(value, given.state_dict()[name])


def test_another_backbone_is_refused(tmp_path: Path) -> None:
    old, new = model(), model("model.backbone.fpn_channels=16")
    start = read_start(save_network(tmp_path / "start.pt", drawn(old, 3, seed=1), old, BEFORE))
    with pytest.raises(ValueError, match=r"weights of its backbone are missing or of another shape"):
        take_over(drawn(new, 3, seed=2), start, new, NOW)


@pytest.mark.parametrize(
    "form", ["kind=class_agnostic", "kind=class_specific", "residual=true"], ids=lambda form: form
)
def test_an_archive_gives_back_the_network_that_it_was_made_of(form: str, tmp_path: Path) -> None:
    config = model("model.backbone.norm=frozen", f"model.transfer.{form}")
    given = drawn(config, 3, seed=1)
    if given.mask_weights.transfer is not None:
        for layer in given.mask_weights.transfer.parameters():
            torch.nn.init.zeros_(layer)  # T itself is not in an archive: the fallback of all classes is
    network = drawn(config, 3, seed=2)
    start = read_start(archived(tmp_path / "maskx.mar", given))
    assert start.classes == BEFORE
    said = take_over(network, start, config, BEFORE)
    assert ("start anew (mask_weights.transfer" in said) == (form == "residual=true")
    for layer in network.mask_weights.transfer.parameters() if network.mask_weights.transfer else ():
        torch.nn.init.zeros_(layer)
    (one,), (other,) = given([image()]), network([image()])
    assert one["labels"].numel() > 0
    torch.testing.assert_close(other["boxes"], one["boxes"], atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(other["scores"], one["scores"], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(network.mask_table()[0], given.mask_table()[0])
    torch.testing.assert_close(network.mask_table()[1], given.mask_table()[1])


def test_an_archive_for_a_network_with_batch_statistics_is_refused(tmp_path: Path) -> None:
    config = model()
    start = read_start(archived(tmp_path / "maskx.mar", drawn(config, 3, seed=1)))
    with pytest.raises(
        ValueError, match=r"maskx\.mar: an archive holds no statistics .* model\.backbone\.norm=frozen"
    ):
        take_over(drawn(config, 3, seed=2), start, config, BEFORE)


def test_a_broken_archive_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "broken.mar"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps({"model": {"serializedFile": "maskx.pt"}}))
    with pytest.raises(ValueError, match="not an archive of this project that can be read") as caught:
        read_start(path)
    assert "\n" not in str(caught.value)


def test_a_training_starts_from_a_checkpoint_and_goes_on_without_it(tiny_set: Path, tmp_path: Path) -> None:
    config = model()
    given = drawn(config, 3, seed=1)
    start = save_network(tmp_path / "start.pt", given, config, BEFORE)
    words = [
        *tiny_changes(tiny_set, tmp_path / "run"),
        f"data.start_from={start}",
        "optimiser.learning_rate=1e-9",
    ]
    assert main([*words, "schedule.detector_steps=1", "schedule.mask_steps=0"]) == 0
    start.unlink()
    assert main([*words, "--resume", "schedule.detector_steps=1", "schedule.mask_steps=1"]) == 0
    trained = load_checkpoint(tmp_path / "run" / "checkpoint.pt")["model"]
    for name, label, before in (
        (f"{PREDICTOR}cls_score.weight", 3, 1),
        (f"{PREDICTOR}bbox_pred.weight", 1, 2),
    ):
        torch.testing.assert_close(rows(trained, name, label), rows(given.state_dict(), name, before))
    _, classes, _ = load_network(tmp_path / "run" / "checkpoint.pt")
    assert classes.names == NOW.names


def test_a_file_that_is_not_there_is_one_error(
    tiny_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*tiny_changes(tiny_set, tmp_path / "run"), f"data.start_from={tmp_path / 'none.pt'}"]
    assert main(words) == 2
    assert "none.pt: no such checkpoint" in capsys.readouterr().err.splitlines()[-1]


def test_steps_for_new_classes_want_a_start(
    tiny_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check: Callable[..., int] = lambda *words: main([*tiny_changes(tiny_set, tmp_path / "run"), *words])  # noqa: E731
    assert check("schedule.classes_steps=1") == 2
    assert "name it in data.start_from" in capsys.readouterr().err
    kept = ["model.transfer.normalise=true", "model.transfer.kept_mean=true"]
    assert check(*kept) == 2
    assert "set kept_mean to false, or these steps to 0" in capsys.readouterr().err
    assert check(*kept, "schedule.detector_steps=0") == 2
    assert "no mean was kept" in capsys.readouterr().err
    assert check("model.transfer.kept_rows=true") == 2
    assert "no class has kept its mask weights" in capsys.readouterr().err


def test_an_archive_says_what_its_masks_were_learned_from_and_one_of_before_is_read_too(
    tmp_path: Path,
) -> None:
    told = BEFORE.with_sources(["masks", "taught", "some_masks"])
    given = drawn(model(), 3, seed=1)
    assert read_start(archived(tmp_path / "now.mar", given, told)).classes == told
    metadata = build_metadata(told, mask_size=28, max_detections=1, min_size=1, max_size=1)
    for category in metadata["categories"]:
        del category["mask_source"]
    extra = {"metadata.json": json.dumps(metadata)}
    torch.jit.script(given.inference()).save(str(tmp_path / "before.pt"), _extra_files=extra)
    old = read_start(tmp_path / "before.pt").classes
    assert old.mask_sources == ("masks", "boxes", "boxes")
