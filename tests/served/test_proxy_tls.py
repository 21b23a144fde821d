"""The proxy over TLS, with certificates of deploy/nginx/trial-certificate.sh."""

import http.client
import os
import socket
import ssl
import subprocess

import pytest

from export.archive import ROOT
from tests.served.nginx import NOBODY, make_proxy, proxy
from tests.served.upstream import Upstream

pytestmark = pytest.mark.usefixtures("fresh")


def test_tls_is_1_3_alone_and_http_2_is_offered(behind: Upstream) -> None:
    with proxy(INFERENCE=behind.address, TLS="on") as made:
        assert made.ask(body=b"over TLS").status == 200 and behind.seen[0].body == b"over TLS"
        for version, works in ((ssl.TLSVersion.TLSv1_2, False), (ssl.TLSVersion.TLSv1_3, True)):
            context = ssl.create_default_context(cafile=str(made.folder / "certificate.pem"))
            context.minimum_version = context.maximum_version = version
            context.set_alpn_protocols(["h2"])
            with socket.create_connection(("127.0.0.1", made.port), timeout=30) as connection:
                if works:
                    with context.wrap_socket(connection, server_hostname="localhost") as tls:
                        assert tls.version() == "TLSv1.3" and tls.selected_alpn_protocol() == "h2"
                else:
                    with pytest.raises(ssl.SSLError):
                        context.wrap_socket(connection, server_hostname="localhost")
        plain = http.client.HTTPConnection("127.0.0.1", made.port, timeout=30)
        reply = made.ask(over=plain)
        plain.close()
        assert (reply.status, reply.error()["type"]) == (400, "BadRequest")


def test_an_rsa_certificate_serves_as_well(behind: Upstream) -> None:
    made = make_proxy(INFERENCE=behind.address, TLS="on")
    try:
        script = ROOT / "deploy" / "nginx" / "trial-certificate.sh"
        subprocess.run(["sh", str(script), str(made.folder), "rsa"], check=True)
        if os.geteuid() == 0:
            os.chown(made.folder / "key.pem", NOBODY, NOBODY)
            os.chown(made.folder / "certificate.pem", NOBODY, NOBODY)
        made.start()
        assert made.ask().status == 200
    finally:
        made.end()
