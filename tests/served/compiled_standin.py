"""The stand-in in stages, and its dense parts compiled ahead of time: what a server runs with a package.

Its trunk finds the colours, its box head hands on the scores, its mask head says that there is a mask: what it answers
is what the stand-in answers.
"""

import contextlib
import hashlib
import json
import platform
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.served.standin import METADATA, StandIn

STEP = 32
SIDE = 28


class Trunk(nn.Module):
    """Canvas [N, 3, H, W] of whole numbers -> where each colour is alone, one level [N, 3, H, W]; the largest of each
    channel, twice."""

    def forward(self, canvas: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        red, green, blue = canvas[:, :1], canvas[:, 1:2], canvas[:, 2:]
        others = torch.cat(
            [torch.maximum(green, blue), torch.maximum(red, blue), torch.maximum(red, green)], dim=1
        )
        level = ((canvas > 200) & (others < 100)).to(torch.float32)
        largest = canvas.amax((2, 3), keepdim=True)
        return [level], [largest], [largest + 1]


class BoxHead(nn.Module):
    """Crops [R, 3, 7, 7] -> the largest of their cells [R, 3], which leaves a number as it is."""

    def forward(self, pooled: Tensor) -> Tensor:
        return pooled.amax((2, 3))


class MaskHead(nn.Module):
    """Crops [R, 3, 14, 14], rows [R, 1] and a bias -> probabilities [R, 28, 28]."""

    def forward(self, crops: Tensor, rows: Tensor, bias: Tensor) -> Tensor:
        cells = crops.mean(1).repeat_interleave(2, 1).repeat_interleave(2, 2)
        return torch.sigmoid(8 * cells * rows.unsqueeze(2) + bias)


class StagedStandIn(StandIn):
    """The stand-in with the stages of an exported network; each image is a part of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.box_head, self.mask_head = Trunk(), BoxHead(), MaskHead()
        self.register_buffer("mask_table", torch.ones(4, 1))

    @torch.jit.export
    def parts_of(self, images: list[Tensor], with_masks: Tensor) -> list[list[int]]:
        parts: list[list[int]] = []
        for i, image in enumerate(images):
            self.fail_if_told(image, len(images))
            parts.append([i])
        return parts

    @torch.jit.export
    def begun(
        self, part: list[int], images: list[Tensor], sizes: Tensor, score_threshold: Tensor
    ) -> tuple[Tensor, Tensor]:
        image = images[part[0]]
        h, w = image.shape[1], image.shape[2]
        right, below = (w + 31) // 32 * 32 - w, (h + 31) // 32 * 32 - h
        canvas = F.pad(image.to(torch.float32), [0, right, 0, below]).unsqueeze(0)
        about = torch.cat([torch.tensor([h, w]), sizes[part[0]]]).to(torch.float64)
        return canvas.contiguous(memory_format=torch.channels_last), F.pad(about, [0, 1]).unsqueeze(0)

    @torch.jit.export
    def dense_trunk(self, canvas: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        answers: tuple[list[Tensor], list[Tensor], list[Tensor]] = self.trunk(canvas)
        return answers

    @torch.jit.export
    def proposed(
        self,
        levels: list[Tensor],
        logits: list[Tensor],
        deltas: list[Tensor],
        about: Tensor,
        height: int,
        width: int,
    ) -> tuple[dict[str, Tensor], Tensor, list[int], Tensor]:
        """A proposal for each colour, and crops that are its share of its box everywhere; -1 where it is nowhere."""
        sides: list[int] = about[0, :4].to(torch.int64).tolist()
        mask = levels[0][0, :, : sides[0], : sides[1]] > 0.5
        rows = ((torch.arange(sides[2]) + 0.5) * sides[0] / sides[2]).long()
        columns = ((torch.arange(sides[3]) + 0.5) * sides[1] / sides[3]).long()
        mask = mask[:, rows][:, :, columns]
        boxes: list[Tensor] = []
        shares: list[Tensor] = []
        for c in range(3):
            y = torch.where(mask[c].any(1))[0]
            x = torch.where(mask[c].any(0))[0]
            box, share = torch.zeros(4), torch.tensor(-1.0)
            if y.numel() > 0:
                box = torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1]).float()
                share = mask[c].sum() / ((box[2] - box[0]) * (box[3] - box[1]))
            boxes.append(box)
            shares.append(share)
        pooled = F.pad(torch.stack(shares), [0, 1]).view(4, 1, 1, 1).repeat(1, 3, 7, 7)
        pooled = pooled.contiguous(memory_format=torch.channels_last)
        return {"0": mask.to(torch.float32)}, torch.stack(boxes), [3], pooled

    @torch.jit.export
    def dense_box_head(self, pooled: Tensor) -> Tensor:
        hidden: Tensor = self.box_head(pooled)
        return hidden

    @torch.jit.export
    def detected(
        self,
        part: list[int],
        proposals: Tensor,
        numbers: list[int],
        hidden: Tensor,
        about: Tensor,
        score_threshold: Tensor,
        max_detections: Tensor,
        class_mask: Tensor,
    ) -> tuple[dict[str, Tensor], list[int]]:
        k = part[0]
        kept: list[int] = []
        for c in range(3):
            score = float(hidden[c, 0])
            wanted = score >= 0 and bool(class_mask[k, c + 1]) and len(kept) < int(max_detections[k])
            if wanted and score > float(score_threshold[k]):
                kept.append(c)
        index = torch.tensor(kept, dtype=torch.int64)
        found = {"boxes": proposals[index], "scores": hidden[index, 0], "labels": index + 1}
        found["image"] = torch.zeros_like(index)
        return found, [len(kept)]

    @torch.jit.export
    def cropped(
        self, features: dict[str, Tensor], found: dict[str, Tensor], with_mask: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows = (with_mask + 3) // 4 * 4
        crops = torch.ones(rows, 3, 14, 14).contiguous(memory_format=torch.channels_last)
        return crops, self.mask_table[:1].repeat(rows, 1), torch.zeros([])

    @torch.jit.export
    def dense_mask_head(self, crops: Tensor, rows: Tensor, bias: Tensor) -> Tensor:
        probabilities: Tensor = self.mask_head(crops, rows, bias)
        return probabilities

    @torch.jit.export
    def written(
        self,
        features: dict[str, Tensor],
        found: dict[str, Tensor],
        probabilities: Tensor,
        about: Tensor,
        with_mask: int,
    ) -> dict[str, Tensor]:
        counts: list[Tensor] = [torch.zeros(0, dtype=torch.int64)]
        ends: list[int] = [0]
        for d in range(with_mask):
            mask = features["0"][int(found["labels"][d]) - 1] > 0.5
            mask = torch.logical_and(mask, probabilities[d].min() > 0.9)
            flat = torch.cat([torch.zeros(1, dtype=torch.bool), mask.t().flatten()])
            changes = torch.where(flat[1:] != flat[:-1])[0]
            edges = torch.cat([torch.tensor([0]), changes, torch.tensor([mask.numel()])])
            counts.append(edges[1:] - edges[:-1])
            ends.append(ends[-1] + edges.numel() - 1)
        answer = {name: found[name] for name in ("boxes", "scores", "labels")}
        answer["rle_counts"], answer["rle_offsets"] = torch.cat(counts), torch.tensor(ends)
        return answer

    @torch.jit.export
    def packed_of(
        self,
        parts: list[list[int]],
        founds: list[dict[str, Tensor]],
        counts: list[list[int]],
        with_masks: Tensor,
    ) -> tuple[Tensor, list[list[int]]]:
        pieces: list[Tensor] = [torch.zeros(0, dtype=torch.int32)]
        table: list[list[int]] = [[0]] * with_masks.shape[0]
        at = 0
        for p, part in enumerate(parts):
            found = founds[p]
            own = [
                torch.view_copy(found["boxes"].flatten(), dtype=torch.int32),
                torch.view_copy(found["scores"], dtype=torch.int32),
                found["labels"].to(torch.int32),
                found["rle_offsets"].to(torch.int32),
                found["rle_counts"].to(torch.int32),
            ]
            row = [counts[p][0]]
            for piece in own:
                row.append(at)
                at += piece.numel()
                pieces.append(piece)
            if not bool(with_masks[part[0]]):
                row[4], row[5] = -1, -1
            row.append(-1)
            table[part[0]] = row
        return torch.cat(pieces), table


def write_staged_standin(path: Path) -> Path:
    """It as a maskx.pt, the same bytes every time it is written in a process."""
    scripted = torch.jit.script(StagedStandIn().eval())
    torch.jit.save(scripted, str(path), _extra_files={"metadata.json": json.dumps(METADATA)})
    return path


def why_not_compiled() -> str:
    """Why no package can be compiled here; "" where one can."""
    return "" if shutil.which("g++") else "no g++ here to compile the stand-in's package with"


def libraries(folder: Path) -> dict[str, list[str]]:
    """The files of each part, compiled into torch's cache."""
    from torch.export import Dim

    height, width = Dim("height", min=1, max=600), Dim("width", min=1, max=600)
    canvas = torch.zeros(2, 3, 3 * STEP, 4 * STEP).contiguous(memory_format=torch.channels_last)
    crops = [torch.ones(8, 3, side, side).contiguous(memory_format=torch.channels_last) for side in (7, 14)]
    rows = Dim("rows", min=2, max=4096)
    wanted: dict[str, tuple[nn.Module, tuple[Tensor, ...], Any]] = {
        "trunk": (Trunk(), (canvas,), ({0: Dim.DYNAMIC, 2: STEP * height, 3: STEP * width},)),
        "box_head": (BoxHead(), (crops[0],), ({0: rows},)),
        "mask_head": (
            MaskHead(),
            (crops[1], torch.ones(8, 1), torch.zeros([])),
            ({0: rows}, {0: rows}, None),
        ),
    }
    files: dict[str, list[str]] = {}
    for part, (module, given, shapes) in wanted.items():
        exported = torch.export.export(module.eval(), given, dynamic_shapes=shapes)
        options = {"aot_inductor.package": True, "aot_inductor.output_path": str(folder / part)}
        made: Any = torch._inductor.aot_compile(exported.module(), given, options=options)
        files[part] = made
    return files


def record_of(torchscript: Path, **changes: Any) -> dict[str, Any]:
    """What a package for that file and this machine says of itself."""
    digest = hashlib.sha256(torchscript.read_bytes()).hexdigest()
    return {
        "format_version": 1,
        "torch": torch.__version__.partition("+")[0],
        "device": "cpu",
        "capability": torch.backends.cpu.get_cpu_capability(),
        "instructions": [],
        "architecture": platform.machine(),
        "precision": "float32",
        "torchscript_sha256": digest,
        "parts": ["box_head", "mask_head", "trunk"],
        "step": STEP,
        "most_images": 8,
    } | changes


def write_package(path: Path, record: Mapping[str, Any], files: Mapping[str, list[str]]) -> Path:
    """A package as torch writes it, of the files of each part."""
    with zipfile.ZipFile(path, "w") as package:
        for part, names in files.items():
            for name in names:
                package.write(name, f"maskx/data/aotinductor/{part}/{Path(name).name}")
        package.writestr("maskx/extra/compiled.json", json.dumps(record, sort_keys=True))
    return path


def kept_libraries(folder: Path) -> dict[str, list[str]]:
    """`libraries`, compiled once for this source, PyTorch and processor, and kept in a folder."""
    made_of = Path(__file__).read_text() + torch.__version__ + platform.machine()
    made_of += json.dumps(dict(torch.cpu.get_capabilities()), sort_keys=True)
    kept = folder / hashlib.sha256(made_of.encode()).hexdigest()[:16]
    if not kept.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        making = Path(tempfile.mkdtemp(dir=folder, prefix="making-"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's compiler about itself
            made = libraries(making / "all")
        for part, files in made.items():
            (making / "kept" / part).mkdir(parents=True)
            for file in files:
                shutil.copyfile(file, making / "kept" / part / Path(file).name)
        with contextlib.suppress(OSError):  # another process was faster
            (making / "kept").rename(kept)
        shutil.rmtree(making)
    return {part.name: sorted(str(file) for file in part.iterdir()) for part in sorted(kept.iterdir())}
