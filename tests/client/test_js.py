"""client/js/maskx.js under Node.js, against what pycocotools, the server and Python make of the same masks."""

import base64
import io
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from export.metadata import MASKX_VERSION
from maskx_draw import mask_window, run_lengths
from maskx_masks import png_masks
from maskx_polygons import polygons
from tests.handler.masks import blob, run_lengths_of

SIZES = ((1, 1), (1, 9), (9, 1), (2, 2), (5, 7), (37, 53), (3, 1200), (1200, 3), (101, 80))
BROKEN: list[tuple[Any, str]] = [
    ({"size": [4, 3], "counts": "<"}, "3 x 4 does not fit an image of 4 x 3"),
    ({"size": [3, 4], "counts": "="}, "does not fit"),
    ({"size": [3, 4], "counts": ";"}, "11 pixels does not fit"),
    ({"size": [3, 4], "counts": "O1="}, "does not fit"),
    ({"size": [3, 4], "counts": "P"}, "no compressed run lengths: P"),
    ({"size": [3, 4], "counts": " "}, "no compressed run lengths"),
    ({"size": [3, 4], "counts": "o" * 13 + "0"}, "no compressed run lengths"),
    ([[0, 0, 1, None, 1, 1]], "not all finite"),
    ({"png": "!", "bbox": [0, 0, 1, 1]}, "not base64"),
    ({"png": "", "bbox": [0, 0, 1, 1]}, "not whole"),
    ({"png": "iVBORw0KGgo=", "bbox": [0, 0, 1, 1]}, "not whole"),
]


def picture(mask: np.ndarray, mode: str = "1") -> str:
    """The mask as Pillow writes it, which filters its rows, in base64."""
    file = io.BytesIO()
    Image.fromarray(mask).convert(mode).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def masks_of(height: int, width: int) -> Iterator[tuple[str, np.ndarray]]:
    """Empty, full, one pixel, a column, a row, noise of all densities, smooth pieces: bool [height, width]."""
    random = np.random.default_rng(height * 10_000 + width)
    yield "empty", np.zeros((height, width), bool)
    yield "full", np.ones((height, width), bool)
    for name, where in (
        ("first pixel", (0, 0)),
        ("last pixel", (-1, -1)),
        ("column", (slice(None), width // 2)),
        ("last row", (-1, slice(None))),
    ):
        mask = np.zeros((height, width), bool)
        mask[where] = True
        yield name, mask
    for share in (0.01, 0.2, 0.5, 0.99):
        yield f"noise {share}", random.random((height, width)) < share
    for coarse in (2, 4, 9):
        yield f"blob {coarse}", blob(coarse, height, width, coarse)


def segmentations_of(mask: np.ndarray) -> Iterator[tuple[str, Any]]:
    """The mask in every form that pycocotools, the server or Pillow have for it."""
    height, width = mask.shape
    counts, offsets = run_lengths_of([mask])
    text = coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
    yield "compressed run lengths", {"size": [height, width], "counts": text}
    yield "run lengths", {"size": [height, width], "counts": counts.tolist()}
    yield (
        "polygons",
        [list(map(float, one)) for one in polygons(counts, offsets, height=height, width=width)[0]],
    )
    yield "the server's PNG", png_masks(counts, offsets, height=height)[0]
    yield "Pillow's PNG", {"png": picture(mask), "bbox": [0, 0, width, height]}


def wild_polygons() -> Iterator[tuple[str, Any]]:
    """Outlines that cross themselves and each other and leave the image."""
    random = np.random.default_rng(7)
    for index in range(60):
        outlines = [
            random.normal(20, 25, 2 * int(random.integers(3, 9))) for _ in range(int(random.integers(1, 4)))
        ]
        if index % 2:
            outlines = [np.round(2 * one) / 2 for one in outlines]  # corners on the centres of pixels
        yield f"wild {index}", [one.tolist() for one in outlines]
    yield "two corners", [[1.0, 1.0, 5.0, 5.0]]
    yield "an odd number", [[1.0, 1.0, 9.0, 1.0, 9.0, 9.0, 4.0]]
    yield "outside", [[100.0, 100.0, 200.0, 100.0, 200.0, 200.0]]
    yield "none", []


def case(form: str, name: str, segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """What Python's client finds in the segmentation, as the JavaScript test reads it."""
    window = mask_window(segmentation, height=height, width=width)
    whole = np.zeros((height, width), np.uint8)
    found = None
    if window is not None:
        rows, columns = window.pixels.shape
        found = [window.left, window.top, columns, rows]
        whole[window.top : window.top + rows, window.left : window.left + columns] = window.pixels
    made = {"form": form, "name": f"{name} {width} x {height}", "segmentation": segmentation}
    made |= {"height": height, "width": width, "window": found}
    made["pixels"] = base64.b64encode(whole.tobytes()).decode()
    if form == "compressed run lengths":
        made["runs"] = run_lengths(segmentation["counts"]).tolist()
        read = coco.decode({"size": [height, width], "counts": segmentation["counts"].encode()})
        assert (read == whole).all()  # else two readers of this project agree against pycocotools
    return made


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of cases."""
    masks = [
        case(form, name, segmentation, height, width)
        for height, width in SIZES
        for name, mask in masks_of(height, width)
        for form, segmentation in segmentations_of(mask)
    ]
    masks += [case("wild polygons", name, segmentation, 50, 40) for name, segmentation in wild_polygons()]
    masks.append(case("no mask", "absent", None, 3, 4))
    grey = {"png": picture(np.ones((1, 1), bool), "L"), "bbox": [0, 0, 1, 1]}
    misplaced = {"png": picture(np.ones((1, 1), bool)), "bbox": [4, 0, 1, 1]}
    broken = [*BROKEN, (grey, "not of 1 bit"), (misplaced, "PNG of 1 x 1 pixels at 4,0,1,1 does not fit")]
    content = {"masks": masks, "broken": [{"segmentation": one, "message": why} for one, why in broken]}
    path = tmp_path_factory.mktemp("js") / "cases.json"
    path.write_text(json.dumps(content))
    return path


def test_the_module_passes_its_tests_under_node(root: Path, cases: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node here; Debian: apt-get install nodejs")
    run = subprocess.run(
        [node, "--test", str(root / "tests" / "client" / "js" / "maskx.test.mjs")],
        env={**os.environ, "MASKX_CASES": str(cases), "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert re.search(r"^. pass 1\d$", run.stdout, re.MULTILINE), run.stdout


def test_every_function_that_is_exported_has_a_type_and_no_other_has(root: Path) -> None:
    exported = r"^export (?:async )?(?:declare )?(?:function|class) (\w+)"
    found = [
        re.findall(exported, (root / "client" / "js" / name).read_text(), re.MULTILINE)
        for name in ("maskx.js", "maskx.d.ts")
    ]
    assert len(found[0]) > 5
    assert sorted(found[0]) == sorted(found[1])


def test_the_package_has_the_projects_version_and_licence_and_no_dependency(root: Path) -> None:
    package = json.loads((root / "client" / "js" / "package.json").read_text())
    assert (package["version"], package["license"]) == (MASKX_VERSION, "Apache-2.0")
    assert not [name for name in package if "ependencies" in name or name == "scripts"]
    assert all((root / "client" / "js" / name).is_file() for name in package["files"])
    assert not re.findall(r"^import\b.*", (root / "client" / "js" / "maskx.js").read_text(), re.MULTILINE)
