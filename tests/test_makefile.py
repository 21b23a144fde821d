"""Which run the steps of the Makefile take, and how threads wait in what they run."""

import os
import subprocess
from pathlib import Path

import pytest

from server.settings import SPIN, SPIN_SAID

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The tree with a build folder of its own, in which build/mine was trained, and used last."""
    for entry in ROOT.iterdir():
        if entry.name != "build":
            (tmp_path / entry.name).symlink_to(entry)
    run = tmp_path / "build" / "mine"
    run.mkdir(parents=True)
    for name in ("checkpoint.pt", "finished"):
        (run / name).touch()
    (tmp_path / "build" / "run.txt").write_text("build/mine\n")
    return tmp_path


def steps(folder: Path, *words: str) -> str:
    """The commands of a make, none of them run."""
    done = subprocess.run(
        ["make", "--dry-run", *words], cwd=folder, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "step", ["evaluate", "archive", "serve", "predict-folder IMAGES=photos", "calibrate"]
)
def test_a_step_without_a_run_takes_the_one_that_was_used_last(clone: Path, step: str) -> None:
    shown = steps(clone, *step.split())
    assert "--checkpoint build/mine/checkpoint.pt" in shown
    assert "training.train" not in shown and "training.drawn" not in shown


def test_a_run_that_is_named_is_taken(clone: Path) -> None:
    assert "output.dir=build/other" in steps(clone, "evaluate", "RUN=build/other")


def test_a_run_that_is_gone_is_not_taken(clone: Path) -> None:
    (clone / "build" / "mine" / "checkpoint.pt").unlink()
    assert "--checkpoint build/train/checkpoint.pt" in steps(clone, "evaluate")


@pytest.mark.parametrize("step", ["train", "demo"])
def test_training_and_the_demo_have_a_run_of_their_own(clone: Path, step: str) -> None:
    shown = steps(clone, step)
    assert "build/mine" not in shown and ("output.dir=build/train" in shown or 'RUN="build/train"' in shown)


@pytest.mark.parametrize(
    ("said", "got"),
    [({}, SPIN), ({"GOMP_SPINCOUNT": "5"}, {"GOMP_SPINCOUNT": "5"}), ({"OMP_WAIT_POLICY": "active"}, {})],
)
def test_threads_wait_as_in_a_servers_worker_unless_somebody_said_otherwise(
    said: dict[str, str], got: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "Makefile").write_text(f"include {ROOT / 'Makefile'}\nshown:\n\t@env\n")
    environment = {name: value for name, value in os.environ.items() if name not in SPIN_SAID} | said
    done = subprocess.run(
        ["make", "-s", "shown"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    shown = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    assert {name: shown[name] for name in SPIN if name in shown} == got
