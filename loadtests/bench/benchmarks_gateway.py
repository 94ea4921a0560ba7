"""The overhead of the gateway: each of its APIs against Triton's own HTTP API."""

from collections.abc import Sequence

from loadtests.bench.passes import Ratio, Rounds, alternate, wrk_pass
from loadtests.bench.payloads import (
    embedding_task,
    embedding_v2,
    identity_binary,
    identity_json,
)
from loadtests.bench.report import Floor, Row, Section, rows
from loadtests.bench.settings import Effort
from loadtests.bench.stack import BenchStack
from loadtests.bench.wrk import LoadTarget, run

# connections -> the share of Triton's own throughput, and of its efficiency (all processes), that
# V2 JSON through the gateway reaches
SHARES = {8: (0.30, 0.20), 32: (0.30, 0.20)}
STALL_MS = 100.0  # a model that does nothing only takes this long if its queue has stalled
DIRECT, GATEWAY = "Triton, V2 JSON", "gateway, V2 JSON"


def identity(stack: BenchStack, effort: Effort) -> Section:
    """V2 JSON and V2 binary, on a model that does nothing, so that only the gateway shows."""
    targets = [
        identity_json(DIRECT, stack, "triton"),
        identity_json(GATEWAY, stack, "gateway"),
        identity_binary("Triton, V2 binary", stack, "triton"),
        identity_binary("gateway, V2 binary", stack, "gateway"),
    ]
    table, floors = _measured(targets, effort)
    slowest_ms = max(row.figures.p95_ms for row in table if row.name == DIRECT)
    margin = Ratio.of([STALL_MS / slowest_ms])
    floors.append(Floor(f"Triton's p95 under {STALL_MS:.0f} ms", margin, 1.0))
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
        embedding_v2(DIRECT, stack, "triton"),
        embedding_v2(GATEWAY, stack, "gateway"),
        embedding_task("gateway, task route", stack),
    ]
    table, _ = _measured(targets, effort)  # the floor is identity_fp32's
    note = (
        "identity_fp32 has no endpoint schema and therefore no task route, so this compares "
        "POST /v1/text_embedding with the same texts sent to Triton's HTTP API (V2 JSON)."
    )
    return Section("The task route on text_embedding (real texts)", table, (), [note])


def _measured(targets: Sequence[LoadTarget], effort: Effort) -> tuple[list[Row], list[Floor]]:
    table: list[Row] = []
    floors: list[Floor] = []
    for target in targets:
        run(target, 8, 1)  # warm
    for connections in effort.connections:
        passes = {target.name: wrk_pass(target, connections, effort.seconds) for target in targets}
        rounds = alternate(passes, effort.rounds)
        table += rows(rounds, targets[0].name, f"{connections} connections")
        if connections in SHARES:
            floors += _floors(rounds, connections)
    return table, floors


def _floors(rounds: Rounds, connections: int) -> list[Floor]:
    what, (throughput, efficiency) = f"{GATEWAY} at {connections}", SHARES[connections]
    floors = [Floor(f"{what}: throughput", rounds.throughput(GATEWAY, DIRECT), throughput)]
    per_cpu = rounds.efficiency(GATEWAY, DIRECT)
    if per_cpu:
        floors.append(Floor(f"{what}: requests per CPU", per_cpu, efficiency))
    return floors
