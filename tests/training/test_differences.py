"""docs/differences.md: what it says of the presets, of the grid and of the paper's own configuration is so."""

import ast
import os
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from model.classes import class_table
from training.config import TrainingConfig, flat, load_config, to_dict
from training.datasets.coco_2014 import COCO_NAMES
from training.experiments.grid import cells_of_seed, load_grid, stage_wise

ROOT = Path(__file__).resolve().parent.parent.parent
PRESETS = ("paper", "paper_modern")


def table(name: str) -> list[list[str]]:
    """The cells of a table's lines, below its head."""
    page = (ROOT / "docs" / "differences.md").read_text(encoding="utf-8")
    found = re.search(rf"^<!-- {name} -->\n(.*?)^<!-- /{name} -->$", page, flags=re.M | re.S)
    assert found, f"no table {name} in docs/differences.md"
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in found[1].splitlines()[2:]]


def value(text: str) -> Any:
    """`2.0`, `true`, `fc`, `1.0 / 3.0` or a list, of what stands in backticks; None of "absent"."""
    if text == "absent":
        return None
    found = re.match(r"`([^`]*)`", text)
    assert found, f"no value in backticks: {text}"
    word = found[1]
    if word in ("true", "false"):
        return word == "true"
    division = re.fullmatch(r"([\d.]+) / ([\d.]+)", word)
    if division:
        return float(division[1]) / float(division[2])
    try:
        return ast.literal_eval(word)
    except (ValueError, SyntaxError):
        return word


def in_force(config: TrainingConfig) -> dict[str, Any]:
    """Every key; of the anchors before NMS what their absence means."""
    train, test = config.model.rpn.before_nms(one_level=False)
    return flat(to_dict(config)) | {"model.rpn.pre_nms_train": train, "model.rpn.pre_nms_test": test}


@cache
def preset(name: str) -> dict[str, Any]:
    return in_force(load_config(ROOT / "training" / "presets" / f"{name}.toml"))


def switches() -> dict[str, list[tuple[str, str]]]:
    """The keys of the first table, and of each line what stands for the two presets."""
    found: dict[str, list[tuple[str, str]]] = {}
    for _, _, _, key, paper, modern in table("differences"):
        found.setdefault(key.strip("`"), []).append((paper, modern))
    return found


# ---- keys that choose ----


@pytest.mark.parametrize("key", switches())
def test_the_two_presets_have_what_the_page_says(key: str) -> None:
    for paper, modern in switches()[key]:
        assert preset("paper_modern")[key] == value(modern)
        if " in rows " not in paper:
            assert preset("paper")[key] == value(paper)


def test_the_two_presets_differ_in_these_keys_and_no_other() -> None:
    one, other = (preset(name) for name in PRESETS)
    named = {
        key for key, cells in switches().items() if any(a != b and " in rows " not in a for a, b in cells)
    }
    assert {key for key in one if one[key] != other[key]} == named


def test_every_difference_has_a_name_and_a_reason_of_its_own() -> None:
    lines = table("differences") + table("without")
    assert len({line[0] for line in lines}) == len(lines) > 30
    assert all(len(cell) > 2 for line in lines for cell in line)


def test_the_rows_of_the_grid_are_the_papers_form_too() -> None:
    """Of a key with rows of its own these have it, and others not; every other key as in paper.toml."""
    grid = load_grid("paper")
    cells = cells_of_seed(grid, grid.rows, [], seed=0, out=Path("out"))
    assert {stage_wise(cell.config) for cell in cells} == {True, False}
    for cell in cells:
        have = in_force(cell.config)
        for key, lines in switches().items():
            for paper, modern in lines:
                if " in rows " in paper:
                    assert have[key] == value(paper if stage_wise(cell.config) else modern), cell.title
                elif key == "model.rpn.images_together":
                    assert have["schedule.batch_size"] == 8 * have[key], cell.title
                else:
                    assert have[key] == value(paper), cell.title


@pytest.mark.parametrize("name", ["vg3k_detector", "vg3k_masks"])
def test_visual_genomes_presets_are_the_papers_form_too(name: str) -> None:
    have = preset(name)
    other = {"model.rpn.images_together": 1, "model.transfer.random_rows": "class"}
    for key, lines in switches().items():
        assert have[key] == other.get(key, have[key])
        if key not in other and not (name == "vg3k_detector" and key == "model.mask.stage_rois"):
            assert have[key] == value(lines[0][0]), key


# ---- the official configuration, key by key ----

END_TO_END, R50 = 90_000, "resnet50"
SAME_AS: dict[str, dict[Any, Any]] = {
    "MODEL.TYPE": {"mask_rcnn": END_TO_END},
    "MODEL.FASTER_RCNN": {True: END_TO_END},
    "MODEL.RPN_ONLY": {False: END_TO_END},
    "MODEL.CONV_BODY": {"FPN.add_fpn_ResNet50_conv5_body": R50},
    "MODEL.KEYPOINTS_ON": {False: "none"},
    "FPN.FPN_ON": {True: "fc"},
    "FPN.MULTILEVEL_ROIS": {True: "fc"},
    "FPN.MULTILEVEL_RPN": {True: "fc"},
    "FPN.USE_GN": {False: "frozen"},
    "RESNETS.NUM_GROUPS": {1: R50},
    "RESNETS.WIDTH_PER_GROUP": {64: R50},
    "RESNETS.TRANS_FUNC": {"bottleneck_transformation": R50},
    "RESNETS.STEM_FUNC": {"basic_bn_stem": "frozen"},
    "RESNETS.SHORTCUT_FUNC": {"basic_bn_shortcut": "frozen"},
    "FAST_RCNN.ROI_BOX_HEAD": {"head_builder.add_roi_2mlp_head": "fc"},
    "FAST_RCNN.ROI_XFORM_METHOD": {"RoIAlign": "align"},
    "MRCNN.ROI_MASK_HEAD": {"mask_rcnn_heads.ResNet_mask_rcnn_fcn_head_v1up4convs": 4},
    "MRCNN.ROI_XFORM_METHOD": {"RoIAlign": "align"},
    "MRCNN.USE_FC_OUTPUT": {False: "fcn"},
    "MRCNN.CLS_SPECIFIC_MASK": {True: "transfer"},
    "MRCNN.BBOX2MASK.BBOX2MASK_ON": {True: "transfer"},
    "MRCNN.BBOX2MASK.TYPE": {"2_layer": 2},
    "MRCNN.BBOX2MASK.INCLUDE_CLS_SCORE": {True: "cls+box"},
    "MRCNN.BBOX2MASK.INCLUDE_BBOX_PRED": {True: "cls+box"},
    "MRCNN.BBOX2MASK.USE_PRETRAINED_EMBED": {False: ""},
    "MRCNN.BBOX2MASK.USE_LEAKYRELU": {True: "leaky_relu"},
    "MRCNN.JOINT_FCN_MLP_HEAD": {True: "official"},
    "MRCNN.MLP_MASK_BRANCH_TYPE": {"": "official"},
    "TRAIN.USE_FLIPPED": {True: 0.5},
    "TRAIN.FREEZE_CONV_BODY": {False: 3},
    "TRAIN.TRAIN_MASK_HEAD_ONLY": {False: 0},
    "TRAIN.MRCNN_FILTER_LABELS": {True: "voc"},
    "SOLVER.LR_POLICY": {"steps_with_decay": "multi_step"},
}  # fmt: skip
"""What words of the official configuration are called here."""


def voc(labels: tuple[int, ...]) -> str:
    """ "voc" where these are its classes, background being 0."""
    categories = [{"id": k, "name": name} for k, name in enumerate(COCO_NAMES, start=1)]
    return "voc" if class_table(categories, "voc").set_a_labels() == labels else "others"


COMPUTED: dict[str, Callable[[Any], Any]] = {
    "FPN.RPN_ANCHOR_START_SIZE": lambda start: [start * 2**k for k in range(5)],
    "MRCNN.RESOLUTION": lambda side: side // 2,
    "NUM_GPUS": lambda gpus: gpus * 2,
    "TRAIN.SCALES": lambda scales: scales[0],
    "TRAIN.MRCNN_LABELS_TO_KEEP": voc,
    "SOLVER.STEPS": lambda steps: [step / END_TO_END for step in steps[1:]],
}
"""What numbers of the official configuration are in the units of ours."""


def here(key: str, official: Any) -> Any:
    """The value that an official one is here."""
    if key in SAME_AS:
        return SAME_AS[key].get(official, f"nothing for {official!r}")
    return COMPUTED[key](official) if key in COMPUTED else official


def listed(given: Any) -> Any:
    return list(given) if isinstance(given, tuple) else given


@pytest.mark.parametrize("line", table("keys"), ids=lambda line: line[0].strip("`"))
def test_a_key_of_the_paper_is_ours_or_one_of_the_differences(line: list[str]) -> None:
    official, given, ours, said = line
    if ours:
        have = preset("paper")[ours.strip("`")]
        assert have == listed(value(said))
        assert have == listed(here(official.strip("`"), value(given)))
    elif said.startswith("built in: "):
        (file,) = re.findall(r"`(.+?)`", said)
        assert (ROOT / file).is_file()
    elif said.startswith("see "):
        assert said.removeprefix("see ") in {row[0] for row in table("differences") + table("without")}
    else:
        assert official == "`MODEL.NUM_CLASSES`" and len(COCO_NAMES) + 1 == value(given) == 81


def test_no_key_stands_twice_and_those_of_the_method_are_all_there() -> None:
    keys = [line[0] for line in table("keys")]
    assert len(set(keys)) == len(keys) > 110
    assert sum(".BBOX2MASK." in key for key in keys) == 7


SWITCHED_OFF = (
    "RETINANET", "KRCNN", "RFCN", "GROUP_NORM", "TEST.BBOX_AUG", "TEST.MASK_AUG", "TEST.KPS_AUG", "TEST.SOFT_NMS",
    "TEST.BBOX_VOTE", "MRCNN.BBOX2MASK.PRETRAINED_EMBED", "FAST_RCNN.CONV_HEAD_DIM", "FAST_RCNN.NUM_STACKED_CONVS",
    "RPN.", "SOLVER.LRS", "SOLVER.STEP_SIZE", "SOLVER.WEIGHT_DECAY_GN", "TEST.PROPOSAL_LIMIT",
    "TEST.PRECOMPUTED_PROPOSALS",
)  # fmt: skip
NO_NUMBERS = (
    "CLUSTER", "DATA_LOADER", "DOWNLOAD_CACHE", "EPS", "EXPECTED_RESULTS", "MATLAB", "MEMONGER", "OUTPUT_DIR",
    "ROOT_DIR", "USE_NCCL", "VIS", "MODEL.EXECUTION_TYPE", "SOLVER.LOG_LR_CHANGE_THRESHOLD", "TEST.COMPETITION_MODE",
    "TEST.FORCE_JSON_DATASET_EVAL", "TEST.WEIGHTS", "TRAIN.AUTO_RESUME", "TRAIN.SNAPSHOT_ITERS",
)  # fmt: skip


def test_the_official_values_are_those_of_the_papers_own_files() -> None:
    """With a check-out of seg_every_thing, whose folder PEERS_SET names."""
    if not (folder := os.environ.get("PEERS_SET")):
        pytest.skip("PEERS_SET does not name a check-out of seg_every_thing")
    text = (Path(folder) / "lib/core/config.py").read_text(encoding="utf-8")
    official = {key: given.strip() for key, given in re.findall(r"^__C\.([\w.]+) = (.+)$", text, flags=re.M)}
    official = {key: given for key, given in official.items() if "AttrDict" not in given}
    path = "configs/bbox2mask_coco/voc2nonvoc/eval_e2e/e2e_clsbox_2_layer_mlp_nograd.yaml"
    set_there = flat(yaml.safe_load((Path(folder) / path).read_text(encoding="utf-8")))
    assert set_there.keys() <= official.keys()
    named = {line[0].strip("`"): line[1].strip("`") for line in table("keys")}
    left_out = official.keys() - named.keys()
    assert {key for key in left_out if not key.startswith(SWITCHED_OFF + NO_NUMBERS)} == set()
    assert named.keys() <= official.keys()
    for key, given in named.items():
        if key == "TRAIN.WEIGHTS":
            assert set_there[key].endswith("/R-50.pkl")
        elif key in set_there:
            real = set_there[key]
            real = ast.literal_eval(real) if isinstance(real, str) and real.startswith("(") else real
            assert value(f"`{given}`") == real, key
        else:
            real = re.sub(r"^b?'(.*)'$", r"\1", official[key]).replace("(600, )", "(600,)")
            assert value(f"`{given}`") == value(f"`{real}`"), key
