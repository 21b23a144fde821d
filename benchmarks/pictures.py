"""JPEGs with a photograph's statistics, drawn: no file has to be found to run a benchmark."""

import io
import math
from pathlib import Path

import numpy as np
from PIL import Image

SPECTRUM = 0.8
"""Amplitude falls by 2 to this power from one octave to the next, finer one, near the 1 of photographs."""
SENSOR_NOISE = 5.0
"""Standard deviation, in grey levels, of what a camera adds to every pixel. It decides the bytes per pixel, and with
them the time of decoding: about 0.25 at 1080p, as cameras' JPEGs have."""
OBJECTS = 40
QUALITY = 90


SIZES = {"480p": (854, 480), "1080p": (1920, 1080), "12MP": (4000, 3000)}
"""Width and height in pixels, by the name in a table."""
COCO_SIZES = ((640, 480), (640, 427), (480, 640), (500, 375), (640, 360), (427, 640), (612, 612), (640, 425))
"""Width and height as COCO's photographs have them: the longer side 640 in nearly all."""


def kept(folder: Path, name: str, size: tuple[int, int], seed: int) -> Path:
    """The photograph of that width and height as `folder`/`name`.jpg, drawn where it is not there."""
    path = folder / f"{name}.jpg"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photograph(*size, seed))
    return path


def of_coco_sizes(folder: Path, count: int) -> tuple[str, ...]:
    """Paths of photographs of COCO's sizes."""
    sizes = [COCO_SIZES[number % len(COCO_SIZES)] for number in range(count)]
    return tuple(str(kept(folder, f"{i}-{size[0]}x{size[1]}", size, i)) for i, size in enumerate(sizes))


def photograph(width: int, height: int, seed: int) -> bytes:
    """A JPEG (quality 90, 4:2:0) of `width` x `height`; the same seed gives the same scene at every size.

    Noise of all octaves for the ground, over it ellipses with a texture and an edge of their own, and sensor noise.
    """
    rng = np.random.default_rng(seed)
    picture = _octaves(rng, width, height, weight_of_colour=0.3)
    texture = _octaves(np.random.default_rng(seed + 1_000_000), width, height, weight_of_colour=0.2)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    x, y = x / height, y / height
    for _ in range(OBJECTS):
        centre_x, centre_y = rng.uniform(0, width / height), rng.uniform(0, 1)
        radius, stretch, angle = 0.25 * rng.uniform(0.1, 1) ** 2, rng.uniform(0.5, 2), rng.uniform(0, math.pi)
        colour = rng.normal(0, 1.2, 3).astype(np.float32)
        rows = slice(*_span(centre_y - 2 * radius, centre_y + 2 * radius, height, height))
        columns = slice(*_span(centre_x - 2 * radius, centre_x + 2 * radius, height, width))
        dx, dy = x[rows, columns] - centre_x, y[rows, columns] - centre_y
        along = (dx * math.cos(angle) + dy * math.sin(angle)) / (radius * stretch)
        across = (dy * math.cos(angle) - dx * math.sin(angle)) / radius * stretch
        inside = along**2 + across**2 < 1
        picture[rows, columns][inside] = 0.5 * texture[rows, columns][inside] + colour
    noise = rng.standard_normal((height, width, 1), dtype=np.float32) * np.float32(SENSOR_NOISE)
    pixels = np.clip(picture * 48 + 118 + noise, 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=QUALITY, subsampling=2)
    return buffer.getvalue()


def _span(begin: float, end: float, scale: int, limit: int) -> tuple[int, int]:
    return max(int(begin * scale), 0), min(max(int(end * scale) + 1, 1), limit)


def _octaves(rng: np.random.Generator, width: int, height: int, weight_of_colour: float) -> np.ndarray:
    """float32 [height, width, 3] of standard deviation near 1: octaves of noise, mostly grey.

    Coarse octaves are drawn first and have the same cells at every size.
    """
    grey = np.zeros((height, width), dtype=np.float32)
    colour = np.zeros((height, width, 3), dtype=np.float32)
    amplitude, power, rows = 1.0, 0.0, 4
    while rows <= height:
        columns = max(round(rows * width / height), 1)
        cells = rng.standard_normal((rows, columns), dtype=np.float32)
        grey += amplitude * _enlarged(cells, width, height)
        if rows <= 64:
            for channel in range(3):
                cells = rng.standard_normal((rows, columns), dtype=np.float32)
                colour[..., channel] += amplitude * _enlarged(cells, width, height)
        power += amplitude**2
        amplitude *= 0.5**SPECTRUM
        rows *= 2
    return (grey[..., None] + weight_of_colour * colour) / np.float32(math.sqrt(power))


def _enlarged(cells: np.ndarray, width: int, height: int) -> np.ndarray:
    return np.asarray(Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC))
