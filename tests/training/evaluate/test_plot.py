"""The plot of AP over IoU."""

from pathlib import Path

import numpy as np
from PIL import Image

from model.classes import ClassTable
from tests.training.data.coco_scene import CLASSES, KnowingNetwork, usual_scene
from training.evaluate.measure import Results, evaluate_network
from training.evaluate.plot import COLOURS, HEIGHT, LEFT, MARGIN, WIDTH, write_plot


def results_of(folder: Path, classes: ClassTable = CLASSES) -> Results:
    scene = usual_scene()
    images, annotations = scene.write(folder)
    return evaluate_network(KnowingNetwork(scene, rows=1), classes, images, annotations)


def columns_of(path: Path, group: str, panel: int) -> list[int]:
    """Of every column of a panel that shows a group's colour the uppermost row of it, as AP in percent."""
    with Image.open(path) as plot:
        pixels = np.asarray(plot.convert("RGB"))
    x, y = MARGIN + LEFT + panel * (LEFT + WIDTH + MARGIN), 2 * MARGIN
    seen = (pixels[y - 4 : y + HEIGHT + 5, x : x + WIDTH] == COLOURS[group]).all(axis=2)
    rows = np.argmax(seen, axis=0) - 4
    return [round(100 - 100 * int(row) / HEIGHT) for row in rows[seen.any(axis=0)]]


def test_curves_of_both_sets_run_at_the_height_of_their_ap(tmp_path: Path) -> None:
    results = results_of(tmp_path)
    write_plot(tmp_path / "plot.png", results)
    box = columns_of(tmp_path / "plot.png", "B", 0)
    assert len(box) == WIDTH and min(box) >= 99  # perfect boxes, along the whole of the axis
    mask = columns_of(tmp_path / "plot.png", "B", 1)
    curve = results.b.mask.ap_by_iou
    assert curve[0] == 1 and curve[-1] == 0
    assert mask[0] >= 99 and -1 <= mask[-1] <= 3


def test_a_set_without_classes_has_no_curve(tmp_path: Path) -> None:
    oracle = ClassTable(ids=CLASSES.ids, names=CLASSES.names, has_mask=(True,) * 4)
    write_plot(tmp_path / "plot.png", results_of(tmp_path, oracle))
    assert columns_of(tmp_path / "plot.png", "B", 1) == []
    assert len(columns_of(tmp_path / "plot.png", "A", 1)) > WIDTH / 2
