"""Both sides give the same kind of answer, and each tells the time of every stage."""

import gzip
import json
import mmap
import os
from pathlib import Path

import pytest
import torch
from pycocotools import mask as coco_mask

from benchmarks.memory import peak_mib, resident_mib
from benchmarks.speed.engine_loop import busy_seconds, engine_loop
from benchmarks.speed.ours import LABELS, Ours
from benchmarks.speed.parts import STAGES
from benchmarks.speed.peer import Peer
from benchmarks.speed.trace import write_trace
from benchmarks.worker import Remote, apart
from maskx_answer import Detections
from maskx_image import DecodedImage
from tests.benchmarks.small_bench import CLASSES, HEIGHT, MAX_SIZE, MIN_SIZE, PROPOSALS, WIDTH, Bench


@pytest.fixture(scope="module")
def ours(bench: Bench) -> Ours:
    return Ours(bench.served, "cpu", "float32")


@pytest.fixture(scope="module")
def peer(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Peer:
    path = tmp_path_factory.mktemp("peer") / "peer.pt"
    torch.save(bench.peer.state_dict(), path)
    made = Peer(path, CLASSES, "cpu", min_size=MIN_SIZE, max_size=MAX_SIZE)
    made.eager.rpn._post_nms_top_n["testing"] = PROPOSALS
    return made


def test_the_answers_of_both_sides_have_the_same_fields(bench: Bench, ours: Ours, peer: Peer) -> None:
    mine, theirs = (json.loads(side.answer([bench.picture])[0]) for side in (ours, peer))
    assert mine.keys() == theirs.keys()
    assert mine["image"] == theirs["image"] == {"height": HEIGHT, "width": WIDTH}
    assert mine["detections"]
    assert theirs["detections"]
    for one in [*mine["detections"], *theirs["detections"]]:
        assert one.keys() == mine["detections"][0].keys()
        assert one["category"] == f"class {one['category_id']}"
        assert coco_mask.area(one["segmentation"]) == one["area"]


def test_every_stage_of_ours_is_labelled_and_timed(bench: Bench, ours: Ours) -> None:
    """A label that the network lost would leave its stage at zero."""
    stages = ours.stages([bench.file])
    assert set(stages) == set(STAGES)
    assert [name for name in [*LABELS.values(), "decode", "strings"] if not stages[name] > 0] == []


def test_every_stage_of_the_peer_is_timed_and_its_network_left_as_it_was(bench: Bench, peer: Peer) -> None:
    stages = peer.stages([bench.file])
    assert set(stages) == set(STAGES) - {"rest of predict"}
    assert [name for name, seconds in stages.items() if not seconds > 0] == []
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in peer.eager.modules())
    assert "postprocess" not in vars(peer.eager.transform)


def test_masks_alone_are_the_same_masks_on_both_sides(bench: Bench, ours: Ours, peer: Peer) -> None:
    """But for torchvision's whole-pixel boxes: it pastes into boxes that are rounded outwards."""
    probabilities, boxes = peer.masks_before_pasting(bench.file)
    assert probabilities.shape[1:] == (28, 28)
    larger = boxes * 6
    height, width = HEIGHT * 6, WIDTH * 6
    mine = ours.masks_alone(probabilities, larger, height, width)
    theirs = peer.masks_alone(probabilities, larger, height, width)
    assert len(mine) == len(theirs) == len(boxes)
    as_rle = [{"size": [height, width], "counts": one.encode()} for one in mine]
    overlap = [float(coco_mask.iou([a], [b], [0])[0, 0]) for a, b in zip(as_rle, theirs, strict=True)]
    assert min(overlap) > 0.7
    assert sum(overlap) / len(overlap) > 0.9


def test_pairs_and_masks_of_the_peer_are_those_of_the_calibration(
    bench: Bench, ours: Ours, peer: Peer, tmp_path: Path
) -> None:
    assert peer.pairs(bench.file) == pytest.approx(bench.reached.pairs, abs=3)
    count = peer.write_masks(bench.file, str(tmp_path / "masks.pt"))
    assert count == bench.reached.detections
    for side in (ours, peer):
        assert len(side.time_masks(str(tmp_path / "masks.pt"), HEIGHT, WIDTH, repeat=2)) == 2
    assert 0.5 < ours.runs_per_column(bench.file) < 1.5
    answered = json.loads(ours.answer([bench.picture])[0])["detections"]
    assert ours.time([bench.file], warm_up=1)["detections"] == [len(answered)]


def test_the_engine_loop_answers_every_image(
    bench: Bench, ours: Ours, monkeypatch: pytest.MonkeyPatch
) -> None:
    bodies, encode = [], ours.body

    def body(image: DecodedImage, found: Detections) -> bytes:
        bodies.append(encode(image, found))
        return bodies[-1]

    monkeypatch.setattr(ours, "body", body)
    found = engine_loop(ours, [bench.picture], batch=2, batches=2)
    assert [bool(json.loads(one)["detections"]) for one in bodies] == [True] * 4
    assert found["answer_bytes"] == sum(map(len, bodies))
    assert 0 <= found["idle_share"] < 1


def test_time_in_which_two_kernels_run_counts_once() -> None:
    assert busy_seconds([(5e6, 7e6), (0.0, 2e6), (1e6, 3e6), (1.5e6, 1.6e6)]) == pytest.approx(5.0)
    assert busy_seconds([]) == 0


def test_a_trace_holds_every_stage(bench: Bench, ours: Ours, tmp_path: Path) -> None:
    path, text = write_trace(ours, bench.picture, tmp_path)
    names = {event.get("name") for event in json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]}
    assert set(LABELS) <= names
    assert "float32" in text
    assert "addmm" in (tmp_path / "operators.txt").read_text()


def test_memory_held_grows_by_what_is_taken_and_is_at_most_the_peak() -> None:
    before, size = resident_mib(), 64 * 2**20
    with mmap.mmap(-1, size) as block:
        block.write(b"x" * size)
        held = resident_mib()
    assert 60 < held - before < 160  # the bytes written into it lie there a second time
    assert peak_mib() >= held - 1  # the kernel counts pages in lots


def test_an_error_in_a_sides_process_is_told_with_its_traceback() -> None:
    with (
        pytest.raises(RuntimeError, match="AttributeError.*'nothing'"),
        Remote("benchmarks.tables:Times", seconds=[1.0]) as times,
    ):
        times.call("nothing")


def test_a_side_whose_process_was_killed_is_told_by_its_status_and_closed_without_a_word() -> None:
    with Remote("benchmarks.tables:Times", seconds=[1.0]) as times:
        times._process.kill()
        times._process.wait()
        with pytest.raises(RuntimeError, match=r"benchmarks\.tables:Times ended with status -9"):
            times.call("nothing")


def test_a_functions_answer_comes_from_a_process_of_its_own() -> None:
    assert apart("os:getpid") != os.getpid()
    with pytest.raises(RuntimeError, match="at least one is needed"):
        apart("benchmarks.tables:Times", seconds=[])
