"""The processes of a load test beside the server: the generator of load, and the in-process side."""

from __future__ import annotations

from typing import Any

from benchmarks.worker import Remote, serve


class LoadRemote(Remote):
    """Methods of `LoadClient` ("client") and `Offline` ("offline") are called by name."""

    module = "benchmarks.load.worker"


def main() -> None:
    """Serves one of them; the generator loads no torch, which would cost it memory and time."""
    import sys

    kinds: dict[str, type[Any]] = {}
    if '"offline"' in sys.argv[1]:
        from benchmarks.load.offline import Offline

        kinds["offline"] = Offline
    else:
        from benchmarks.load.client import LoadClient

        kinds["client"] = LoadClient
    serve(kinds)


if __name__ == "__main__":
    main()
