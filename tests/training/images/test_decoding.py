"""`decode_all`: every image decoded, and a line for each that is broken."""

from pathlib import Path

import numpy as np
from PIL import Image

from training.data.image_files import decode_all


def write_images(folder: Path, count: int) -> list[Path]:
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    paths = [folder / f"{number}.png" for number in range(count)]
    for path in paths:
        Image.fromarray(random.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path)
    return paths


def test_broken_files_are_a_line_each_in_order_and_whole_ones_none(tmp_path: Path) -> None:
    paths = write_images(tmp_path / "a\nb", 23)
    assert decode_all(paths) == []
    paths[2].unlink()
    paths[17].write_bytes(paths[17].read_bytes()[:600])  # the header is whole
    paths[9].write_bytes(b"no image")
    paths[9], paths[17] = paths[17], paths[9]
    found = decode_all(paths)
    assert [line.partition(".png: ")[0].rpartition("/")[2] for line in found] == ["2", "17", "9"]
    assert "cannot be read (No such file" in found[0] and "broken or cut short" in found[1]
    assert all("\n" not in line for line in found)


def test_progress_counts_every_image(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    assert decode_all(write_images(tmp_path / "a", 9), lambda done, of: told.append((done, of))) == []
    assert told[0] == (0, 9) and told[-1] == (9, 9) and told == sorted(told)
    assert decode_all([]) == []
