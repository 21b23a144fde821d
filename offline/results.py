"""All parts of a run -> COCO results, the images they are of, and what could not be read."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from offline.plan import Plan, part_name
from offline.predictor import Record
from offline.store import Store

RESULTS, IMAGES, ERRORS = "results.json", "results.images.json", "errors.json"
"""The list of images lies beside the results under the name by which `client.annotation.convert` looks for it."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """How many images have results, how many have none for an error, and how many detections there are."""

    images: int
    failed: int
    detections: int


def kept_part(out: Store, plan: Plan, number: int) -> list[Record] | None:
    """The records of a part that is done; None where it is not."""
    records = out.read_json(part_name(number))
    if not isinstance(records, list) or len(records) != len(plan.parts[number]):
        return None
    return records


def join(out: Store, plan: Plan, categories: list[dict[str, Any]]) -> Summary:
    """Write the results, the list of images (a COCO file without annotations) and the errors; all parts are done.

    One part is in memory at a time, beside the lists of images and errors. The order is that of the plan, whatever
    the order in which the parts were done.
    """
    images: list[dict[str, Any]] = []
    errors: list[dict[str, Any]] = []
    detections = 0

    def pieces() -> Iterator[bytes]:
        nonlocal detections
        yield b"["
        for number in range(len(plan.parts)):
            records = kept_part(out, plan, number)
            assert records is not None, f"part {number} is not done"
            for record in records:
                name = {"id": record["id"], "file_name": record["file_name"]}
                if "error" in record:
                    errors.append({**name, "error": record["error"]})
                    continue
                images.append({**name, "height": record["height"], "width": record["width"]})
                for found in record["detections"]:
                    line = json.dumps({"image_id": record["id"], **found}, separators=(",", ":"))
                    yield (",\n" if detections else "").encode() + line.encode("ascii")
                    detections += 1
        yield b"]\n"

    out.write(RESULTS, pieces())
    out.write_json(IMAGES, {"images": images, "categories": categories, "annotations": []})
    out.write_json(ERRORS, errors)
    return Summary(images=len(images), failed=len(errors), detections=detections)
