"""`maskx`, the command of the wheel: each verb is one of the command lines of client/ and server/."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import NamedTuple

PREFIX = (__package__ or "").removesuffix("client")
"""What the names of the packages begin with where they are installed: maskx_."""


class Verb(NamedTuple):
    """A verb of the command.

    `module` has its `main`, which gets the arguments `first` and those of the command line. It needs `packages` of the
    extra `serve`.
    """

    says: str
    module: str
    first: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()


SERVER, ALL_SERVERS_NEED = "server.__main__", ("psutil", "yaml")
VERBS = {
    "predict": Verb("send images to a server: a table, overlays, COCO results", "client.__main__"),
    "convert": Verb(
        "COCO results for CVAT or Label Studio, and corrected ones back", "client.annotation.convert"
    ),
    "label-studio": Verb("answer Label Studio as its model backend", "client.annotation.backend"),
    "serve": Verb(
        "start TorchServe, or the light server, with an archive and wait until the model answers",
        SERVER,
        ("start",),
        (*ALL_SERVERS_NEED, "torch", "torchvision"),
    ),
    "stop": Verb("stop that server", SERVER, ("stop",), ALL_SERVERS_NEED),
    "ready": Verb("say whether it answers a prediction now", SERVER, ("ready",), ALL_SERVERS_NEED),
    "versions": Verb("list the versions that it has loaded", SERVER, ("versions",), ALL_SERVERS_NEED),
}


def parser_of(text: str | None, module: str, prog: str) -> argparse.ArgumentParser:
    """A command line under the name `prog`, told by the docstring of its module: a line, then examples."""
    first, *examples = (text or "").replace(f"python -m {module}", prog).split("\n")
    raw = argparse.RawDescriptionHelpFormatter
    epilog = "\n".join(examples)
    return argparse.ArgumentParser(prog=prog, description=first, epilog=epilog, formatter_class=raw)


def usage() -> str:
    """All verbs, a line each."""
    lines = [f"  {name:<14}{verb.says}" for name, verb in VERBS.items()]
    head = "usage: maskx VERB ...\n\nAsks and serves Mask^X R-CNN. `maskx VERB --help` tells what a verb takes.\n"
    more = (
        f"More about the server, in the foreground and with several versions: python -m {PREFIX}server --help"
    )
    return "\n".join([head, *lines, "", more])


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the verb's exit status, and 2 where there is no such verb or its extra is missing."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] in (["--help"], ["-h"]):
        print(usage())
        return 0
    if not given or given[0] not in VERBS:
        problem = f"there is no verb {given[0]!r}" if given else "a verb is missing"
        print(f"{usage()}\n\nerror: {problem}", file=sys.stderr)
        return 2
    name, *rest = given
    verb = VERBS[name]
    missing = [package for package in verb.packages if find_spec(package) is None]
    if missing:
        lacks = ", ".join(missing)
        print(f'error: maskx {name} needs {lacks}; run pip install "maskx[serve]"', file=sys.stderr)
        return 2
    command = import_module(PREFIX + verb.module)
    own_name = {} if verb.first else {"prog": f"maskx {name}"}
    status: int = command.main([*verb.first, *rest], **own_name)
    return status


if __name__ == "__main__":
    sys.exit(main())
