"""How many queries MLCommons' LoadGen wants if some are late: what our rule is compared with.

LoadGen is no dependency. In an environment that has it (``pip install mlcommons-loadgen``),

    python tests/loadtests/signoff/loadgen_counts.py MISSES QUERIES PERCENTILE

runs a server of which the first MISSES of QUERIES are late, and prints the count. QUERIES must be
fewer than that, so that LoadGen says how many more it wants.
"""

import importlib
import os
import re
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

loadgen: Any = importlib.import_module("mlperf_loadgen")  # by name: it is no dependency

LATE_S = 1.0
LIMIT_NS = 500_000_000


def count(misses: int, queries: int, percentile: float) -> int:
    """The queries that LoadGen wants in all."""
    seen = 0

    def issue(samples: list[Any]) -> None:
        nonlocal seen
        for sample in samples:
            seen += 1
            response = [loadgen.QuerySampleResponse(sample.id, 0, 0)]
            late_s = LATE_S if seen <= misses else 0.0
            threading.Timer(late_s, loadgen.QuerySamplesComplete, [response]).start()

    settings = loadgen.TestSettings()
    settings.scenario = loadgen.TestScenario.Server
    settings.mode = loadgen.TestMode.PerformanceOnly
    settings.server_target_qps = 1000
    settings.server_target_latency_ns = LIMIT_NS
    settings.server_target_latency_percentile = percentile
    settings.min_query_count = settings.max_query_count = queries
    settings.min_duration_ms = 0
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        system = loadgen.ConstructSUT(issue, lambda: None)
        samples = loadgen.ConstructQSL(64, 64, lambda chosen: None, lambda chosen: None)
        loadgen.StartTest(system, samples, settings, os.devnull)
        summary = Path("mlperf_log_summary.txt").read_text(encoding="utf-8")
    more = re.search(r"Processed (\d+) queries\.\s.*at least (\d+) more", summary)
    if more is None:
        raise SystemExit(f"LoadGen wants no more than {queries}: pass fewer\n{summary}")
    return int(more[1]) + int(more[2])


if __name__ == "__main__":
    wanted = count(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
    sys.stdout.write(f"{wanted}\n")
