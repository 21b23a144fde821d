"""export/cpp: the C++ example is built with this machine's libtorch and answers as the file does in Python."""

import importlib.util
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision  # noqa: F401  # the operators that the file calls
from PIL import Image

from export.archive import ROOT
from tests.export.tiny import CLASSES

SOURCE = ROOT / "export" / "cpp"
SIDES = (72, 96)  # height and width


def folder_of(package: str) -> Path:
    """Where a wheel lies."""
    found = importlib.util.find_spec(package)
    assert found is not None and found.submodule_search_locations
    return Path(found.submodule_search_locations[0])


@pytest.fixture(scope="module")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, built as the head of its CMakeLists.txt says; or a skip where nothing can build it."""
    absent = [name for name in ("cmake", "c++") if shutil.which(name) is None]
    if absent:
        pytest.skip(f"no {' and no '.join(absent)} here to build export/cpp with")
    torch_folder = folder_of("torch")
    if not (torch_folder / "include" / "torch" / "script.h").is_file():
        pytest.skip("this torch has no headers of C++")
    build = tmp_path_factory.mktemp("cpp")
    for words in (["-S", SOURCE, "-B", build, f"-DTORCH={torch_folder}"], ["--build", build]):
        done = subprocess.run(["cmake", *map(str, words)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return build / "boxes"


@pytest.fixture(scope="module")
def operators() -> Path:
    """The library in the wheel of torchvision that has its operators."""
    folder = folder_of("torchvision")
    there = [folder / name for name in ("_C_stable.so", "_C.so") if (folder / name).is_file()]
    if not there:
        pytest.skip("this torchvision has neither _C_stable.so nor _C.so")
    return there[0]


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "picture.ppm"
    pixels = np.random.default_rng(0).integers(0, 256, (*SIDES, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def answer(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)


@pytest.mark.timeout(1200)  # a minute of the compiler, but other work may hold the machine
def test_the_c_plus_plus_example_finds_what_python_finds(
    boxes: Path, operators: Path, exported: Path, picture: Path
) -> None:
    done = answer(boxes, exported, operators, picture, 0.1)
    assert done.returncode == 0, done.stderr
    with Image.open(picture) as image:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
    with torch.inference_mode():
        (found,) = torch.jit.load(exported, map_location="cpu")(
            [pixels],
            torch.tensor([SIDES]),
            torch.tensor([0.1]),
            torch.tensor([100]),
            torch.ones(1, len(CLASSES.names) + 1, dtype=torch.bool),
            torch.ones(1, dtype=torch.bool),
        )
    rows = [line.split() for line in done.stdout.splitlines()]
    assert len(rows) == len(found["scores"]) > 3
    ends = found["rle_offsets"].tolist()
    areas = [int(found["rle_counts"][a:b][1::2].sum()) for a, b in pairwise(ends)]
    assert sum(areas) > 0
    for i, (_, label, _, score, _, x0, y0, x1, y1, _, area, _) in enumerate(rows):
        assert int(label) == int(found["labels"][i]) and int(area) == areas[i]
        assert float(score) == pytest.approx(float(found["scores"][i]), abs=1e-5)
        assert [float(v) for v in (x0, y0, x1, y1)] == pytest.approx(found["boxes"][i].tolist(), abs=1e-3)


@pytest.mark.timeout(1200)
def test_without_the_operators_or_a_picture_it_says_what_is_missing(
    boxes: Path, operators: Path, exported: Path, tmp_path: Path
) -> None:
    (tmp_path / "broken.ppm").write_bytes(b"P6 9 9 255\n123")
    none = answer(boxes, exported, tmp_path / "none.so", tmp_path / "broken.ppm")
    cut = answer(boxes, exported, operators, tmp_path / "broken.ppm")
    no_model = answer(boxes, tmp_path / "none.pt", operators, tmp_path / "broken.ppm")
    short = answer(boxes)
    assert [done.returncode for done in (none, cut, no_model, short)] == [1, 1, 1, 2]
    assert "none.so" in none.stderr and "cut short" in cut.stderr and "none.pt" in no_model.stderr
    assert "usage: boxes" in short.stderr
    assert not any(done.stdout for done in (none, cut, no_model, short))
