"""compose.yaml: the server is reached through the proxy alone, and nobody has more rights than needed."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.deployed import documents, instructions, proxy_defaults


@pytest.fixture
def compose(root: Path) -> dict[str, Any]:
    return documents(root / "deploy" / "compose.yaml")[0]


def test_every_service_is_without_rights_and_on_a_root_that_it_cannot_write(compose: dict[str, Any]) -> None:
    assert set(compose["services"]) == {"server", "proxy", "metrics", "prometheus", "grafana"}
    for name, service in compose["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not service["user"].startswith("0"), name
        assert re.search(r":v?\d", service["image"]), name


def test_the_images_own_users_run_and_can_write_their_state(root: Path, compose: dict[str, Any]) -> None:
    users = {i.stage: i.arguments for i in instructions(root / "Dockerfile") if i.name == "USER"}
    for name, stage in (("server", "serve"), ("proxy", "proxy"), ("metrics", "proxy")):
        service = compose["services"][name]
        assert service["user"] == users[stage]
        uid, _, gid = users[stage].partition(":")
        [state] = service["tmpfs"]
        assert f"uid={uid},gid={gid},mode=0700" in state


def test_torchserve_is_reached_through_the_proxy_alone(root: Path, compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert services["proxy"]["network_mode"] == "service:server"
    port = proxy_defaults(root)["LISTEN"][0].rpartition(":")[2]
    [published] = services["server"]["ports"]
    assert published.endswith(f":{port}")
    assert "127.0.0.1" in published  # unless the machine's owner says otherwise
    assert "ports" not in services["proxy"] | services["metrics"]


def test_secrets_are_files_and_lie_where_the_proxy_reads_them(root: Path, compose: dict[str, Any]) -> None:
    paths = {f"/run/secrets/{name}" for name in compose["services"]["proxy"]["secrets"]}
    assert paths == {proxy_defaults(root)[name][0] for name in ("SECRETS", "CERTIFICATE", "KEY")}
    assert all("file" in secret for secret in compose["secrets"].values())
    assert set(compose["services"]["proxy"]["environment"]) <= {f"MASKX_{n}" for n in proxy_defaults(root)}


def test_the_proxy_starts_after_the_server_is_ready_and_ends_before_it(
    root: Path, compose: dict[str, Any]
) -> None:
    """Compose stops in the opposite order of depends_on."""
    services = compose["services"]
    assert services["proxy"]["depends_on"]["server"]["condition"] == "service_healthy"
    answer = int(proxy_defaults(root)["ANSWER_TIMEOUT"][0].removesuffix("s"))
    assert int(services["proxy"]["stop_grace_period"].removesuffix("s")) > answer
    signals = {i.stage: i.arguments for i in instructions(root / "Dockerfile") if i.name == "STOPSIGNAL"}
    assert services["proxy"]["stop_signal"] == signals["proxy"] == "SIGQUIT"
