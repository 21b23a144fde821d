"""The gradient of one step: over all its images, whichever process has them and in however many parts."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parallel import DistributedDataParallel

from model.host import read
from model.losses import LossDivisor
from model.network import MaskXRCNN
from model.targets import Target
from training.distributed import Group

Weighted = Callable[[dict[str, Tensor]], Tensor]
"""From the losses to their weighted sum."""


class Losses(nn.Module):
    """The network's losses as a `forward`: distributed training hooks nothing else."""

    def __init__(self, network: MaskXRCNN) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: list[Tensor], targets: list[Target], **options: Any) -> dict[str, Tensor]:
        """See `MaskXRCNN.losses`."""
        return self.network.losses(images, targets, **options)


class Gradients:
    """Adds up the gradients of a step's images in the parameters.

    Args:
        network: in the stage that is trained.
        group: the processes that have images of the step.
        parts: into which each process divides its images, one after the other in memory. The gradient is that of
            all images at once, but for normalisations by batch statistics, which see one part.
    """

    def __init__(self, network: MaskXRCNN, *, group: Group, parts: int) -> None:
        self.network = network
        self.group = group
        self.parts = parts
        self._wrapped: DistributedDataParallel | None = None
        if group.size > 1:
            self._wrapped = DistributedDataParallel(Losses(network), gradient_as_bucket_view=True)

    def add(
        self,
        images: list[Tensor],
        targets: list[Target],
        *,
        seeds: Sequence[int],
        seed: int,
        weighted: Weighted,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        **options: Any,
    ) -> dict[str, Tensor]:
        """Every loss over the step's images in all processes, and their weighted sum `loss`; scalars, detached.

        Args:
            images, targets: this process's, at least as many as `parts`.
            seeds: one per image (`MaskXRCNN.losses`).
            seed: of all else that is random in the step, such as dropout on T's input: it is the same in each part
                and process.
            weighted: what the gradient is of.
            autocast: context in which the losses are computed.
            options: further arguments of `MaskXRCNN.losses`.
        """
        assert len(images) >= self.parts
        shares = [
            (images[i :: self.parts], targets[i :: self.parts], {**options, "seeds": seeds[i :: self.parts]})
            for i in range(self.parts)
        ]
        totals: list[LossDivisor] = [self.group.total]
        if self.parts > 1:
            counts = torch.tensor([self._counts(*share, seed=seed, autocast=autocast) for share in shares])
            whole = self.group.summed(counts.sum(0)).clamp(min=1) / self.group.size
            totals = [_counted(whole.tolist()) for _ in shares]
        losses_of = self.network.losses if self._wrapped is None else self._wrapped
        sums: dict[str, Tensor] = {}
        for part, ((some, of_some, more), total) in enumerate(zip(shares, totals, strict=True)):
            waits = part < self.parts - 1 and self._wrapped is not None
            with self._wrapped.no_sync() if waits else nullcontext():  # type: ignore[union-attr]
                torch.manual_seed(seed)
                with autocast():
                    losses = losses_of(some, of_some, total=total, **more)
                loss = weighted(losses)
                loss.backward()  # type: ignore[no-untyped-call]
            for name, value in {**losses, "loss": loss}.items():
                value = value.detach().float()
                sums[name] = sums[name] + value if name in sums else value
        means = self.group.mean(torch.stack(list(sums.values())))
        return dict(zip(sums, means.unbind(), strict=True))

    @torch.no_grad()
    def _counts(
        self,
        images: list[Tensor],
        targets: list[Target],
        options: dict[str, Any],
        *,
        seed: int,
        autocast: Callable[[], AbstractContextManager[Any]],
    ) -> list[float]:
        """What a part counts, in the order in which it asks for the totals; known only once it was gone through."""
        counts: list[int | Tensor] = []

        def note(count: int | Tensor) -> float:
            counts.append(count)
            return 1.0

        torch.manual_seed(seed)
        with statistics_kept(self.network), autocast():
            self.network.losses(images, targets, total=note, **options)
        on_device = [count.double() for count in counts if isinstance(count, Tensor)]
        values = iter(read(torch.stack(on_device)) if on_device else [])
        return [next(values) if isinstance(count, Tensor) else float(count) for count in counts]


def _counted(totals: list[float]) -> LossDivisor:
    """A `LossDivisor` that was counted before, in the order it is asked in."""
    coming = iter(totals)
    return lambda _: next(coming)


@contextmanager
def statistics_kept(network: nn.Module) -> Iterator[None]:
    """Within, batches move no running statistics of normalisations."""
    norms = [m for m in network.modules() if isinstance(m, _NormBase) and m.training]
    kept = [{name: buffer.clone() for name, buffer in norm.named_buffers()} for norm in norms]
    try:
        yield
    finally:
        for norm, buffers in zip(norms, kept, strict=True):
            for name, buffer in norm.named_buffers():
                buffer.copy_(buffers[name])
