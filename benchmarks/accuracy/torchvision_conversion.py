"""A torchvision Mask R-CNN trained on the drawn set, converted, and both judged on the same images.

    python -m benchmarks.accuracy.torchvision_conversion

Box AP must be the same within 0.001; mask AP is given under both ways of pasting: torchvision's, which rounds each box
to whole pixels, and ours, which keeps it exact (`model.masks.run_lengths`). What was trained is kept in `--work`, so
that a second call judges it again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops import box_iou

from benchmarks import ROOT
from benchmarks.machine import describe
from benchmarks.speed.peer_training import (
    Training,
    conversion_overrides,
    drawn_set_peer,
    merged_classes,
    take_over,
    train_peer,
)
from benchmarks.tables import table
from model.checkpoint import load_network
from model.classes import ClassTable
from model.inference import Inference
from model.masks.run_lengths import mask_run_lengths
from training.data.augment import AugmentConfig
from training.data.coco import CocoDataset, read_picture
from training.drawn.shapes import ShapesConfig, write_shapes
from training.evaluate.precision import (
    AveragePrecision,
    box_precision,
    coco_results,
    mask_precision,
)
from training.evaluate.predictions import MAX_DETECTIONS, SCORE_THRESHOLD
from training.evaluate.truth import GroundTruth, load_ground_truth
from training.recipes.convert_torchvision import convert

LEAST_BOX_AP = 0.3
TOLERANCE, AP_TOLERANCE = 1e-4, 1e-3
NETWORKS = ("torchvision", "converted")
PASTES = ("torchvision's way", "our way")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Detections of one image, the best first: boxes [D, 4] XYXY, scores [D], labels [D], masks [D, M, M] of
    probabilities."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor


@dataclass(frozen=True, kw_only=True)
class Differences:
    """Between two answers, or the largest of many images: of detections of the same label and place.

    `alone`: detections that the other answer has not, mostly on the two sides of a threshold.
    """

    detections: int = 0
    alone: int = 0
    boxes: float = 0.0
    scores: float = 0.0
    masks: float = 0.0

    def __add__(self, other: Differences) -> Differences:
        return Differences(
            detections=self.detections + other.detections,
            alone=self.alone + other.alone,
            boxes=max(self.boxes, other.boxes),
            scores=max(self.scores, other.scores),
            masks=max(self.masks, other.masks),
        )

    @property
    def equal(self) -> bool:
        """Whether nothing differs by more than `TOLERANCE`."""
        return not self.alone and max(self.boxes, self.scores, self.masks) <= TOLERANCE


@torch.no_grad()
def answer_of_peer(model: MaskRCNN, image: Tensor) -> Answer:
    """What torchvision answers to a uint8 [3, h, w] image, its masks taken before they are pasted."""
    masks: list[Tensor] = []
    paste = model.transform.postprocess

    def remember(result: list[dict[str, Tensor]], sizes: Any, originals: Any) -> list[dict[str, Tensor]]:
        masks.extend(one["masks"][:, 0] for one in result)
        pasted: list[dict[str, Tensor]] = paste(result, sizes, originals)
        return pasted

    model.transform.postprocess = remember  # type: ignore[method-assign]
    try:
        (answer,) = model([image / 255])
    finally:
        del model.transform.postprocess
    return Answer(boxes=answer["boxes"], scores=answer["scores"], labels=answer["labels"], masks=masks[0])


@torch.no_grad()
def answer_of_converted(network: Inference, image: Tensor, *, classes: int) -> Answer:
    """The same of the converted network, at torchvision's score threshold and number of detections."""
    masks: list[Tensor] = []
    probabilities = network.mask_probabilities

    def remember(features: dict[str, Tensor], rois: Tensor, labels: Tensor) -> Tensor:
        masks.append(probabilities(features, rois, labels))
        return masks[0]

    network.mask_probabilities = remember  # type: ignore[method-assign]
    try:
        (answer,) = network(
            [image],
            torch.tensor([image.shape[1:]]),
            torch.tensor([SCORE_THRESHOLD]),
            torch.tensor([MAX_DETECTIONS]),
            torch.ones((1, classes + 1), dtype=torch.bool),
            torch.ones(1, dtype=torch.bool),
        )
    finally:
        del network.mask_probabilities
    return Answer(boxes=answer["boxes"], scores=answer["scores"], labels=answer["labels"], masks=masks[0])


def differences(one: Answer, other: Answer) -> Differences:
    """Of each detection of `one` to that of `other` with its label, at its place (an IoU above 0.99)."""
    found = Differences(alone=abs(one.labels.numel() - other.labels.numel()))
    if not one.labels.numel() or not other.labels.numel():
        return found
    same = (one.labels[:, None] == other.labels) * box_iou(one.boxes, other.boxes)
    overlap, partner = same.max(dim=1)
    mine = torch.where(overlap > 0.99)[0]
    theirs = partner[mine]
    found += Differences(detections=mine.numel(), alone=one.labels.numel() - theirs.unique().numel())
    for i, k in zip(mine.tolist(), theirs.tolist(), strict=True):
        found += Differences(
            boxes=float((one.boxes[i] - other.boxes[k]).abs().max()),
            scores=float((one.scores[i] - other.scores[k]).abs()),
            masks=float((one.masks[i] - other.masks[k]).abs().max()),
        )
    return found


def results_of(
    answer: Answer, image_id: int, size: tuple[int, int], classes: ClassTable, *, paste: str
) -> list[dict[str, Any]]:
    """COCO results of an answer, its masks pasted in one of the two ways and cut at 0.5."""
    counts, offsets = mask_run_lengths(answer.masks, answer.boxes, *size)
    output = {"boxes": answer.boxes, "scores": answer.scores, "labels": answer.labels}
    results = coco_results(image_id, {**output, "rle_counts": counts, "rle_offsets": offsets}, size, classes)
    if paste == PASTES[0] and results:
        pasted = paste_masks_in_image(answer.masks[:, None], answer.boxes, size)[:, 0] > 0.5
        for result, mask in zip(results, pasted.numpy().astype(np.uint8), strict=True):
            result["segmentation"] = coco_mask.encode(np.asfortranarray(mask))
    return results


@dataclass(frozen=True, kw_only=True)
class Judged:
    """`box` by network; `mask` by network and way of pasting."""

    images: int
    differences: Differences
    box: dict[str, AveragePrecision]
    mask: dict[str, dict[str, AveragePrecision]]

    @property
    def same_box_ap(self) -> bool:
        """Whether the two box APs are within `AP_TOLERANCE`."""
        one, other = (self.box[name].ap or 0.0 for name in NETWORKS)
        return abs(one - other) <= AP_TOLERANCE


def judge(model: MaskRCNN, checkpoint: Path, images: Path, truth: GroundTruth) -> Judged:
    """Both networks over the images of `truth`."""
    network, classes, _ = load_network(checkpoint)
    served = network.inference()
    found = Differences()
    results: dict[tuple[str, str], list[dict[str, Any]]] = {(n, p): [] for n in NETWORKS for p in PASTES}
    for image_id in truth.image_ids:
        height, width = truth.sizes[image_id]
        pixels = read_picture(images / truth.file_names[image_id], width=width, height=height)
        image = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
        answers = (
            answer_of_peer(model, image),
            answer_of_converted(served, image, classes=classes.num_classes),
        )
        found += differences(*answers)
        for name, answer in zip(NETWORKS, answers, strict=True):
            for paste in PASTES:
                results[name, paste] += results_of(answer, image_id, (height, width), classes, paste=paste)
    everything = set(classes.ids)
    return Judged(
        images=len(truth.image_ids),
        differences=found,
        box={n: box_precision(truth, results[n, PASTES[0]], classes).over(everything) for n in NETWORKS},
        mask={
            n: {p: mask_precision(truth, results[n, p], classes).over(everything) for p in PASTES}
            for n in NETWORKS
        },
    )


def trained_peer(work: Path, data: CocoDataset, training: Training) -> tuple[MaskRCNN, dict[str, Any]]:
    """The network in `work`, trained there where it is not yet by these settings, and what is known of its training."""
    model = drawn_set_peer(data.classes.num_classes, side=training.side)
    weights, about = work / "peer.pth", work / "peer.json"
    if weights.is_file() and about.is_file():
        known: dict[str, Any] = json.loads(about.read_text(encoding="utf-8"))
        if {key: known.get(key) for key in asdict(training)} == asdict(training):
            model.load_state_dict(torch.load(weights, weights_only=True))
            return model.eval(), known
    torch.manual_seed(training.seed)
    model = drawn_set_peer(data.classes.num_classes, side=training.side)
    if training.start:
        left = take_over(model, torch.load(training.start, weights_only=True))
        print(f"begun with {training.start}, but for {left} tensors", flush=True)
    seconds = train_peer(model, data, training, say=lambda text: print(text, flush=True))
    torch.save(model.state_dict(), weights)
    known = {**asdict(training), "seconds": round(seconds)}
    about.write_text(json.dumps(known) + "\n", encoding="utf-8")
    return model, known


def report(judged: Judged, about: dict[str, Any], machine: dict[str, Any]) -> str:
    """The result in Markdown."""
    found = judged.differences
    rows = [
        [
            name,
            *(_percent(value) for value in (judged.box[name].ap, judged.box[name].ap50)),
            *(_percent(value) for paste in PASTES for value in (of[paste].ap, of[paste].ap50)),
        ]
        for name, of in judged.mask.items()
    ]
    heads = ["network", "box AP", "AP50"]
    heads += [text for paste in PASTES for text in (f"mask AP, pasted {paste}", "AP50")]
    return (
        "# A torchvision Mask R-CNN, converted\n\n"
        f"- {machine['date']}, {machine['processor']}, {machine['threads']} threads; torch {machine['torch']}, "
        f"torchvision {machine['torchvision']}; float32\n"
        f"- torchvision's Mask R-CNN, ResNet-18-FPN, trained by its own losses on the drawn set: {about['images']} "
        f"images of {about['side']} pixels, {about['steps']} steps of {about['batch_size']}, {about['seconds']:.0f} s; "
        f"{about['names']} classes ({about['classes']})"
        f"{', begun with the weights of an earlier run' if about['start'] else ''}\n"
        f"- judged on {judged.images} images; detections in both: {found.detections}, in one alone: {found.alone}\n"
        f"- largest differences: boxes {found.boxes:.1e} pixels, scores {found.scores:.1e}, probabilities "
        f"of the masks' {about['mask_size']} x {about['mask_size']} cells {found.masks:.1e}\n\n"
        f"{table(heads, rows)}\n"
        "AP in percent over all classes. torchvision's pasting rounds boxes to whole pixels, ours keeps them exact.\n"
    )


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    usual = Training()
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy.torchvision_conversion",
        description=(__doc__ or "").splitlines()[0],
    )
    made.add_argument("--work", type=Path, default=ROOT / "build" / "torchvision_conversion")
    made.add_argument("--train", type=int, default=3000, help="images drawn (default: %(default)s)")
    made.add_argument("--val", type=int, default=200, help="images judged on (default: %(default)s)")
    for name, value in asdict(usual).items():
        made.add_argument(
            f"--{name.replace('_', '-')}", type=type(value), default=value, help="(default: %(default)s)"
        )
    made.add_argument("--threads", type=int, default=1, help="(default: %(default)s)")
    made.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the result"
    )
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0 where the converted network answers as torchvision's, which has learnt to detect."""
    options = parser().parse_args(arguments)
    training = Training(**{name: getattr(options, name) for name in asdict(Training())})
    torch.set_num_threads(options.threads)
    data, checkpoint = options.work / "data", options.work / "converted" / "checkpoint.pt"
    machine = describe(torch.device("cpu"))
    try:
        write_shapes(
            data,
            ShapesConfig(train=options.train, val=options.val, seed=training.seed, size=training.side),
            workers=1,
        )
        for split in ("train", "val"):
            merged_classes(data / f"{split}.json", options.work / f"{split}.json", training.classes)
        dataset = CocoDataset(
            data / "train",
            options.work / "train.json",
            mask_classes="all",
            augment=AugmentConfig(),
            require_masks=True,
        )
        model, about = trained_peer(options.work, dataset, training)
        classes = convert(
            str(options.work / "peer.pth"),
            checkpoint,
            classes=str(options.work / "train.json"),
            overrides=conversion_overrides(training.side),
        )
        truth = load_ground_truth(options.work / "val.json", classes)
        judged = judge(model, checkpoint, data / "val", truth)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    about |= {"images": options.train, "mask_size": 28, "names": classes.num_classes}
    about["start"] = Path(training.start).name
    text = report(judged, about, machine)
    print(text)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"torchvision-conversion-{training.classes}-{machine['date'][:10]}.md"
    path.write_text(text, encoding="utf-8")
    content = {"machine": machine, "training": about, "results": asdict(judged)}
    path.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"{path} and its .json written")
    learnt = (judged.box[NETWORKS[0]].ap or 0.0) >= LEAST_BOX_AP
    if not learnt:
        print(f"torchvision's box AP is below {LEAST_BOX_AP}: train longer (--steps)", file=sys.stderr)
    if not (judged.differences.equal and judged.same_box_ap):
        print("the converted network does not answer as torchvision's", file=sys.stderr)
    return 0 if learnt and judged.differences.equal and judged.same_box_ap else 1


if __name__ == "__main__":
    sys.exit(main())
