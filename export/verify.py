"""Is the exported file the network that was trained? Asked before anything is written; any doubt is an error.

Eager == scripted == reloaded in a process without the project's source, exactly; frozen within 1e-4, and so the network
as it was trained. So image by image (the way of a CPU) and batched (that of a GPU), for images of several sizes, a
batch of unequal sizes, scaled-down images, and an image in which nothing is found. Row c of the baked table is T at
label c. No device is written into the code.
"""

import io
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import box_iou

from export.fresh_process import fusers_off
from model.masks.weight_transfer import normalised
from model.network import MaskXRCNN

TOLERANCE = 1e-4
"""Of a frozen module: scores, and boxes as a fraction of the image's longer side."""

MASK_TOLERANCE = 1e-3
"""Of a frozen module: pixels of the masks, as a fraction of the boxes' pixels (their value is 0.5 but for rounding)."""

LARGEST_SHARE_OF_TIES = 1 / 3
"""Of a frozen module: detections that rounding may exchange for a rival.

Seen: none where scores are far apart, 0.15 with random weights, whose scores are nearly equal; a layer frozen wrongly
changes every detection.
"""

Case = tuple[list[Tensor], Tensor, Tensor, Tensor, Tensor, Tensor]
"""Arguments of `model.inference.Inference.forward`."""
Answer = list[dict[str, Tensor]]

_DEVICE = re.compile(r"(cpu|cuda|mps|xpu|meta|xla|hpu)(:\d+)?")
_PROJECT = {"model", "training", "export", "handler", "client", "benchmarks", "tests"}


class ExportError(ValueError):
    """The exported file is not what it should be, so nothing is written."""


def verify(network: MaskXRCNN, served: nn.Module, scripted: torch.jit.ScriptModule, data: bytes) -> None:
    """Raises `ExportError` unless `data` answers as `network` does.

    Args:
        network: the trained network, for the detection weights and T.
        served: `prepared_for_serving(network.inference())`, eager.
        scripted: `served` scripted, before it was saved.
        data: the TorchScript file.
    """
    fusers_off()
    verify_mask_table(network, scripted)
    verify_no_device(scripted)
    classes = network.box_predictor.cls_score.out_features
    cases = verification_cases(network.canvas.min_size, classes)
    with torch.inference_mode():
        eager = [served(*case) for case in cases]
        if not any(int(answer["labels"].numel()) for answers in eager for answer in answers):
            raise ExportError(
                "the network found nothing at threshold 0 in any verification image, so nothing can be "
                "compared; is it trained, and are its weights finite?"
            )
        unprepared = network.inference()
        require_close([unprepared(*case) for case in cases], eager, cases, "prepared for serving")
        batched = in_each_way(served, cases, ways=(True,))
        require_close(eager, batched, cases, "batched")
        expected = eager + batched
        # TorchScript records types in its first run and optimises for them in the second.
        for run in ("first", "second"):
            for k, answers in enumerate(in_each_way(scripted, cases)):
                require_equal(expected[k], answers, f"scripted, {run} run, case {k}")
    for k, answers in enumerate(answers_of_fresh_process(data, cases)):
        require_equal(expected[k], answers, f"reloaded in a fresh process, case {k}")
    for way, answers_of_way in ((False, eager), (True, batched)):
        loaded: torch.jit.ScriptModule = torch.jit.load(io.BytesIO(data), map_location="cpu")
        loaded.batched = way
        frozen = torch.jit.freeze(loaded.eval(), preserved_attrs=["packed"])
        with torch.inference_mode():
            require_close(answers_of_way, [frozen(*case) for case in cases], cases, "frozen")


def in_each_way(network: Any, cases: list[Case], ways: Sequence[bool] = (False, True)) -> list[Answer]:
    """Answers of a network image by image, then batched; its switch is left as it was."""
    before, answers = network.batched, []
    for network.batched in ways:
        answers += [network(*case) for case in cases]
    network.batched = before
    return answers


def verify_mask_table(network: MaskXRCNN, served: nn.Module) -> None:
    """Row c of the baked table is T of the detection weights of label c, one label at a time (Sec. 3.2), or the row
    that the class has kept."""
    weights = network.mask_weights
    cls_score, bbox_pred = network.box_predictor.cls_score.weight, network.box_predictor.bbox_pred.weight
    classes = cls_score.shape[0]
    table = served.mask_table
    assert isinstance(table, Tensor)
    with torch.no_grad():
        parts = [cls_score] if weights.use_cls else []
        parts += [bbox_pred.reshape(classes, -1)] if weights.use_box else []
        if weights.rows is not None:
            parts = [weights.rows]
        means = (
            [None] * len(parts) if weights.mean is None else weights.mean.split([p.shape[1] for p in parts])
        )
        w_det = torch.cat(
            [normalised(p, m) if weights.normalise else p for p, m in zip(parts, means, strict=True)], dim=1
        )
        for label in range(classes):
            expected = torch.zeros(()) if weights.agnostic is None else weights.agnostic
            if weights.specific is not None:
                background = weights.specific[0] if network.mask_softmax else torch.zeros(())
                expected = weights.specific[label] - background
            if weights.transfer is not None:
                expected = expected + weights.transfer(w_det[label]).float()
            if weights.is_kept is not None and weights.kept is not None and bool(weights.is_kept[label]):
                expected = weights.kept[label]
            scale = float(expected.abs().max().clamp(min=1e-12))
            wrong = table.shape[0] != classes or float((table[label] - expected).abs().max()) > 1e-4 * scale
            if wrong:
                raise ExportError(
                    f"row {label} of the baked mask table [{table.shape[0]}, {table.shape[1]}] is not T at label "
                    f"{label} of {classes} labels (background included)"
                )


def verify_no_device(scripted: torch.jit.ScriptModule) -> None:
    """The file must run on the device it is loaded to: nothing in its code may name one."""
    named = devices_in(scripted)
    if named:
        raise ExportError(
            "the scripted code names devices, so it would not run elsewhere: " + "; ".join(named)
        )


def devices_in(scripted: torch.jit.ScriptModule) -> list[str]:
    """Every place of the code, called functions included, that names a device or holds a tensor of one."""
    graphs = [scripted.inlined_graph]
    if hasattr(scripted, "packed"):
        graphs.append(scripted.packed.inlined_graph)
    return [place for graph in graphs for place in _devices_of(graph)]


def _devices_of(graph: Any) -> list[str]:
    found: list[str] = []
    for node in _nodes(graph, "prim::Constant"):
        output = node.output()
        kind = output.type().kind()
        where = str(node.sourceRange()).strip().splitlines()[:1]
        if kind == "DeviceObjType" and node.hasAttribute("value"):
            found.append(f"device {output.toIValue()} {where}")
        if kind == "TensorType" and node.hasAttribute("value"):
            found.append(f"a constant tensor on {output.toIValue().device} {where}")
        if kind == "StringType" and _DEVICE.fullmatch(output.toIValue()):
            # torchvision and torch compare `x.device.type` with names; that is no device chosen.
            users = {use.user.kind() for use in output.uses()}
            if users - {"aten::eq", "aten::ne"}:
                found.append(f"device name {output.toIValue()!r} {where}")
    for kind in ("aten::cpu", "aten::cuda"):
        found += [f"{kind} {str(n.sourceRange()).strip().splitlines()[:1]}" for n in _nodes(graph, kind)]
    return found


def _nodes(graph: Any, kind: str) -> list[Any]:
    """Nodes of a kind anywhere in a TorchScript graph, whose type torch does not describe."""
    found: list[Any] = graph.findAllNodes(kind, True)
    return found


def verification_cases(min_size: int, classes: int) -> list[Case]:
    """Arguments for `classes` labels (background included): drawn images near the network's size, always the same."""
    side = max(min_size, 8)
    landscape = drawn_image(side * 3 // 4, side)
    portrait = drawn_image(side * 5 // 4, side * 3 // 4)
    black = torch.zeros(3, side // 2, side // 2, dtype=torch.uint8)
    everything = torch.ones(1, classes, dtype=torch.bool)
    all_but_one = everything.clone()
    all_but_one[0, 1] = classes == 2
    batch: Case = (
        [landscape, portrait, black],
        torch.tensor([[side * 3 // 2, side * 2], [side * 5 // 4, side * 3 // 4], [side // 2, side // 2]]),
        torch.tensor([0.0, 0.0, 2.0]),
        torch.tensor([100, 5, 100]),
        torch.cat([everything, all_but_one, everything]),
        torch.tensor([True, True, True]),
    )
    tiny = drawn_image(37, 61)
    sizes, none, most = torch.tensor([[37, 61]] * 2), torch.zeros(2), torch.tensor([60, 60])
    without_masks = ([tiny, tiny], sizes, none, most, everything.repeat(2, 1), torch.tensor([True, False]))
    nothing: Case = (batch[0][2:], batch[1][2:], batch[2][2:], batch[3][2:], batch[4][2:], batch[5][2:])
    return [batch, without_masks, nothing]


def drawn_image(height: int, width: int) -> Tensor:
    """uint8 [3, height, width]: rectangles and discs of several colours on a gradient."""
    y = torch.linspace(0, 1, height)[:, None]
    x = torch.linspace(0, 1, width)[None, :]
    image = torch.stack([60 + 80 * x + 0 * y, 90 + 60 * y + 0 * x, 120 + 40 * (x + y) / 2])
    for k in range(6):
        centre_x, centre_y = 0.12 + 0.15 * k, 0.2 + 0.6 * ((k * 5) % 6) / 5
        size = 0.05 + 0.02 * k
        if k % 2:
            inside = ((x - centre_x).abs() < size) & ((y - centre_y).abs() < size * 1.5)
        else:
            inside = (x - centre_x) ** 2 + (y - centre_y) ** 2 < size**2
        colour = torch.tensor([255.0 * (k % 2), 50.0 * k, 255.0 - 45.0 * k])
        image = torch.where(inside, colour[:, None, None], image)
    return image.to(torch.uint8)


def answers_of_fresh_process(data: bytes, cases: list[Case]) -> list[Answer]:
    """What the file answers, image by image and then batched, where only torch and torchvision can be imported."""
    with tempfile.TemporaryDirectory() as folder:
        empty = Path(folder, "empty")
        empty.mkdir()
        model, inputs, outputs = (Path(folder, name) for name in ("model.pt", "inputs.pt", "outputs.pt"))
        model.write_bytes(data)
        of_each_way = [(batched, case) for batched in (False, True) for case in cases]
        torch.save({"threads": torch.get_num_threads(), "cases": of_each_way}, inputs)
        script = Path(__file__).with_name("fresh_process.py").resolve()
        # -I: no PYTHONPATH, no user packages, and neither the script's folder nor this one on the path.
        command = [sys.executable, "-I", str(script), str(model), str(inputs), str(outputs)]
        done = subprocess.run(command, cwd=empty, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise ExportError(
                f"the file does not run in a process without the project's source:\n{done.stderr.strip()}"
            )
        result: dict[str, Any] = torch.load(outputs, weights_only=True)
    mine = _PROJECT.intersection(result["modules"])
    if mine:
        raise ExportError(f"the file needs the project's modules {sorted(mine)} where there is no project")
    answers: list[Answer] = result["answers"]
    return answers


def require_equal(expected: Answer, got: Answer, what: str) -> None:
    """Every tensor equal in type, shape and value."""
    if len(expected) != len(got):
        raise ExportError(f"{what}: {len(got)} answers for {len(expected)} images")
    for i, (a, b) in enumerate(zip(expected, got, strict=True)):
        if set(a) != set(b):
            raise ExportError(f"{what}, image {i}: fields {sorted(b)}; expected {sorted(a)}")
        for key in sorted(a):
            if a[key].dtype != b[key].dtype or not torch.equal(a[key], b[key]):
                raise ExportError(
                    f"{what}, image {i}: {key} {b[key].dtype} {list(b[key].shape)} is not exactly the eager network's "
                    f"{a[key].dtype} {list(a[key].shape)}"
                )


def require_close(expected: list[Answer], got: list[Answer], cases: list[Case], what: str) -> None:
    """The same detections within `TOLERANCE`, in any order.

    Where scores are equal but for rounding, rounding decides which of two overlapping boxes suppresses the other, and
    who takes the last places of a full list. So a detection may be on one side alone if the other side has a rival
    (same label, overlapping) or if it stands in those places; at most `LARGEST_SHARE_OF_TIES` of all may be such.
    """
    detections, ties = 0, 0
    for k, (case, answers_a, answers_b) in enumerate(zip(cases, expected, got, strict=True)):
        if len(answers_a) != len(answers_b):
            raise ExportError(f"{what}, case {k}: {len(answers_b)} answers for {len(answers_a)} images")
        for i, (a, b) in enumerate(zip(answers_a, answers_b, strict=True)):
            limit = TOLERANCE * float(case[1][i].max())
            pairs, alone_a, alone_b = matched_detections(a, b, limit)
            full = a["scores"].numel() == int(case[3][i])
            for mine, alone, theirs in ((a, alone_a, b), (b, alone_b, a)):
                last_places = len(alone_a) + len(alone_b) if full else 0
                for d in alone:
                    if d < mine["scores"].numel() - last_places and not has_rival(mine, d, theirs):
                        side = "the eager network alone" if mine is a else "it alone"
                        raise ExportError(
                            f"{what}, case {k}, image {i}: {side} finds label {int(mine['labels'][d])} with score "
                            f"{float(mine['scores'][d]):.6f} at {mine['boxes'][d].tolist()}"
                        )
            detections += a["scores"].numel()
            ties += max(len(alone_a), len(alone_b))
            sides = a["boxes"][[d for d, _ in pairs]]
            pixels = int(((sides[:, 2] - sides[:, 0] + 1) * (sides[:, 3] - sides[:, 1] + 1)).sum())
            if "keypoints" in a:
                require_close_keypoints(a, b, pairs, limit, f"{what}, case {k}, image {i}")
            different = sum(differing_pixels(runs_of(a, d), runs_of(b, e)) for d, e in pairs)
            if different > max(10.0, MASK_TOLERANCE * pixels):
                raise ExportError(
                    f"{what}, case {k}, image {i}: masks differ in {different} of {pixels} pixels"
                )
    if ties > LARGEST_SHARE_OF_TIES * detections:
        raise ExportError(f"{what}: {ties} of {detections} detections differ by more than {TOLERANCE:g}")


def require_close_keypoints(
    a: dict[str, Tensor], b: dict[str, Tensor], pairs: list[tuple[int, int]], limit: float, where: str
) -> None:
    """Keypoints of the same detections within `limit` pixels, their scores within `TOLERANCE`; where two places are
    equally likely rounding chooses, so `LARGEST_SHARE_OF_TIES` may be elsewhere."""
    mine, theirs = a["keypoints"][[d for d, _ in pairs]], b["keypoints"][[e for _, e in pairs]]
    moved = ((mine - theirs)[:, :, :2].abs() > limit).any(dim=2)
    scores = (mine - theirs)[:, :, 2].abs().masked_fill(moved, 0.0)
    if bool((scores > TOLERANCE).any()) or int(moved.sum()) > LARGEST_SHARE_OF_TIES * moved.numel():
        raise ExportError(
            f"{where}: {int(moved.sum())} of {moved.numel()} keypoints are elsewhere, and the scores of the others "
            f"differ by up to {float(scores.max()) if scores.numel() else 0.0:.2g}"
        )


def matched_detections(
    a: dict[str, Tensor], b: dict[str, Tensor], limit: float
) -> tuple[list[tuple[int, int]], list[int], list[int]]:
    """Pairs (of a, of b) of the same detections, and those of a and of b that have no like."""
    left = list(range(b["scores"].numel()))
    pairs: list[tuple[int, int]] = []
    alone: list[int] = []
    for d in range(a["scores"].numel()):
        match = next((e for e in left if _same_detection(a, d, b, e, limit)), None)
        if match is None:
            alone.append(d)
        else:
            left.remove(match)
            pairs.append((d, match))
    return pairs, alone, left


def has_rival(a: dict[str, Tensor], d: int, b: dict[str, Tensor]) -> bool:
    """Whether b has a detection of the same label that could suppress detection d of a, or take its place."""
    of_label = b["boxes"][b["labels"] == a["labels"][d]]
    return bool((box_iou(a["boxes"][d : d + 1], of_label) > 0.4).any())


def _same_detection(a: dict[str, Tensor], d: int, b: dict[str, Tensor], e: int, limit: float) -> bool:
    """Label equal, score and box within the tolerance."""
    return (
        int(a["labels"][d]) == int(b["labels"][e])
        and abs(float(a["scores"][d]) - float(b["scores"][e])) <= TOLERANCE
        and float((a["boxes"][d] - b["boxes"][e]).abs().max()) <= limit
    )


def runs_of(answer: dict[str, Tensor], d: int) -> Tensor:
    """Run lengths of detection d, int64; of no length where masks were not asked for."""
    return answer["rle_counts"][int(answer["rle_offsets"][d]) : int(answer["rle_offsets"][d + 1])]


def differing_pixels(a: Tensor, b: Tensor) -> int:
    """Pixels that belong to one of two masks alone, from their run lengths."""
    ends_a, ends_b = a.cumsum(0), b.cumsum(0)
    if ends_a[-1:].tolist() != ends_b[-1:].tolist():
        raise ExportError(f"masks of {ends_a[-1:].tolist()} and {ends_b[-1:].tolist()} pixels")
    ends = torch.unique(torch.cat([ends_a, ends_b]))
    lengths = ends - torch.cat([ends.new_zeros(1), ends])[: ends.numel()]
    # The run that a stretch ending at `end` lies in is the first that ends there or later.
    run_a, run_b = torch.searchsorted(ends_a, ends), torch.searchsorted(ends_b, ends)
    return int(lengths[(run_a % 2) != (run_b % 2)].sum())
