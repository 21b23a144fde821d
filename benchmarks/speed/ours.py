"""Our side: the handler's own modules around maskx.pt, image bytes -> JSON bytes, the very code that is served."""

import time
from collections import defaultdict
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.clock import timed
from benchmarks.speed.peer import DETECTIONS, SCORE_THRESHOLD
from benchmarks.speed.side import Side, read
from maskx_answer import Detections, answer_body, image_content
from maskx_image import DecodedImage, decode_to_fit
from maskx_json import Envelope
from maskx_masks import run_length_strings
from maskx_model import ServedModel
from maskx_parameters import Parameters
from maskx_service import Service
from maskx_settings import Limits
from model.masks.run_lengths import mask_run_lengths

_LABELLED = ("resize", "backbone", "RPN", "box head", "mask head", "run lengths")
LABELS = {f"maskx::{name.lower().replace(' ', '_')}": name for name in _LABELLED}
"""The network's own labels in a profile, and what a table calls them."""
SINGLE = Envelope(kind="single")
WISHES = Parameters(score_threshold=SCORE_THRESHOLD, max_detections=DETECTIONS)


class Ours(Side):
    """maskx.pt in the handler's modules, on one device.

    With `package` its parts compute; ValueError where they cannot.
    """

    def __init__(
        self,
        path: str | Path,
        device: str,
        precision: str = "auto",
        version: str = "bench",
        package: str = "",
    ) -> None:
        self.device = torch.device(device)
        engine: dict[str, Any] = {"engine": "compiled", "package": Path(package)} if package else {}
        self.model = ServedModel(Path(path), self.device, precision=precision, **engine)
        if package and self.model.engine["used"] != "compiled":
            raise ValueError(f"the package is not used: {self.model.engine.get('reason')}")
        self.service = Service(self.model, Limits(), name="maskx", version=version)

    def answer(self, data: Sequence[bytes], wishes: Parameters = WISHES) -> list[bytes]:
        """The bodies of a batch. Raises RuntimeError where one is an error."""
        parameters = {"score_threshold": wishes.score_threshold, "max_detections": wishes.max_detections}
        answers = self.service.answer([{"body": one, **parameters} for one in data])
        for answer in answers:
            if answer.status != 200:
                raise RuntimeError(answer.body.decode())
        return [answer.body for answer in answers]

    def decode(self, data: bytes) -> DecodedImage:
        """As the service decodes."""
        return decode_to_fit(data, min_size=self.model.min_size, max_size=self.model.max_size)

    def predict(self, images: Sequence[DecodedImage]) -> list[Detections]:
        """As the service predicts."""
        sizes = [(image.height, image.width) for image in images]
        return self.model.predict([image.pixels for image in images], [WISHES] * len(images), sizes)

    def body(self, image: DecodedImage, found: Detections) -> bytes:
        """The answer to one image, in JSON."""
        content = image_content(
            found, self.model.categories, height=image.height, width=image.width, mask_format="rle"
        )
        return answer_body([content], SINGLE, model_name="maskx", model_version="bench")

    def stages(self, files: Sequence[str]) -> dict[str, float]:
        """Those of the network from its labels in a profile.

        "rest of predict" is what no label covers. Images are decoded one after the other here, in threads by the
        service.
        """
        data = read(files)
        seconds: dict[str, float] = defaultdict(float)
        begin = time.perf_counter()
        images = [self.decode(one) for one in data]
        seconds["decode"] = time.perf_counter() - begin
        cuda = self.device.type == "cuda"
        with profile(activities=activities(cuda), acc_events=True) as profiled:
            begin = time.perf_counter()
            found = self.predict(images)
            whole = time.perf_counter() - begin
        labelled = label_seconds(profiled, cuda=cuda)
        seconds.update(labelled)
        seconds["rest of predict"] = max(whole - sum(labelled.values()), 0.0)
        for image, one in zip(images, found, strict=True):
            # The fastest of a few runs: these stages take milliseconds.
            strings = min(timed(partial(run_length_strings, one.rle_counts, one.rle_offsets), 5))
            seconds["strings"] += strings
            seconds["JSON"] += max(min(timed(partial(self.body, image, one), 5)) - strings, 0.0)
        return dict(seconds)

    def runs_per_column(self, file: str) -> float:
        """Median over the masks of object runs per image column that the box spans: the cost of strings goes by it."""
        (found,) = self.predict([self.decode(Path(file).read_bytes())])
        runs = np.diff(found.rle_offsets) / 2
        columns = np.maximum(found.boxes[:, 2] - found.boxes[:, 0], 1.0)
        return float(np.median(runs / columns)) if len(runs) else 0.0

    def many(self, file: str, requests: int, threshold: float) -> None:
        """That many requests, one after the other."""
        data = read([file])
        for _ in range(requests):
            self.answer(data, Parameters(score_threshold=threshold, max_detections=DETECTIONS))

    @torch.inference_mode()
    def masks_alone(self, probabilities_DMM: Tensor, boxes: Tensor, height: int, width: int) -> list[str]:
        """By the network's own function, and the handler's strings."""
        counts, offsets = _scripted_run_lengths()(probabilities_DMM, boxes, height, width)
        return run_length_strings(counts.cpu().numpy(), offsets.cpu().numpy())


@cache
def _scripted_run_lengths() -> Any:
    return torch.jit.script(mask_run_lengths)


def activities(cuda: bool) -> list[ProfilerActivity]:
    """What a profile looks at."""
    return [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]


def label_seconds(profiled: profile, *, cuda: bool) -> dict[str, float]:
    """Seconds under each of the network's labels, zero where a label is absent; on a GPU those of its kernels."""
    seconds = dict.fromkeys(LABELS.values(), 0.0)
    for event in profiled.key_averages():
        # A label stands a second time on the GPU's own time line.
        if event.key in LABELS and event.device_type == DeviceType.CPU:
            microseconds = event.device_time_total if cuda else event.cpu_time_total
            seconds[LABELS[event.key]] += microseconds / 1e6
    return seconds
