"""The names of weights in detectron2 and in Detectron, and what they are called here.

Both lists are of the network with a pyramid; `in_c4_form` gives the names that a network of the C4 form has.
"""

import re
from collections.abc import Callable, Iterable, Sequence

from model.backbones.torchvision_state import State

Rule = tuple[str, str | Callable[[re.Match[str]], str]]

_ENDS = {"w": "weight", "b": "bias", "s": "weight"}
NORM = "#norm"
"""Stands in a name for the normalisation that follows a convolution and is folded into it."""


def _layer(match: re.Match[str]) -> str:
    stage, block, rest = match[1], match[2], match[3]
    rest = re.sub(r"^conv(\d)\.norm\.", r"bn\1.", rest)
    rest = rest.replace("shortcut.norm.", "downsample.1.").replace("shortcut.", "downsample.0.")
    return f"backbone.body.layer{int(stage) - 1}.{block}.{rest}"


def _numbered(name: str, step: int = 2) -> Callable[[re.Match[str]], str]:
    """The n-th convolution, counted from 1, of a sequence with one at every `step`-th place; groups: n, norm, end."""
    return lambda m: f"{name}.{step * (int(m[1]) - 1)}{NORM if m[2] else ''}.{_ENDS.get(m[3], m[3])}"


def _pyramid(name: str) -> Callable[[re.Match[str]], str]:
    return lambda m: f"backbone.fpn.{name}.{int(m[1]) - 2}.0{NORM if m[2] else ''}.{_ENDS.get(m[3], m[3])}"


DETECTRON2: Sequence[Rule] = (
    (r"pixel_(?:mean|std)|proposal_generator\.anchor_generator\.cell_anchors\.\d|.*\.num_batches_tracked", ""),
    (r"backbone\.(?:bottom_up\.)?stem\.conv1\.norm\.(\w+)", r"backbone.body.bn1.\1"),
    (r"backbone\.(?:bottom_up\.)?stem\.conv1\.weight", "backbone.body.conv1.weight"),
    (r"(?:backbone\.(?:bottom_up\.)?|roi_heads\.)res(\d)\.(\d+)\.((?:conv\d|shortcut)\.[\w.]+)", _layer),
    (r"backbone\.fpn_lateral(\d)(\.norm)?\.(\w+)", _pyramid("inner_blocks")),
    (r"backbone\.fpn_output(\d)(\.norm)?\.(\w+)", _pyramid("layer_blocks")),
    (r"proposal_generator\.rpn_head\.conv\.(weight|bias)", r"rpn.head.conv.0.0.\1"),
    (r"proposal_generator\.rpn_head\.conv\.conv(\d)\.(weight|bias)", r"rpn.head.conv.\1.0.\2"),
    (r"proposal_generator\.rpn_head\.objectness_logits\.(\w+)", r"rpn.head.cls_logits.\1"),
    (r"proposal_generator\.rpn_head\.anchor_deltas\.(\w+)", r"rpn.head.bbox_pred.\1"),
    (r"roi_heads\.box_head\.conv(\d)(\.norm)?\.(\w+)", _numbered("box_head.convs")),
    (r"roi_heads\.box_head\.fc1\.(\w+)", r"box_head.fc6.\1"),
    (r"roi_heads\.box_head\.fc2\.(\w+)", r"box_head.fc7.\1"),
    (r"roi_heads\.box_predictor\.(cls_score|bbox_pred)\.(\w+)", r"box_predictor.\1.\2"),
    (r"roi_heads\.mask_head\.mask_fcn(\d)(\.norm)?\.(\w+)", _numbered("mask_branch.head.convs")),
    (r"roi_heads\.mask_head\.deconv\.(\w+)", r"mask_branch.head.deconv.\1"),
    (r"roi_heads\.mask_head\.predictor\.weight", "mask_weights.specific"),
    (r"roi_heads\.mask_head\.predictor\.bias", "mask_weights.bias"),
    (r"roi_heads\.keypoint_head\.conv_fcn(\d)(\.norm)?\.(\w+)", _numbered("keypoint_branch.convs")),
    (r"roi_heads\.keypoint_head\.score_lowres\.(\w+)", r"keypoint_branch.deconv.\1"),
)  # fmt: skip
"""A whole name and what it becomes; "" for what is no weight."""


def _branch(match: re.Match[str]) -> str:
    block, part, norm, end = match[2], match[3], match[4], _ENDS[match[5]]
    number = "" if part == "1" else str(" abc".index(part[1]))
    own = (
        {"": "downsample.0", "_bn": "downsample.1"}[norm or ""] if part == "1" else ("bn" if norm else "conv")
    )
    return f"backbone.body.layer{int(match[1]) - 1}.{block}.{own}{number}.{end}"


def _ended(name: str) -> Callable[[re.Match[str]], str]:
    return lambda m: f"{name}.{_ENDS[m[1]]}"


DETECTRON: Sequence[Rule] = (
    (r"conv1_w", "backbone.body.conv1.weight"),
    (r"res_conv1_bn_(s|b)", _ended("backbone.body.bn1")),
    (r"res(\d)_(\d+)_branch(1|2[abc])(_bn)?_(s|b|w)", _branch),
    (r"fpn_inner_res(\d)_\d+_sum(?:_lateral)?()_(w|b)", _pyramid("inner_blocks")),
    (r"fpn_res(\d)_\d+_sum()_(w|b)", _pyramid("layer_blocks")),
    (r"conv_rpn(?:_fpn2)?_(w|b)", _ended("rpn.head.conv.0.0")),
    (r"rpn_cls_logits(?:_fpn2)?_(w|b)", _ended("rpn.head.cls_logits")),
    (r"rpn_bbox_pred(?:_fpn2)?_(w|b)", _ended("rpn.head.bbox_pred")),
    (r"head_conv(\d)()_(w|b)", _numbered("box_head.convs")),
    (r"fc6_(w|b)", _ended("box_head.fc6")),
    (r"fc7_(w|b)", _ended("box_head.fc7")),
    (r"cls_score_(w|b)", _ended("box_predictor.cls_score")),
    (r"bbox_pred_(w|b)", _ended("box_predictor.bbox_pred")),
    (r"_\[mask\]_fcn(\d)()_(w|b)", _numbered("mask_branch.head.convs")),
    (r"conv5_mask_(w|b)", _ended("mask_branch.head.deconv")),
    (r"mask_fcn_logits_w", "mask_weights.specific"),
    (r"mask_fcn_logits_b", "mask_weights.bias"),
    (r"bbox2mask_mlp_l(\d)()_(w|b)", _numbered("mask_weights.transfer.layers")),
    (r"mask_fcn_logits_w_flat_(w|b)", _ended("mask_weights.transfer.layers.last")),
    (r"mask_mlp_logits_raw_(w|b)", _ended("mask_branch.mlp.fc")),
    (r"conv_fcn(\d)()_(w|b)", _numbered("keypoint_branch.convs")),
    (r"kps_score_lowres_(w|b)", _ended("keypoint_branch.deconv")),
    # Of training, of the detector with all classes that Visual Genome's masks were trained beside, and the enlargement
    # of keypoints' maps, which learns nothing.
    (r".*_momentum|.*_jcvbackup|kps_score_(?:w|b)", ""),
)  # fmt: skip
"""The same of Detectron's blobs, the paper's own (seg_every_thing, modeling/mask_rcnn_heads.py) among them."""

REFUSED: Sequence[tuple[str, str]] = (
    (r"sem_seg_head\.", "a panoptic network, whose branch for stuff this one has not"),
    (r"roi_heads\.(?:box_head|box_predictor)\.\d\.", "a cascade, which has several box branches; this one has one"),
    (r".*\.conv2_offset\.", "deformable convolutions, which this network has not"),
    (r"head\.(?:cls|bbox)_subnet|retnet_", "RetinaNet, which has no RoIs"),
    (r"backbone\.res5\.", "the DC5 form (conv5 dilated in the backbone); FPN and C4 can be converted"),
    (r"backbone\.(?:bottom_up\.)?(?:net|s\d|patch_embed|blocks)\.", "a backbone that is no ResNet"),
    (r"fc_mask_head_mlp", "a mask MLP of several layers; this network's has one"),
    (r".*_gn_[sb]$", "group normalisation in groups of its own; this network's are others"),
    (r"_\[mask\]_res5_", "a mask branch with a conv5 of its own; the one of the box branch can be converted"),
)  # fmt: skip
"""The beginning of a name that says what a file is that cannot be converted."""


def renamed(state: State, rules: Sequence[Rule]) -> State:
    """The tensors under our names.

    ValueError says what the file is, where a name tells that it cannot be converted, or names what has no place.
    """
    for pattern, what in REFUSED:
        if found := next((name for name in state if re.match(pattern, name)), None):
            raise ValueError(f"{found}: the file is of {what}")
    answer: State = {}
    unknown = []
    for name, value in state.items():
        for pattern, ours in rules:
            if match := re.fullmatch(pattern, name):
                if ours:
                    answer[match.expand(ours) if isinstance(ours, str) else ours(match)] = value
                break
        else:
            unknown.append(name)
    if unknown:
        raise ValueError(f"{len(unknown)} weights that this network has no place for: {_few(unknown)}")
    if bare := [
        name for name in answer if f"{NORM}.weight" in name and f"{name[:-6]}running_var" not in answer
    ]:
        raise ValueError(
            f"{bare[0].replace(NORM, '.norm')}: the file is of group normalisation in groups of its own; this "
            "network's are others"
        )
    return answer


def in_c4_form(state: State) -> State:
    """The same under the names of the C4 form: conv1 to conv4 in one sequence, conv5 in the box head."""
    pairs = (
        (r"^backbone\.body\.conv1\.", "backbone.body.0.0."),
        (r"^backbone\.body\.bn1\.", "backbone.body.0.1."),
        (r"^backbone\.body\.layer4\.", "box_head.res5."),
        (r"^backbone\.body\.layer(\d)\.", r"backbone.body.\1."),
    )
    answer = {}
    for name, value in state.items():
        for old, new in pairs:
            name = re.sub(old, new, name)
        answer[name] = value
    return answer


def _few(names: Iterable[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:4]) + (f", ... ({len(listed)})" if len(listed) > 4 else "")
