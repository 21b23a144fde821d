"""The stand-in for the network with the method that packs all answers of a batch into one tensor."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.served.standin import METADATA, StandIn


class PackedStandIn(StandIn):
    """`packed` as maskx_model describes it, of what `forward` answers; `batched` says where it was told to run."""

    batched: bool

    def __init__(self, keypoints: int = 0) -> None:
        super().__init__()
        self.batched = False
        self.keypoints = keypoints

    @torch.jit.export
    def packed(
        self,
        images: list[Tensor],
        sizes: Tensor,
        score_threshold: Tensor,
        max_detections: Tensor,
        class_mask: Tensor,
        with_masks: Tensor,
    ) -> tuple[Tensor, list[list[int]]]:
        parts: list[Tensor] = [torch.zeros(1 if self.batched else 0, dtype=torch.int32)]
        table: list[list[int]] = []
        at = parts[0].numel()
        answers = self.forward(images, sizes, score_threshold, max_detections, class_mask, with_masks)
        for i, answer in enumerate(answers):
            row = [answer["labels"].numel()]
            # TorchScript takes view(torch.int32) for a view of size [3].
            wanted = [
                torch.view_copy(answer["boxes"].flatten(), dtype=torch.int32),
                torch.view_copy(answer["scores"], dtype=torch.int32),
            ]
            wanted.append(answer["labels"].to(torch.int32))
            if bool(with_masks[i]):
                wanted += [answer["rle_offsets"].to(torch.int32), answer["rle_counts"].to(torch.int32)]
            for part in wanted:
                row.append(at)
                at += part.numel()
                parts.append(part)
            if not bool(with_masks[i]):
                row += [-1, -1]
            row.append(-1)
            if self.keypoints > 0:
                row[6] = at
                points = answer["boxes"][:, None, :3].repeat(1, self.keypoints, 1) + torch.arange(
                    self.keypoints
                ).view(1, -1, 1)
                parts.append(torch.view_copy(points.flatten(), dtype=torch.int32))
                at += points.numel()
            table.append(row)
        return torch.cat(parts), table


def write_packed_standin(path: Path, keypoints: int = 0) -> Path:
    """It as a maskx.pt."""
    metadata: dict[str, Any] = dict(METADATA)
    if keypoints:
        names = [f"point {number}" for number in range(keypoints)]
        metadata["keypoints"] = {"names": names, "labels": [1], "lines": []}
    scripted = torch.jit.script(PackedStandIn(keypoints).eval())
    torch.jit.save(scripted, str(path), _extra_files={"metadata.json": json.dumps(metadata)})
    return path
