"""Metrics: each is documented, by the conventions' names and buckets, right across workers, and its
labels are bounded."""

import json
import os
import re
import subprocess
import sys
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway import metrics as module
from gateway.metrics import Metrics
from gateway.models.catalogue import Catalogue
from gateway.models.rows import RowTokens
from gateway.upstream.admission import FairQueue
from gateway.upstream.balancing import Health
from serving.health.events import Events
from tests.gateway.echo_app import echo_model
from tests.gateway.request_contexts import context_of
from tests.running import ROOT

CATALOGUE = Catalogue({"echo_llm": echo_model()})
CHAT = {
    "gen_ai_operation_name": "chat",
    "gen_ai_provider_name": "tidegate",
    "gen_ai_request_model": "echo_llm",
}


def _record(metrics, status=200, model="echo_llm", route="/v1/chat/completions", **fields):
    context = context_of({"type": "http", "path": "/", "headers": []}, None)
    context.action, context.model, context.api, context.route = "infer", model, "openai", route
    for name, value in fields.items():
        setattr(context, name, value)
    metrics.record(context, status, CATALOGUE)


def _chat(metrics, **fields):
    """A chat that took 3 s: sent after 1 s, its first token 0.5 s later, four more in 1.5 s."""
    started = time.perf_counter() - 3
    _record(
        metrics,
        started=started,
        sent_at=started + 1,
        first_response_at=started + 1.5,
        upstream_s=2.0,
        tokens=RowTokens(100, 5),
        **fields,
    )


def _samples(metrics, tmp_path):
    page = metrics.page(tmp_path / "watch.prom").decode()
    return list(text_string_to_metric_families(page))


def test_every_metric_is_in_the_table_and_no_other(tmp_path):
    table = re.findall(
        r"^\| `(\w+)` \| (\w+) \| (.+?) \| .+\|$",
        (ROOT / "docs/metrics.md").read_text(),
        re.MULTILINE,
    )
    documented = {
        name: (kind, {label.strip("`") for label in labels.split(", ")} - {"(none)"})
        for name, kind, labels in table
    }
    metrics = Metrics()
    _chat(metrics)
    _chat(metrics, pipeline="echo_llm.v2", canaries={"echo_llm.v2": 10.0}, cache="miss")
    metrics.circuit_opened("m")
    _chat(metrics, fallback="spare")
    metrics.shadowed("echo_llm", "echo_llm.v2", "agrees")
    metrics.shadow_took("echo_llm", "echo_llm.v2", 0.1, 0.2)
    metrics.restarted("a task")
    metrics.audit_trouble("lost", 1)
    metrics.log_lines_dropped(1)
    metrics.show_replicas([_Replica()])
    metrics.show_queues({"m": FairQueue(1)})
    events = Events(tmp_path)
    events.add("healed", "m")
    actual = {}
    for family in _samples(metrics, tmp_path):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        actual[name] = (family.type, labels)
    assert actual == documented


class _Replica:
    address, health, inflight, tokens = "127.0.0.1:8001", Health.UP, 0, 0

    def ejected(self):
        return {}


def test_a_chat_is_measured_by_the_conventions():
    metrics = Metrics()
    _chat(metrics)

    def total(name, **labels):
        return metrics.registry.get_sample_value(f"{name}_sum", labels)

    assert total("tidegate_queue_seconds", api="openai", model="echo_llm") == pytest.approx(1)
    assert total("tidegate_upstream_seconds", api="openai", model="echo_llm") == pytest.approx(2)
    labels = {"api": "openai", "model": "echo_llm", "status": "2xx"}
    assert total("tidegate_request_seconds", **labels) == pytest.approx(3, abs=0.9)
    assert total("gen_ai_server_time_to_first_token_seconds", **CHAT) == pytest.approx(1.5)
    each_token = total("gen_ai_server_time_per_output_token_seconds", **CHAT)
    assert each_token == pytest.approx(1.5 / 4)
    for kind, tokens in (("input", 100), ("output", 5)):
        assert total("gen_ai_client_token_usage", **CHAT, gen_ai_token_type=kind) == tokens
    assert total("gen_ai_server_request_duration_seconds", **CHAT, error_type="") > 2.9


def test_while_a_canary_runs_its_requests_and_the_others_are_counted():
    metrics = Metrics()
    for pipeline, status, count in (("echo_llm", 200, 3), ("echo_llm.v2", 502, 2)):
        for weight in (10.0,) * count + (12.5,):
            canary = {"canaries": {"echo_llm.v2": weight}, "beside": "1"}
            _chat(metrics, status=status, pipeline=pipeline, **canary)
    _chat(metrics, pipeline="echo_llm")  # no canary could have answered it

    def count(arm: str, status: str, weight: str = "10") -> float | None:
        labels = {"canary": "echo_llm.v2", "beside": "1", "weight": weight}
        labels |= {"arm": arm, "status": status}
        return metrics.registry.get_sample_value("tidegate_canary_seconds_count", labels)

    assert (count("stable", "2xx"), count("canary", "5xx")) == (3, 2)
    assert (count("stable", "2xx", "12.5"), count("canary", "5xx", "12.5")) == (1, 1)
    assert count("canary", "2xx") is count("stable", "5xx") is None


def test_what_failed_has_a_duration_and_no_times_of_tokens():
    metrics = Metrics()
    _chat(metrics, status=502)
    value = metrics.registry.get_sample_value
    failed = {**CHAT, "error_type": "502"}
    assert value("gen_ai_server_request_duration_seconds_count", failed) == 1
    assert value("gen_ai_server_time_to_first_token_seconds_count", CHAT) == 0
    assert value("gen_ai_server_time_per_output_token_seconds_count", CHAT) == 0


def test_other_routes_have_no_metrics_of_generative_ai():
    metrics = Metrics()
    _chat(metrics, route="/v2/models/{model}/infer", api="v2")
    assert metrics.registry.get_sample_value(
        "tidegate_request_seconds_count", {"api": "v2", "model": "echo_llm", "status": "2xx"}
    )
    page = [family.name for family in metrics.registry.collect() if family.samples]
    assert not [name for name in page if name.startswith("gen_ai")]


def _buckets(metrics, name):
    return sorted(
        {
            float(sample.labels["le"])
            for family in metrics.registry.collect()
            for sample in family.samples
            if sample.name == f"{name}_bucket"
        }
    )[:-1]


def test_the_buckets_are_those_of_the_conventions():
    metrics = Metrics()
    _chat(metrics)
    assert _buckets(metrics, "gen_ai_server_request_duration_seconds") == [
        *(0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
    ]
    assert _buckets(metrics, "gen_ai_client_token_usage") == [
        *(1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216),
        67108864,
    ]
    assert _buckets(metrics, "gen_ai_server_time_per_output_token_seconds") == [
        *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5)
    ]
    assert _buckets(metrics, "gen_ai_server_time_to_first_token_seconds") == [
        *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
    ]


def test_a_label_has_a_thousand_values_and_then_other(monkeypatch):
    monkeypatch.setattr(module, "LABEL_VALUES", 3)
    metrics = Metrics()
    names = ["a", "b", "c", "d", "e"]
    models = Catalogue(dict.fromkeys(names, echo_model()))
    for name in names:
        context = context_of({"type": "http", "path": "/", "headers": []}, None)
        context.model, context.api, context.route = name, "openai", "/v1/embeddings"
        metrics.record(context, 200, models)
    values = {
        sample.labels.get("model", sample.labels.get("gen_ai_request_model"))
        for family in metrics.registry.collect()
        for sample in family.samples
    }
    assert values - {None} == {"a", "b", "c", "other"}
    others = {"api": "openai", "model": "other", "status": "2xx"}
    assert metrics.registry.get_sample_value("tidegate_request_seconds_count", others) == 2


def test_a_model_that_is_not_served_is_unknown_however_it_is_called():
    metrics = Metrics()
    for number in range(20):
        _record(metrics, status=404, model=f"invented-{number}")
    unknown = {"action": "infer", "model": "unknown", "status": "404"}
    assert metrics.registry.get_sample_value("tidegate_requests_total", unknown) == 20


WORKER = """
import sys, time
from pathlib import Path
from gateway.metrics import Metrics
from tests.gateway.test_metrics import _chat
metrics = Metrics()
for _ in range(int(sys.argv[1])):
    _chat(metrics)
if int(sys.argv[1]) == 0:
    print(metrics.page(Path("none")).decode())
"""


def test_workers_are_added_up(tmp_path):
    environ = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}

    def worker(requests: int) -> str:
        command = [sys.executable, "-c", WORKER, str(requests)]
        return subprocess.run(
            command, env=environ, capture_output=True, text=True, check=True
        ).stdout

    for requests in (3, 4, 0):
        page = worker(requests)
    samples = {
        (sample.name, json.dumps(sample.labels, sort_keys=True)): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }

    def value(name: str, **labels: str) -> float:
        return samples[name, json.dumps(labels, sort_keys=True)]

    labels = {"api": "openai", "model": "echo_llm"}
    assert value("tidegate_request_seconds_count", **labels, status="2xx") == 7
    assert value("tidegate_queue_seconds_sum", **labels) == pytest.approx(7)
    assert value("tidegate_queue_seconds_bucket", **labels, le="0.5") == 0
    assert value("tidegate_queue_seconds_bucket", **labels, le="2.5") == 7
    assert value("gen_ai_client_token_usage_sum", **CHAT, gen_ai_token_type="output") == 35


REPLICAS_WORKER = """
import sys
from pathlib import Path
from types import SimpleNamespace
from gateway.metrics import Metrics
from gateway.upstream.balancing import Health
metrics = Metrics()
for addresses in sys.argv[1:]:
    metrics.show_replicas([
        SimpleNamespace(
            address=address, health=Health.UP, inflight=1, tokens=5, ejected=lambda: {}
        )
        for address in addresses.split(",")
    ])
print(metrics.page(Path("none")).decode())
"""


def test_a_replica_that_is_gone_has_no_gauge_in_any_worker(tmp_path):
    environ = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}

    def gauges(*lists: str) -> dict[str, dict[str, float]]:
        command = [sys.executable, "-c", REPLICAS_WORKER, *lists]
        page = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
        return {
            family.name.removeprefix("tidegate_replica_"): {
                sample.labels["replica"]: sample.value for sample in family.samples
            }
            for family in text_string_to_metric_families(page.stdout)
            if family.name.startswith("tidegate_replica_")
        }

    assert gauges("a:1,b:1", "a:1,c:1")["healthy"] == {"a:1": 1, "c:1": 1}
    # Another worker has not yet seen that b is gone: what the first says of b changes nothing.
    late = gauges("a:1,b:1")
    assert late["healthy"] == {"a:1": 1, "b:1": 1}
    assert late["inflight"] == {"a:1": 2, "b:1": 1}
    gone = gauges("a:1,b:1", "d:1")
    assert late["tokens"] == {"a:1": 10, "b:1": 5}
    names = {"healthy", "inflight", "tokens", "ejected_models", "drained"}
    assert {name: set(values) for name, values in gone.items()} == {name: {"d:1"} for name in names}
