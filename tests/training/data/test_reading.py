"""How images are read: a batch in one piece, and as many processes as the device can use."""

import os
import pickle

import pytest
import torch

from tests.model.small_network import image, target
from tests.training.data.coco_set import assert_same
from training.data.reading import PackedBatch, loader_options, number_of_workers

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_a_packed_batch_gives_back_images_and_targets_as_they_were() -> None:
    batch = [
        (image(20 + i, 30, seed=i), target(i, seed=i, image_id=i, with_masks=[k != 1 for k in range(i)]))
        for i in range(4)
    ]
    batch[2][1]["colours"] = (1.0, 0.5, 1.5, 0.1)
    batch[3][1]["keypoints"] = torch.rand(3, 2, 3)
    packed = pickle.loads(pickle.dumps(PackedBatch(batch)))
    images, targets = packed.unpacked()
    wanted_images, wanted = zip(*batch, strict=True)
    assert all(torch.equal(a, b) for a, b in zip(images, wanted_images, strict=True))
    for a, b in zip(targets, wanted, strict=True):
        assert a.keys() == b.keys()
        assert_same(a, b)
        assert type(a["image_id"]) is int and a.get("colours") == b.get("colours")
    assert torch.equal(targets[3]["keypoints"], wanted[3]["keypoints"])


def test_all_of_a_batch_is_one_tensor() -> None:
    packed = PackedBatch([(image(seed=i), target(3, seed=i)) for i in range(3)])
    images, targets = packed.unpacked()
    start = packed.buffer.data_ptr()
    inside = [*images, *(t["boxes"] for t in targets), *(m for t in targets for m in t["masks"])]
    assert all(start <= part.data_ptr() < start + packed.buffer.numel() for part in inside)


def test_a_gpu_gets_the_cores_but_one_and_what_was_asked_for_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    found = {}
    for cores in (1, 6, 64):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)), raising=False)
        found[cores] = number_of_workers(None, CUDA)
        assert number_of_workers(None, CPU) == 2
        assert number_of_workers(0, CUDA) == 0 and number_of_workers(3, CUDA) == 3
    assert found == {1: 1, 6: 5, 64: 10}
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert number_of_workers(None, CUDA) == 7


def test_processes_stay_and_read_ahead_and_none_is_none() -> None:
    assert loader_options(0, CPU) == {"num_workers": 0, "pin_memory": False}
    on_gpu = loader_options(4, CUDA)
    assert on_gpu["persistent_workers"] and on_gpu["pin_memory"] and on_gpu["prefetch_factor"] == 4
    assert not loader_options(4, CPU)["pin_memory"]
