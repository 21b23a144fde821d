"""The card's memory taken by somebody else: a batch that does not fit is answered in halves, an image that does not fit
alone with 507; once the memory is free again, all is well."""

import gc
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_check.parts.asking import Asked
from benchmarks.gpu_check.parts.comparing import compare, detections_of
from benchmarks.gpu_check.parts.large import PICTURES
from benchmarks.gpu_check.setting import CheckSetting, Clock, Keep, measured, say
from benchmarks.tables import Part, table

MIB = 2**20
SHARES = (0.6, 0.3, 0.05)
"""Of what a batch of 8 takes at most, what is left of the card."""
TITLE = "Memory exhausted"


def measure(setting: CheckSetting, seconds: float, keep: Keep) -> Part:
    """Fills the card with plain allocations so far that only a share of what a batch needs is left, and asks."""
    if not setting.on_gpu:
        why = "a CPU's memory is everybody's; tests/handler has the halving with a network that pretends"
        return Part(TITLE, f"Not measured: {why}.\n", measured())
    clock = Clock(seconds)
    asked = Asked(setting.large / "maskx.pt", setting.device, setting.best_first()[0])
    data = [setting.picture("1080p", seed) for seed in range(PICTURES)]
    whole = [detections_of(body) for body in asked.ask(data) if body is not None]
    free_again()
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    asked.ask(data)
    needed = torch.cuda.max_memory_reserved() - held
    rows: list[tuple[str, ...]] = [("all of it free", "-", _statuses(asked), "-")]
    steps: list[dict[str, Any]] = []
    wrong = asked.not_200
    for share in SHARES:
        if steps and not clock.has(6):
            break
        say(f"memory: {share:.0%} of {needed / MIB:.0f} MiB are left")
        asked.statuses.clear()
        filler = fill(int(share * needed))
        left = torch.cuda.mem_get_info()[0]
        bodies = asked.ask(data)
        del filler
        free_again()
        answered = {status for status in asked.statuses if status not in (200, 507)}
        wrong += sum(asked.statuses[status] for status in answered)
        same = _same(whole, bodies)
        steps.append({"share": share, "left_mib": left / MIB, "statuses": dict(asked.statuses), "same": same})
        rows.append((f"{share:.0%} of it left", f"{left / MIB:.0f}", _statuses(asked), same))
        keep(shown_part(rows, needed, wrong, steps))
    asked.statuses.clear()
    bodies = asked.ask(data)
    wrong += asked.not_200
    rows.append(("free again", "-", _statuses(asked), _same(whole, bodies)))
    return shown_part(rows, needed, wrong, steps)


def fill(left: int) -> list[Tensor]:
    """Takes the card's memory but for `left` bytes; what PyTorch keeps for later is given back first."""
    free_again()
    taken: list[Tensor] = []
    size = 8 * 2**30
    while size >= MIB:
        if torch.cuda.mem_get_info()[0] - left < size:
            size //= 2
            continue
        try:
            taken.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
        except torch.OutOfMemoryError:  # the card has it, but not in one piece
            size //= 2
    return taken


def free_again() -> None:
    """Gives back what nobody holds."""
    gc.collect()
    torch.cuda.empty_cache()


def _statuses(asked: Asked) -> str:
    return ", ".join(f"{count} x {status}" for status, count in sorted(asked.statuses.items()))


def _same(whole: list[list[dict[str, Any]]], bodies: list[bytes | None]) -> str:
    """How many of the sure detections of the answered images are those of the batch that had all the memory."""
    pairs = [(one, detections_of(body)) for one, body in zip(whole, bodies, strict=False) if body is not None]
    found = compare([one for one, _ in pairs], [two for _, two in pairs])
    return f"{found.matched} of {found.sure}"


def shown_part(rows: list[tuple[str, ...]], needed: int, wrong: int, steps: list[dict[str, Any]]) -> Part:
    """A 507 here is an answer as it should be; any other than 200 and 507 counts as wrong."""
    text = table(("memory", "MiB free", "8 images answered", "detections as before"), rows)
    text += (
        f"\nA batch of {PICTURES} 1080p images reserves {needed / MIB:.0f} MiB. Wished: 200 where halving helps, 507 "
        "where an image alone does not fit, and all 200 once the memory is free again.\n"
    )
    asked = 8 * (len(steps) + 2)
    return Part(TITLE, text, measured(asked=asked, not_200=wrong, needed_mib=needed / MIB, steps=steps))
