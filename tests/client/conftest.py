"""A certificate of an authority of its own for servers on loopback, where openssl is at hand."""

import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest


class Certificate(NamedTuple):
    """Paths of the authority's certificate and of the server's certificate and key."""

    authority: Path
    certificate: Path
    key: Path


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """For 127.0.0.1, valid for a day."""
    openssl = shutil.which("openssl") or ""
    if not openssl:
        pytest.skip("no openssl here to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")

    def run(words: str, *more: str) -> None:
        subprocess.run([openssl, *words.split(), *more], cwd=folder, check=True, capture_output=True)

    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\nauthorityKeyIdentifier=keyid\n")
    key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
    usage = "-addext keyUsage=critical,keyCertSign"
    run(f"req -x509 {key} -keyout ca.key -out ca.pem -days 1 {usage} -subj", "/CN=maskx test")
    run(f"req {key} -keyout server.key -out server.csr -subj", "/CN=maskx server")
    signed_by = "-CA ca.pem -CAkey ca.key -CAcreateserial"
    run(f"x509 -req -in server.csr {signed_by} -out server.pem -days 1 -extfile names")
    return Certificate(folder / "ca.pem", folder / "server.pem", folder / "server.key")
