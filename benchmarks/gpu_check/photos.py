"""A COCO set of 640 x 480 JPEGs with drawn objects, for the speed of training: what it costs is that of photographs."""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from training.drawn.shapes import ShapesConfig, write_shapes

QUALITY = 90


def photos(folder: Path, count: int, *, height: int, width: int) -> Path:
    """Writes `train/*.jpg` and `train.json` of `count` images below `folder`, unless they lie there; the folder.

    A drawing of the image's height with noise beside it, for drawings are square.
    """
    path = folder / "train.json"
    if path.is_file() and len(json.loads(path.read_text(encoding="utf-8"))["images"]) >= count:
        return folder
    drawn = folder / "drawn"
    write_shapes(drawn, ShapesConfig(train=1, val=count, size=height))  # exact masks are the validation set's
    content = json.loads((drawn / "val.json").read_text(encoding="utf-8"))
    (folder / "train").mkdir(exist_ok=True)
    for image in content["images"]:
        rng = np.random.default_rng(image["id"])
        noise = rng.integers(0, 256, (height // 8, (width - height) // 8, 3), dtype=np.uint8)
        beside = Image.fromarray(noise).resize((width - height, height), Image.Resampling.BICUBIC)
        photograph = Image.new("RGB", (width, height))
        photograph.paste(Image.open(drawn / "val" / image["file_name"]))
        photograph.paste(beside, (height, 0))
        image |= {"file_name": f"{image['id']:06d}.jpg", "width": width}
        photograph.save(folder / "train" / image["file_name"], quality=QUALITY)
    for one in content["annotations"]:
        mask = np.zeros((height, width), dtype=np.uint8, order="F")
        mask[:, :height] = coco_mask.decode(one["segmentation"])
        counts = coco_mask.encode(mask)["counts"].decode("ascii")
        one["segmentation"] = {"size": [height, width], "counts": counts}
    path.write_text(json.dumps(content), encoding="utf-8")
    return folder
