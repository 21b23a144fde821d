"""A class-specific network gets T: its classes keep their masks, new ones get T's, and it goes on like any other."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import export.verify
from export.torchscript import export_checkpoint
from model.checkpoint import load_checkpoint, load_network, save_checkpoint
from tests.export.tiny import answers_here
from tests.training.datasets.small_sets import write_json
from tests.training.recipes.torchvision_peer import small_peer
from tests.training.tiny_set import tiny_changes, write_tiny_set
from training.evaluate.__main__ import main as evaluate
from training.recipes import grow
from training.recipes.convert_torchvision import convert
from training.recipes.fit_transfer.__main__ import main
from training.recipes.fit_transfer.fitted import best_fits, read_finished, with_transfer
from training.recipes.fit_transfer.judged import ClassMasks, Judged, judge_left_out, truth_of
from training.recipes.fit_transfer.report import verdict_of_masks
from training.recipes.fit_transfer.ridge import mean_of_others, ridge
from training.train import main as train

LABELS = [1, 2, 3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny set of three classes, a file of boxes of a fourth, "plank", and a class-specific network of the three with
    mask weights that differ."""
    folder = tmp_path_factory.mktemp("fit") / "set"
    write_tiny_set(folder)
    whole = json.loads((folder / "train.json").read_text())
    boxes = [
        {**one, "category_id": 1, "segmentation": []}
        for one in whole["annotations"]
        if one["category_id"] == 3
    ]
    write_json(
        folder / "new.json", whole | {"annotations": boxes, "categories": [{"id": 1, "name": "plank"}]}
    )
    threads = torch.get_num_threads()
    specific = ["model.transfer.kind=class_specific", "data.mask_classes=all", "model.mask.mlp=none"]
    assert train([*tiny_changes(folder, folder / "run"), *specific]) == 0
    torch.set_num_threads(threads)
    contents = load_checkpoint(folder / "run" / "checkpoint.pt")
    generator = torch.Generator().manual_seed(0)
    for name in ("mask_weights.specific", "mask_weights.bias"):
        weights = contents["model"][name]
        weights.copy_(torch.randn(weights.shape, generator=generator))
    save_checkpoint(folder / "before.pt", contents)
    return folder


def changed(folder: Path, out: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    contents = load_checkpoint(folder / "before.pt")
    change(contents)
    save_checkpoint(out, contents)
    return out


def table_of(path: Path) -> tuple[Tensor, Tensor]:
    network, _, _ = load_network(path)
    table, bias = network.mask_table()
    return table.detach(), bias.detach()


def test_classes_keep_their_mask_weights_and_biases_to_the_bit(folder: Path, tmp_path: Path) -> None:
    assert main([str(folder / "before.pt"), "--out", str(tmp_path / "fitted.pt")]) == 0
    before, after = table_of(folder / "before.pt"), table_of(tmp_path / "fitted.pt")
    for was, now in zip(before, after, strict=True):
        assert torch.equal(now[LABELS], was[LABELS])
    old, new = (load_checkpoint(path)["model"] for path in (folder / "before.pt", tmp_path / "fitted.pt"))
    for name in old:
        assert name.startswith("mask_weights.") or torch.equal(old[name], new[name]), name
    assert load_checkpoint(tmp_path / "fitted.pt")["converted_from"] == "before.pt, T fitted on its classes"


@pytest.mark.parametrize("given", ["cls", "box", "cls+box"])
def test_the_networks_t_is_the_fit(given: Any, folder: Path) -> None:
    finished = read_finished(folder / "before.pt")
    fit = best_fits(finished, (given,), (0.1,))[given]
    network, config = with_transfer(finished, given, fit)
    assert config.model.transfer.input == given and config.model.transfer.kept_rows
    weights, box = network.mask_weights, network.box_predictor
    w_det = weights.detection_weights(box.cls_score.weight, box.bbox_pred.weight)[LABELS]
    own = finished.network.mask_weights.specific
    assert own is not None and weights.is_kept is not None
    expected = ridge(w_det, own.detach()[LABELS], 0.1)
    weights.is_kept.fill_(False)
    table, bias = network.mask_table()
    torch.testing.assert_close(table[LABELS], expected.offset + w_det @ expected.weight.t())
    assert float(table[LABELS].detach().std(dim=0).mean()) > 1e-3
    of_classes = finished.network.mask_weights.bias
    assert of_classes is not None
    torch.testing.assert_close(bias, of_classes[LABELS].mean().expand(4))


def test_a_class_whose_mask_weights_saw_no_mask_is_not_fitted_on_and_gets_ts(
    folder: Path, tmp_path: Path
) -> None:
    def fourth(contents: dict[str, Any]) -> None:
        contents["classes"] |= {"has_mask": [True, False, True], "mask_sources": ["masks", "boxes", "masks"]}

    path = changed(folder, tmp_path / "two.pt", fourth)
    assert read_finished(path).labels == (1, 3)
    finished = read_finished(folder / "before.pt")
    fit = best_fits(finished, ("cls",), (0.1,))["cls"]
    network, _ = with_transfer(read_finished(path), "cls", fit)
    kept = network.mask_weights.is_kept
    assert kept is not None and kept.tolist() == [False, True, False, True]


def test_the_network_is_evaluated_exported_and_grown_by_a_class_with_boxes_alone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted = tmp_path / "fitted.pt"
    assert main([str(folder / "before.pt"), "--out", str(fitted), "--input", "cls+box"]) == 0
    assert (
        evaluate(["--checkpoint", str(fitted), "--device", "cpu", "--out", str(tmp_path / "evaluation")]) == 0
    )
    monkeypatch.setattr(export.verify, "answers_of_fresh_process", answers_here)
    export_checkpoint(fitted, tmp_path / "maskx.pt")  # which verifies the table
    words = ["--images", str(folder / "images"), "--annotations", str(folder / "new.json"), "--steps", "2"]
    assert grow.main([str(fitted), *words, "--out", str(tmp_path / "grown")]) == 0
    network, classes, _ = load_network(tmp_path / "grown" / "checkpoint.pt")
    assert classes.names == ("brick", "tile", "slab", "plank") and classes.has_mask == (
        True,
        True,
        True,
        False,
    )
    before, after = table_of(folder / "before.pt"), table_of(tmp_path / "grown" / "checkpoint.pt")
    for was, now in zip(before, after, strict=True):
        assert torch.equal(now[LABELS], was[LABELS])
    weights, box = network.mask_weights, network.box_predictor
    assert weights.transfer is not None and weights.agnostic is not None
    w_det = weights.detection_weights(box.cls_score.weight, box.bbox_pred.weight)[4]
    torch.testing.assert_close(after[0][4], (weights.transfer(w_det) + weights.agnostic).detach())
    torch.testing.assert_close(after[1][4], before[1][LABELS].mean())


def test_a_network_of_torchvision_gets_t_and_keeps_each_class_its_own_bias(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = small_peer(4, side=128).state_dict()
    logits = "roi_heads.mask_predictor.mask_fcn_logits"
    state[f"{logits}.bias"] = torch.tensor([0.0, 1.0, -1.0, 2.0, 0.5])
    torch.save(state, tmp_path / "theirs.pth")
    convert(str(tmp_path / "theirs.pth"), tmp_path / "before.pt", classes="a,b,c,d")
    assert main([str(tmp_path / "before.pt"), "--out", str(tmp_path / "fitted.pt")]) == 0
    table, bias = table_of(tmp_path / "fitted.pt")
    assert torch.equal(table[1:], state[f"{logits}.weight"][1:, :, 0, 0])
    assert bias.tolist() == [0.625, 1.0, -1.0, 2.0, 0.5]


def test_one_command_fits_t_and_adds_a_class(folder: Path, tmp_path: Path) -> None:
    words = ["--images", str(folder / "images"), "--annotations", str(folder / "new.json"), "--steps", "1"]
    assert grow.main([str(folder / "before.pt"), "--fit-transfer", *words, "--out", str(tmp_path / "g")]) == 0
    assert load_network(tmp_path / "g" / "checkpoint.pt")[1].names[-1] == "plank"
    assert load_checkpoint(tmp_path / "g" / "fitted.pt")["model_config"]["transfer"]["kept_rows"] is True
    assert (
        grow.main(
            [str(folder / "before.pt"), "--fit-transfer", *words, "--out", str(tmp_path / "g"), "--resume"]
        )
        == 0
    )


def test_masks_of_left_out_classes_are_judged_and_leave_the_network_as_it_was(folder: Path) -> None:
    finished = read_finished(folder / "before.pt")
    truth = truth_of(finished, folder / "train.json", folder / "images")
    weights = finished.network.mask_weights
    assert weights.specific is not None and weights.bias is not None
    before = weights.specific.detach().clone(), weights.bias.detach().clone()
    fit = best_fits(finished, ("cls",), (1e-3,))["cls"]
    judged = judge_left_out(finished, fit, truth, folder / "images")
    assert torch.equal(weights.specific, before[0]) and torch.equal(weights.bias, before[1])
    assert [one.name for one in judged.classes] == ["brick", "tile", "slab"]
    assert sum(one.objects for one in judged.classes) == sum(map(len, truth.objects.values()))
    mean = best_fits(finished, ("cls",), (float("inf"),))["cls"]
    at_mean = judge_left_out(finished, mean, truth, folder / "images")
    for one, other in zip(judged.classes, at_mean.classes, strict=True):
        assert other.filled == one.filled == 1.0  # the objects are rectangles
        assert other.left_out == other.mean == one.mean and other.own == one.own
    assert any(one.left_out != one.mean for one in judged.classes)
    with torch.no_grad():
        weights.specific[LABELS] = mean_of_others(before[0][LABELS])
        weights.bias[LABELS] = mean_of_others(before[1][LABELS])
    as_own = judge_left_out(finished, mean, truth, folder / "images")
    assert [one.own for one in as_own.classes] == [one.mean for one in judged.classes]


@pytest.mark.parametrize(
    ("gains", "better", "words"),
    [
        ([0.1, 0.12, 0.08], 1, "are better than those of the mean row"),
        ([0.1, -0.12, 0.08], 0, "are not told apart"),
        ([-0.1, -0.12, -0.08], -1, "are worse than"),
        ([0.5], 0, "are not told apart"),
    ],
)
def test_t_is_called_better_or_worse_only_beyond_chance(gains: list[float], better: int, words: str) -> None:
    judged = Judged(
        classes=tuple(
            ClassMasks(name="x", objects=1, own=1.0, left_out=0.5 + gain, mean=0.5, filled=0.55)
            for gain in gains
        )
    )
    assert judged.better == better and words in verdict_of_masks(judged)
    assert ("worse than filled boxes" in verdict_of_masks(judged)) == (sum(gains) / len(gains) < 0.05)


@pytest.mark.parametrize("worse", [True, False])
def test_a_t_that_makes_worse_masks_than_the_mean_row_is_written_as_zero(
    worse: bool,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sign = -1 if worse else 1
    found = tuple(
        ClassMasks(name="x", objects=1, own=1.0, left_out=0.5 + sign * g, mean=0.5, filled=0.55)
        for g in (0.1, 0.2)
    )
    monkeypatch.setattr("training.recipes.fit_transfer.judged.STANDARD_ERRORS", 1.0)
    monkeypatch.setattr(
        "training.recipes.fit_transfer.recipe.judge_left_out", lambda *_: Judged(classes=found)
    )

    def alike(contents: dict[str, Any]) -> None:  # so that some T is better than the mean row of the weights
        weights = contents["model"]
        w_det = weights["box_predictor.cls_score.weight"]
        w_det[LABELS] = torch.tensor([[1.0], [1.1], [-2.0]]) * w_det[1] * 9
        weights["mask_weights.specific"][LABELS] = torch.tensor([[1.0], [1.1], [-2.0]]) * torch.ones(8)

    path = changed(folder, tmp_path / "alike.pt", alike)
    words = ["--val-images", str(folder / "images"), "--val-annotations", str(folder / "train.json")]
    assert main([str(path), "--out", str(tmp_path / "out.pt"), "--input", "cls", *words]) == 0
    layer = load_checkpoint(tmp_path / "out.pt")["model"]["mask_weights.transfer.layers.0.weight"]
    figures = json.loads((tmp_path / "out.json").read_text())
    assert figures["fits"]["cls"]["lambda"] is not None and (figures["lambda"] is None) == worse
    assert bool(layer.any()) != worse
    assert "own row" in capsys.readouterr().out


def of_kind(kind: str) -> Callable[[dict[str, Any]], None]:
    def change(contents: dict[str, Any]) -> None:
        weights, config = contents["model"], contents["model_config"]["transfer"]
        config |= {"kind": kind, "layers": 1, "residual": True, "input": "cls"}
        contents["training_config"]["model"]["transfer"] = config
        weights["mask_weights.agnostic"] = weights.pop("mask_weights.specific")[0]
        weights["mask_weights.bias"] = torch.zeros(())
        if kind == "transfer":
            weights["mask_weights.transfer.layers.0.weight"] = torch.zeros(8, 16)
            weights["mask_weights.transfer.layers.0.bias"] = torch.zeros(8)

    return change


def softmax(contents: dict[str, Any]) -> None:
    contents["model_config"]["mask"]["loss"] = "softmax"


def one_with_masks(contents: dict[str, Any]) -> None:
    contents["classes"] |= {"has_mask": [False, True, False], "mask_sources": ["boxes", "masks", "boxes"]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (of_kind("class_agnostic"), "model.transfer.kind is class_agnostic, so no class has mask weights"),
        (of_kind("transfer"), "model.transfer.kind is transfer, so no class has mask weights"),
        (softmax, "model.mask.loss is softmax"),
        (one_with_masks, "1 classes have mask weights of their own"),
    ],
)
def test_a_network_that_t_cannot_be_fitted_on_is_one_error(
    change: Callable[[dict[str, Any]], None],
    message: str,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = changed(folder, tmp_path / "wrong.pt", change)
    assert main([str(path), "--out", str(tmp_path / "out.pt")]) == 2
    error = capsys.readouterr().err
    assert f"error: {path}: " in error and message in error and not (tmp_path / "out.pt").exists()


def test_words_that_do_not_go_together_are_one_error(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = str(folder / "before.pt")
    assert main([before, "--out", before]) == 2
    assert "is the checkpoint itself" in capsys.readouterr().err
    assert main([before, "--out", str(tmp_path / "out.pt"), "--val-images", str(folder)]) == 2
    assert "go together" in capsys.readouterr().err
