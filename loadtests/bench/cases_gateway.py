"""The overhead of the gateway: each of its APIs against Triton's own HTTP API."""

from collections.abc import Sequence

from loadtests.bench.passes import alternate, wrk_pass
from loadtests.bench.payloads import (
    embedding_task,
    embedding_v2,
    identity_binary,
    identity_json,
)
from loadtests.bench.report import Floor, Row, Section, rows
from loadtests.bench.settings import Effort
from loadtests.bench.stack import IDENTITY, BenchStack
from loadtests.bench.wrk import Target, run

CONNECTIONS = (1, 8, 32)
JSON_FLOOR = 0.30
STALL_MS = 100.0  # a model that does nothing only takes this long if its queue has stalled
DIRECT, GATEWAY = "Triton, V2 JSON", "gateway, V2 JSON"


def identity(stack: BenchStack, effort: Effort) -> Section:
    """V2 JSON and V2 binary, on a model that does nothing, so that only the gateway shows."""
    targets = [
        identity_json(DIRECT, stack.triton, IDENTITY),
        identity_json(GATEWAY, stack.gateway, IDENTITY, stack.key),
        identity_binary("Triton, V2 binary", stack.triton, IDENTITY),
        identity_binary("gateway, V2 binary", stack.gateway, IDENTITY, stack.key),
    ]
    table, floors = _measured(targets, effort)
    slowest_ms = max(row.figures.p95_ms for row in table if row.name == DIRECT)
    floors.append(Floor(f"Triton's p95 under {STALL_MS:.0f} ms", STALL_MS / slowest_ms, 1.0))
    return Section(
        "The gateway on identity_fp32 (16 values; one worker, key check on)",
        table,
        floors,
        [
            "Each ratio is over Triton's own HTTP API with V2 JSON at the same load.",
            "The gateway calls Triton over HTTP/1.1, not gRPC: identity_fp32 is not cancellable.",
        ],
    )


def task_route(stack: BenchStack, effort: Effort) -> Section:
    """identity_fp32 has no endpoint schema, so no task route: text_embedding is used instead."""
    targets = [
        embedding_v2(DIRECT, stack.triton),
        embedding_v2(GATEWAY, stack.gateway, stack.key),
        embedding_task("gateway, task route", stack),
    ]
    table, _ = _measured(targets, effort)  # the floor is identity_fp32's
    note = (
        "identity_fp32 has no endpoint schema and therefore no task route, so this compares "
        "POST /v1/text_embedding with the same texts sent to Triton's HTTP API (V2 JSON)."
    )
    return Section("The task route on text_embedding (real texts)", table, (), [note])


def _measured(targets: Sequence[Target], effort: Effort) -> tuple[list[Row], list[Floor]]:
    table: list[Row] = []
    floors = []
    for target in targets:
        run(target, 8, 1)  # warm
    for connections in CONNECTIONS:
        passes = {target.name: wrk_pass(target, connections, effort.seconds) for target in targets}
        rounds = alternate(passes, effort.rounds)
        table += rows(rounds, targets[0].name, f"{connections} connections")
        if connections == 8:
            share = rounds.ratio(GATEWAY, DIRECT)
            floors.append(Floor("gateway V2 JSON at 8 connections", share, JSON_FLOOR))
    return table, floors
