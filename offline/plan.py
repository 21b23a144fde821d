"""Which images a run has, with their ids, in parts: the unit in which it is done, kept, and taken up again."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from maskx_image import SUFFIXES
from offline.store import Store

PLAN = "plan.json"
PARTS = "parts/"


@dataclass(frozen=True, kw_only=True)
class Image:
    """An image's id in the results, and its name below the folder or bucket."""

    id: int
    name: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run does: its settings, and its images in parts."""

    settings: Mapping[str, Any]
    parts: tuple[tuple[Image, ...], ...]


def part_name(number: int) -> str:
    """Where the results of a part are kept."""
    return f"{PARTS}{number:06d}.json"


def planned(
    out: Store,
    settings: Mapping[str, Any],
    images: Store,
    *,
    listed: Sequence[Image] | None,
    part_images: int,
) -> Plan:
    """The plan kept in `out`, with images that have come since added at its end; a new one where there is none.

    Args:
        settings: all that the results depend on.
        images: where they lie.
        listed: the images and their ids, from an annotation file; None: all that lie there.
        part_images: images of a new part.

    Raises:
        ValueError: no images, or `out` has results of other settings, or of unknown ones.
    """
    kept = out.read_json(PLAN)
    parts: list[tuple[Image, ...]] = []
    if kept is None and any(name.startswith(PARTS) for name in out.names()):
        raise ValueError(
            f"{out.address} holds parts of a run but no {PLAN} that can be read, which says of what; give another "
            "--out, or --restart to make them anew"
        )
    if kept is not None:
        before = kept["settings"]
        differing = [key for key in sorted({*before, *settings}) if before.get(key) != settings.get(key)]
        if differing:
            key = differing[0]
            raise ValueError(
                f"{out.address} holds results with {key} {before.get(key)!r}, and now it is {settings.get(key)!r}; "
                "give another --out, or --restart to make them anew"
            )
        parts = [tuple(Image(id=id_, name=name) for id_, name in part) for part in kept["parts"]]
    known = {image.name: image.id for part in parts for image in part}
    if listed is None:
        new = numbered([name for name in images.names(SUFFIXES) if name not in known], known.values())
    else:
        new = [image for image in listed if image.name not in known]
    if not new and not known:
        raise ValueError(f"{images.address} has no image; looked for are {', '.join(SUFFIXES)}")
    parts += [tuple(new[start : start + part_images]) for start in range(0, len(new), part_images)]
    plan = Plan(settings=settings, parts=tuple(parts))
    if new:
        plain = [[[image.id, image.name] for image in part] for part in parts]
        out.write_json(PLAN, {"settings": dict(settings), "parts": plain})
    return plan


def numbered(names: Sequence[str], taken: Collection[int] = ()) -> list[Image]:
    """Images with ids: the numbers that their names are, as in COCO (000000397133.jpg), else 1, 2, ... in order.

    `taken` are ids that others have; counting goes on after them.
    """
    stems = [PurePosixPath(name).stem for name in names]
    if all(stem.isascii() and stem.isdecimal() and len(stem) <= 15 for stem in stems):
        ids = [int(stem) for stem in stems]
        if len({*ids, *taken}) == len(ids) + len(taken):
            return [Image(id=id_, name=name) for id_, name in zip(ids, names, strict=True)]
    first = max(taken, default=0) + 1
    return [Image(id=id_, name=name) for id_, name in enumerate(names, start=first)]


def listed_images(document: Any, source: str) -> list[Image]:
    """The images of a COCO annotation file. Raises ValueError where it is none, or an id or name comes twice."""
    try:
        found = [Image(id=int(one["id"]), name=str(one["file_name"])) for one in document["images"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f'{source} is no COCO file; expected {{"images": [{{"id", "file_name"}}, ...]}}'
        ) from error
    if len({one.id for one in found}) < len(found) or len({one.name for one in found}) < len(found):
        raise ValueError(f"{source} has an image id or file name twice; each must be its image's own")
    return found
