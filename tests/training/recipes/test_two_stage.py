"""The two-stage training of Sec. 5 on a small Visual Genome: sliced to COCO's 80, trained on its masks, restored."""

import json
import signal
from pathlib import Path

import pytest
import torch

from export.verify import verify_mask_table
from model.checkpoint import load_checkpoint, load_network
from model.masks.class_rows import sliced, with_rows_of
from tests.model.small_network import image
from tests.training.datasets.small_sets import COCO_IDS, write_coco_2014, write_visual_genome
from tests.training.tiny_set import tiny_changes, weights
from training.config import DEFAULT_CONFIG, TrainingConfig, load_config
from training.datasets import visual_genome as vg
from training.datasets.coco_2014 import COCO_NAMES
from training.recipes import two_stage
from training.train import Stopped

MASK_SIDE = ("mask_branch.", "mask_weights.")
FORM = [
    f"model.transfer.{form}" for form in ("input=cls+box", "layers=2", "residual=false", "normalise=false")
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Visual Genome with 83 classes, three of them not COCO's; COCO with masks of its 80."""
    root = tmp_path_factory.mktemp("two_stage")
    write_visual_genome(root)
    write_coco_2014(root)
    (root / "minival.txt").write_text("4\n")
    vg.write_visual_genome(root / "vg", root / "minival.txt", root / "vg", classes=100, test_images=2)
    return root


def configs(root: Path, *changes: str) -> tuple[TrainingConfig, TrainingConfig]:
    """The two stages, a step each."""
    own = ("data.", "schedule.det", "output.dir")
    small = [word for word in tiny_changes(root, root) if not word.startswith(own)]
    common = [*small, "data.val_annotations=", "data.workers=0", *FORM, "optimiser.learning_rate=0.01"]
    of_vg = [f"data.train_images={root / 'vg'}", f"data.train_annotations={root / 'vg' / 'vg3k_train.json'}"]
    of_vg += ["schedule.detector_steps=1", "schedule.mask_steps=0", "data.mask_classes=all"]
    folder = root / "coco"
    of_coco = [f"data.train_images={folder / 'train2014'}", "data.mask_classes=all", "schedule.mask_steps=1"]
    of_coco += [f"data.train_annotations={folder / 'annotations' / 'instances_train2014.json'}"]
    of_coco += ["schedule.detector_steps=0"]
    return (
        load_config(DEFAULT_CONFIG, [*common, *of_vg, *changes]),
        load_config(DEFAULT_CONFIG, [*common, *of_coco, *changes]),
    )


@pytest.fixture(scope="module")
def made(root: Path) -> Path:
    threads = torch.get_num_threads()
    path = two_stage.two_stage(*configs(root), root / "out")
    torch.set_num_threads(threads)
    return path


def test_the_whole_detector_is_restored_and_the_mask_branch_is_that_of_the_second_stage(
    root: Path, made: Path
) -> None:
    whole, few, final = (
        weights(folder) for folder in (root / "out" / "detector", root / "out" / "masks", made.parent)
    )
    assert final.keys() == whole.keys()
    for name, value in final.items():
        assert torch.equal(value, (few if name.startswith(MASK_SIDE) else whole)[name]), name
    moved = [name for name in final if not torch.equal(final[name], whole[name])]
    assert moved, "the second stage has trained nothing, so the lines above prove nothing"


def test_the_sliced_detector_has_the_background_and_cocos_rows_by_name(root: Path) -> None:
    detector = root / "out" / "detector" / "checkpoint.pt"
    two_stage.slice_classes(detector, two_stage.mask_table(configs(root)[1]), root / "again.pt")
    whole, few = load_checkpoint(detector), load_checkpoint(root / "again.pt")
    assert few["classes"]["ids"] == list(COCO_IDS) and few["classes"]["names"] == list(COCO_NAMES)
    names = whole["classes"]["names"]
    assert len(names) == 83
    for key, per in (("cls_score.weight", 1), ("bbox_pred.weight", 4), ("bbox_pred.bias", 4)):
        wide, narrow = (w["model"][f"box_predictor.{key}"] for w in (whole, few))
        assert narrow.shape[0] == per * 81
        for label, name in enumerate(["", *COCO_NAMES]):
            row = names.index(name) + 1 if name else 0
            assert torch.equal(narrow[per * label :][:per], wide[per * row :][:per]), name


def test_t_is_applied_to_all_rows_and_cocos_masks_are_those_of_the_second_stage(
    root: Path, made: Path
) -> None:
    network, classes, _ = load_network(made)
    few, _, _ = load_network(root / "out" / "masks" / "checkpoint.pt")
    table, of_few = network.mask_table()[0], few.mask_table()[0]
    assert table.shape[0] == 84 and classes.num_classes == 83
    for label, name in enumerate(COCO_NAMES, start=1):
        torch.testing.assert_close(table[classes.label_of_name(name)], of_few[label])
    for name in ("tree.n.01", "dune.n.01"):
        label = classes.label_of_name(name)
        assert not classes.has_mask[label - 1] and bool(table[label].abs().sum() > 0)
        predictor = network.box_predictor
        w_det = network.mask_weights.detection_weights(predictor.cls_score.weight, predictor.bbox_pred.weight)
        assert network.mask_weights.transfer is not None
        torch.testing.assert_close(table[label], network.mask_weights.transfer(w_det[label]))
    assert sum(classes.has_mask) == 80
    network.score_threshold = 0.0
    (answer,) = network([image()])
    assert answer["labels"].numel() > 0


def test_what_is_finished_is_not_made_again(root: Path, made: Path) -> None:
    before = made.read_bytes()
    detector = (root / "out" / "detector" / "checkpoint.pt").stat().st_mtime_ns
    made.unlink()
    assert two_stage.two_stage(*configs(root), root / "out") == made
    assert (root / "out" / "detector" / "checkpoint.pt").stat().st_mtime_ns == detector
    assert len(before) == made.stat().st_size


@pytest.mark.parametrize("form", ["input=random", "normalise=true"])
def test_further_classes_change_no_mask_of_the_second_stage(
    form: str, root: Path, made: Path, tmp_path: Path
) -> None:
    detector, masks = configs(root, f"model.transfer.{form}", "model.transfer.vector_width=7")
    finished = str(root / "out" / "detector" / "checkpoint.pt")
    path = two_stage.two_stage(detector, masks, tmp_path, detector_from=finished)
    assert not (tmp_path / "detector").exists()
    network, classes, contents = load_network(path)
    few, _, _ = load_network(tmp_path / "masks" / "checkpoint.pt")
    labels = [0, *(classes.label_of_name(name) for name in COCO_NAMES)]
    torch.testing.assert_close(network.mask_table()[0][labels], few.mask_table()[0])
    assert contents["model_config"]["transfer"]["kept_mean"] == (form == "normalise=true")
    verify_mask_table(network, network.inference())  # as export does
    rest = [label for label in range(84) if label not in labels]
    assert bool(network.mask_table()[0][rest].abs().sum(dim=1).gt(0).all())


@pytest.mark.parametrize(
    ("of_detector", "of_masks", "message"),
    [
        (
            ["schedule.detector_steps=0", "schedule.mask_steps=1"],
            [],
            "0 detector_steps and 0 end_to_end_steps",
        ),
        ([], ["schedule.mask_steps=0", "schedule.detector_steps=1"], "has no mask_steps"),
        ([], ["model.box.width=8"], r"different detectors: model\.box\.width is 16 and 8"),
        ([], ["model.transfer.kind=class_specific"], "has no masks for the detector's other classes"),
    ],
)
def test_stages_that_do_not_belong_together_are_refused(
    of_detector: list[str], of_masks: list[str], message: str, root: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        two_stage.two_stage(configs(root, *of_detector)[0], configs(root, *of_masks)[1], tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_class_that_the_detector_will_not_know_is_refused_before_anything_is_trained(
    root: Path, tmp_path: Path
) -> None:
    document = json.loads((root / "coco" / "annotations" / "instances_train2014.json").read_text())
    document["categories"][0]["name"] = "unicorn"
    (tmp_path / "few.json").write_text(json.dumps(document))
    detector, _ = configs(root)
    _, masks = configs(root, f"data.train_annotations={tmp_path / 'few.json'}")
    with pytest.raises(ValueError, match=r"1 classes of .*few\.json are not among its 83: unicorn"):
        two_stage.two_stage(detector, masks, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_rows_are_sliced_and_put_back_to_what_they_were() -> None:
    names, few = ("a", "b", "c", "d"), ("d", "b")
    wide = {"box_predictor.bbox_pred.weight": torch.randn(20, 3), "box_predictor.cls_score.bias": torch.randn(5),
            "mask_weights.bias": torch.tensor(1.0), "rpn.weight": torch.randn(2)}  # fmt: skip
    narrow = sliced(wide, names, few)
    box, cls = "box_predictor.bbox_pred.weight", "box_predictor.cls_score.bias"
    assert torch.equal(narrow[cls], wide[cls][[0, 4, 2]])
    assert torch.equal(narrow[box][4:8], wide[box][16:])
    assert torch.equal(narrow["mask_weights.bias"], wide["mask_weights.bias"])
    for name, per in ((box, 4), (cls, 1)):
        assert torch.equal(with_rows_of(wide[name], narrow[name], few, names, per), wide[name])
        changed = with_rows_of(wide[name], narrow[name] + 1, few, names, per) - wide[name]
        touched = changed.reshape(5, per, -1).abs().sum(dim=(1, 2)) > 0.5
        assert touched.tolist() == [True, False, True, False, True]
    with pytest.raises(ValueError, match="1 of 2 classes are not among the network's 2: c"):
        sliced(narrow, few, ("b", "c"))
    with pytest.raises(ValueError, match="3 rows for 1 classes and the background; 1 each are expected"):
        with_rows_of(torch.zeros(2), torch.zeros(3), ("a",), ("b",), 1)


def test_the_command_reads_two_files_and_goes_on_after_a_signal(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, steps in (("vg", "detector_steps"), ("coco", "mask_steps")):
        (tmp_path / f"{name}.toml").write_text(f"[schedule]\n{steps} = 3\n[data]\ntrain_images = '{name}'\n")
    seen: list[tuple[str, str, int, str]] = []

    def stopped(detector: TrainingConfig, masks: TrainingConfig, out: Path, *, detector_from: str) -> Path:
        images = detector.data.train_images, masks.data.train_images
        seen.append((*images, masks.schedule.batch_size, detector_from))
        if len(seen) == 1:
            raise Stopped(signal.SIGTERM, step=2, checkpoint=out)
        return out

    monkeypatch.setattr(two_stage, "two_stage", stopped)
    words = [str(tmp_path / "vg.toml"), str(tmp_path / "coco.toml"), "--out", str(tmp_path)]
    words += ["schedule.batch_size=3"]
    assert two_stage.main(words) == 143
    assert "the same command goes on" in capsys.readouterr().out
    assert two_stage.main([*words, "--detector-from", "d.pt"]) == 0
    assert seen == [("vg", "coco", 3, ""), ("vg", "coco", 3, "d.pt")]
    assert two_stage.main([str(tmp_path / "none.toml"), str(tmp_path / "coco.toml")]) == 2
    assert "no such configuration file" in capsys.readouterr().err
