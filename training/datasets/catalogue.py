"""The named data sets: where they are downloaded, where they lie, and how they become COCO files.

Sizes and SHA-256 of COCO's and LVIS's files are those of TensorFlow Datasets' tables (url_checksums/coco.txt,
object_detection/lvis/checksums.tsv), the MD5 of VOC is torchvision's (datasets/voc.py); those of Visual Genome
were published by users of it, not by its authors.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from training.datasets.cityscapes import write_cityscapes
from training.datasets.coco_2014 import write_2014
from training.datasets.fetch import Download
from training.datasets.files import require_files
from training.datasets.lvis import write_lvis
from training.datasets.visual_genome import write_visual_genome
from training.datasets.voc import ImageSet, Names, write_voc
from training.progress import progress

_COCO = "http://images.cocodataset.org"
_LVIS = "https://s3-us-west-2.amazonaws.com/dl.fbaipublicfiles.com/LVIS"
_VG = "https://homes.cs.washington.edu/~ranjay/visualgenome/data/dataset"
_VG_IMAGES = "https://cs.stanford.edu/people/rak248/VG_100K_2"

_FILES: tuple[tuple[str, int, str, str], ...] = (
    (f"{_COCO}/zips/train2017.zip",
     19_336_861_798, "sha256:69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929", "coco"),
    (f"{_COCO}/zips/val2017.zip",
     815_585_330, "sha256:4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05", "coco"),
    (f"{_COCO}/annotations/annotations_trainval2017.zip",
     252_907_541, "sha256:113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268", "coco"),
    (f"{_COCO}/zips/train2014.zip",
     13_510_573_713, "sha256:ede4087e640bddba550e090eae701092534b554b42b05ac33f0300b984b31775", "coco"),
    (f"{_COCO}/zips/val2014.zip",
     6_645_013_297, "sha256:fe9be816052049c34717e077d9e34aa60814a55679f804cd043e3cbee3b9fde0", "coco"),
    (f"{_COCO}/annotations/annotations_trainval2014.zip",
     252_872_794, "sha256:031296bbc80c45a1d1f76bf9a90ead27e94e99ec629208449507a4917a3bf009", "coco"),
    (f"{_LVIS}/lvis_v1_train.json.zip",
     350_264_821, "sha256:334a4caa374030a7817cf050364525e910f7960f9b6968cef47cffbf3893f8ba", "lvis"),
    (f"{_LVIS}/lvis_v1_val.json.zip",
     64_026_968, "sha256:5cae9a3c79aadb667550c2b5dcf7f4d86e059a41ec91ef690225b667e28e9ba5", "lvis"),
    ("https://thor.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
     1_999_639_040, "md5:6cd6e144f989b92b3379bac3b3de84fd", "."),
    (f"{_VG_IMAGES}/images.zip",
     9_731_705_982, "sha256:51c682d2721f880150720bb416e0346a4c787e4c55d7f80dfd1bd3f73ba81646", "vg"),
    (f"{_VG_IMAGES}/images2.zip",
     5_471_658_058, "sha256:99da1a0ddf87011319ff3b05cf9176ffee2731cc3c52951162d9ef0d68e3cfb5", "vg"),
    (f"{_VG}/image_data.json.zip",
     1_780_854, "sha256:b87a94918cb2ff4d952cf1dfeca0b9cf6cd6fd204c2f8704645653be1163681a", "vg"),
    (f"{_VG}/objects.json.zip",
     55_323_929, "sha256:efa456069aedb420b7dabf54f4608c89c78a00de550f1433066e9b6f84fb629c", "vg"),
)  # fmt: skip
"""Address, bytes, digest and the folder below the root (`training.datasets.fetch.Download`)."""

DOWNLOADS: Mapping[str, Download] = {
    item.name: item for item in (Download(url=u, bytes=b, digest=d, into=f) for u, b, d, f in _FILES)
}
"""Every download by the name of its file."""


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """What a conversion may be told; each data set uses its own part."""

    minival: Path | None = None
    """coco_2014 and vg3k: COCO's minival; default: COCO's annotations/instances_val2017.json."""
    image_set: ImageSet = "Segmentation"
    names: Names = "voc"


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A data set and its paths below the root of the data."""

    title: str
    downloads: tuple[str, ...]
    train_images: str
    train_annotations: str
    val_images: str
    val_annotations: str
    convert: Callable[[Path, ConvertOptions], list[str]] | None = None
    """Writes the annotation files from what was downloaded; lines to print. None: the files are COCO's already."""
    mask_classes: str = ""
    """A file that names set A, where the data set brings one."""
    by_hand: str = ""
    """What to fetch by hand, and where to unpack it below the root; for a data set behind a login."""

    def keys(self, root: Path) -> list[str]:
        """The data.* keys of a training on this set, as words of the command line."""
        paths = ("train_images", "train_annotations", "val_images", "val_annotations", "mask_classes")
        return [f"data.{key}={root / getattr(self, key)}" for key in paths if getattr(self, key)]

    def require(self, root: Path) -> None:
        """ValueError where the annotation files are not there."""
        require_files([root / self.train_annotations, root / self.val_annotations], self.title)


def _minival(root: Path, options: ConvertOptions) -> Path:
    return options.minival or root / "coco/annotations/instances_val2017.json"


def _coco_2014(root: Path, options: ConvertOptions) -> list[str]:
    annotations = root / "coco/annotations"
    return write_2014(annotations, _minival(root, options), annotations)


def _voc(root: Path, options: ConvertOptions) -> list[str]:
    return write_voc(
        root / "VOCdevkit/VOC2012", root / "voc_2012", image_set=options.image_set, names=options.names
    )


def _vg(root: Path, options: ConvertOptions) -> list[str]:
    folder = root / "vg"
    with progress(range(2 * 108_077), "reading objects.json") as shown:
        return write_visual_genome(folder, _minival(root, options), folder, progress=shown.advance)


_COCO_2017 = ("annotations_trainval2017.zip", "train2017.zip", "val2017.zip")

DATA_SETS: Mapping[str, DataSet] = {
    "coco_2017": DataSet(
        title="COCO 2017: 118 287 and 5 000 images, 80 classes",
        downloads=_COCO_2017,
        train_images="coco/train2017",
        train_annotations="coco/annotations/instances_train2017.json",
        val_images="coco/val2017",
        val_annotations="coco/annotations/instances_val2017.json",
    ),
    "coco_2014": DataSet(
        title="COCO 2014 as in the paper: trainval35k and minival, the images of COCO 2017",
        downloads=(
            "annotations_trainval2014.zip", "annotations_trainval2017.zip", "train2014.zip", "val2014.zip",
        ),
        train_images="coco",
        train_annotations="coco/annotations/instances_trainval35k.json",
        val_images="coco",
        val_annotations="coco/annotations/instances_minival2014.json",
        convert=_coco_2014,
    ),
    "lvis_v1": DataSet(
        title="LVIS v1: 1 203 classes on the images of COCO 2017",
        downloads=("lvis_v1_train.json.zip", "lvis_v1_val.json.zip", "train2017.zip", "val2017.zip"),
        train_images="coco",
        train_annotations="lvis/train.json",
        val_images="coco",
        val_annotations="lvis/val.json",
        convert=lambda root, _: write_lvis(root / "lvis", root / "lvis"),
    ),
    "voc_2012": DataSet(
        title="PASCAL VOC 2012: 20 classes, masks from SegmentationObject",
        downloads=("VOCtrainval_11-May-2012.tar",),
        train_images="VOCdevkit/VOC2012/JPEGImages",
        train_annotations="voc_2012/train.json",
        val_images="VOCdevkit/VOC2012/JPEGImages",
        val_annotations="voc_2012/val.json",
        convert=_voc,
    ),
    "vg3k": DataSet(
        title="Visual Genome v1.4: 3 000 classes with boxes, COCO's 80 first",
        downloads=(
            "image_data.json.zip", "objects.json.zip", "annotations_trainval2017.zip", "images.zip", "images2.zip",
        ),
        train_images="vg",
        train_annotations="vg/vg3k_train.json",
        val_images="vg",
        val_annotations="vg/vg3k_val.json",
        convert=_vg,
        mask_classes="vg/mask_classes.txt",
    ),
    "cityscapes": DataSet(
        title="Cityscapes, fine annotations: 2 975 and 500 street scenes, 8 classes with instances",
        downloads=(),
        train_images="cityscapes/leftImg8bit/train",
        train_annotations="cityscapes/train.json",
        val_images="cityscapes/leftImg8bit/val",
        val_annotations="cityscapes/val.json",
        convert=lambda root, _: write_cityscapes(root / "cityscapes", root / "cityscapes"),
        by_hand="gtFine_trainvaltest.zip and leftImg8bit_trainvaltest.zip, unpacked in cityscapes",
    ),
}  # fmt: skip


def data_set(name: str) -> DataSet:
    """The data set of this name; ValueError with the known names."""
    if name not in DATA_SETS:
        raise ValueError(
            f"no data set is called {name!r}; there are {', '.join(DATA_SETS)}, and the weights that `list` names"
        )
    return DATA_SETS[name]
