"""KServe's InferenceService of the light server: valid, hardened, and of one mind with the server's command line."""

from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest

from server.__main__ import _parser
from server.processes import Ports
from tests.deploy.deployed import documents


@pytest.fixture
def predictor(root: Path) -> dict[str, Any]:
    (service,) = documents(root / "deploy" / "kserve" / "light.yaml")
    assert service["apiVersion"] == "serving.kserve.io/v1beta1" and service["kind"] == "InferenceService"
    predictor: dict[str, Any] = service["spec"]["predictor"]
    return predictor


def test_its_pod_fits_the_schema_of_a_pod(predictor: dict[str, Any]) -> None:
    """What an InferenceService adds to a pod is left out; KServe's own schema is not in the package."""
    spec = {name: value for name, value in predictor.items() if name not in ("minReplicas", "timeout")}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": spec}
    kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)


def test_its_one_container_is_reached_and_probed_at_the_port_of_the_light_server(
    predictor: dict[str, Any],
) -> None:
    (container,) = predictor["containers"]
    assert (container["name"], container["image"]) == ("kserve-container", "maskx-light:1")
    options = _parser().parse_args(["run", "--engine", "light", *container["args"]])
    assert options.host == "0.0.0.0" and str(options.state).startswith("/run/maskx/")
    (port,) = container["ports"]
    assert port["containerPort"] == Ports().inference
    for name in ("startup", "readiness", "liveness"):
        probe = container[f"{name}Probe"]["httpGet"]
        assert probe["port"] == port["containerPort"]
        assert probe["path"] == f"/v2/health/{'live' if name == 'liveness' else 'ready'}"


def test_it_runs_as_nobody_in_particular_and_writes_nowhere_but_into_its_state(
    predictor: dict[str, Any],
) -> None:
    (container,) = predictor["containers"]
    context = container["securityContext"]
    assert predictor["securityContext"]["runAsNonRoot"] and context["readOnlyRootFilesystem"]
    assert not context["allowPrivilegeEscalation"] and context["capabilities"] == {"drop": ["ALL"]}
    assert not predictor["automountServiceAccountToken"]
    assert [one["mountPath"] for one in container["volumeMounts"]] == ["/run/maskx"]
    assert predictor["terminationGracePeriodSeconds"] > 15 + 150 + 2  # preStop, --drain, --linger
