"""A segmenter in ONNX files: its masks, its forms, and what it says of files that do not fit."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from pycocotools import mask as mask_utils

from tests.training.prompt_masks.tiny_segmenter import (
    SIDE,
    describe,
    raw_encoder,
    write_decoder,
    write_segmenter,
)
from training.prompt_masks import load_segmenter, pixel_masks
from training.prompt_masks.description import described
from training.prompt_masks.onnx_sam import OnnxSegmenter
from training.prompt_masks.onnx_session import has_cuda
from training.prompt_masks.segmenter import Prompted

WHITE = 255


def picture(height: int, width: int) -> NDArray[np.uint8]:
    """White on the left, black on the right: the tiny network's objects end in the middle."""
    image = np.zeros((height, width, 3), np.uint8)
    image[:, : width // 2] = WHITE
    return image


def plain(height: int, width: int) -> NDArray[np.uint8]:
    """Bright all over: the mask of a box is its ellipse."""
    return np.full((height, width, 3), WHITE, np.uint8)


def ellipse(height: int, width: int, box: tuple[float, float, float, float]) -> NDArray[np.bool_]:
    """The ellipse in a box [height, width]."""
    x, y = np.arange(width) + 0.5, np.arange(height)[:, None] + 0.5
    x0, y0, x1, y1 = box
    across, down = (x - (x0 + x1) / 2) / (x1 - x0), (y - (y0 + y1) / 2) / (y1 - y0)
    return across**2 + down**2 <= 0.25


def iou(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    return float((one & other).sum() / (one | other).sum())


def masks_of(
    folder: Path, image: NDArray[np.uint8], boxes: list[tuple[float, float, float, float]]
) -> tuple[list[NDArray[np.bool_]], NDArray[np.float32]]:
    """Masks [H, W] of the boxes, and their qualities."""
    segmenter = load_segmenter(folder, device="cpu", threads=1)
    embedding = segmenter.embed(image)
    given = np.array(boxes, np.float32).reshape(-1, 4)
    prompted = segmenter.masks(embedding, given)
    runs = pixel_masks(prompted, embedding, given)
    return [
        mask_utils.decode({**one, "counts": one["counts"].encode()}).astype(bool) for one in runs
    ], prompted.quality


@pytest.mark.parametrize(("height", "width"), [(128, 128), (200, 100), (100, 200), (50, 128), (600, 400)])
def test_the_mask_of_a_box_is_that_of_the_network_at_the_boxs_place(
    tiny: Path, height: int, width: int
) -> None:
    box = (0.1 * width, 0.2 * height, 0.8 * width, 0.9 * height)
    (mask,), quality = masks_of(tiny, plain(height, width), [box])
    assert iou(mask, ellipse(height, width, box)) > 0.97
    scale = SIDE / max(height, width)
    assert quality[0] == pytest.approx(0.7 * width * scale / SIDE, abs=0.01)


def test_the_mask_of_a_box_follows_the_image(tiny: Path) -> None:
    box = (20.0, 20.0, 180.0, 180.0)
    (mask,), _ = masks_of(tiny, picture(200, 200), [box])
    expected = ellipse(200, 200, box)
    expected[:, 98:] = False
    assert iou(mask[:, :90], expected[:, :90]) > 0.97
    assert not mask[:, 110:].any()


def test_boxes_of_one_image_do_not_change_each_other(tiny: Path) -> None:
    boxes = [(10.0, 10.0, 90.0, 90.0), (40.0, 30.0, 120.0, 70.0), (0.0, 0.0, 128.0, 128.0)]
    together, qualities = masks_of(tiny, plain(128, 128), boxes)
    for box, mask, quality in zip(boxes, together, qualities, strict=True):
        alone, alone_quality = masks_of(tiny, plain(128, 128), [box])
        np.testing.assert_array_equal(alone[0], mask)
        assert alone_quality[0] == quality


@pytest.mark.parametrize("masks", [1, 4])
def test_boxes_in_batches_have_the_masks_that_each_has_alone(tmp_path: Path, masks: int) -> None:
    folder = write_segmenter(tmp_path / "tiny", masks=masks)
    describe(folder)
    description = described(folder)[0]
    boxes = np.array([(10 * n, 5 * n, 10 * n + 40, 5 * n + 60) for n in range(7)], np.float32)
    found = []
    for batch in (1, 3):
        segmenter = OnnxSegmenter(folder, description, name="", device="cpu", threads=1, batch=batch)
        found.append(segmenter.masks(segmenter.embed(plain(128, 128)), boxes))
    alone, together = found
    assert together.logits.shape == (7, SIDE // 4, SIDE // 4)
    np.testing.assert_allclose(together.logits, alone.logits, atol=1e-6)
    np.testing.assert_allclose(together.quality, alone.quality, atol=1e-6)


def test_a_decoder_that_takes_one_box_alone_gets_them_one_by_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_segmenter(tmp_path / "tiny", traced=True)
    describe(folder)
    segmenter = OnnxSegmenter(folder, described(folder)[0], name="", device="cpu", threads=1, batch=3)
    assert "decoder.onnx: does not take several boxes at once; they go one by one" in capsys.readouterr().out
    prompted = segmenter.masks(segmenter.embed(plain(128, 128)), np.array([[0, 0, 64, 64]] * 3, np.float32))
    np.testing.assert_allclose(prompted.quality, 0.5)
    assert (prompted.logits[:, 8, 8] > 0).all()


def test_an_image_without_boxes_has_no_masks(tiny: Path) -> None:
    masks, quality = masks_of(tiny, plain(128, 128), [])
    assert masks == [] and len(quality) == 0


def test_a_mask_that_was_there_before_is_made_better(tiny: Path) -> None:
    segmenter = load_segmenter(tiny, device="cpu", threads=1)
    embedding = segmenter.embed(plain(128, 128))
    boxes = np.array([[10, 10, 60, 60], [10, 10, 60, 60]], np.float32)
    prior = np.zeros((2, SIDE // 4, SIDE // 4), np.float32)
    prior[1] = 5
    without = segmenter.masks(embedding, boxes)
    prompted = segmenter.masks(embedding, boxes, prior)
    np.testing.assert_array_equal(prompted.logits[0], without.logits[0])
    np.testing.assert_allclose(prompted.logits[1], without.logits[1] + 5, rtol=1e-6)


@pytest.mark.parametrize(
    ("masks", "choice", "taken"),
    [(1, "auto", 0), (4, "auto", 0), (3, "auto", 2), (4, "best", 2), (3, "first", 0)],
)
def test_of_several_masks_sams_first_or_the_best_is_taken(
    tmp_path: Path, masks: int, choice: str, taken: int
) -> None:
    folder = write_segmenter(tmp_path / "several", masks=masks, best=min(2, masks - 1))
    describe(folder, f'choice = "{choice}"')
    (mask,), (quality,) = masks_of(folder, plain(128, 128), [(10.0, 10.0, 90.0, 90.0)])
    smaller = 0.25 - taken / 10  # of the ellipse's level
    assert mask.sum() == pytest.approx(np.pi * smaller * 80**2, rel=0.03)
    assert quality == pytest.approx(80 / 128 * (1 if masks == 1 or taken == 2 else 0.25))


def test_sams_own_form_is_taken_without_a_description(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_segmenter(tmp_path / "sam", side=1024)
    (folder / "decoder.onnx").rename(folder / "sam.onnx")
    box = (20.0, 20.0, 180.0, 180.0)
    (mask,), _ = masks_of(folder, plain(200, 200), [box])
    assert iou(mask, ellipse(200, 200, box)) > 0.98
    assert (
        "no segmenter.toml, so SAM's own form is taken: encoder encoder.onnx, decoder sam.onnx"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize(("height", "width"), [("height", "width"), (SIDE, SIDE)])
def test_an_encoder_that_normalises_takes_the_picture_as_it_is(
    tmp_path: Path, height: int | str, width: int | str
) -> None:
    folder = write_segmenter(tmp_path / "raw")
    raw_encoder(folder, height=height, width=width)
    describe(folder, 'layout = "hwc"')
    box = (20.0, 20.0, 180.0, 180.0)
    (mask,), _ = masks_of(folder, picture(200, 200), [box])
    assert mask[60:140, 40:80].all() and not mask[:, 115:].any()


def test_an_image_is_stretched_over_the_canvas_where_the_description_says_so(tmp_path: Path) -> None:
    folder = write_segmenter(tmp_path / "square")
    describe(folder, 'fit = "square"')
    box = (10.0, 20.0, 80.0, 180.0)
    (mask,), quality = masks_of(folder, plain(200, 100), [box])
    assert iou(mask, ellipse(200, 100, box)) > 0.97
    assert quality[0] == pytest.approx(0.7)


def test_names_of_the_description_are_those_of_the_network(tmp_path: Path) -> None:
    renamed = {"image_embeddings": "maps", "low_res_masks": "small", "iou_predictions": "scores"}
    folder = write_segmenter(tmp_path / "named", renamed=renamed)
    describe(folder, "[names]", 'embedding = "maps"', 'low_res_masks = "small"', 'quality = "scores"')
    box = (20.0, 20.0, 100.0, 100.0)
    (mask,), _ = masks_of(folder, plain(128, 128), [box])
    assert iou(mask, ellipse(128, 128, box)) > 0.97


def test_several_maps_of_an_image_go_to_the_decoder_by_their_names(tmp_path: Path) -> None:
    """As SAM 2's two finer maps."""
    folder = write_segmenter(tmp_path / "several", renamed={"image_embeddings": "fine"})
    describe(folder)
    encoder, decoder = (onnx.load(folder / name) for name in ("encoder.onnx", "decoder.onnx"))
    encoder.graph.output[0].name = encoder.graph.node[0].output[0] = "fine"
    coarse = onnx.helper.make_tensor_value_info("coarse", onnx.TensorProto.FLOAT, [1, 3, 4, 4])
    pool = onnx.helper.make_node("AveragePool", ["fine"], ["coarse"], kernel_shape=[2, 2], strides=[2, 2])
    encoder.graph.output.append(coarse)
    encoder.graph.node.append(pool)
    decoder.graph.input.append(coarse)
    onnx.save(encoder, folder / "encoder.onnx")
    onnx.save(decoder, folder / "decoder.onnx")
    box = (20.0, 20.0, 100.0, 100.0)
    (mask,), _ = masks_of(folder, plain(128, 128), [box])
    assert iou(mask, ellipse(128, 128, box)) > 0.97


Spoiler = Callable[[Path], object]
SPOILED: list[tuple[Spoiler, str]] = [
    (
        lambda folder: (folder / "decoder.onnx").unlink(),
        "there is no file decoder.onnx beside it; there are encoder",
    ),
    (
        lambda folder: (folder / "encoder.onnx").write_bytes(b"hello"),
        "encoder.onnx: ONNX Runtime cannot load it",
    ),
    (lambda folder: describe(folder, "image_sid = 3"), "segmenter.toml: unknown key image_sid"),
    (lambda folder: describe(folder, 'kind = "other"'), "segmenter.toml: kind"),
    (
        lambda folder: describe(folder, 'layout = "hwc"'),
        r"shape \[1, 3, 128, 128\]; expected \[height, width, 3\]",
    ),
    (lambda folder: describe(folder, side=256), r"shape \[1, 3, 128, 128\]; expected \[1, 3, 256, 256\]"),
    (
        lambda folder: write_decoder(folder, side=256),
        r"input image_embeddings has the shape \[1, 3, 16, 16\], and encoder.onnx makes \[1, 3, 8, 8\]",
    ),
    (
        lambda folder: write_decoder(folder, renamed={"point_labels": "marks"}),
        r"no input point_labels; it has image_embeddings \[1, 3, 8, 8\], point_coords",
    ),
    (
        lambda folder: write_decoder(folder, renamed={"low_res_masks": "small"}),
        r"no output low_res_masks; it has small",
    ),
    (
        lambda folder: write_decoder(folder, renamed={"mask_input": "masks_in"}),
        r"input masks_in, which is not known and no output of encoder.onnx \(output",
    ),
]


@pytest.mark.parametrize(("spoil", "message"), SPOILED)
def test_files_that_do_not_fit_are_named_with_what_was_seen(tiny: Path, spoil: Spoiler, message: str) -> None:
    spoil(tiny)
    with pytest.raises(ValueError, match=message) as raised:
        load_segmenter(tiny, device="cpu")
    assert "\n" not in str(raised.value)


def test_a_folder_without_files_says_what_it_should_hold(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="no encoder .*; the folder is empty; expected encoder.onnx and decoder.onnx"
    ):
        load_segmenter(tmp_path)
    with pytest.raises(ValueError, match="no folder"):
        load_segmenter(tmp_path / "nowhere")


def test_of_two_encoders_none_is_taken(tiny: Path) -> None:
    (tiny / "segmenter.toml").unlink()
    (tiny / "encoder.onnx").rename(tiny / "a_encoder.onnx")
    (tiny / "b_encoder.onnx").write_bytes(b"")
    with pytest.raises(ValueError, match="which of a_encoder.onnx, b_encoder.onnx is the encoder"):
        load_segmenter(tiny)


def test_a_picture_that_the_encoder_cannot_hold_is_refused(tmp_path: Path) -> None:
    folder = write_segmenter(tmp_path / "raw")
    raw_encoder(folder, height=96, width=SIDE)
    describe(folder, 'layout = "hwc"')
    segmenter = load_segmenter(folder, device="cpu")
    with pytest.raises(
        ValueError, match="takes pictures of 128 x 96, and an image resized to image_side is 64 x 128"
    ):
        segmenter.embed(plain(200, 100))


def test_a_missing_onnx_runtime_is_named_with_the_file_that_installs_it(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(
        ValueError, match="onnxruntime, which is not installed: pip install -r requirements/segmenter"
    ):
        load_segmenter(tiny)


def test_a_device_that_is_not_there_is_named(tiny: Path) -> None:
    if has_cuda():
        pytest.skip("this ONNX Runtime computes on a GPU")
    with pytest.raises(ValueError, match="device cuda: the ONNX Runtime that is installed has"):
        load_segmenter(tiny, device="cuda")
    with pytest.raises(ValueError, match="device 'tpu'; expected auto, cpu or cuda"):
        load_segmenter(tiny, device="tpu")


def test_two_segmenters_of_one_name_are_the_same_files(tiny: Path, tmp_path: Path) -> None:
    other = write_segmenter(tmp_path / "again" / "tiny")
    describe(other)
    assert load_segmenter(tiny).name == load_segmenter(other).name
    describe(other, 'choice = "best"')
    assert load_segmenter(tiny).name != load_segmenter(other).name
    describe(other)
    write_decoder(other, masks=4)
    assert load_segmenter(tiny).name != load_segmenter(other).name


def test_logits_have_one_map_to_a_box(tiny: Path) -> None:
    segmenter = load_segmenter(tiny)
    prompted = segmenter.masks(segmenter.embed(plain(64, 64)), np.array([[0, 0, 9, 9]] * 3, np.float32))
    assert isinstance(prompted, Prompted)
    assert prompted.logits.shape == (3, SIDE // 4, SIDE // 4) and prompted.quality.shape == (3,)
    assert prompted.logits.dtype == prompted.quality.dtype == np.float32
