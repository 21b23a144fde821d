"""Dashboard, alerts and autoscaler ask for metrics and labels that TorchServe is told to show, and for no others."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.deployed import documents, manifests, strings

SUFFIXES = ("_bucket", "_sum", "_count")
WORDS = {"by", "or", "and", "unless", "on", "without", "ignoring"}
PROMETHEUS = {"up": {"job", "instance"}}
"""What Prometheus itself knows of a target."""
ADDED = {"Hostname", "instance", "job", "namespace", "pod"}
"""Labels that TorchServe gives the handler's metrics, and Prometheus all."""


def shown(root: Path) -> dict[str, tuple[str, set[str]]]:
    """Metric name -> (counter, gauge or histogram; its labels) of serve_config/metrics.yaml."""
    [content] = documents(root / "serve_config" / "metrics.yaml")
    found = {}
    for part in ("ts_metrics", "model_metrics"):
        for kind, metrics in content[part].items():
            for metric in metrics:
                found[metric["name"]] = (kind, set(metric["dimensions"]))
    return found


def asked(query: str) -> tuple[set[str], set[str]]:
    """The metrics and the labels that a PromQL expression names."""
    query = re.sub(r"<<\.\w+>>", "", query)
    matchers = re.findall(r"\{([^}]*)\}", query)
    labels = {label for matcher in matchers for label in re.findall(r"(\w+)\s*[=!]~?\s*\"", matcher)}
    query = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\"[^\"]*\"", " ", query)
    for names in re.findall(r"\b(?:by|without|on)\s*\(([^)]*)\)", query):
        labels |= set(re.findall(r"\w+", names))
    query = re.sub(r"\b(?:by|without|on)\s*\([^)]*\)", " ", query)
    names = set(re.findall(r"(?<![\w.])[A-Za-z_]\w*\b(?!\s*\()", query)) - WORDS
    return names, labels


def unknown(root: Path, query: str) -> list[str]:
    """What an expression asks for in vain."""
    metrics = shown(root)
    names, labels = asked(query)
    wrong, known = [], set(ADDED)
    for name in names:
        base = next((name.removesuffix(s) for s in SUFFIXES if name.removesuffix(s) in metrics), name)
        if name in PROMETHEUS:
            known |= PROMETHEUS[name]
        elif base not in metrics or (metrics[base][0] == "histogram") != (base != name):
            wrong.append(name)
        else:
            known |= metrics[base][1] | ({"le"} if name.endswith("_bucket") else set())
    return sorted(wrong) + sorted(labels - known)


def dashboard(root: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((root / "deploy" / "grafana" / "maskx.json").read_text())
    return content


def test_the_dashboard_asks_only_for_what_is_shown(root: Path) -> None:
    queries = [target["expr"] for panel in dashboard(root)["panels"] for target in panel.get("targets", [])]
    assert len(queries) > 20
    assert {query: unknown(root, query) for query in queries if unknown(root, query)} == {}


def test_the_dashboard_has_every_metric_of_the_handler(root: Path) -> None:
    text = (root / "deploy" / "grafana" / "maskx.json").read_text()
    ours = [name for name in shown(root) if name.startswith("maskx_")]
    assert len(ours) >= 9
    assert [name for name in ours if not re.search(rf"\b{name}(_bucket|_sum|_count)?\b", text)] == []


def test_the_panels_of_the_dashboard_do_not_lie_on_each_other(root: Path) -> None:
    places: dict[tuple[int, int], str] = {}
    for panel in dashboard(root)["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        for x in range(at["x"], at["x"] + at["w"]):
            for y in range(at["y"], at["y"] + at["h"]):
                assert (x, y) not in places, f"{panel['title']} and {places[x, y]}"
                places[x, y] = panel["title"]


def test_the_alerts_ask_only_for_what_is_shown(root: Path) -> None:
    [content] = documents(root / "deploy" / "prometheus" / "alerts.yaml")
    rules = [rule for group in content["groups"] for rule in group["rules"]]
    assert len(rules) >= 5
    assert {r["alert"]: unknown(root, r["expr"]) for r in rules if unknown(root, r["expr"])} == {}
    assert all(set(rule["annotations"]) == {"summary", "action"} for rule in rules)


def test_the_autoscaler_scales_by_what_the_adapter_makes_of_a_metric_that_is_shown(root: Path) -> None:
    [metric] = manifests(root)["HorizontalPodAutoscaler"]["spec"]["metrics"]
    [rules] = documents(root / "deploy" / "prometheus" / "adapter.yaml")
    [rule] = [r for r in rules["rules"] if r["name"]["as"] == metric["pods"]["metric"]["name"]]
    assert unknown(root, rule["seriesQuery"]) == []
    assert unknown(root, rule["metricsQuery"]) == []


@pytest.mark.parametrize(
    ("query", "wrong"),
    [
        ("rate(maskx_requests[5m])", ["maskx_requests"]),
        ("rate(maskx_queue_seconds[5m])", ["maskx_queue_seconds"]),
        ('sum by (kind) (maskx_errors_total{Reason="x"})', ["Reason", "kind"]),
        ("sum by (le) (rate(maskx_forward_seconds_bucket[5m])) / 1e6", []),
    ],
)
def test_a_wrong_name_or_label_is_found(root: Path, query: str, wrong: list[str]) -> None:
    assert unknown(root, query) == wrong


def test_the_dashboards_source_is_the_one_that_is_set_up(root: Path) -> None:
    [sources] = documents(root / "deploy/grafana/provisioning/datasources/prometheus.yaml")
    assert {source["type"] for source in sources["datasources"]} == {"prometheus"}
    used = {text for text in strings(dashboard(root)["panels"]) if text.startswith("${")}
    named = {f"${{{variable['name']}}}" for variable in dashboard(root)["templating"]["list"]}
    assert used <= named


def test_prometheus_finds_the_alerts_right_and_they_fire(root: Path) -> None:
    """With promtool, where it is installed (Debian: apt-get install prometheus)."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("there is no promtool here; Debian: apt-get install prometheus")
    done = subprocess.run(
        [promtool, "test", "rules", "tests/deploy/alerts_fire.yaml"],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
