"""What the tests of prompted masks share."""

from pathlib import Path

import pytest

from tests.training.prompt_masks.tiny_segmenter import describe, write_segmenter


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """The folder of a tiny segmenter, with a description."""
    folder = write_segmenter(tmp_path / "tiny")
    describe(folder)
    return folder
