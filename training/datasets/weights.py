"""Weights that others published, under names of our own, fetched to where `training.recipes.convert` takes them.

Addresses are those of detectron2's model_zoo.py, Detectron's MODEL_ZOO.md and the scripts of seg_every_thing. Detectron
publishes an MD5 beside each file, which is fetched with it; of the others nobody published one, so that what came is
trusted for its size alone and its SHA-256 is printed.
"""

import hashlib
import re
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from training.datasets.fetch import Download, download, opened_by_patience

FOLDER = "weights"
"""Below the root of the data."""
_DETECTRON2 = "https://dl.fbaipublicfiles.com/detectron2"
_DETECTRON = "https://dl.fbaipublicfiles.com/detectron"
_PAPER = "https://people.eecs.berkeley.edu/~ronghang/projects/seg_every_thing/models"


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A published file of weights."""

    title: str
    url: str
    md5_beside: bool = False
    """Whether the server has the file's MD5 under its address and .md5sum."""
    changes: str = ""
    """Words of the conversion beside the file."""


def _paper(path: str, title: str) -> Weights:
    return Weights(title=f"the paper's {title}", url=f"{_PAPER}/{path}")


def _detectron2(path: str, changes: str = "") -> Weights:
    name = path.split("/")[1].replace("_", " ")
    return Weights(title=f"detectron2's {name}", url=f"{_DETECTRON2}/{path}.pkl", changes=changes)


def _detectron(run: str, *, keypoints: bool = False) -> Weights:
    sets = "keypoints_coco_2014_train%3Akeypoints_coco_2014_valminusminival"
    sets = sets if keypoints else sets.replace("keypoints_", "")
    number, config = run.split("/")
    tail = f"output/train/{sets}/generalized_rcnn/model_final.pkl"
    return Weights(
        title=f"Detectron's {config.partition('.yaml')[0].removeprefix('e2e_').replace('_', ' ')}",
        url=f"{_DETECTRON}/{number}/12_2017_baselines/{config}/{tail}",
        md5_beside=True,
    )


WEIGHTS: Mapping[str, Weights] = {
    "maskx_vg3k_r50": _paper(
        "bbox2mask_vg/33241332_model_final_coco2vg3k_seg.pkl",
        "Mask^X R-CNN of 3 001 classes, R-50-FPN (Sec. 5)",
    ),
    "maskx_vg3k_r101": _paper(
        "bbox2mask_vg/33219850_model_final_coco2vg3k_seg.pkl",
        "Mask^X R-CNN of 3 001 classes, R-101-FPN (Sec. 5)",
    ),
    "maskx_coco_detector_r50": _paper(
        "bbox2mask_coco/28594643_model_final.pkl", "Faster R-CNN on COCO, R-50-FPN (Sec. 4)"
    ),
    "detectron_mask_r50_c4_1x": _detectron("35858791/e2e_mask_rcnn_R-50-C4_1x.yaml.01_45_57.ZgkA7hPB"),
    "detectron_mask_r50_c4_2x": _detectron("35858828/e2e_mask_rcnn_R-50-C4_2x.yaml.01_46_47.HBThTerB"),
    "detectron_mask_r50_fpn_1x": _detectron("35858933/e2e_mask_rcnn_R-50-FPN_1x.yaml.01_48_14.DzEQe4wC"),
    "detectron_mask_r50_fpn_2x": _detectron("35859007/e2e_mask_rcnn_R-50-FPN_2x.yaml.01_49_07.By8nQcCH"),
    "detectron_mask_r101_fpn_1x": _detectron("35861795/e2e_mask_rcnn_R-101-FPN_1x.yaml.02_31_37.KqyEK4tT"),
    "detectron_mask_r101_fpn_2x": _detectron("35861858/e2e_mask_rcnn_R-101-FPN_2x.yaml.02_32_51.SgT4y1cO"),
    "detectron_mask_x101_32x8d_1x": _detectron(
        "36761843/e2e_mask_rcnn_X-101-32x8d-FPN_1x.yaml.06_35_59.RZotkLKI"
    ),
    "detectron_mask_x101_32x8d_2x": _detectron(
        "36762092/e2e_mask_rcnn_X-101-32x8d-FPN_2x.yaml.06_37_59.DM5gJYRF"
    ),
    "detectron_mask_x101_64x4d_1x": _detectron(
        "36494496/e2e_mask_rcnn_X-101-64x4d-FPN_1x.yaml.07_50_11.fkwVtEvg"
    ),
    "detectron_mask_x101_64x4d_2x": _detectron(
        "35859745/e2e_mask_rcnn_X-101-64x4d-FPN_2x.yaml.02_00_30.ESWbND2w"
    ),
    "detectron_keypoint_r50_1x": _detectron(
        "37697547/e2e_keypoint_rcnn_R-50-FPN_1x.yaml.08_42_54.kdzV35ao", keypoints=True
    ),
    "detectron_keypoint_r50_s1x": _detectron(
        "37697714/e2e_keypoint_rcnn_R-50-FPN_s1x.yaml.08_44_03.qrQ0ph6M", keypoints=True
    ),
    "detectron_keypoint_r101_1x": _detectron(
        "37697946/e2e_keypoint_rcnn_R-101-FPN_1x.yaml.08_45_06.Y14KqbST", keypoints=True
    ),
    "detectron_keypoint_r101_s1x": _detectron(
        "37698009/e2e_keypoint_rcnn_R-101-FPN_s1x.yaml.08_45_57.YkrJgP6O", keypoints=True
    ),
    "detectron2_mask_r50_c4_1x": _detectron2(
        "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x/137259246/model_final_9243eb"
    ),
    "detectron2_mask_r50_c4_3x": _detectron2(
        "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_3x/137849525/model_final_4ce675"
    ),
    "detectron2_mask_r50_fpn_1x": _detectron2(
        "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x/137260431/model_final_a54504"
    ),
    "detectron2_mask_r50_fpn_3x": _detectron2(
        "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x/137849600/model_final_f10217"
    ),
    "detectron2_mask_r101_c4_3x": _detectron2(
        "COCO-InstanceSegmentation/mask_rcnn_R_101_C4_3x/138363239/model_final_a2914c"
    ),
    "detectron2_mask_r101_fpn_3x": _detectron2(
        "COCO-InstanceSegmentation/mask_rcnn_R_101_FPN_3x/138205316/model_final_a3ec72"
    ),
    "detectron2_mask_x101_32x8d_3x": _detectron2(
        "COCO-InstanceSegmentation/mask_rcnn_X_101_32x8d_FPN_3x/139653917/model_final_2d9806"
    ),
    "detectron2_mask_r50_fpn_400ep": _detectron2(
        "new_baselines/mask_rcnn_R_50_FPN_400ep_LSJ/42019571/model_final_14d201"
    ),
    "detectron2_mask_r101_fpn_400ep": _detectron2(
        "new_baselines/mask_rcnn_R_101_FPN_400ep_LSJ/42073830/model_final_f96b26"
    ),
    "detectron2_keypoint_r50_3x": _detectron2(
        "COCO-Keypoints/keypoint_rcnn_R_50_FPN_3x/137849621/model_final_a6e10b"
    ),
    "detectron2_keypoint_r101_3x": _detectron2(
        "COCO-Keypoints/keypoint_rcnn_R_101_FPN_3x/138363331/model_final_997cc7"
    ),
    "detectron2_keypoint_x101_3x": _detectron2(
        "COCO-Keypoints/keypoint_rcnn_X_101_32x8d_FPN_3x/139686956/model_final_5ad38f"
    ),
}


def fetch_weights(name: str, root: Path, *, mirror: str = "") -> list[str]:
    """The file of `WEIGHTS[name]`, fetched where it is not there yet; lines to print: where it lies, how it was checked
    and the command that converts it.

    Args:
        root: of the data; the file is weights/NAME.pkl below it.
        mirror: address of a folder that has NAME.pkl (and NAME.pkl.md5sum).

    Raises:
        ValueError: as `training.datasets.fetch.download` does; a server that does not say how long the file is.
    """
    known, folder = WEIGHTS[name], root / FOLDER
    file = f"{name}.pkl"
    path = folder / file
    if path.is_file():
        checked = "there already"
    else:
        url = f"{mirror.rstrip('/')}/{file}" if mirror else known.url
        digest = f"md5:{_md5_beside(url)}" if known.md5_beside else ""
        item = Download(url=url, bytes=_length(url), digest=digest, into=FOLDER, file=file)
        download(item, folder)
        with path.open("rb") as written:
            sha256 = hashlib.file_digest(written, "sha256").hexdigest()
        checked = "MD5 checked" if digest else f"no digest is published; SHA-256 of what came: {sha256}"
    words = f" {known.changes}" if known.changes else ""
    return [
        f"{path}: {checked}",
        "convert it with",
        f"    python -m training.recipes.convert --weights {path} --out build/converted/{name}.pt{words}",
    ]


def _length(url: str) -> int:
    with opened_by_patience(urllib.request.Request(url, method="HEAD")) as answer:
        length = answer.headers["Content-Length"]
    if not (length or "").isdecimal():
        raise ValueError(f"{url}: the server does not say how long the file is; fetch it by hand")
    return int(length)


def _md5_beside(url: str) -> str:
    with opened_by_patience(urllib.request.Request(f"{url}.md5sum")) as answer:
        text = answer.read(4096).decode("ascii", errors="replace")
    found = re.search(r"\b[0-9a-f]{32}\b", text)
    if not found:
        raise ValueError(f"{url}.md5sum: expected an MD5, found {text[:60]!r}")
    return found[0]
