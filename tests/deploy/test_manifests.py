"""The manifests: valid, hardened, and of one mind with each other, the proxy and config.properties."""

import re
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

from server.__main__ import _parser, probes_of
from tests.deploy.deployed import (
    containers,
    documents,
    instructions,
    manifests,
    pods,
    properties,
    proxy_defaults,
    strings,
)

OLDEST = "1.29"
"""Kubernetes that the manifests are checked against, beside the newest that the package knows."""
PODS = ("kubernetes", "kserve")


def yaml_files(root: Path) -> list[Path]:
    return sorted((root / "deploy").rglob("*.yaml"))


def seconds(text: str) -> int:
    found = re.fullmatch(r"(\d+)s", text)
    assert found, text
    return int(found[1])


@pytest.mark.parametrize("version", [OLDEST, kubernetes_validate.latest_version()])
def test_every_manifest_fits_the_schema_of_kubernetes(root: Path, version: str) -> None:
    resources = [m for m in manifests(root).values() if m["kind"] != "Kustomization"]
    assert len(resources) >= 7
    for resource in resources:
        kubernetes_validate.validate(resource, version, strict=True)


def test_kserves_pod_fits_the_schema_of_a_pod(root: Path) -> None:
    """What its InferenceService adds to a pod is left out; KServe's own schema is not in the package."""
    spec = dict(pods(root)["kserve"])
    for name in ("minReplicas", "timeout"):
        spec.pop(name)
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": spec}
    kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)


def test_a_wrong_manifest_does_not_fit(root: Path) -> None:
    """Else the tests above would prove nothing."""
    deployment = manifests(root)["Deployment"]
    deployment["spec"]["template"]["spec"]["containers"][0]["imagePullPolicies"] = "Never"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, kubernetes_validate.latest_version(), strict=True)


def test_every_resource_stands_in_the_kustomization(root: Path) -> None:
    folder = root / "deploy" / "kubernetes" / "base"
    listed = set(documents(folder / "kustomization.yaml")[0]["resources"])
    assert listed == {path.name for path in folder.glob("*.yaml")} - {"kustomization.yaml"}
    images = {image["name"]: image["newTag"] for image in manifests(root)["Kustomization"]["images"]}
    assert {c["image"] for c in pods(root)["kubernetes"]["containers"]} == set(images)
    assert all(tag != "latest" for tag in images.values())


def test_the_patches_of_the_gpu_meet_what_they_are_meant_for(root: Path) -> None:
    for patch in documents(root / "deploy" / "kubernetes" / "gpu" / "kustomization.yaml")[0]["patches"]:
        target: Any = manifests(root)[patch["target"]["kind"]]
        assert target["metadata"]["name"] == patch["target"]["name"]
        for operation in yaml.safe_load(patch["patch"]):
            *way, last = operation["path"].strip("/").split("/")
            place = target
            for step in way:
                place = place[int(step) if isinstance(place, list) else step]
            assert operation["op"] == "add" or last in place
            if last == "nvidia.com~1gpu":
                assert target["spec"]["template"]["spec"]["containers"][0]["image"] == "maskx-serve"


@pytest.mark.parametrize("name", PODS)
def test_every_container_is_without_rights_and_on_a_root_that_it_cannot_write(root: Path, name: str) -> None:
    pod = pods(root)[name]
    users = {i.stage: i.arguments for i in instructions(root / "Dockerfile") if i.name == "USER"}
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    for container in pod["containers"]:
        rights = container["securityContext"]
        assert rights["readOnlyRootFilesystem"] is True
        assert rights["allowPrivilegeEscalation"] is False
        assert rights["capabilities"] == {"drop": ["ALL"]}
        stage = container["image"].partition(":")[0].removeprefix("maskx-")
        assert f"{rights['runAsUser']}:{rights['runAsGroup']}" == users[stage]
        assert "memory" in container["resources"]["limits"]


@pytest.mark.parametrize("name", PODS)
def test_a_pod_gives_its_requests_the_time_that_they_may_take(root: Path, name: str) -> None:
    """preStop of the proxy, then the longest answer; the server goes after the proxy has closed its port."""
    pod = pods(root)[name]
    waits = {
        image: int(c["lifecycle"]["preStop"]["exec"]["command"][1])
        for image, c in containers(pod).items()
        if "lifecycle" in c
    }
    answer = seconds(proxy_defaults(root)["ANSWER_TIMEOUT"][0])
    assert waits["maskx-proxy"] < waits["maskx-serve"]
    assert pod["terminationGracePeriodSeconds"] > waits["maskx-proxy"] + answer
    options = vars(_parser().parse_args(["run"]))
    assert pod["terminationGracePeriodSeconds"] > waits["maskx-serve"] + options["linger"] + options["drain"]


@pytest.mark.parametrize("name", PODS)
def test_the_server_is_started_with_options_that_it_has_and_probed_where_it_answers(
    root: Path, name: str
) -> None:
    server = containers(pods(root)[name])["maskx-serve"]
    options = _parser().parse_args(["run", *server["args"]])
    host, port = probes_of(options.probes)
    assert host == "0.0.0.0"  # the kubelet asks the pod's address
    assert options.state.is_relative_to(server["volumeMounts"][0]["mountPath"])
    named = {entry["name"]: entry["containerPort"] for entry in server.get("ports", [])}
    for probe, path in (("startupProbe", "/ready"), ("readinessProbe", "/ready"), ("livenessProbe", "/live")):
        get = server[probe]["httpGet"]
        assert get["path"] == path
        assert named.get(get["port"], get["port"]) == port
    startup = server["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] > options.timeout


@pytest.mark.parametrize("name", PODS)
def test_what_is_mounted_lies_where_the_proxy_reads_it(root: Path, name: str) -> None:
    pod = pods(root)[name]
    proxy = containers(pod)["maskx-proxy"]
    mounts = {mount["name"]: mount["mountPath"] for mount in proxy["volumeMounts"]}
    assert mounts["proxy-run"] == proxy_defaults(root)["RUN"][0]
    paths = {
        f"{mounts['secrets']}/{item['path']}"
        for volume in pod["volumes"]
        if volume["name"] == "secrets"
        for source in volume.get("projected", {"sources": [volume]})["sources"]
        for item in source["secret"]["items"]
    }
    settings = ["SECRETS"] if name == "kserve" else ["SECRETS", "CERTIFICATE", "KEY"]
    assert paths == {proxy_defaults(root)[setting][0] for setting in settings}


def test_the_service_leads_to_the_port_that_the_proxy_listens_on(root: Path) -> None:
    pod = pods(root)["kubernetes"]
    ports = {port["name"]: port["containerPort"] for c in pod["containers"] for port in c.get("ports", [])}
    assert f"0.0.0.0:{ports['https']}" == proxy_defaults(root)["LISTEN"][0]
    for resource in manifests(root).values():
        if resource["kind"] == "Service":
            assert {port["targetPort"] for port in resource["spec"]["ports"]} <= set(ports)
    policy = manifests(root)["NetworkPolicy"]["spec"]
    named = [port["port"] for rule in policy["ingress"] for port in rule["ports"]]
    assert sorted([*named, "probes"]) == sorted(ports)  # probes come from the node, past every policy
    assert policy["egress"] == []


def test_kserve_speaks_to_the_port_that_its_proxy_is_told_to_listen_on(root: Path) -> None:
    proxy = containers(pods(root)["kserve"])["maskx-proxy"]
    environment = {entry["name"]: entry["value"] for entry in proxy["env"]}
    assert environment["MASKX_LISTEN"] == f"0.0.0.0:{proxy['ports'][0]['containerPort']}"
    assert environment["MASKX_TLS"] == "off"
    assert {name.removeprefix("MASKX_") for name in environment} <= set(proxy_defaults(root))
    others = {
        properties(root)["inference_address"].rpartition(":")[2],
        properties(root)["grpc_inference_port"],
    }
    assert str(proxy["ports"][0]["containerPort"]) not in others  # 0.0.0.0 takes the port on loopback, too


def test_the_metrics_go_from_torchserve_to_the_port_that_is_scraped(root: Path) -> None:
    text = (root / "deploy" / "metrics" / "nginx.conf").read_text()
    [port] = re.findall(r"^\s*listen (\d+);$", text, re.MULTILINE)
    [upstream] = re.findall(r"proxy_pass (\S+)/metrics;", text)
    assert upstream == properties(root)["metrics_address"]
    deployment = manifests(root)["Deployment"]
    metrics = containers(pods(root)["kubernetes"])["maskx-proxy/metrics"]
    assert metrics["ports"] == [{"name": "metrics", "containerPort": int(port)}]
    assert deployment["spec"]["template"]["metadata"]["annotations"]["prometheus.io/port"] == port
    [scraped] = documents(root / "deploy" / "prometheus" / "prometheus.yaml")[0]["scrape_configs"]
    assert scraped["static_configs"] == [{"targets": [f"server:{port}"]}]
    folder = metrics["volumeMounts"][0]["mountPath"]
    assert set(re.findall(r"/run/[a-z-]+", text)) == {folder}


def test_the_proxy_asks_torchserve_where_config_properties_puts_it(root: Path) -> None:
    settings, defaults = properties(root), proxy_defaults(root)
    assert f"http://{defaults['INFERENCE'][0]}" == settings["inference_address"]
    assert defaults["GRPC"][0] == f"{settings['grpc_inference_address']}:{settings['grpc_inference_port']}"
    assert defaults["MAX_BODY"][0] == settings["max_request_size"]
    health = [i.arguments for i in instructions(root / "Dockerfile") if i.name == "HEALTHCHECK"]
    assert f"http://{defaults['READINESS'][0]}/ready" in health[0]


def test_selectors_and_references_meet_the_deployment(root: Path) -> None:
    found = manifests(root)
    deployment = found["Deployment"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    name = deployment["metadata"]["name"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels
    assert found["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"] == name
    assert found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert found["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == labels
    assert found["Service"]["spec"]["selector"] == labels
    assert found["ServiceAccount"]["metadata"]["name"] == pods(root)["kubernetes"]["serviceAccountName"]
    assert "replicas" not in deployment["spec"]  # they are the autoscaler's


def test_no_image_floats(root: Path) -> None:
    images = []
    for path in yaml_files(root):
        for document in documents(path):
            images += [
                text for text in strings(document) if re.fullmatch(r"[\w./-]+:[\w.-]*latest[\w.-]*", text)
            ]
    assert images == []
    for container in pods(root)["kserve"]["containers"]:
        assert re.fullmatch(r"maskx-(serve|proxy):\d+", container["image"])
