"""Several processes train and evaluate as one would, by `torchrun` or as it would start them, on this machine
(gloo), and say everything once."""

import json
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest
import torch

from model.checkpoint import load_checkpoint
from model.network import MaskXRCNN
from tests.training.processes import begin_two
from tests.training.tiny_set import rows, tiny_changes, weights, write_tiny_set
from training.config import load_config
from training.data.coco import CocoDataset
from training.data.sampler import SeededBatches, stand_in
from training.distributed import Group, process_group
from training.evaluate.__main__ import main as evaluate
from training.images.broken import TRIES
from training.train import main, require_images_for_all

Words = list[str]
BATCH, STEPS = 4, 7
LAUNCH_SECONDS = 600


def words(tiny_set: Path, out: Path, *more: str, steps: int = STEPS) -> Words:
    """Five steps end to end, one of the detector, one of the mask branch, or as many of them as `steps`.

    No batch statistics, and masks of one class that every third image has: most processes' share of a step
    has none or few of them.
    """
    stages = [min(steps, 5), min(max(steps - 5, 0), 1), max(steps - 6, 0)]
    return [
        *tiny_changes(tiny_set, out),
        "data.mask_classes=slab",
        "model.backbone.norm=frozen",
        "model.transfer.dropout=0.2",
        "augment.brightness=0.2",
        "optimiser.name=sgd",
        "optimiser.learning_rate=0.01",
        "optimiser.clip_norm=2",
        f"schedule.batch_size={BATCH}",
        "schedule.warmup_steps=0",
        "schedule.decay=none",
        f"schedule.end_to_end_steps={stages[0]}",
        f"schedule.detector_steps={stages[1]}",
        f"schedule.mask_steps={stages[2]}",
        *more,
    ]


def start(module: str, *arguments: str) -> subprocess.Popen[str]:
    """Two processes of `python -m module`, by torchrun on a free port of the loopback interface."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.Popen(
        [*launcher, "-m", module, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Status and output, within a time in which torchrun still ends its own processes."""
    try:
        output, _ = process.communicate(timeout=LAUNCH_SECONDS)
    except subprocess.TimeoutExpired:
        process.terminate()  # torchrun passes it on, and kills after 30 s
        output, _ = process.communicate(timeout=60)
        raise AssertionError(f"two processes took more than {LAUNCH_SECONDS} s:\n{output}") from None
    return process.returncode, output


def two(module: str, *arguments: str, folder: Path) -> tuple[int, str]:
    """The same without torchrun and its start: the higher status, and the output of both."""
    done = [process.ended() for process in begin_two(module, *arguments, folder=folder)]
    return max(abs(status) for status, _ in done), "".join(output for _, output in done)


@pytest.fixture(scope="module")
def alone(tiny_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process with all the images, and what its weights were at the start."""
    out = tmp_path_factory.mktemp("alone")
    assert main(words(tiny_set, out, "output.checkpoint_every=1", steps=1)) == 0
    torch.save(weights(out), out / "step1.pt")
    assert main(words(tiny_set, out, "--restart")) == 0
    return out


def require_like(out: Path, alone: Path) -> None:
    """Weights within 1e-5 of those of one process, although training moved them much further."""
    mine, theirs, before = weights(out), weights(alone), torch.load(alone / "step1.pt", weights_only=True)
    moved = 0.0
    for name, value in theirs.items():
        scale = float(value.norm())
        assert float((mine[name] - value).norm()) <= 1e-5 * scale, name
        moved = max(moved, float((before[name] - value).norm()) / max(scale, 1e-12))
    assert moved > 0.01, "training that moves nothing proves nothing"
    assert load_checkpoint(out / "checkpoint.pt")["finished"]


def set_a_objects(tiny_set: Path) -> list[list[int]]:
    """For each step, how many objects with masks either of two processes sees."""
    data = CocoDataset(tiny_set / "images", tiny_set / "train.json", mask_classes="slab")
    batches = SeededBatches(size=len(data), batch_size=BATCH, batches=STEPS, seed=0)
    group = [Group(rank=rank, size=2) for rank in (0, 1)]
    return [
        [sum(int(data.target(i)["has_mask"].sum()) for i, _ in one.share(batch)) for one in group]
        for batch in batches
    ]


@pytest.mark.timeout(1800)
def test_two_processes_train_as_one_with_all_images_and_say_everything_once(
    tiny_set: Path, tmp_path: Path, alone: Path
) -> None:
    objects = set_a_objects(tiny_set)[:5]
    assert any(one != other for one, other in objects), "the processes should see different numbers of masks"
    assert any(0 in both and max(both) > 0 for both in objects), "one process should once see none"
    status, output = ended(start("training.train", *words(tiny_set, tmp_path)))
    assert status == 0, output
    require_like(tmp_path, alone)
    assert load_checkpoint(tmp_path / "checkpoint.pt")["processes"] == 2
    for once in ("2 processes", "stage end_to_end", "stage mask", "done: ", "7/7 steps"):
        assert output.count(once) == 1, output
    assert [row["step"] for row in rows(tmp_path)] == [str(step) for step in range(1, 8)]
    for mine, theirs in zip(rows(tmp_path), rows(alone), strict=True):
        assert mine["stage"] == theirs["stage"]
        for name in mine.keys() - {"stage", "images_per_second"}:
            assert mine[name] == theirs[name] == "" or float(mine[name]) == pytest.approx(
                float(theirs[name]), rel=1e-4
            )


@pytest.mark.timeout(1800)
def test_a_run_goes_on_with_another_number_of_processes_and_of_parts(
    tiny_set: Path, tmp_path: Path, alone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """1 -> 2 processes in 2 parts each -> 1 process in 4 parts."""
    assert main(words(tiny_set, tmp_path, steps=2)) == 0
    more = words(tiny_set, tmp_path, "--resume", "schedule.accumulate=2", steps=4)
    status, output = two("training.train", *more, folder=tmp_path / "output")
    assert status == 0, output
    assert output.count("going on at step 2 of 4") == 1
    assert output.count("warning: 2 processes instead of 1") == 1
    assert main(words(tiny_set, tmp_path, "--resume", "schedule.accumulate=4")) == 0
    assert "warning: 1 processes instead of 2" in capsys.readouterr().err
    require_like(tmp_path, alone)
    assert [row["step"] for row in rows(tmp_path)] == [str(step) for step in range(1, 8)]


@pytest.mark.timeout(1500)
def test_two_processes_evaluate_to_the_very_numbers_of_one(
    tiny_set: Path, tmp_path: Path, alone: Path
) -> None:
    """With an image that cannot be read, in the last batch, so that no other batch is made up otherwise."""
    document = json.loads((tiny_set / "train.json").read_text())
    document["images"].append({"id": 999, "file_name": "gone.png", "width": 64, "height": 64})
    annotations = tmp_path / "val.json"
    annotations.write_text(json.dumps(document))
    options = ["--checkpoint", str(alone / "checkpoint.pt"), "--images", str(tiny_set / "images")]
    options += ["--annotations", str(annotations), "--device", "cpu", "--score-threshold", "0.001"]
    options += ["--batch-size", "2", "--leave-out-broken"]
    assert evaluate([*options, "--out", str(tmp_path / "one")]) == 0
    status, output = two(
        "training.evaluate.__main__", *options, "--out", str(tmp_path / "two"), folder=tmp_path / "output"
    )
    assert status == 0, output
    assert output.count("left out: 1 images that are missing") == 1
    found = (tmp_path / "two" / "results.json").read_text()
    assert found == (tmp_path / "one" / "results.json").read_text()
    assert json.loads(found)["images"] == 6 and json.loads(found)["all"]["box"]["ap"] > 0


@pytest.mark.timeout(1500)
def test_one_process_told_to_stop_stops_all_after_the_same_step(tiny_set: Path, tmp_path: Path) -> None:
    """The signal goes to torchrun, which passes it on; the state is saved, and the way to go on is told once."""
    process = start("training.train", *words(tiny_set, tmp_path, steps=5000))
    deadline = time.monotonic() + LAUNCH_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if (tmp_path / "log.csv").exists() and len((tmp_path / "log.csv").read_text().splitlines()) > 2:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    status, output = ended(process)
    saved = load_checkpoint(tmp_path / "checkpoint.pt")
    assert status != 0 and saved["step"] >= 2 and not saved["finished"]
    assert output.count(f"stopped by SIGTERM at step {saved['step']}") == 1, output
    assert "torchrun --nproc-per-node 2 -m training.train" in output and "--resume" in output
    assert rows(tmp_path)[-1]["step"] == str(saved["step"])


@pytest.mark.timeout(1800)
def test_a_picture_that_breaks_for_one_process_has_the_stand_in_of_one_process_and_is_named_once(
    tmp_path: Path,
) -> None:
    """The second process meets it alone; the first one says so, counts it, and waits for nobody in vain."""
    folder = tmp_path / "set"
    write_tiny_set(folder)
    first, *_ = SeededBatches(size=6, batch_size=BATCH, batches=1, seed=0)
    picture = folder / "images" / f"{Group(rank=1, size=2).share(first)[0][0]}.png"
    data = picture.read_bytes()
    picture.write_bytes(data[: len(data) // 2])
    alone = tmp_path / "alone"
    assert main(words(folder, alone, "output.checkpoint_every=1", steps=1)) == 0
    torch.save(weights(alone), alone / "step1.pt")
    assert main(words(folder, alone, "--restart")) == 0
    status, output = two("training.train", *words(folder, tmp_path / "out"), folder=tmp_path / "output")
    assert status == 0, output
    require_like(tmp_path / "out", alone)
    assert output.count("warning: step 1: ") == output.count("another image takes its place") == 1, output
    assert picture.name in output and output.count("1 images could not be read, ") == 1
    named = [(out / "broken_images.csv").read_text() for out in (tmp_path / "out", alone)]
    assert named[0] == named[1]


@pytest.mark.timeout(1500)
def test_a_mistake_of_one_process_ends_all_with_its_one_line(tmp_path: Path) -> None:
    """All pictures of the second process break, and those that could stand in: it tells the other one, which saves."""
    folder = tmp_path / "set"
    write_tiny_set(folder, images=BATCH)
    first, *_ = SeededBatches(size=BATCH, batch_size=BATCH, batches=1, seed=0)
    whole = {first[0][0]}
    for row in set(range(BATCH)) - whole:
        picture = folder / "images" / f"{row}.png"
        data = picture.read_bytes()
        picture.write_bytes(data[: len(data) // 2])
    seed = next(seed for seed in range(100) if empty_places(seed, whole) == [False, True])
    status, output = two(
        "training.train", *words(folder, tmp_path / "out", f"seed={seed}"), folder=tmp_path / "output"
    )
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert status != 0 and len(errors) == 1 and ".png: " in errors[0], output
    assert errors[0].startswith("error: step 1: none of 5 images")
    assert load_checkpoint(tmp_path / "out" / "checkpoint.pt")["step"] == 0
    assert "training/train.py" not in output, "no trace of the training is shown"


def empty_places(seed: int, whole: set[int]) -> list[bool]:
    """Whether either of two processes has a place of the first step for which nothing that is `whole` is tried."""
    first, *_ = SeededBatches(size=BATCH, batch_size=BATCH, batches=1, seed=seed)

    def tried(row: int, sample_seed: int) -> set[int]:
        others = range(TRIES - 1)
        return {row, *(stand_in(sample_seed=sample_seed, attempt=one, size=BATCH) for one in others)}

    groups = [Group(rank=rank, size=2) for rank in (0, 1)]
    return [any(not tried(*place) & whole for place in group.share(first)) for group in groups]


def test_the_shares_of_all_processes_together_are_the_batch() -> None:
    def batches(**share: int) -> list[list[tuple[int, int]]]:
        return list(SeededBatches(size=5, batch_size=4, batches=6, seed=1, **share))

    shares = [batches(rank=rank, processes=3) for rank in range(3)]
    assert [[len(batch) for batch in share] for share in shares] == [[2] * 6, [1] * 6, [1] * 6]
    for step, batch in enumerate(batches()):
        assert sorted(pair for share in shares for pair in share[step]) == sorted(batch)


def test_a_process_or_part_without_an_image_is_refused() -> None:
    changes = ["schedule.batch_size=8", "schedule.accumulate=2"]
    config = load_config("training/presets/shapes.toml", changes)
    require_images_for_all(config, Group(size=4))
    with pytest.raises(
        ValueError, match="batch_size is 8 images for 5 processes with schedule.accumulate=2; .* 10"
    ):
        require_images_for_all(config, Group(size=5))


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "4", "RANK": "2", "LOCAL_RANK": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="process 2 of this machine .* there are 2"), process_group("cuda"):
        raise AssertionError("no group should have been made")


@pytest.mark.parametrize(
    ("module", "arguments", "what"),
    [
        ("training.train", ["--validate-transfer"], "--validate-transfer"),
        ("training.experiments.mask_threshold", [], "training.experiments.mask_threshold"),
        ("training.experiments.__main__", ["shapes"], "training.experiments"),
        ("training.recipes.grow", ["a.pt", "--images", "b", "--annotations", "c"], "training.recipes.grow"),
        ("training.recipes.convert_torchvision", ["--weights", "a"], "training.recipes.convert_torchvision"),
    ],
    ids=lambda value: value.rpartition(".")[2] if isinstance(value, str) else "",
)
def test_what_one_process_does_is_not_started_as_several(
    module: str, arguments: Words, what: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Each before it looks for its files, of which there are none."""
    command = import_module(module)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert command.main(arguments) == 2
    assert f"{what} runs in one process, and 2 were started" in capsys.readouterr().err


GPU_FULL = "CUDA out of memory. Tried to allocate 2 GiB"


@pytest.mark.parametrize(
    ("message", "error", "more", "advice"),
    [
        (GPU_FULL, torch.OutOfMemoryError, [], "Try schedule.accumulate=2 ("),
        ("DefaultCPUAllocator: can't allocate memory", RuntimeError, [], "Try schedule.accumulate=2 ("),
        (GPU_FULL, torch.OutOfMemoryError, ["schedule.accumulate=2"], "Try precision=bfloat16,"),
        (
            GPU_FULL,
            torch.OutOfMemoryError,
            ["augment.min_sizes=[48, 64]"],
            "max_size and smaller augment.min_sizes",
        ),
    ],
)
def test_where_memory_runs_out_the_setting_to_change_is_named(
    tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    message: str, error: type[RuntimeError], more: Words, advice: str,
) -> None:  # fmt: skip
    def full(*arguments: object, **options: object) -> None:
        raise error(message)

    monkeypatch.setattr(MaskXRCNN, "losses", full)
    assert main([*tiny_changes(tiny_set, tmp_path / "run"), *more]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"error: step 1: {message}") and advice in last
    assert "model.input.max_size" in last


def test_another_error_of_the_network_is_shown_as_it_is(
    tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(MaskXRCNN, "losses", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        main(tiny_changes(tiny_set, tmp_path / "run"))
