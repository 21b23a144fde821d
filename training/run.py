"""One training: what changes from step to step, a single step, and how the whole of it is saved and taken up again."""

import subprocess
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from model import config as model_config
from model.boxes.head import BoxPredictor
from model.checkpoint import FORMAT, load_weights, save_checkpoint
from model.classes import ClassTable
from model.host import read
from model.masks.box_only import BoxOnly
from model.network import MaskXRCNN
from model.processor import cpu_multiplies_bfloat16
from model.targets import Target
from training.config import TrainingConfig, box_only_weights, to_dict
from training.data.augment import scaled
from training.data.colour import coloured
from training.data.sampler import image_seed, step_seed
from training.distributed import ALONE, Group
from training.gradients import Gradients
from training.images.broken import BrokenImages
from training.optimiser import build_optimiser, peak_rate, set_rate
from training.random_state import random_state, restore_random_state
from training.schedule import STAGES, Stage
from training.teacher import Teacher


def under_bfloat16(precision: str, device: torch.device) -> bool:
    """Whether `precision` means bfloat16 on `device`; "auto" asks for it where the hardware computes it.

    A CPU without such units converts back and forth, and is slower than in float32.
    """
    if precision != "auto":
        return precision == "bfloat16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return cpu_multiplies_bfloat16()


class NotFinite(ValueError):
    """A loss, the gradient or a weight is infinite or not a number: the run cannot go on."""


class Run:
    """A network under training: weights, optimiser, number of steps done.

    Args:
        config: of the training.
        network: on the device it is trained on.
        classes: of the data set.
        images: in the data set.
        saved: contents of a checkpoint to go on from; None to start.
        group: the processes that train it together.
        new_labels: of the classes that stage "classes" trains; of a saved run, those it began with.
    """

    def __init__(
        self,
        *,
        config: TrainingConfig,
        network: MaskXRCNN,
        classes: ClassTable,
        images: int,
        saved: dict[str, Any] | None = None,
        group: Group = ALONE,
        new_labels: Sequence[int] = (),
    ) -> None:
        self.config = config
        self.group = group
        self.network = network.train()
        self.classes = classes
        self.images = images
        self.device = next(network.parameters()).device
        network.batched = self.device.type == "cuda"
        self.own_precision = "bfloat16" if under_bfloat16(config.precision, self.device) else "float32"
        """What the configuration means on this machine."""
        self.precision = self.own_precision
        if saved is not None and config.precision == "auto":
            self.precision = saved.get("precision", self.own_precision)
        self.step = 0
        self.images_seen = 0
        self.new_labels = list(new_labels if saved is None else saved.get("new_labels", ()))
        self.stage: Stage | None = None
        self.optimiser: Optimizer | None = None
        self.teacher: Teacher | None = None
        self._gradients: Gradients | None = None
        self._saved = saved
        self._revision = revision()
        if saved is not None:
            load_weights(network, saved["model"], source=str(checkpoint_path(config)))
            self.step = saved["step"]
            self.images_seen = saved["sampler"]["position"]
        self.broken = BrokenImages(
            images=images,
            position=self.images_seen,
            saved=None if saved is None else saved.get("broken_images"),
        )
        """Images that could not be read, and for which others stood in."""

    @property
    def finished(self) -> bool:
        """Whether all steps of all stages are done."""
        return self.step == self.config.schedule.total_steps

    def remaining_stages(self) -> list[Stage]:
        """The stages of which steps are left."""
        done = self.config.schedule.steps_done(self.step)
        return [stage for stage in STAGES if done[stage] < self.config.schedule.steps(stage)]

    def common(self) -> dict[str, Any]:
        """What must be the same in every process of the group: state, data and configuration."""
        settings = to_dict(self.config)
        return {
            "step in its checkpoint": self.step,
            "precision": self.precision,
            "number of images": self.images,
            "classes": self.classes.to_dict(),
            **{f"[{name}]": settings[name] for name in settings if name not in ("data", "output")},
        }

    def restore_random(self) -> None:
        """The random generators as they were when the checkpoint was written; nothing in a run that starts."""
        if self._saved is not None:
            restore_random_state(self._saved["random"])

    def begin(self, stage: Stage) -> None:
        """Freeze what `stage` does not train, and make its optimiser and teacher, or take up the saved ones."""
        self.stage = stage
        self.network.set_stage(stage)
        self.network.train()
        self._gradients = None  # takes its hooks away from the parameters before the next one sets its own
        self._gradients = Gradients(self.network, group=self.group, parts=self.config.schedule.accumulate)
        decayed = self.config.optimiser
        if stage == "classes":  # decay would move the rows that are to stay
            decayed = replace(decayed, weight_decay=0.0)
        self.optimiser = build_optimiser(self.network, decayed, stage)
        self.teacher = None
        if self.config.teacher.used and stage in ("end_to_end", "mask"):
            self.teacher = Teacher(self.network, momentum=self.config.teacher.momentum)
        if self._saved is not None and self._saved["stage"] == stage:
            self.optimiser.load_state_dict(self._saved["optimizer"])
            if self.teacher is not None:
                self.teacher.restore(self._saved["teacher"], source=str(checkpoint_path(self.config)))
        self._saved = None

    def set_learning_rate(self) -> float:
        """Give the coming step its learning rate, and return it."""
        assert self.stage is not None and self.optimiser is not None
        schedule = self.config.schedule
        step = schedule.steps_done(self.step)[self.stage]
        share = schedule.rate(step, of=schedule.steps(self.stage))
        rate = peak_rate(self.config.optimiser, self.stage) * share
        set_rate(self.optimiser, rate)
        return rate

    def train_on(self, images: list[Tensor], targets: list[Target]) -> dict[str, float]:
        """One step of the optimiser. Every loss before its weight, their weighted sum `loss`, `gradient_norm`.

        On a GPU the host waits for it where `model.host` says, and nowhere else: `model.host.no_other_waits` around a
        step makes that a test.

        Args:
            images, targets: this process's share of the step's images; the figures are over all of them.

        Raises:
            NotFinite: a loss or the gradient; the weights are still those before this step.
        """
        assert self.optimiser is not None and self._gradients is not None
        box_only, of_box_only = self._box_only()
        weights = vars(self.config.loss_weights) | of_box_only
        seed = self.config.seed
        images = [image.to(self.device, non_blocking=True) for image in images]
        if self.config.augment.on_device and self.config.augment.changes_colour:
            images = coloured(images, targets, self.config.augment)
        if self.config.augment.changes_size:
            images, targets = scaled(
                images, targets, self.config.augment, self.config.model.input, seed=seed, step=self.step
            )
        if self.stage == "mask" and self.config.augment.views:
            proposals = not self.network.sampling.masks_on_ground_truth
            targets = [
                target if "seen" in target else {**target, "seen": self.seen(image, proposals=proposals)}
                for image, target in zip(images, targets, strict=True)
            ]
        self.optimiser.zero_grad(set_to_none=True)
        losses = self._gradients.add(
            images,
            targets,
            seeds=[image_seed(seed=seed, step=self.step, image_id=target["image_id"]) for target in targets],
            seed=step_seed(seed=seed, step=self.step),
            weighted=partial(weighted_sum, weights),
            autocast=self._autocast,
            box_only=box_only,
        )
        if self.stage == "classes":
            hold_rows(self.network.box_predictor, self.new_labels)
        trained = [p for group in self.optimiser.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(trained, self.config.optimiser.clip_norm or float("inf"))
        named = {**losses, "gradient_norm": norm.float()}
        # All in one tensor, so that the host waits for the device once a step.
        values = read(torch.stack(list(named.values())))
        figures = dict(zip(named, values, strict=True))
        self._require_finite(figures, targets)
        self.optimiser.step()
        if self.teacher is not None:
            self.teacher.follow(self.network)
        self.step += 1
        self.images_seen += self.config.schedule.batch_size
        return figures

    def save(self) -> Path:
        """Write the checkpoint, which the first of several processes does; its path.

        Raises:
            NotFinite: a weight is; the last checkpoint stays as it was.
        """
        state = self.network.state_dict()
        broken = [name for name, value in state.items() if not bool(value.isfinite().all())]
        if broken:
            raise NotFinite(
                f"step {self.step}: {len(broken)} weights are not finite ({broken[0]}). {self._cure()}"
            )
        path = checkpoint_path(self.config)
        if not self.group.first:
            return path
        of_teacher = {} if self.teacher is None else {"teacher": self.teacher.state()}
        save_checkpoint(
            path,
            {
                "format": FORMAT,
                "model": state,
                "model_config": model_config.to_dict(self.config.model),
                "training_config": to_dict(self.config),
                "classes": self.classes.to_dict(),
                "step": self.step,
                "stage": self.stage,
                "finished": self.finished,
                "optimizer": None if self.optimiser is None else self.optimiser.state_dict(),
                "sampler": {"seed": self.config.seed, "size": self.images, "position": self.images_seen},
                "random": random_state(),
                "new_labels": self.new_labels,
                "threads": torch.get_num_threads(),
                "processes": self.group.size,
                "precision": self.precision,
                "revision": self._revision,
                "torch": str(torch.__version__),
                **of_teacher,
                **self.broken.state(self.step),
            },
        )
        return path

    def seen(self, image: Tensor, *, proposals: bool = True) -> list[Tensor]:
        """What the frozen detector sees of an image on the device, in the run's precision (`model.boxes.seen`)."""
        with self._autocast():
            return self.network.seen(image, proposals=proposals)

    def _autocast(self) -> torch.autocast:
        enabled = self.precision == "bfloat16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)

    def _box_only(self) -> tuple[BoxOnly | None, dict[str, float]]:
        """What objects without masks teach in the coming step (None: nothing), and the weight of each such loss."""
        assert self.stage is not None
        box_losses, teacher = self.config.box_losses, self.config.teacher
        step = self.config.schedule.steps_done(self.step)[self.stage]
        weights = box_only_weights(box_losses, teacher, step, of=self.config.schedule.steps(self.stage))
        if not weights:
            return None, weights
        box_only = BoxOnly(
            colour_threshold=box_losses.colour_threshold if box_losses.used else None,
            margin=box_losses.margin if box_losses.used else 0.0,
            teacher=None if self.teacher is None else self.teacher.network,
            mask_threshold=teacher.mask_threshold,
        )
        return box_only, weights

    def _require_finite(self, figures: dict[str, float], targets: list[Target]) -> None:
        if all(abs(value) < float("inf") for value in figures.values()):  # false for NaN too
            return
        bad = [name for name, value in figures.items() if not abs(value) < float("inf")]
        listed = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
        images = ", ".join(str(target["image_id"]) for target in targets)
        raise NotFinite(
            f"step {self.step + 1}: {bad[0]} is not finite ({listed}); image ids of the batch: {images}. "
            f"{self._cure()}"
        )

    def _cure(self) -> str:
        path = checkpoint_path(self.config)
        kept = f"{path} holds the last good state" if path.is_file() else "no checkpoint was written yet"
        return (
            f"{kept}. Mostly the learning rate is too high: try a lower optimiser.learning_rate, a longer "
            "schedule.warmup_steps or optimiser.clip_norm=10"
        )


def hold_rows(predictor: BoxPredictor, labels: Sequence[int]) -> None:
    """Take away the gradients of all rows of the box branch's last layer but those of `labels`, so that they stay."""
    for layer, rows in ((predictor.cls_score, 1), (predictor.bbox_pred, 4)):
        for gradient in (layer.weight.grad, layer.bias.grad):
            if gradient is not None:
                of_classes = gradient.view(gradient.shape[0] // rows, -1)
                held = torch.ones_like(of_classes[:, :1], dtype=torch.bool)
                for label in labels:  # one by one: a list would be copied to a GPU, for which the host waits
                    held[label] = False
                of_classes.masked_fill_(held, 0.0)


def weighted_sum(weights: dict[str, float], losses: dict[str, Tensor]) -> Tensor:
    """Losses times their weights, added up in float32."""
    return torch.stack([weights[name] * loss.float() for name, loss in losses.items()]).sum()


def checkpoint_path(config: TrainingConfig) -> Path:
    """Where a run keeps its checkpoint."""
    return Path(config.output.dir) / "checkpoint.pt"


def revision() -> str:
    """The commit of this source, with "-dirty" where files differ from it; "unknown" outside a repository."""
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--match="],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return answer.stdout.strip()
