"""The way of a GPU on CPU tensors: the answers of the way of a CPU, few operations whatever the batch, few waits."""

import dataclasses
import io
from typing import Any

import pytest
import torch
from torch import Tensor

from model.canvas import Canvas
from model.config import MaskConfig
from model.inference import Inference
from model.keypoints.layout import KeypointsConfig
from tests.model.operations import Operations
from tests.model.small_network import SMALL, Arguments, image, small_network, transfer

CLASSES = 5


def network(**changes: Any) -> Inference:
    """With statistics and scores that are not the initial ones: some classes are found more surely than others."""
    made = small_network(CLASSES, transfer=transfer(normalise=True), **changes).train()
    with torch.no_grad():
        for seed in range(3):
            made.backbone(made.canvas([image(seed=seed)], 64, 64))
        made.box_predictor.cls_score.weight.mul_(20)
        made.box_predictor.bbox_pred.weight.mul_(50)
    return made.eval().inference()


def asked(images: list[Tensor], threshold: float = 0.02, number_of_classes: int = CLASSES) -> Arguments:
    """A batch in which every request asks for something else; the third wants no masks, the fourth nothing at all."""
    count = len(images)
    classes = torch.ones((count, number_of_classes + 1), dtype=torch.bool)
    classes[1::3, 2] = False
    most = torch.tensor([20, 7, 30, 0, 3, 100, 1, 50])[:count]
    return (
        images,
        torch.tensor([[x.shape[1] * 3 + i, x.shape[2] * 2] for i, x in enumerate(images)]),
        torch.tensor([threshold + 0.005 * i for i in range(count)]),
        most,
        classes,
        torch.tensor([i != 2 for i in range(count)]),
    )


def eight() -> list[Tensor]:
    """Of one canvas and eight sizes."""
    return [image(64 + i, 80 - i, seed=i) for i in range(8)]


def answers(served: Any, arguments: Arguments, *, batched: bool) -> list[dict[str, Tensor]]:
    served.batched = batched
    with torch.no_grad():
        found: list[dict[str, Tensor]] = served(*arguments)
    return found


def require_same(one: list[dict[str, Tensor]], other: list[dict[str, Tensor]]) -> None:
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert a[key].dtype == b[key].dtype
            if a[key].is_floating_point():
                torch.testing.assert_close(a[key], b[key], atol=1e-5, rtol=1e-5)
            else:
                assert torch.equal(a[key], b[key]), key


def require_same_both_ways(served: Any, arguments: Arguments) -> None:
    require_same(answers(served, arguments, batched=True), answers(served, arguments, batched=False))


@pytest.mark.parametrize(
    "images",
    [eight(), [image()], [image(64, 64, 0), image(64, 90, 1), image(90, 64, 2), image(64, 90, 3)]],
    ids=["one canvas", "alone", "three canvases"],
)
def test_batched_answers_are_those_image_by_image(images: list[Tensor]) -> None:
    served = network()
    arguments = asked(images)
    expected = answers(served, arguments, batched=False)
    counts = [len(answer["labels"]) for answer in expected]
    assert counts[0] > 3 and (len(counts) < 4 or counts[3] == 0)
    require_same(answers(served, arguments, batched=True), expected)


def test_where_nothing_is_found_both_ways_say_so() -> None:
    served = network()
    for batched in (False, True):
        found = answers(served, asked(eight(), threshold=1.5), batched=batched)
        assert all(len(one["labels"]) == 0 and one["rle_offsets"].tolist() == [0] for one in found)
        assert all(len(one["rle_counts"]) == 0 for one in found)


def test_above_the_largest_group_the_answers_are_the_same() -> None:
    """At threshold 0 there are more candidates in an image than overlaps are computed for at once."""
    served = network(rpn=dataclasses.replace(SMALL.rpn, pre_nms_test=600, post_nms_test=600))
    require_same_both_ways(served, asked([image(), image(seed=1)], threshold=0.0))


def test_three_thousand_classes_batched_are_as_image_by_image() -> None:
    served = small_network(3000, mask=dataclasses.replace(SMALL.mask, mlp="none")).eval().inference()
    served.box_predictor.candidates_per_image = 150
    require_same_both_ways(served, asked([image(), image(seed=1)], 0.0, 3000))


@pytest.mark.parametrize(
    "changes",
    [
        {"keypoints": KeypointsConfig(layout="own", names=("a", "b"), width=16, convolutions=1)},
        {"mask": MaskConfig(width=16, convolutions=1, pooling="bicubic", mlp="none")},
        {"mask": MaskConfig(width=16, convolutions=1, pooling="roi_pool", mlp="none")},
        {"box": dataclasses.replace(SMALL.box, aligned=False)},
    ],
    ids=["keypoints", "bicubic", "RoIPool", "not aligned"],
)
def test_every_form_answers_the_same_both_ways(changes: dict[str, Any]) -> None:
    require_same_both_ways(network(**changes), asked(eight()[:3]))


def test_the_switch_can_be_set_after_scripting_and_freezing() -> None:
    served = network()
    arguments = asked(eight())
    expected = answers(served, arguments, batched=False)
    for batched in (False, True):
        served.batched = False
        scripted = torch.jit.script(served)
        scripted.batched = batched
        frozen = torch.jit.freeze(scripted, preserved_attrs=["packed"])
        for _ in range(2):
            with torch.no_grad():
                require_same(frozen(*arguments), expected)
                words, table = frozen.packed(*arguments)
        require_same(unpacked(words, table), expected)


def unpacked(words: Tensor, table: list[list[int]]) -> list[dict[str, Tensor]]:
    """The answers of `packed` as those of `forward`, by its docstring."""
    found = []
    for detections, boxes, scores, labels, offsets, counts, _ in table:
        one = {
            "boxes": words[boxes : boxes + 4 * detections].view(torch.float32).view(-1, 4),
            "scores": words[scores : scores + detections].view(torch.float32),
            "labels": words[labels : labels + detections].long(),
            "rle_counts": torch.zeros(0, dtype=torch.int64),
            "rle_offsets": torch.zeros(detections + 1, dtype=torch.int64),
        }
        if offsets >= 0:
            ends = words[offsets : offsets + detections + 1].long()
            one["rle_counts"] = words[counts + int(ends[0]) : counts + int(ends[-1])].long()
            one["rle_offsets"] = ends - ends[0]
        found.append(one)
    return found


STAGES = ("begun", "proposed", "detected", "cropped", "written", "parts_of", "packed_of")
DENSE = ("dense_trunk", "dense_box_head", "dense_mask_head")


@torch.no_grad()
def through_the_stages(module: Any, dense: Any, arguments: Arguments) -> tuple[Tensor, list[list[int]]]:
    """What `Inference.packed` does, with the dense parts of another module."""
    images, sizes, thresholds, most, class_mask, with_masks = arguments
    parts = module.parts_of(images, with_masks)
    founds, counts = [], []
    for part in parts:
        canvas, about = module.begun(part, images, sizes, thresholds)
        levels, logits, deltas = dense.dense_trunk(canvas)
        height, width = canvas.shape[2:]
        features, proposals, numbers, pooled = module.proposed(levels, logits, deltas, about, height, width)
        hidden = dense.dense_box_head(pooled)
        found, of_each = module.detected(
            part, proposals, numbers, hidden, about, thresholds, most, class_mask
        )
        masked = sum(count for count, k in zip(of_each, part, strict=True) if with_masks[k])
        probabilities = dense.dense_mask_head(*module.cropped(features, found, masked))
        founds.append(module.written(features, found, probabilities, about, masked))
        counts.append(of_each)
    words, table = module.packed_of(parts, founds, counts, with_masks)
    return words, table


@pytest.mark.parametrize("batched", [False, True])
def test_the_frozen_stages_need_no_dense_weights_and_give_the_answers_of_the_whole(batched: bool) -> None:
    served = network()
    arguments = asked([*eight()[:7], image(48, 90, seed=1)])
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(served), buffer)
    scripted, bare = (torch.jit.load(io.BytesIO(buffer.getvalue())) for _ in range(2))
    scripted.batched = bare.batched = batched
    expected = unpacked(*scripted.packed(*arguments))
    for name, parameter in bare.named_parameters():
        if name.startswith(("backbone.", "rpn.head.", "box_head.", "mask_branch.")):
            parameter.data = torch.zeros([0] * parameter.dim())
    frozen = torch.jit.freeze(bare.eval(), preserved_attrs=list(STAGES), optimize_numerics=False)
    assert not hasattr(frozen, "packed") and not any(hasattr(frozen, name) for name in DENSE)
    got = unpacked(*through_the_stages(frozen, scripted, arguments))
    assert sum(len(one["labels"]) for one in expected) > 40
    for one, other in zip(got, expected, strict=True):
        assert all(torch.equal(one[key], other[key]) for key in other)


def test_packed_keypoints_are_those_of_the_answers() -> None:
    served = network(keypoints=KeypointsConfig(layout="own", names=("a", "b"), width=16, convolutions=1))
    arguments = asked(eight()[:3])
    expected = answers(served, arguments, batched=True)
    with torch.no_grad():
        words, table = served.packed(*arguments)
    for row, one in zip(table, expected, strict=True):
        own = words[row[6] : row[6] + 6 * row[0]].view(torch.float32).view(-1, 2, 3)
        assert torch.equal(own, one["keypoints"])


# ---- operations and waits ----


def counted(served: Inference, arguments: Arguments, *, batched: bool, packed: bool = False) -> Operations:
    served.batched = batched
    device = [*served.parameters(), *served.buffers(), *arguments[0]]
    with torch.no_grad(), Operations(device) as operations:
        if packed:
            words, _ = served.packed(*arguments)
            words.tolist()  # the one copy out
        else:
            served(*arguments)
    return operations


def with_objects_in_each(images: list[Tensor]) -> Arguments:
    arguments = asked(images)
    return (*arguments[:3], torch.tensor([20, 7, 30, 9, 3, 100, 1, 50])[: len(images)], *arguments[4:])


def test_a_batch_costs_hardly_more_operations_than_an_image_and_six_waits() -> None:
    """On a GPU the host is what there is too little of: today's figures are 1 100 operations and 6 waits."""
    served = network()
    many = with_objects_in_each(eight())
    assert all(len(one["labels"]) > 0 for one in answers(served, many, batched=True))
    one, eight_ = (
        counted(served, arguments, batched=True, packed=True)
        for arguments in (with_objects_in_each(eight()[:1]), many)
    )
    assert one.total <= 1313
    assert eight_.total <= 1.3 * one.total
    assert one.waits.total() <= 6 and eight_.waits.total() <= 6, (one.waits, eight_.waits)
    assert counted(served, many, batched=True).waits.total() <= 6
    # The counting sees what image by image costs.
    apart = counted(served, many, batched=False)
    assert apart.waits.total() > 60 and apart.total > 1.3 * one.total


def test_each_further_chunk_of_run_lengths_costs_one_wait() -> None:
    """`max_elements` bounds the memory; what is left over is done after it."""
    from model.masks.run_lengths import run_lengths_of_images

    torch.manual_seed(0)
    masks, boxes = torch.rand(6, 28, 28), torch.tensor([[3.0, 4, 60, 50]]).repeat(6, 1)
    sizes = torch.tensor([[64, 80], [50, 61], [64, 80], [52, 300], [64, 80], [70, 70]])
    expected, offsets = run_lengths_of_images(masks, boxes, sizes)
    for chunks, most in ((1, 10**6), (3, 4000), (342, 1)):
        with Operations([masks, boxes]) as operations:
            counts, its_offsets = run_lengths_of_images(masks, boxes, sizes, True, most)
        assert operations.waits.total() == 1 + chunks, operations.waits
        assert torch.equal(its_offsets, offsets)
        assert torch.equal(counts[: len(expected)], expected)


def test_the_counting_sees_every_kind_of_wait() -> None:
    """Else the budgets above prove nothing."""
    x, host = torch.arange(6.0), torch.arange(6.0)

    def kinds() -> None:
        torch.where(x > 2)
        x[x > 2]
        torch.masked_select(x, x > 2)
        torch.unique(x)
        torch.repeat_interleave(x.long())
        x.sum().item()
        int((x + 1).max())
        bool((x > 2).any())
        x.tolist()
        host.tolist()
        float(host[0] + 1)
        torch.repeat_interleave(x.long(), output_size=15)

    with Operations([x]) as operations:
        kinds()
    assert operations.waits.total() == 9, operations.waits


def test_padding_of_a_canvas_is_zero_after_normalisation() -> None:
    canvas = Canvas(min_size=64, max_size=96, step=32, mean=[10.0, 20.0, 30.0], std=[2.0, 3.0, 4.0])
    filled = canvas([image(40, 60)], 64, 96)
    assert not filled[:, :, :, 96:].any() and bool(filled[0, :, :64, :95].any())
    assert not canvas([torch.zeros(3, 64, 70, dtype=torch.uint8)], 64, 96)[0, :, :, 70:].any()
