"""`python -m training.datasets list | fetch NAME | convert NAME | keys NAME | check | thin`: known data sets, made
ready to train on, and the weights that others published.

`fetch` downloads, checks, unpacks and converts, and goes on where it was stopped; `convert` does the last step
alone, for files that lie there already; `keys` prints what a training needs:

    python -m training.train --config training/presets/paper.toml $(python -m training.datasets keys coco_2017)

`check` says what a training would load, of any set, and what is wrong in it; it takes the words of a training
(`training.look.command`). `thin` takes a part of the masks out of a file (`training.datasets.thin`).
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from model.files import command, exit_status
from training.datasets.catalogue import DATA_SETS, DOWNLOADS, ConvertOptions, DataSet, data_set
from training.datasets.fetch import Download, download, gigabytes, require_space, unpack
from training.datasets.weights import WEIGHTS, fetch_weights

ARCHIVES = ".downloads"
"""Folder below the root in which archives are kept, each with NAME.unpacked once it is."""


def fetch(
    known: DataSet, root: Path, options: ConvertOptions, *, mirror: str = "", remove_archives: bool = False
) -> None:
    """Download, unpack and convert a data set below `root`; what is done already is not done again.

    Raises:
        ValueError: as `download`, `unpack` and the conversion do; the disk has no room for what is to be downloaded;
            the data set can be fetched by hand alone.
    """
    if known.by_hand:
        raise ValueError(f"{known.title}: {_by_hand(known, root)}")
    archives = root / ARCHIVES
    archives.mkdir(parents=True, exist_ok=True)
    wanted = [DOWNLOADS[name] for name in known.downloads if not _mark(archives, DOWNLOADS[name]).is_file()]
    require_space(root, sum(item.bytes - _there(archives, item) for item in wanted), "the download")
    for item in wanted:
        path = download(item, archives, url=f"{mirror.rstrip('/')}/{item.name}" if mirror else None)
        files = unpack(path, root / item.into)
        _mark(archives, item).write_text(f"{item.digest}\n", encoding="ascii")
        print(f"{path}: checked ({item.digest.partition(':')[0]}), {files} files unpacked", flush=True)
        if remove_archives:
            path.unlink()
    convert(known, root, options)


def convert(known: DataSet, root: Path, options: ConvertOptions) -> None:
    """Write the annotation files of a data set whose own files lie below `root`."""
    if known.convert is not None:
        print("\n".join(known.convert(root, options)))
    known.require(root)
    print("ready; train with\n    " + " ".join(known.keys(root)))


def _mark(archives: Path, item: Download) -> Path:
    return archives / f"{item.name}.unpacked"


def _there(archives: Path, item: Download) -> int:
    paths = (archives / item.name, archives / f"{item.name}.part")
    return min(item.bytes, sum(path.stat().st_size for path in paths if path.is_file()))


def _by_hand(known: DataSet, root: Path) -> str:
    name = next(name for name, one in DATA_SETS.items() if one is known)
    return (
        f"its site wants a login, so fetch by hand {known.by_hand} below {root}, then "
        f"`python -m training.datasets convert {name} --root {root}`"
    )


def listing() -> str:
    """The named data sets, what they download, and where their files lie; the published weights."""
    lines = []
    for name, known in DATA_SETS.items():
        size = gigabytes(sum(DOWNLOADS[one].bytes for one in known.downloads))
        size = "by hand" if known.by_hand else size
        lines.append(f"{name:10} {size:>9}  {known.title}")
        lines += [f"{'':22}{key}" for key in known.keys(Path("data"))]
    lines += ["", "weights for training.recipes.convert:"]
    lines += [f"{name:30}  {known.title}" for name, known in WEIGHTS.items()]
    return "\n".join(lines)


def _keys(known: DataSet, options: argparse.Namespace) -> list[str]:
    try:
        known.require(options.root)
    except ValueError as missing:
        if known.by_hand:
            raise ValueError(f"{missing}; {_by_hand(known, options.root)}") from None
        raise ValueError(
            f"{missing}; get it with `python -m training.datasets fetch {options.name}`, or where its own files lie "
            f"below {options.root} already, with `convert {options.name}`"
        ) from None
    return known.keys(options.root)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. 0: done; 2: a mistake, named; 130: stopped by Ctrl-C (the same command goes on)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["check"]:
        from training.look.command import main as check  # with torch, which the others do without

        return check(arguments[1:])
    if arguments[:1] == ["thin"]:
        from training.datasets.thin import main as thin  # likewise

        return thin(arguments[1:])
    parser = command("training.datasets", "Fetch and convert known data sets; check any.")
    parser.epilog = (
        "check [--config FILE] [--sheet PNG] [--decode] [--no-images] [key=value ...] looks at any set; "
        "thin --annotations FILE --share 0..1 --seed N --out FILE takes masks out of one"
    )
    add = parser.add_argument
    add(
        "what",
        choices=("list", "fetch", "convert", "keys", "check", "thin"),
        help="`check --help` and `thin --help` have their own words",
    )
    add("name", nargs="?", help=f"one of {', '.join(DATA_SETS)}, or weights that list names")
    add("--root", type=Path, default=Path("data"), help="folder of all data (default: %(default)s)")
    add("--mirror", default="", help="address of a folder that has the same files")
    add("--remove-archives", action="store_true", help="remove each archive once it is unpacked")
    add("--minival", type=Path, help="coco_2014, vg3k: COCO file or list of ids of COCO's minival")
    add("--image-set", choices=("Segmentation", "Main"), default="Segmentation", help="voc_2012: which lists")
    add("--names", choices=("voc", "coco"), default="voc", help="voc_2012: spelling of the classes")
    options = parser.parse_args(arguments)
    with exit_status(interrupted="stopped; the same command goes on") as status:
        if options.what == "list":
            print(listing())
            return 0
        if options.name is None:
            raise ValueError(f"{options.what}: name a data set: {', '.join(DATA_SETS)}")
        if options.what == "fetch" and options.name in WEIGHTS:
            print("\n".join(fetch_weights(options.name, options.root, mirror=options.mirror)))
            return 0
        known = data_set(options.name)
        how = ConvertOptions(minival=options.minival, image_set=options.image_set, names=options.names)
        if options.what == "keys":
            print(" ".join(_keys(known, options)))
        elif options.what == "convert":
            convert(known, options.root, how)
        else:
            fetch(known, options.root, how, mirror=options.mirror, remove_archives=options.remove_archives)
    return status.code


if __name__ == "__main__":
    sys.exit(main())
