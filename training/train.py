"""Train Mask^X R-CNN: `python -m training.train --config training/presets/shapes.toml [key=value ...]`.

End to end, or stage by stage (Sec. 3.3): the detector first, then the mask branch and the weight transfer
function on top of it. A run that was stopped or killed goes on with `--resume output.dir=...`, to the same weights:
its checkpoint has its configuration.
With `torchrun --nproc-per-node 8 -m training.train ...` several processes train together (`training.distributed`).
"""

import shlex
import signal
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from model.checkpoint import load_checkpoint
from model.classes import ClassTable
from model.files import command, one_line, remove_unfinished
from model.keypoints.layout import keypoint_labels
from training.config import (
    DEFAULT_CONFIG,
    TrainingConfig,
    box_only_weights,
    changed,
    config_from_dict,
    differing_keys,
    load_config,
)
from training.data.coco import CocoDataset, look_at_validation_set, needs_masks, training_set
from training.data.reading import batches
from training.data.sides import hint
from training.distributed import (
    Group,
    chosen_device,
    process_group,
    refuse_processes,
    started_together,
)
from training.features.kept import kept_views
from training.images.broken import Samples, TooManyBroken
from training.look.short import look_before_training
from training.process import (
    Stopped,
    StopSignals,
    keep_freed_memory,
    memory_advice,
    out_of_memory,
    stop_on_signals,
    training_status,
)
from training.progress import progress
from training.random_state import seed_all
from training.run import Run, checkpoint_path
from training.run_log import RunLog
from training.start import new_labels, read_start, starting_network


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
        TooManyBroken: images that cannot be read, after the state was saved.
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
                validation = look_at_validation_set(
                    config, run.classes, replace(config.data.reading, without_some=run.step > 0)
                )
                look_before_training(config, data, validation)
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

    data = training_set(config, replace(config.data.reading, without_some=saved is not None))
    print(data.report)
    if said := hint(config.augment, data.classes):
        print(said)
    classes = classes_of_run(config, data, saved)
    if saved is not None:
        require_same_data(saved, classes, len(data), checkpoint_path(config))
    if config.data.decode_first:
        data.decode_all(group.share(range(len(data))))
    if config.model.transfer.kind == "class_specific" and needs_masks(config):
        classes.require_masks()
    network = starting_network(config, classes, from_checkpoint=saved is not None)
    network.set_keypoint_labels(keypoint_labels(config.model.keypoints, classes))
    network = network.to(device)
    if config.channels_last:
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    starts_classes = saved is None and config.schedule.classes_steps
    run = Run(
        config=config,
        network=network,
        classes=classes,
        images=len(data),
        saved=saved,
        group=group,
        new_labels=new_labels(read_start(config.data.start_from), classes) if starts_classes else (),
    )
    describe(run, data, device, saved)
    return run, data


def train_run(run: Run, data: CocoDataset) -> Path:
    """The steps that are left of a run; the path of the checkpoint. Raises as `train`."""
    config, group = run.config, run.group
    every, stopped_by = config.output, 0
    broken: TooManyBroken | None = None
    if run.step == 0 and group.first:
        checkpoint_path(config).unlink(missing_ok=True)
    with (
        stop_on_signals(quiet=not group.first) as stop,
        run_log(run) as log,
        progress(range(config.schedule.total_steps), "training", unit="steps", done=run.step) as shown,
    ):
        run.restore_random()
        for stage in run.remaining_stages():
            run.begin(stage)
            shown.say(f"stage {stage}: {config.schedule.steps(stage)} steps")
            rate = 0.0
            with closing(batches(run, data_of_stage(run, data, stop), stage)) as coming:
                while stage in run.remaining_stages():
                    stopped_by = group.largest(stop.by or 0)
                    if stopped_by:
                        break
                    try:
                        images, targets = next(coming)
                    except TooManyBroken as error:
                        broken = error
                        break
                    finally:
                        run.broken.tell(run.step + 1, log, shown.say)
                    rate = run.set_learning_rate()
                    try:
                        figures = run.train_on(images, targets)
                    except RuntimeError as error:
                        if not out_of_memory(error):
                            raise
                        advice = memory_advice(config, processes=group.size)
                        raise ValueError(f"step {run.step + 1}: {one_line(error)} {advice}") from error
                    if log is not None:
                        log.add(figures, images=config.schedule.batch_size)
                    shown.note(f"{stage}, learning rate {rate:.3g}, loss {figures['loss']:.4g}")
                    shown.advance()
                    if log is not None and run.step % every.log_every == 0:
                        log.write(run.step, stage=stage, learning_rate=rate)
                    if run.step % every.checkpoint_every == 0 and not run.finished:
                        run.save()
            if log is not None:
                log.write(run.step, stage=stage, learning_rate=rate)
            if stopped_by or broken is not None:
                break
        path = run.save()
        if summary := run.broken.summary(run.step):
            shown.say(summary)
    if broken is not None:
        raise TooManyBroken(f"{broken}; the state at step {run.step} is saved in {path}") from broken
    if stopped_by:
        raise Stopped(signal.Signals(stopped_by), step=run.step, checkpoint=path)
    return path


def data_of_stage(run: Run, data: CocoDataset, stop: StopSignals | None = None) -> Samples:
    """What the run's stage trains on: the data, or where they are kept the views of it (`training.features`)."""
    if run.stage == "mask" and run.config.data.features:
        return kept_views(run, data, stopped=lambda: stop is not None and stop.by is not None)
    return data


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
    differing = differing_keys(saved_config(saved, path), config, step=saved["step"])
    if differing:
        listed = "; ".join(f"{key} was {was!r}, is {now!r}" for key, was, now in differing)
        raise ValueError(
            f"{path}: cannot go on at step {saved['step']} with another configuration: {listed}. "
            "Give the same values, or another output.dir"
        )
    return saved


def saved_config(saved: dict[str, Any], path: Path) -> TrainingConfig:
    """The configuration in the contents of a checkpoint; ValueError where it is of another version."""
    try:
        return config_from_dict(saved["training_config"])
    except ValueError as error:
        raise ValueError(f"{path}: configuration of another version: {error}") from error


def config_of_command(file: Path | None, changes: Sequence[str], *, resume: bool) -> TrainingConfig:
    """The configuration that a command line asks for: that of a file with its changes.

    A run that goes on needs no file: where there is none, and a checkpoint in `output.dir`, its own is changed.
    """
    config = load_config(DEFAULT_CONFIG if file is None else file, changes)
    path = checkpoint_path(config)
    if file is not None or not resume or not path.is_file():
        return config
    own = changed(saved_config(load_checkpoint(path), path), {"output.dir": config.output.dir})
    return changed(own, changes)


def classes_of_run(config: TrainingConfig, data: CocoDataset, saved: dict[str, Any] | None) -> ClassTable:
    """Those of the data; where further classes alone are learned, with the sources of the network it starts from."""
    if needs_masks(config) or not config.schedule.classes_steps:
        return data.classes
    before = (
        read_start(config.data.start_from).classes
        if saved is None
        else ClassTable.from_dict(saved["classes"])
    )
    return data.classes.with_sources_of(before)


def require_same_data(saved: dict[str, Any], classes: ClassTable, images: int, path: Path) -> None:
    """ValueError where a resumed run would see other images or classes than before."""
    if ClassTable.from_dict(saved["classes"]) != classes:
        raise ValueError(
            f"{path}: the classes of the data, or which of them have masks, are not those of the run"
        )
    if saved["sampler"]["size"] != images:
        raise ValueError(
            f"{path}: the run had {saved['sampler']['size']} training images, the data has {images} now"
        )


def describe(run: Run, data: CocoDataset, device: torch.device, saved: dict[str, Any] | None) -> None:
    """Say on standard output what is about to be trained."""
    table, threads = run.classes, torch.get_num_threads()
    parameters = sum(parameter.numel() for parameter in run.network.parameters())
    print(
        f"{len(data)} images; {table.num_classes} classes, {len(table.set_a_labels())} with masks; "
        f"{parameters / 1e6:.1f} M parameters; {device}, {run.precision}, {threads} threads"
        + (f"; {run.group.size} processes" if run.group.size > 1 else "")
    )
    if saved is None:
        return
    print(f"going on at step {run.step} of {run.config.schedule.total_steps}")
    warnings = []
    if saved["threads"] != threads:
        warnings.append(
            f"{threads} threads instead of {saved['threads']}: sums are rounded otherwise, so the weights will not be "
            "those of an uninterrupted run to the last bit"
        )
    if run.precision != run.own_precision:
        warnings.append(
            f"precision auto was {run.precision} where this run began, and stays so; it would be {run.own_precision} "
            f"on this machine, which may be faster: precision={run.own_precision} and another output.dir begin anew"
        )
    if (before := saved.get("processes", 1)) != run.group.size:
        warnings.append(
            f"{run.group.size} processes instead of {before}: the same images, with sums rounded otherwise"
        )
    for words in warnings:
        print(f"warning: {words}", file=sys.stderr)


def require_images_for_all(config: TrainingConfig, group: Group) -> None:
    """ValueError where a process, or one of the parts of its share, would have no image in a step."""
    wanted = group.size * config.schedule.accumulate
    if config.schedule.batch_size < wanted:
        raise ValueError(
            f"schedule.batch_size is {config.schedule.batch_size} images for {group.size} processes with "
            f"schedule.accumulate={config.schedule.accumulate}; give at least {wanted}, or fewer processes or parts"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the status of `training_status`."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = command("training.train", "Train Mask^X R-CNN, or go on with a training.")
    add = parser.add_argument
    add(
        "--config",
        type=Path,
        help=f"TOML file (default: {DEFAULT_CONFIG}; of a run that goes on, what its checkpoint has)",
    )
    add("--seed", type=int, help="the same as seed=...")
    add("--device", choices=("auto", "cpu", "cuda"), help="the same as device=...")
    add(
        "--mask-classes",
        metavar="WHICH",
        help="the same as data.mask_classes=...: auto, all, voc, nonvoc, names with commas between, a file of names, "
        "or random:E1_A40B40 (see training.data.splits)",
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
    add("--trace", action="store_true", help="show where in the source an error was raised")
    add("changes", nargs="*", metavar="key=value", help="such as schedule.mask_steps=800")
    options = parser.parse_intermixed_args(arguments)
    rank, processes = started_together()
    start = f"torchrun --nproc-per-node {processes}" if processes > 1 else "python"
    again = [word for word in arguments if word not in ("--resume", "--restart")]
    again += [] if options.validate_transfer else ["--resume"]
    stopped = f"go on with:\n    {start} -m training.train {shlex.join(again)}"
    with training_status(stopped, trace=options.trace) as status:
        config = config_of_command(options.config, options.changes, resume=options.resume)
        for key in ("seed", "device", "data.mask_classes"):
            if (value := getattr(options, key.rpartition(".")[2])) is not None:
                config = changed(config, {key: value})
        if options.validate_transfer:
            from training.experiments import transfer_form

            refuse_processes("--validate-transfer")
            transfer_form.run(config, train)
            return 0
        checkpoint = train(config, resume=options.resume, restart=options.restart)
        if rank == 0:
            print(f"done: {checkpoint}")
    return status.code


if __name__ == "__main__":
    sys.exit(main())
