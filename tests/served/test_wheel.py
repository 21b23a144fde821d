"""The wheel serves and asks, from an environment of its own and outside the tree."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from server.processes import ENGINES, LIGHT, TORCHSERVE, load_running
from tests.served.standin import png, scene
from tests.wheel import Environment, build_wheel


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(root, tmp_path_factory.mktemp("wheel"))


@pytest.mark.engines(*ENGINES)
def test_what_the_wheel_serves_the_wheel_asks(
    wheel: Path, standin_archive: Callable[..., Path], tmp_path: Path, engine: str
) -> None:
    extra = "serve" if engine == TORCHSERVE else LIGHT
    environment = Environment(tmp_path / "env", wheel, "grpc", extra)
    (environment.packages / "maskx_service.py").write_text(
        "raise ImportError('not the one in the archive')\n"
    )
    (tmp_path / "photo.png").write_bytes(png(scene(red=(3, 4, 10, 8))))
    archive, state = standin_archive("for-the-wheel"), ["--state", tmp_path / "state"]
    assert environment.maskx("ready", *state).returncode == 1
    try:
        started = environment.maskx(
            "serve", "--archive", archive, "--ports", "free", "--engine", engine, *state
        )
        assert started.returncode == 0, started.stderr
        running = load_running(tmp_path / "state")
        assert running is not None
        assert environment.maskx("ready", *state).stdout == "ready\n"
        assert "1.0" in environment.maskx("versions", *state).stdout
        for url in (f"http://127.0.0.1:{running.ports.inference}", f"grpc://127.0.0.1:{running.ports.grpc}"):
            said = environment.maskx("predict", tmp_path / "photo.png", "--json", "--url", url)
            (found,) = json.loads(said.stdout or "null")["detections"]
            assert (found["category"], found["area"]) == ("red", 80)
    finally:
        stopped = environment.maskx("stop", *state)
    assert (stopped.returncode, stopped.stdout) == (0, "stopped\n")
