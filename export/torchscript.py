"""Checkpoint -> maskx.pt: the trained network as TorchScript, T baked into a table, run lengths inside.

    python -m export.torchscript --checkpoint build/train/checkpoint.pt --out build/maskx.pt

The file is float32 and not frozen; `metadata.json` rides inside. The same checkpoint gives the same bytes.
"""

import io
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from export.files import METADATA_NAME, records_of
from export.metadata import build_metadata, metadata_json
from export.verify import ExportError, verify
from model.checkpoint import load_network
from model.config import model_config_from_dict
from model.files import command, exit_status, write_whole
from model.network import MaskXRCNN
from model.serving import prepared_for_serving

HASH_SEED = "0"


def export_network(network: MaskXRCNN, metadata: dict[str, Any]) -> bytes:
    """The verified TorchScript file of a network.

    Its bytes depend on the network and the metadata alone where nothing was scripted before in this process and
    PYTHONHASHSEED is fixed; `main` sees to both.

    Raises:
        ExportError: the file does not answer as the network does.
    """
    served = prepared_for_serving(network.inference())
    scripted = torch.jit.script(served)
    buffer = io.BytesIO()
    torch.jit.save(scripted, buffer, _extra_files={METADATA_NAME: metadata_json(metadata)})
    data = without_source_paths(buffer.getvalue())
    buffer.close()  # a large network's copies would lie in memory while it is verified
    verify(network, served, scripted, data)
    return data


def without_source_paths(data: bytes) -> bytes:
    """A TorchScript archive without its debug records, which hold the absolute paths of the source files.

    Written by torch's own writer, so that tensors keep their alignment and the file can be memory-mapped. Errors in
    the file's code still show its own lines.
    """
    reader = torch._C.PyTorchFileReader(io.BytesIO(data))
    buffer = io.BytesIO()
    writer = torch._C.PyTorchFileWriter(buffer)
    # The writer adds the id of the content itself.
    kept = [n for n in reader.get_all_records() if not n.endswith((".debug_pkl", ".data/serialization_id"))]
    for name in kept:
        record = reader.get_record(name)
        writer.write_record(name, record, len(record))
    writer.write_end_of_file()
    return buffer.getvalue()


def require_checkpoint(checkpoint: Path) -> None:
    """A `ValueError` where there is no checkpoint, or a TorchScript file in its place."""
    if not checkpoint.is_file():
        raise ValueError(f"there is no checkpoint {checkpoint}; train one first (make train) or name another")
    if "constants.pkl" in records_of(checkpoint):
        raise ValueError(
            f"{checkpoint} is TorchScript, so exported already; expected a checkpoint of training.train"
        )


def export_checkpoint(checkpoint: Path, out: Path) -> None:
    """Reads, scripts, verifies, and only then writes `out`, whole or not at all."""
    require_checkpoint(checkpoint)
    network, classes, contents = load_network(checkpoint)
    config = contents["model_config"]
    del contents  # with the weights, the optimiser's too
    metadata = build_metadata(
        classes,
        mask_size=network.mask_size,
        max_detections=config["box"]["detections_per_image"],
        min_size=config["input"]["min_size"],
        max_size=config["input"]["max_size"],
        keypoints=model_config_from_dict(config).keypoints,
    )
    data = export_network(network.eval(), metadata)
    write_whole(out, data)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = command("export.torchscript", __doc__)
    add = parser.add_argument
    add("--checkpoint", type=Path, default=Path("build/train/checkpoint.pt"))
    add("--out", type=Path, default=Path("build/maskx.pt"))
    options = parser.parse_args(arguments)
    begin = time.monotonic()
    print(
        f"exporting {options.checkpoint}: scripting, then comparing with the trained network ...", flush=True
    )
    with exit_status() as status:
        try:
            export_checkpoint(options.checkpoint, options.out)
        except ExportError as error:
            print(f"error: not exported, {options.out} is untouched: {error}", file=sys.stderr)
            return 1
        size = options.out.stat().st_size / 2**20
        print(f"wrote {options.out} ({size:.1f} MiB), verified, in {time.monotonic() - begin:.0f} s")
    return status.code


if __name__ == "__main__":
    # Sets in the scripting code are walked in the order of their hashes, and names are numbered in that order.
    if os.environ.get("PYTHONHASHSEED") != HASH_SEED:
        environment = {**os.environ, "PYTHONHASHSEED": HASH_SEED}
        os.execve(sys.executable, [sys.executable, "-m", "export.torchscript", *sys.argv[1:]], environment)
    sys.exit(main())
