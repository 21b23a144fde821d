"""A thousand random sizes: each another, and a report that shows growth and stalls. No server runs here."""

import io
import subprocess
import sys

import pytest
from PIL import Image

from benchmarks.load.sizes import LEAST, MOST, Answers, main, photographs, processor_seconds, report


def test_every_photograph_has_a_size_of_its_own_and_they_are_the_same_each_time() -> None:
    made = list(photographs(12))
    sizes = [Image.open(io.BytesIO(one)).size for one in made]
    assert len(set(sizes)) == 12 and all(LEAST <= side <= MOST for size in sizes for side in size)
    assert made == list(photographs(12))


def test_the_report_leaves_the_first_ones_out_and_tells_the_longest_and_the_growth() -> None:
    seconds = [9.0] * 4 + [0.1] * 15 + [0.3]
    processor = [9.0] * 4 + [0.05] * 15 + [0.06]
    text = report(Answers("torchscript", seconds, processor, [100.0] * 18 + [150.0, 160.0]))
    assert "20 sizes, after the first 4" in text
    assert "| longest / median | 3.00 | 1.20 |" in text and "| above the aim | 1 of 16 | 0 of 16 |" in text
    assert "| resident MiB at first | 100 |" in text and "| resident MiB at last | 160 |" in text


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's clock of another process is Linux's")
def test_the_processors_time_of_another_process_counts_what_it_computes_and_not_its_sleep() -> None:
    work = "import time\nprint(flush=True)\ninput()\nwhile time.process_time() < 1: pass\nprint(flush=True)\ninput()"
    command = [sys.executable, "-c", work]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin is not None and other.stdout is not None
        other.stdout.readline()
        assert 0 < processor_seconds(other.pid) < 1
        print(file=other.stdin, flush=True)
        other.stdout.readline()
        assert processor_seconds(other.pid) >= 1
        other.stdin.close()


def test_too_few_images_and_no_archive_are_errors(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--images", "3"]) == 2
    assert "--images is 3; at least 10" in capsys.readouterr().err
    assert main(["--archive", "nowhere.mar"]) == 2
    assert "there is no nowhere.mar" in capsys.readouterr().err
