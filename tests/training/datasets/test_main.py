"""The command line: from archives in their original formats over HTTP to a training step, for every named data set."""

import hashlib
import itertools
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from model.checkpoint import load_network
from tests.training.datasets import small_sets
from tests.training.datasets.file_server import Behaviour
from tests.training.tiny_set import tiny_changes
from training import train
from training.datasets import __main__ as command
from training.datasets.catalogue import DATA_SETS, DOWNLOADS
from training.datasets.fetch import Download

Server = tuple[str, Behaviour]


def write_original(folder: Path) -> None:
    """All small sets in the layout of the unpacked archives, with a COCO 2017 beside them."""
    small_sets.write_coco_2014(folder)
    small_sets.write_lvis(folder)
    small_sets.write_voc(folder)
    small_sets.write_visual_genome(folder)
    annotations = folder / "coco" / "annotations"
    # Image 4 is the minival of the small COCO 2014; its picture of 2017 is the one that LVIS's val has, too.
    for part, number, file in (("train2017", 9, 9), ("val2017", 4, 139)):
        image = {"id": number, "file_name": f"{file:012d}.jpg", "width": 80, "height": 64}
        small_sets.write_json(
            annotations / f"instances_{part}.json",
            {
                "images": [image],
                "annotations": [small_sets.object_of(1, number, 18)],
                "categories": small_sets.COCO_CATEGORIES,
            },
        )
    (annotations / "minival.txt").write_text("4\n")


MEMBERS = {
    "train2017.zip": "coco/train2017/*.jpg",
    "val2017.zip": "coco/val2017/*.jpg",
    "annotations_trainval2017.zip": "coco/annotations/instances_*2017.json",
    "train2014.zip": "coco/train2014/*.jpg",
    "val2014.zip": "coco/val2014/*.jpg",
    "annotations_trainval2014.zip": "coco/annotations/instances_*2014.json",
    "lvis_v1_train.json.zip": "lvis/lvis_v1_train.json",
    "lvis_v1_val.json.zip": "lvis/lvis_v1_val.json",
    "VOCtrainval_11-May-2012.tar": "VOCdevkit/**/*.*",
    "images.zip": "vg/VG_100K/*.jpg",
    "images2.zip": "vg/VG_100K_2/*.jpg",
    "image_data.json.zip": "vg/image_data.json",
    "objects.json.zip": "vg/objects.json",
}
"""What lies in every archive of the table, below the root of the data."""


@pytest.fixture
def mirror(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The server with an archive for every download, whose sizes and digests the table then has."""
    original = tmp_path / "original"
    write_original(original)
    small: dict[str, Download] = {}
    for name, pattern in MEMBERS.items():
        into, files = DOWNLOADS[name].into, sorted(original.glob(pattern))
        assert files, pattern
        path = server[1].folder / name
        if name.endswith(".tar"):
            shutil.make_archive(str(path.with_suffix("")), "tar", original, "VOCdevkit")
        else:
            with zipfile.ZipFile(path, "w") as archive:
                for file in files:
                    archive.write(file, file.relative_to(original / into))
        content = path.read_bytes()
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        small[name] = Download(url=DOWNLOADS[name].url, bytes=len(content), digest=digest, into=into)
    monkeypatch.setattr(command, "DOWNLOADS", small)
    return server


@pytest.fixture
def run(mirror: Server, tmp_path: Path) -> Callable[..., int]:
    return lambda *words: command.main([*words, "--root", str(tmp_path / "data"), "--mirror", mirror[0]])


def words_of(text: str) -> list[str]:
    return [word for word in text.split() if word.startswith("data.")]


@pytest.mark.parametrize(
    ("name", "classes", "with_masks", "stage"),
    [
        ("coco_2017", 80, 80, "mask"),
        ("coco_2014", 80, 80, "mask"),
        ("lvis_v1", 2, 2, "mask"),
        ("voc_2012", 20, 20, "mask"),
        ("vg3k", 83, 80, "detector"),  # the small set has 80 aligned synsets, a tree, a plant and a dune
    ],
)
def test_a_set_is_fetched_converted_and_trained_on_from_its_original_files(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, classes: int,
    with_masks: int, stage: str,
) -> None:  # fmt: skip
    assert run("fetch", name) == 0
    keys = words_of(capsys.readouterr().out)
    assert run("keys", name) == 0
    assert words_of(capsys.readouterr().out) == keys
    words = [*tiny_changes(tmp_path, tmp_path / "run"), "data.mask_classes=all", *keys]
    steps = [
        "schedule.detector_steps=1",
        "schedule.batch_size=1",
        f"schedule.mask_steps={int(stage == 'mask')}",
    ]
    assert train.main([*words, *steps]) == 0
    _, table, contents = load_network(tmp_path / "run" / "checkpoint.pt")
    assert contents["step"] == 1 + int(stage == "mask")
    assert (table.num_classes, len(table.set_a_labels())) == (classes, with_masks)


def test_boxes_alone_do_for_a_detector_but_not_for_masks(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("fetch", "vg3k") == 0
    words = [*tiny_changes(tmp_path, tmp_path / "run"), *words_of(capsys.readouterr().out)]
    assert train.main([*words, "schedule.detector_steps=1", "schedule.mask_steps=1"]) == 2
    assert "has a mask that can be used" in capsys.readouterr().err


def test_a_second_fetch_downloads_and_unpacks_nothing(
    run: Callable[..., int], mirror: Server, tmp_path: Path
) -> None:
    assert run("fetch", "voc_2012", "--remove-archives") == 0
    assert len(mirror[1].requests) == 1
    assert not list((tmp_path / "data" / ".downloads").glob("*.tar"))
    picture = tmp_path / "data" / "VOCdevkit" / "VOC2012" / "JPEGImages" / "2007_000027.jpg"
    before = picture.stat().st_mtime_ns
    assert run("fetch", "voc_2012") == 0
    assert len(mirror[1].requests) == 1 and picture.stat().st_mtime_ns == before


def test_sets_share_the_downloads_of_coco(run: Callable[..., int], mirror: Server) -> None:
    assert run("fetch", "coco_2017") == 0
    assert run("fetch", "lvis_v1") == 0
    asked = [path for path, _ in mirror[1].requests]
    assert sorted(asked) == [
        "/annotations_trainval2017.zip", "/lvis_v1_train.json.zip", "/lvis_v1_val.json.zip", "/train2017.zip",
        "/val2017.zip",
    ]  # fmt: skip


def test_convert_works_on_files_that_lie_there_and_takes_a_list_for_minival(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_original(tmp_path)
    words = ["--root", str(tmp_path)]
    assert command.main(["convert", "voc_2012", "--image-set", "Main", "--names", "coco", *words]) == 0
    assert "train.json: 2 images, 4 objects" in capsys.readouterr().out
    minival = str(tmp_path / "coco" / "annotations" / "minival.txt")
    assert command.main(["convert", "vg3k", "--minival", minival, *words]) == 0
    assert "vg3k_val.json: 1 images" in capsys.readouterr().out


def test_mistakes_are_one_line_and_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--root", str(tmp_path)]
    for arguments, seen in (
        (["fetch", "coco_2018"], "no data set is called 'coco_2018'; there are coco_2017, coco_2014"),
        (["fetch"], "fetch: name a data set"),
        (["keys", "lvis_v1"], "no such file: .*lvis/train.json.*; get it with .*fetch lvis_v1"),
        (["convert", "voc_2012"], r"cannot read the list of images .*train\.txt"),
    ):
        assert command.main([*arguments, *words]) == 2
        error = capsys.readouterr().err
        assert re.match(f"error: .*{seen}", error) and error.count("\n") == 1


def test_a_disk_that_cannot_hold_the_download_is_told_at_once(
    run: Callable[..., int], mirror: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    asked: list[int] = []

    def full(folder: Path, needed: int, what: str) -> None:
        asked.append(needed)
        raise ValueError(f"{what} needs more")

    monkeypatch.setattr(command, "require_space", full)
    archives = tmp_path / "data" / ".downloads"
    archives.mkdir(parents=True)
    (archives / "train2017.zip.part").write_bytes(b"x" * 50)
    assert run("fetch", "coco_2017") == 2
    table = command.DOWNLOADS
    assert asked == [sum(table[name].bytes for name in DATA_SETS["coco_2017"].downloads) - 50]
    assert not mirror[1].requests


def test_ctrl_c_says_that_the_same_command_goes_on(
    run: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "download", interrupted)
    assert run("fetch", "voc_2012") == 130
    assert "the same command goes on" in capsys.readouterr().err


# ---- the table ----


def test_every_download_has_an_address_a_size_and_a_digest_and_every_set_its_downloads() -> None:
    for name, item in DOWNLOADS.items():
        address = urlsplit(item.url)
        assert address.scheme in ("http", "https") and address.path.endswith(f"/{name}") and item.name == name
        assert re.fullmatch(r"sha256:[0-9a-f]{64}|md5:[0-9a-f]{32}", item.digest) and item.bytes > 1_000_000
    wanted = set(itertools.chain.from_iterable(known.downloads for known in DATA_SETS.values()))
    assert wanted == set(DOWNLOADS) == set(MEMBERS)
    assert len({item.digest for item in DOWNLOADS.values()}) == len(DOWNLOADS)


def test_the_list_names_every_set_with_its_size(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["list"]) == 0
    shown = capsys.readouterr().out
    for name, size in (("coco_2017", "20.41 GB"), ("voc_2012", "2.00 GB"), ("lvis_v1", "20.57 GB")):
        assert re.search(rf"{name} +{size}", shown)
    assert "data.mask_classes=data/vg/mask_classes.txt" in shown
