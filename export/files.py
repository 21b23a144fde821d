"""Files as export reads and writes them; without torch, so that making an archive starts at once."""

import os
import zipfile
from pathlib import Path

METADATA_NAME = "metadata.json"
"""Name of the extra file in the TorchScript archive (`torch.jit.load(..., _extra_files={METADATA_NAME: ""})`)."""


def records_of(path: Path) -> set[str]:
    """Names of a torch archive's records, without the folder that all lie in; none of any other file."""
    if not zipfile.is_zipfile(path):
        return set()
    with zipfile.ZipFile(path) as archive:
        return {name.partition("/")[2] for name in archive.namelist()}


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file that is either the old one or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
