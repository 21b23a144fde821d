"""Train Mask^X R-CNN: `python -m training.train --config training/presets/shapes.toml [key=value ...]`.

End to end, or stage by stage (Sec. 3.3): the detector first, then the mask branch and the weight transfer
function on top of it. A run that was stopped or killed goes on with `--resume`, to the same weights.
With `torchrun --nproc-per-node 8 -m training.train ...` several processes train together (`training.distributed`).
"""

import argparse
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.checkpoint import load_checkpoint, remove_unfinished
from model.keypoints.layout import keypoint_labels
from model.targets import Target
from training.box_only import box_only_weights
from training.config import (
    DEFAULT_CONFIG,
    TrainingConfig,
    config_from_dict,
    differing_keys,
    load_config,
)
from training.data.coco import CocoDataset, look_at_validation_set
from training.data.reading import batches, without_trace
from training.data.sides import hint
from training.distributed import (
    FailedElsewhere,
    Group,
    process_group,
    refuse_processes,
    started_together,
)
from training.memory import keep_freed_memory, memory_advice, out_of_memory
from training.progress import Progress, counted, progress
from training.random_state import seed_all
from training.run import NotFinite, Run, checkpoint_path
from training.run_log import RunLog
from training.start import new_labels, read_start, starting_network
from training.stopping import Stop, stop_on_signals


class Stopped(Exception):
    """A training was stopped by a signal, after it had saved its state."""

    def __init__(self, by: signal.Signals, *, step: int, checkpoint: Path) -> None:
        super().__init__(f"stopped by {by.name} at step {step}, saved {checkpoint}")
        self.by = by


def train(config: TrainingConfig, *, resume: bool = False, restart: bool = False) -> Path:
    """Train as `config` says, from its beginning or from the run's last checkpoint; the finished checkpoint.

    Started by `torchrun`, this is one of several processes that do it together.

    Args:
        config: see `training.config`.
        resume: go on from the checkpoint in `config.output.dir`; where there is none, start.
        restart: start although there is one, and replace it.

    Raises:
        ValueError: data, configuration or checkpoint are not fit for it, or a loss is not finite. What was
            saved before stays.
        Stopped: Ctrl-C or SIGTERM, after the state was saved.
        FailedElsewhere: another process has failed, and says why.
    """
    if config.schedule.total_steps == 0:
        raise ValueError("[schedule] no steps: set end_to_end_steps, detector_steps or mask_steps above 0")
    with process_group(config.device) as group, group.one_voice():
        require_images_for_all(config, group)
        with group.together():
            run, data = prepared(config, group, resume=resume, restart=restart)
            if group.first and not run.finished:
                look_at_validation_set(config, run.classes)
        group.require_same(run.common())
        if run.finished:
            return checkpoint_path(config)
        path = train_run(run, data)
        group.wait()  # whoever reads the checkpoint next finds it
        return path


def prepared(config: TrainingConfig, group: Group, *, resume: bool, restart: bool) -> tuple[Run, CocoDataset]:
    """A run at its beginning or where its checkpoint was written, and the data it trains on; see `train`."""
    saved = checkpoint_to_resume(config, resume=resume, restart=restart)
    device = chosen_device(config.device)
    if device.type == "cpu":
        keep_freed_memory()
    if config.threads:
        torch.set_num_threads(config.threads)
    seed_all(config.seed)

    needs_masks = config.schedule.end_to_end_steps + config.schedule.mask_steps > 0
    data = CocoDataset(
        config.data.train_images,
        config.data.train_annotations,
        mask_classes=config.data.mask_classes,
        augment=config.augment,
        require_masks=needs_masks,
        keypoints=config.model.keypoints,
        progress=counted("checking images"),
    )
    print(data.report)
    if said := hint(config.augment, data.classes):
        print(said)
    if saved is not None:
        require_same_data(saved, data, checkpoint_path(config))
    if config.model.transfer.kind == "class_specific" and needs_masks:
        data.classes.require_masks()
    network = starting_network(config, data.classes, from_checkpoint=saved is not None)
    network.set_keypoint_labels(keypoint_labels(config.model.keypoints, data.classes))
    network = network.to(device)
    if config.channels_last:
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    classes = data.classes
    new: tuple[int, ...] = ()
    if saved is None and config.schedule.classes_steps:
        new = new_labels(read_start(config.data.start_from), classes)
    run = Run(
        config=config,
        network=network,
        classes=classes,
        images=len(data),
        saved=saved,
        group=group,
        new_labels=new,
    )
    describe(run, data, device, saved)
    return run, data


def train_run(run: Run, data: CocoDataset) -> Path:
    """The steps that are left of a run; the path of the checkpoint. Raises as `train`."""
    config, group = run.config, run.group
    if run.step == 0 and group.first:
        checkpoint_path(config).unlink(missing_ok=True)
    with (
        stop_on_signals(quiet=not group.first) as stop,
        closing(batches(run, data)) as coming,
        run_log(run) as log,
        progress(config.schedule.total_steps, "training", unit="steps", done=run.step) as shown,
    ):
        run.restore_random()
        stopped_by = None
        for stage in run.remaining_stages():
            run.begin(stage)
            shown.say(f"stage {stage}: {config.schedule.steps(stage)} steps")
            stopped_by = train_stage(run, coming, stop=stop, log=log, shown=shown)
            if stopped_by is not None:
                break
        path = run.save()
    if stopped_by is not None:
        raise Stopped(stopped_by, step=run.step, checkpoint=path)
    return path


def run_log(run: Run) -> AbstractContextManager[RunLog | None]:
    """The log of a run, which the first process writes."""
    config = run.config
    if not run.group.first:
        return nullcontext()
    return RunLog(
        Path(config.output.dir),
        step=run.step,
        tensorboard=config.output.tensorboard,
        more=[
            *(["loss_keypoint"] if config.model.keypoints.used else []),
            *box_only_weights(config.box_losses, config.teacher, 0, of=1),
        ],
    )


def train_stage(
    run: Run,
    coming: Iterator[tuple[list[Tensor], list[Target]]],
    *,
    stop: Stop,
    log: RunLog | None,
    shown: Progress[None],
) -> signal.Signals | None:
    """The remaining steps of the run's present stage, or those before any process was told to stop: by which signal."""
    assert run.stage is not None
    every = run.config.output
    rate = 0.0
    stopped_by = None
    while run.stage in run.remaining_stages():
        if number := run.group.largest(stop.by or 0):
            stopped_by = signal.Signals(number)
            break
        images, targets = next(coming)
        rate = run.set_learning_rate()
        try:
            figures = run.train_on(images, targets)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            raise ValueError(
                f"step {run.step + 1}: {without_trace(error)} {memory_advice(run.config, run.group)}"
            ) from error
        if log is not None:
            log.add(figures, images=run.config.schedule.batch_size)
        shown.note(f"{run.stage}, learning rate {rate:.3g}, loss {figures['loss']:.4g}")
        shown.advance()
        if log is not None and run.step % every.log_every == 0:
            log.write(run.step, stage=run.stage, learning_rate=rate)
        if run.step % every.checkpoint_every == 0 and not run.finished:
            run.save()
    if log is not None:
        log.write(run.step, stage=run.stage, learning_rate=rate)
    return stopped_by


def checkpoint_to_resume(config: TrainingConfig, *, resume: bool, restart: bool) -> dict[str, Any] | None:
    """Contents of the checkpoint to go on from, None where the run starts.

    Raises:
        ValueError: there is one and neither `resume` nor `restart` was asked for, or it is of another training.
    """
    path = checkpoint_path(config)
    remove_unfinished(path)
    if not path.is_file():
        if resume:
            print(f"{path}: no checkpoint yet, starting from the beginning")
        return None
    if not resume:
        if restart:
            return None
        raise ValueError(
            f"{path} is there already: --resume goes on from it, --restart trains anew and replaces it, "
            "output.dir=FOLDER writes elsewhere"
        )
    saved = load_checkpoint(path)
    missing = [key for key in ("stage", "optimizer", "sampler", "random", "threads") if key not in saved]
    if missing:
        raise ValueError(f"{path}: holds weights but no state of a training (missing: {', '.join(missing)})")
    try:
        before = config_from_dict(saved["training_config"])
    except ValueError as error:
        raise ValueError(f"{path}: configuration of another version: {error}") from error
    differing = differing_keys(before, config, step=saved["step"])
    if differing:
        listed = "; ".join(f"{key} was {was!r}, is {now!r}" for key, was, now in differing)
        raise ValueError(
            f"{path}: cannot go on at step {saved['step']} with another configuration: {listed}. "
            "Give the same values, or another output.dir"
        )
    return saved


def require_same_data(saved: dict[str, Any], data: CocoDataset, path: Path) -> None:
    """ValueError where a resumed run would see other images or classes than before."""
    if saved["classes"] != data.classes.to_dict():
        raise ValueError(
            f"{path}: the classes of the data, or which of them have masks, are not those of the run"
        )
    if saved["sampler"]["size"] != len(data):
        raise ValueError(
            f"{path}: the run had {saved['sampler']['size']} training images, the data has {len(data)} now"
        )


def chosen_device(name: str) -> torch.device:
    """ "auto", "cpu" or "cuda" as a device; ValueError where CUDA was asked for and is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device is cuda, but torch {torch.__version__} finds no usable GPU here; "
            "use device=cpu, or install a torch built for this machine's driver"
        )
    return torch.device(name)


def describe(run: Run, data: CocoDataset, device: torch.device, saved: dict[str, Any] | None) -> None:
    """Say on standard output what is about to be trained."""
    table, threads = data.classes, torch.get_num_threads()
    parameters = sum(parameter.numel() for parameter in run.network.parameters())
    print(
        f"{len(data)} images; {table.num_classes} classes, {len(table.set_a_labels())} with masks; "
        f"{parameters / 1e6:.1f} M parameters; {device}, {run.precision}, {threads} threads"
        + (f"; {run.group.size} processes" if run.group.size > 1 else "")
    )
    if saved is None:
        return
    print(f"going on at step {run.step} of {run.config.schedule.total_steps}")
    if saved["threads"] != threads:
        print(
            f"warning: {threads} threads instead of {saved['threads']}: sums are rounded otherwise, so the weights "
            "will not be those of an uninterrupted run to the last bit",
            file=sys.stderr,
        )
    if run.precision != run.own_precision:
        print(
            f"warning: precision auto was {run.precision} where this run began, and stays so; it would be "
            f"{run.own_precision} on this machine, which may be faster: precision={run.own_precision} and another "
            "output.dir begin anew",
            file=sys.stderr,
        )
    if (before := saved.get("processes", 1)) != run.group.size:
        print(
            f"warning: {run.group.size} processes instead of {before}: the same images, with sums rounded otherwise",
            file=sys.stderr,
        )


def require_images_for_all(config: TrainingConfig, group: Group) -> None:
    """ValueError where a process, or one of the parts of its share, would have no image in a step."""
    wanted = group.size * config.schedule.accumulate
    if config.schedule.batch_size < wanted:
        raise ValueError(
            f"schedule.batch_size is {config.schedule.batch_size} images for {group.size} processes with "
            f"schedule.accumulate={config.schedule.accumulate}; give at least {wanted}, or fewer processes or parts"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. 0: trained to the end; 2: a mistake, named; 130 or 143: stopped by Ctrl-C or SIGTERM."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(
        prog="python -m training.train", description="Train Mask^X R-CNN, or go on with a training."
    )
    parser.add_argument(
        "--config", type=Path, default=DEFAULT_CONFIG, help=f"TOML file (default: {DEFAULT_CONFIG})"
    )
    parser.add_argument("--seed", type=int, help="the same as seed=...")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), help="the same as device=...")
    parser.add_argument(
        "--mask-classes",
        metavar="WHICH",
        help="the same as data.mask_classes=...: all, voc, nonvoc, names with commas between, a file of names, or "
        "random:E1_A40B40 (see training.data.splits)",
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--resume", action="store_true", help="go on from the last checkpoint, if there is one")
    how.add_argument(
        "--restart", action="store_true", help="train anew, replacing the checkpoint that is there"
    )
    how.add_argument(
        "--validate-transfer",
        action="store_true",
        help="hold out some classes that have masks, and say which form of the weight transfer suits the rest",
    )
    parser.add_argument("--trace", action="store_true", help="show where in the source an error was raised")
    parser.add_argument("changes", nargs="*", metavar="key=value", help="such as schedule.mask_steps=800")
    options = parser.parse_intermixed_args(arguments)
    rank, processes = started_together()
    try:
        config = load_config(options.config, options.changes)
        if options.seed is not None:
            config = replace(config, seed=options.seed)
        if options.mask_classes is not None:
            config = replace(config, data=replace(config.data, mask_classes=options.mask_classes))
        if options.device is not None:
            config = replace(config, device=options.device)
        if options.validate_transfer:
            from training.experiments import transfer_form as validate_transfer

            refuse_processes("--validate-transfer")
            validate_transfer.run(config, train)
            return 0
        checkpoint = train(config, resume=options.resume, restart=options.restart)
    except (ValueError, OSError, torch.OutOfMemoryError) as error:
        if options.trace:
            raise
        if rank == 0 or not isinstance(error, NotFinite):  # of which all processes know
            who = f"process {rank}: " if rank else ""
            print(f"error: {who}{without_trace(error)}", file=sys.stderr)
        return 2
    except FailedElsewhere:
        if rank == 0:
            print("error: another process ended; its own error, if it had one, stands above", file=sys.stderr)
        return 2
    except Stopped as stopped:
        if rank:
            return 128 + stopped.by
        words = [word for word in arguments if word not in ("--resume", "--restart")]
        again = words if options.validate_transfer else [*words, "--resume"]
        start = f"torchrun --nproc-per-node {processes}" if processes > 1 else "python"
        print(f"{stopped}; go on with:\n    {start} -m training.train {shlex.join(again)}")
        return 128 + stopped.by
    except KeyboardInterrupt:
        print("interrupted; the last checkpoint, if there was one, stays as it was", file=sys.stderr)
        return 130
    if rank == 0:
        print(f"done: {checkpoint}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
