"""Files as export reads and writes them; without torch, so that making an archive starts at once."""

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
