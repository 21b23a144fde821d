"""Batches, workers, threads and places in the queue that a start chooses for its machine."""

import os
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest

from server import hardware
from server.hardware import gpu_count, gpu_memory
from server.processes import Batching, Ports
from server.settings import (
    CONFIG,
    MOST_WAITING,
    SPIN,
    WORKER_MEMORY,
    batching_for,
    effective_config,
    handed_down,
    threads_of,
    workers_of_a_gpu,
)

PORTS = Ports(inference=1, management=2, metrics=3, grpc=4, grpc_management=5)


@pytest.mark.parametrize(
    ("settings", "gpus", "expected"),
    [
        ({}, 0, (4, 1, 1, 100, False)),
        ({}, 1, (8, 1, 3, 384, True)),
        ({}, 2, (8, 1, 6, MOST_WAITING, True)),
        ({"deviceType": "cpu"}, 2, (4, 1, 1, 100, False)),
        ({"batchSize": 3, "maxBatchDelay": 50, "minWorkers": 2}, 0, (3, 50, 2, 100, False)),
        ({"minWorkers": 1, "batchSize": 4}, 2, (4, 1, 1, 100, True)),
        ({"jobQueueSize": 20}, 1, (8, 1, 3, 20, True)),
    ],
)
def test_batching_is_what_the_archive_says_else_what_suits_the_machine(
    settings: dict[str, Any], gpus: int, expected: tuple[int, int, int, int, bool]
) -> None:
    assert astuple(batching_for(settings, gpus=gpus, for_one_gpu=3)) == expected
    asked = batching_for({}, gpus=gpus, for_one_gpu=3, batch_size=5, batch_delay=6, workers=7)
    assert astuple(asked)[:3] == (5, 6, 7)


@pytest.mark.parametrize(
    ("gpus", "cores", "gib", "expected"),
    [(1, 16, 139, 4), (1, 4, 139, 1), (1, 8, 139, 2), (4, 16, 139, 1), (1, 64, 16, 2), (2, 96, 80, 4)],
)
def test_a_gpu_has_as_many_workers_as_cores_can_feed_and_its_memory_holds(
    gpus: int, cores: int, gib: int, expected: int
) -> None:
    assert workers_of_a_gpu(gpus, cores=cores, memory=gib << 30) == expected
    assert workers_of_a_gpu(gpus, cores=cores, memory=WORKER_MEMORY - 1) == 1
    assert workers_of_a_gpu(0, cores=2, memory=0) == workers_of_a_gpu(1, cores=64, memory=0) == 1


def test_the_queue_of_a_start_is_the_one_in_its_config(tmp_path: Path) -> None:
    shipped = CONFIG.read_text()
    batching = Batching(batch_size=8, batch_delay=1, workers=4, queue=512, on_gpu=True)
    made = effective_config(shipped, PORTS, state=tmp_path, with_tokens=False, batching=batching)
    assert "job_queue_size=512" in made.splitlines()
    plain = effective_config(shipped, PORTS, state=tmp_path, with_tokens=False)
    assert "job_queue_size=100" in plain.splitlines()


def test_a_batch_size_that_the_archive_would_overrule_or_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="--batch-size is 2, but the archive's .* says batchSize: 4"):
        batching_for({"batchSize": 4}, gpus=0, batch_size=2)
    assert batching_for({"batchSize": 4}, gpus=0, batch_size=4).batch_size == 4
    with pytest.raises(ValueError, match="--batch-delay is 0; a whole number of at least 1"):
        batching_for({}, gpus=0, batch_delay=0)


def test_gpus_are_counted_as_torchserve_does(tmp_path: Path) -> None:
    assert gpu_count({"CUDA_VISIBLE_DEVICES": "0,3"}) == 2
    assert gpu_count({"CUDA_VISIBLE_DEVICES": "", "PATH": ""}) == gpu_count({"PATH": str(tmp_path)}) == 0
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 0; echo 1; echo 2\n")
    program.chmod(0o755)
    assert gpu_count({"PATH": str(tmp_path)}) == 3
    program.write_text("#!/bin/sh\necho no driver; exit 9\n")
    assert gpu_count({"PATH": str(tmp_path)}) == gpu_memory({"PATH": str(tmp_path)}) == 0
    program.write_text("#!/bin/sh\necho 143771; echo 16384; echo '[N/A]'\n")
    assert gpu_memory({"PATH": str(tmp_path)}) == 16 << 30


def test_several_workers_share_the_cores_unless_somebody_said_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)

    monkeypatch.setattr(hardware, "CPU_MAX", Path("/no/such/file"))

    def of(workers: int, *, on_gpu: bool = False, **environment: str) -> dict[str, str]:
        batching = Batching(batch_size=4, batch_delay=1, workers=workers, on_gpu=on_gpu)
        return threads_of(batching, {"OMP_WAIT_POLICY": "passive", **environment})

    assert (of(1), of(2), of(3)) == ({}, {"OMP_NUM_THREADS": "4"}, {"OMP_NUM_THREADS": "2"})
    assert of(20) == {"OMP_NUM_THREADS": "1"}
    assert of(2, OMP_NUM_THREADS="8") == {}
    assert (of(1, on_gpu=True), of(2, on_gpu=True)) == ({}, {"OMP_NUM_THREADS": "1"})


def test_the_threads_of_a_worker_wait_without_holding_a_core_unless_somebody_said_otherwise() -> None:
    one = Batching(batch_size=4, batch_delay=1, workers=1, on_gpu=False)
    assert threads_of(one, {}) == threads_of(one, {"OMP_NUM_THREADS": "2"}) == SPIN
    assert (
        threads_of(one, {"GOMP_SPINCOUNT": "300000"}) == threads_of(one, {"OMP_WAIT_POLICY": "active"}) == {}
    )
    assert handed_down(SPIN) == SPIN


def test_a_containers_share_of_the_cores_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(hardware, "CPU_MAX", tmp_path / "cpu.max")
    for text, cores in (("250000 100000", 3), ("max 100000", 8), ("1600000 100000", 8), ("", 8)):
        (tmp_path / "cpu.max").write_text(text)
        assert hardware.core_count() == cores
