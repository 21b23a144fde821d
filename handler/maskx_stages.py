"""The stages of a maskx.pt with its dense parts computed by compiled libraries: the same answers as the file's own.

A maskx.pt has what comes before, between and after its dense parts (trunk, box head, mask head) as methods of their
own. Here they are called one after the other, a library in the place of each part that there is one of. The weights
of these parts are then held by the library alone.
"""

import logging
from typing import Any

import torch
from torch import Tensor, nn

from maskx_compiled import CompiledParts, Unfit
from maskx_engine import frozen

logger = logging.getLogger(__name__)

STAGES = ("parts_of", "begun", "proposed", "detected", "cropped", "written", "packed_of")
DENSE = {"trunk": "dense_trunk", "box_head": "dense_box_head", "mask_head": "dense_mask_head"}
"""The method of each part that a package may have in its place."""

TRIED_SIDES = (5, 7)
"""Height and width, in steps of the canvas, of what is tried before a package is used."""
MOST_DIFFERENT = {"float32": 0.01, "bfloat16": 0.1, "float16": 0.03}
"""The norm of the difference between a library's answers and the file's, by the norm of the latter: more is not
rounding, but a library that computes something else."""


def network_of(
    module: Any, compiled: CompiledParts | str, *, precision: str, labels: int, mask_size: int
) -> tuple[Any, dict[str, Any]]:
    """What answers batches: the module's stages with the compiled parts, or the module itself, frozen.

    Args:
        module: the loaded maskx.pt, `maskx_engine.prepared`.
        compiled: its parts, or why there are none (`maskx_compiled.package_for`).
        precision: that it computes in.
        labels: how many there are, background aside.
        mask_size: M, the side of a mask.

    Returns:
        It, and for whoever operates it "used", torchscript or compiled, and "package" or "reason", which is also logged
        as a warning.
    """
    if not isinstance(compiled, str):
        try:
            require_same_answers(module, compiled, precision=precision, labels=labels)
            network = StagedNetwork(module, compiled, mask_size=mask_size)
            return network, {"used": "compiled", "package": compiled.description()}
        except Unfit as reason:
            compiled = str(reason)
        except RuntimeError as error:  # a library that fails where it is tried; PyTorch has no narrower class
            compiled = f"its parts cannot be run here: {(str(error).splitlines() or [''])[0]}"
    if not compiled:
        return frozen(module), {"used": "torchscript"}
    logger.warning("the TorchScript file is used, the compiled package is not: %s", compiled)
    return frozen(module), {"used": "torchscript", "reason": compiled}


class ServedStages(nn.Module):
    """The stages of a loaded maskx.pt without its `forward`: frozen, it keeps the weights that they need and no others.

    (PyTorch keeps all that `forward` needs in every module that has one.) For shapes see `model.inference.Inference`.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    @torch.jit.export
    def parts_of(self, images: list[Tensor], with_masks: Tensor) -> list[list[int]]:
        parts: list[list[int]] = self.network.parts_of(images, with_masks)
        return parts

    @torch.jit.export
    def begun(
        self, part: list[int], images: list[Tensor], sizes: Tensor, score_threshold: Tensor
    ) -> tuple[Tensor, Tensor]:
        begun: tuple[Tensor, Tensor] = self.network.begun(part, images, sizes, score_threshold)
        return begun

    @torch.jit.export
    def dense_trunk(self, canvas: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        answers: tuple[list[Tensor], list[Tensor], list[Tensor]] = self.network.dense_trunk(canvas)
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
        proposed: tuple[dict[str, Tensor], Tensor, list[int], Tensor] = self.network.proposed(
            levels, logits, deltas, about, height, width
        )
        return proposed

    @torch.jit.export
    def dense_box_head(self, pooled: Tensor) -> Tensor:
        hidden: Tensor = self.network.dense_box_head(pooled)
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
        found: tuple[dict[str, Tensor], list[int]] = self.network.detected(
            part, proposals, numbers, hidden, about, score_threshold, max_detections, class_mask
        )
        return found

    @torch.jit.export
    def cropped(
        self, features: dict[str, Tensor], found: dict[str, Tensor], with_mask: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        crops: tuple[Tensor, Tensor, Tensor] = self.network.cropped(features, found, with_mask)
        return crops

    @torch.jit.export
    def dense_mask_head(self, crops: Tensor, rows: Tensor, bias: Tensor) -> Tensor:
        probabilities: Tensor = self.network.dense_mask_head(crops, rows, bias)
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
        answer: dict[str, Tensor] = self.network.written(features, found, probabilities, about, with_mask)
        return answer

    @torch.jit.export
    def packed_of(
        self,
        parts: list[list[int]],
        founds: list[dict[str, Tensor]],
        counts: list[list[int]],
        with_masks: Tensor,
    ) -> tuple[Tensor, list[list[int]]]:
        packed: tuple[Tensor, list[list[int]]] = self.network.packed_of(parts, founds, counts, with_masks)
        return packed


class StagedNetwork:
    """`packed` of a maskx.pt, part by part; see the file."""

    def __init__(self, module: Any, compiled: CompiledParts, *, mask_size: int) -> None:
        """Takes the stages out of a module that is ready to run but for freezing, whose weights it need not keep.

        Args:
            module: the loaded maskx.pt.
            compiled: the parts in the place of its own.
            mask_size: M, the side of a mask.
        """
        self._compiled = compiled
        self._mask_size = mask_size
        own = [method for part, method in DENSE.items() if part not in compiled.parts]
        stages = torch.jit.script(ServedStages(module).eval())
        self._stages = torch.jit.freeze(stages, preserved_attrs=[*STAGES, *own])
        self._code = smallest_part(module)
        self._most_images = max(int(compiled.record.get("most_images") or 1), 1)

    def packed(
        self,
        images: list[Tensor],
        sizes: Tensor,
        score_threshold: Tensor,
        max_detections: Tensor,
        class_mask: Tensor,
        with_masks: Tensor,
    ) -> tuple[Tensor, list[list[int]]]:
        """The answers of a batch in one tensor, and where each lies, as a maskx.pt's method of that name has them."""
        stages = self._stages
        masks: list[bool] = with_masks.tolist()
        parts = [
            part[start : start + self._most_images]
            for part in stages.parts_of(images, with_masks)
            for start in range(0, len(part), self._most_images)
        ]
        founds, every_count = [], []
        for part in parts:
            canvas, about = stages.begun(part, images, sizes, score_threshold)
            levels, logits, deltas = self._trunk(canvas)
            features, proposals, numbers, pooled = stages.proposed(
                levels, logits, deltas, about, canvas.shape[2], canvas.shape[3]
            )
            hidden = self._box_head(pooled)
            found, counts = stages.detected(
                part, proposals, numbers, hidden, about, score_threshold, max_detections, class_mask
            )
            with_mask = sum(count for k, count in zip(part, counts, strict=True) if masks[k])
            crops, rows, bias = stages.cropped(features, found, with_mask)
            probabilities = self._mask_head(crops, rows, bias)
            founds.append(stages.written(features, found, probabilities, about, with_mask))
            every_count.append(counts)
        packed: tuple[Tensor, list[list[int]]] = stages.packed_of(parts, founds, every_count, with_masks)
        return packed

    def _trunk(self, canvas: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        if "trunk" in self._compiled.parts:
            return trunk_of(self._compiled, canvas)
        answers: tuple[list[Tensor], list[Tensor], list[Tensor]] = self._stages.dense_trunk(canvas)
        return answers

    def _box_head(self, pooled: Tensor) -> Tensor:
        if "box_head" in self._compiled.parts and pooled.shape[0] > 0:
            return self._compiled.run("box_head", pooled)[0]
        if "box_head" in self._compiled.parts:  # no library is made for no row at all
            return self._compiled.run("box_head", pooled.new_zeros((4, *pooled.shape[1:])))[0][:0]
        hidden: Tensor = self._stages.dense_box_head(pooled)
        return hidden

    def _mask_head(self, crops: Tensor, rows: Tensor, bias: Tensor) -> Tensor:
        if crops.shape[0] == 0:
            return torch.zeros((0, self._mask_size, self._mask_size), device=crops.device)
        if "mask_head" in self._compiled.parts:
            return self._compiled.run("mask_head", crops, rows, bias)[0]
        probabilities: Tensor = self._stages.dense_mask_head(crops, rows, bias)
        return probabilities


def smallest_part(module: Any) -> Any:
    """Of a loaded module's parts the one with the least weights; itself, where it has none.

    All parts of a file share its code, which lives as long as one of them: frozen code of another module that calls it
    does not keep it, and would crash (torch 2.15).
    """
    return min(module.children(), key=lambda part: sum(p.numel() for p in part.parameters()), default=module)


def trunk_of(compiled: CompiledParts, canvas: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Levels, and the RPN's logits and deltas of each, of a canvas, by the library."""
    answers = compiled.run("trunk", canvas)
    levels = len(answers) // 3
    return answers[:levels], answers[levels : 2 * levels], answers[2 * levels :]


@torch.inference_mode()
def require_same_answers(module: Any, compiled: CompiledParts, *, precision: str, labels: int) -> None:
    """Tries every library on noise beside the file's own code, in some tenths of a second.

    Args:
        module: the loaded maskx.pt, ready to run but for freezing.
        compiled: its parts.
        precision: that both compute in.
        labels: how many there are, background aside.

    Raises:
        Unfit: the file has no stages, or a library answers something else.
    """
    missing = [name for name in (*STAGES, *DENSE.values()) if not hasattr(module, name)]
    if missing:
        raise Unfit(
            f"this maskx.pt has no {missing[0]}: it is of an older version; export the checkpoint again"
        )
    device, dtype = module.mask_table.device, getattr(torch, precision)
    step, images = int(compiled.record.get("step", 32)), min(int(compiled.record.get("most_images") or 1), 2)
    height, width = (side * step for side in TRIED_SIDES)
    random = torch.Generator().manual_seed(0)
    canvas = torch.randn((images, 3, height, width), generator=random).to(device, dtype)
    canvas = canvas.contiguous(memory_format=torch.channels_last)
    about = torch.tensor([[height, width, height, width, 0.0]] * images, dtype=torch.float64, device=device)
    levels, logits, deltas = module.dense_trunk(canvas)
    if "trunk" in compiled.parts:
        answers = [one for some in trunk_of(compiled, canvas) for one in some]
        _require_same("trunk", answers, [*levels, *logits, *deltas], precision)
    features, _, _, pooled = module.proposed(levels, logits, deltas, about, height, width)
    if "box_head" in compiled.parts:
        expected = module.dense_box_head(pooled)
        _require_same("box_head", compiled.run("box_head", pooled), [expected], precision)
    if "mask_head" in compiled.parts:
        ends = torch.tensor([0.1, 0.2, 0.7, 0.9, 0.3, 0.1, 0.8, 0.6, 0.0, 0.0, 1.0, 1.0]).view(3, 4)
        found = {
            "boxes": (ends * torch.tensor([width, height, width, height])).to(device),
            "scores": torch.ones(3, device=device),
            "labels": torch.tensor([1, labels, (labels + 1) // 2], device=device),
            "image": torch.zeros(3, dtype=torch.int64, device=device),
        }
        given = module.cropped(features, found, 3)
        expected = module.dense_mask_head(*given)
        _require_same("mask_head", compiled.run("mask_head", *given), [expected], precision)


def _require_same(part: str, answers: list[Tensor], expected: list[Tensor], precision: str) -> None:
    forms = [[(tuple(one.shape), one.dtype) for one in some] for some in (answers, expected)]
    if forms[0] != forms[1]:
        raise Unfit(f"its {part} answers {forms[0]} where {forms[1]} is expected; make the package again")
    for one, other in zip(answers, expected, strict=True):
        norm = float(other.double().norm())
        different = float((one.double() - other.double()).norm())
        if not different <= MOST_DIFFERENT[precision] * norm + 1e-6 * other.numel() ** 0.5:
            raise Unfit(
                f"its {part} answers something else than the TorchScript file: the difference is {different:.3g} where "
                f"the answer is {norm:.3g}; make the package again"
            )
