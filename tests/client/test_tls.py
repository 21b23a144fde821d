"""Encrypted connections, checked against an authority of one's own."""

import ssl
from contextlib import AbstractContextManager

import grpc
import pytest

from client import Client, Retries, ServerUnreachable
from tests.client.conftest import Certificate
from tests.client.faulty import ANSWER, Faulty, over_grpc, rest


def encrypted(protocol: str, made: Certificate) -> AbstractContextManager[Faulty]:
    if protocol == "grpc":
        pair = (made.key.read_bytes(), made.certificate.read_bytes())
        return over_grpc(credentials=grpc.ssl_server_credentials([pair]))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.certificate, made.key)
    return rest(tls=context)


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_a_server_is_answered_by_only_where_its_authority_is_trusted(
    protocol: str, certificate: Certificate
) -> None:
    once = Retries(attempts=1)
    with encrypted(protocol, certificate) as faulty:
        with Client(faulty.url, ca=certificate.authority, token="t", retries=once) as client:
            assert client.predict(b"image").content() == ANSWER
        with Client(faulty.url, token="t", retries=once) as client, pytest.raises(ServerUnreachable):
            client.predict(b"image")
        assert [seen.headers["authorization"] for seen in faulty.seen] == ["Bearer t"]


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_a_certificate_for_another_name_is_not_taken(protocol: str, certificate: Certificate) -> None:
    with encrypted(protocol, certificate) as faulty:
        other = faulty.url.replace("127.0.0.1", "localhost")
        with (
            Client(other, ca=certificate.authority, retries=Retries(attempts=1)) as client,
            pytest.raises(ServerUnreachable),
        ):
            client.predict(b"image")
        assert faulty.seen == []
