"""torchvision's Mask R-CNN as it is served by hand: Pillow, the model, its own pasting, pycocotools, JSON."""

import copy
import io
import json
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN, maskrcnn_resnet50_fpn
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.transforms.functional import pil_to_tensor, to_tensor

from benchmarks.clock import wait
from benchmarks.speed.side import Side, read
from maskx_engine import fusers_off

SCORE_THRESHOLD = 0.05
DETECTIONS = 100


def build_peer(num_classes: int, *, min_size: int = 800, max_size: int = 1333) -> MaskRCNN:
    """`maskrcnn_resnet50_fpn` for `num_classes` classes (background not counted), random weights, evaluation mode.

    Without published weights torchvision builds it with BatchNorm2d, which runs faster than the FrozenBatchNorm2d of
    the published ones.
    """
    network: MaskRCNN = maskrcnn_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=num_classes + 1,
        min_size=min_size,
        max_size=max_size,
        box_score_thresh=SCORE_THRESHOLD,
        box_nms_thresh=0.5,
        box_detections_per_img=DETECTIONS,
    )
    return network.eval()


def pixels_of(data: bytes) -> Tensor:
    """Image bytes -> uint8 [3, h, w], by Pillow."""
    pixels: Tensor = pil_to_tensor(Image.open(io.BytesIO(data)).convert("RGB"))
    return pixels


def decode_to_float(data: bytes) -> Tensor:
    """Image bytes -> float [3, h, w] in 0..1, by Pillow."""
    image: Tensor = to_tensor(Image.open(io.BytesIO(data)).convert("RGB"))
    return image


class Peer(Side):
    """Its answers have the fields of ours."""

    def __init__(
        self, weights: str | Path, classes: int, device: str, *, scripted: bool = False, **sizes: int
    ) -> None:
        """Reads the state dict `weights`; `scripted` puts the network through torch.jit.script, fusers off as ours."""
        network = build_peer(classes, **sizes)
        network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        self.device = torch.device(device)
        self.scripted = scripted
        self.eager = network.to(self.device).requires_grad_(False)
        if scripted:
            fusers_off()
        self.network: Callable[[list[Tensor]], Any] = torch.jit.script(self.eager) if scripted else self.eager

    def answer(self, data: Sequence[bytes]) -> list[bytes]:
        """The bodies of a batch."""
        images = [decode_to_float(one) for one in data]
        found = self.predict(images)
        pairs = zip(images, found, strict=True)
        return [self.body(image, one, self.encode(one["masks"])) for image, one in pairs]

    @torch.inference_mode()
    def predict(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        """torchvision's detections, masks pasted: float [D, 1, h, w]."""
        images = [image.to(self.device) for image in images]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # in scripted form it warns that it returns a tuple
            answer = self.network(images)
        found: list[dict[str, Tensor]] = answer[1] if self.scripted else answer
        return found

    def encode(self, masks: Tensor) -> list[dict[str, Any]]:
        """Pasted masks -> COCO's compressed run lengths, by pycocotools."""
        pixels = (masks[:, 0] > 0.5).to(torch.uint8).cpu().numpy()
        return [dict(rle) for rle in coco_mask.encode(np.asfortranarray(pixels.transpose(1, 2, 0)))]

    def body(self, image: Tensor, found: dict[str, Tensor], rles: list[dict[str, Any]]) -> bytes:
        """The JSON of one image."""
        height, width = image.shape[1:]
        boxes, scores, labels = (found[key].tolist() for key in ("boxes", "scores", "labels"))
        detections = []
        for (x0, y0, x1, y1), score, label, rle in zip(boxes, scores, labels, rles, strict=True):
            detections.append(
                {
                    "category_id": label,
                    "category": f"class {label}",
                    "bbox": [round(value, 2) for value in (x0, y0, x1 - x0, y1 - y0)],
                    "score": round(score, 6),
                    "area": int(coco_mask.area(rle)),
                    "mask_supervised": True,
                    "mask_source": "masks",
                    "segmentation": {"size": [height, width], "counts": rle["counts"].decode("ascii")},
                }
            )
        answer = {
            "model": {"name": "maskx", "version": "bench"},
            "image": {"height": height, "width": width},
            "detections": detections,
        }
        return json.dumps(answer, separators=(",", ":")).encode("ascii")

    def stages(self, files: Sequence[str]) -> dict[str, float]:
        """Of the eager network; on a GPU the clock waits for it between stages."""
        data = read(files)
        clock = StageClock(self.eager, self.device)
        begin = clock.now()
        images = [decode_to_float(one) for one in data]
        clock.seconds["decode"] = clock.now() - begin
        with clock, torch.inference_mode():
            found = self.eager([image.to(self.device) for image in images])
        for image, one in zip(images, found, strict=True):
            begin = clock.now()
            rles = self.encode(one["masks"])
            middle = clock.now()
            self.body(image, one, rles)
            clock.seconds["strings"] += middle - begin
            clock.seconds["JSON"] += clock.now() - middle
        return dict(clock.seconds)

    @torch.inference_mode()
    def masks_alone(
        self, probabilities_DMM: Tensor, boxes: Tensor, height: int, width: int
    ) -> list[dict[str, Any]]:
        """What the bench calls paste and encode."""
        return self.encode(paste_masks_in_image(probabilities_DMM[:, None], boxes, (height, width)))

    @torch.inference_mode()
    def masks_before_pasting(self, file: str) -> tuple[Tensor, Tensor]:
        """Mask probabilities [D, M, M] and boxes [D, 4] in the image's own pixels: what both sides paste or encode."""
        heads, boxes = self._output_of(self.eager.roi_heads, file)
        return heads[0][0]["masks"][:, 0].cpu(), boxes.cpu()

    def write_masks(self, file: str, out: str) -> int:
        """Writes what `time_masks` reads; returns the number of masks."""
        probabilities, boxes = self.masks_before_pasting(file)
        torch.save((probabilities.clone(), boxes.clone()), out)
        return len(boxes)

    @torch.inference_mode()
    def pairs(self, file: str) -> int:
        """(proposal, class) pairs above the threshold."""
        logits = self._output_of(self.eager.roi_heads.box_predictor, file)[0][0]
        return int((torch.softmax(logits, dim=1)[:, 1:] > SCORE_THRESHOLD).sum())

    def _output_of(self, module: nn.Module, file: str) -> tuple[Any, Tensor]:
        """What a module gave while the image was looked at, and the boxes of the answer."""
        given: list[Any] = []
        hook = module.register_forward_hook(lambda _m, _i, output: given.append(copy.deepcopy(output)))
        try:
            (answer,) = self.eager([decode_to_float(Path(file).read_bytes()).to(self.device)])
        finally:
            hook.remove()
        return given[0], answer["boxes"]


class StageClock:
    """Hooks on the eager network that add up the seconds of its stages, under the names of our own stages."""

    def __init__(self, network: MaskRCNN, device: torch.device) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._network = network
        self._device = device
        self._begin: dict[nn.Module, float] = {}
        self._hooks: list[Any] = []

    def now(self) -> float:
        """Seconds, all work done."""
        wait(self._device)
        return time.perf_counter()

    def __enter__(self) -> Self:
        network = self._network
        for name, module in (
            ("resize", network.transform),
            ("backbone", network.backbone),
            ("RPN", network.rpn),
            ("heads", network.roi_heads),
        ):
            self._hooks.append(module.register_forward_pre_hook(lambda m, _: self._start(m)))
            self._hooks.append(module.register_forward_hook(lambda m, _i, _o, name=name: self._stop(name, m)))
        masks = network.roi_heads.mask_roi_pool
        self._hooks.append(masks.register_forward_pre_hook(lambda m, _: self._start(m)))
        postprocess = network.transform.postprocess

        def timed(*arguments: Any) -> Any:
            begin = self.now()
            result = postprocess(*arguments)
            self.seconds["run lengths"] += self.now() - begin
            return result

        network.transform.postprocess = timed
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        del self._network.transform.postprocess

    def _start(self, module: nn.Module) -> None:
        self._begin[module] = self.now()

    def _stop(self, name: str, module: nn.Module) -> None:
        now = self.now()
        if name == "heads":
            middle = self._begin[self._network.roi_heads.mask_roi_pool]
            self.seconds["box head"] += middle - self._begin[module]
            self.seconds["mask head"] += now - middle
        else:
            self.seconds[name] += now - self._begin[module]
