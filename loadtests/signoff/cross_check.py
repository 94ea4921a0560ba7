"""The same closed loop by one of NVIDIA's load generators and by our own: do they agree?

Both send the same real texts, as many at once, one run after the other: ours, theirs, ours. Tensors
are compared with perf_analyzer over V2 JSON, a language model with AIPerf over streamed chat.
"""

import csv
import json
import math
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import gevent
import psutil

from loadtests.preflight import CannotStart

CONNECTIONS = 4
AGREE = 0.15  # of perf_analyzer's figure
ROWS = 500  # that the peer sends in turn
CHAT_TOKENS = 32  # of a chat completion at most, unless a trace says otherwise
# AIPerf counts tokens itself, and would fetch a tokenizer from the network. They are not compared,
# so it gets one that takes each word for a token.
_WORDS = json.dumps(
    {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": {"[UNK]": 0}, "unk_token": "[UNK]"},
    }
)
_WORDS_CONFIG = json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"})
IDLE_S = 10.0  # that a language model's golden probes are seen in
_BUSY = 0.5  # of a core: then the client itself is in its latencies


class NotCompared(Exception):
    """A client measured nothing: the message says why."""


@dataclass(frozen=True)
class Client:
    """What one client measured: requests per second, the median latency, the share of a core that
    it used itself, and the median time to the first token of streams, NaN for others.

    ``server_ms`` is the servers' processor time for a request, NaN where it is not known. It does
    not depend on what the client itself takes from a machine that it shares with the servers."""

    rate: float
    p50_ms: float
    cpu: float
    first_token_ms: float = math.nan
    server_ms: float = math.nan


@dataclass(frozen=True)
class Peer:
    """Another load generator: its name, the API over which it is compared with ours, what installs
    it, and where."""

    name: str
    api: str
    target: str
    place: str

    def find(self, root: Path) -> Path:
        """The one that ``make`` has installed, else the one on PATH; CannotStart without either."""
        own = root / ".venv-clients" / self.place
        executable = own if own.exists() else shutil.which(own.name)
        if not executable:
            raise CannotStart(f"there is no {self.name} to compare with: run `{self.target}`")
        return Path(executable)


PERF_ANALYZER = Peer("perf_analyzer", "v2", "make clients", "perf_analyzer/bin/perf_analyzer")
AIPERF = Peer("AIPerf", "chat", "make aiperf", "aiperf/bin/aiperf")


@dataclass(frozen=True)
class CrossCheck:
    """``ours`` are the runs before and after the peer's; ``why`` is the reason why it could not be
    done, or ''."""

    peer: Peer
    theirs: Client | None = None
    ours: tuple[Client, ...] = ()
    why: str = ""

    @property
    def ratio(self) -> float | None:
        """Our mean rate, of the peer's."""
        if self.theirs is None or not self.ours:
            return None
        return sum(own.rate for own in self.ours) / len(self.ours) / self.theirs.rate

    @property
    def server_ratio(self) -> float:
        """The servers' processor time for a request of the peer, of that for one of ours; NaN if
        it is not known."""
        if self.theirs is None or not self.ours:
            return math.nan
        return self.theirs.server_ms / (sum(own.server_ms for own in self.ours) / len(self.ours))

    def __str__(self) -> str:
        ratio = self.ratio
        if ratio is None or self.theirs is None:
            return f"Not checked against {self.peer.name}: {self.why}."
        theirs = f"{self.peer.name} {self.theirs.rate:.4g}/s ({_medians([self.theirs])})"
        said = (
            f"{'V2' if self.peer.api == 'v2' else 'Chat'} in a closed loop of {CONNECTIONS}: "
            f"{theirs}, this generator {ratio * self.theirs.rate:.4g}/s ({_medians(self.ours)}): "
            f"ratio {ratio:.2f}"
        )
        if abs(ratio - 1) <= AGREE:
            return f"{said}, within {AGREE:.0%}."
        return f"{said}, more than {AGREE:.0%} apart: {self._difference()}."

    def _difference(self) -> str:
        """Why they differ, as far as the figures say."""
        rates = [own.rate for own in self.ours]
        spread = max(rates) / min(rates) - 1
        if spread > AGREE:
            return f"this generator's own two runs differ by {spread:.0%}, so the machine varies"
        cpu = max(own.cpu for own in self.ours)
        if cpu > _BUSY:
            return f"this generator itself used {cpu:.0%} of a core, which its latencies include"
        if self.theirs and self.theirs.cpu > _BUSY:
            said = f"{self.peer.name} itself used {self.theirs.cpu:.0%} of a core"
            if math.isnan(self.server_ratio):
                return said
            within = "within" if abs(self.server_ratio - 1) <= AGREE else "more than"
            spent = " and ".join(f"{own.server_ms:.4g}" for own in self.ours)
            return (
                f"{said}. The servers spent {self.theirs.server_ms:.4g} ms of processor time on a "
                f"request of its, {spent} ms on one of ours: ratio {self.server_ratio:.2f}, "
                f"{within} {AGREE:.0%}"
            )
        return "neither client was busy and the machine was steady, so the cause is unknown"


def _medians(runs: Sequence[Client]) -> str:
    said = f"p50 {' and '.join(f'{run.p50_ms:.4g}' for run in runs)} ms"
    if any(math.isnan(run.first_token_ms) for run in runs):
        return said
    return f"{said}, first token {' and '.join(f'{run.first_token_ms:.4g}' for run in runs)} ms"


class ServersTime:
    """The processor time that the servers use for requests: what ``root`` and its descendants use,
    less what they did while nobody asked. NaN without a ``root``, or if one of them ends."""

    def __init__(self, root: psutil.Process | None, idle_s: float = IDLE_S) -> None:
        """Watches them for ``idle_s``, in which nobody may ask."""
        self._root, self._idle = root, 0.0
        if root is not None:
            self.start()
            gevent.sleep(idle_s)
            self._idle = self.used_s() / idle_s if idle_s else 0.0

    def start(self) -> None:
        self._before_s, self._began = processor_s(self._root), time.monotonic()

    def used_s(self) -> float:
        """Seconds since ``start``."""
        used_s = processor_s(self._root) - self._before_s
        return used_s - self._idle * (time.monotonic() - self._began)


def perf_analyzer(tool: Path, url: str, key: str, model: str, data: str, seconds: float) -> Client:
    """One run of perf_analyzer; ``data`` is its JSON with the tensors of each request. Raises
    NotCompared with the end of its output if it ends without figures."""
    with tempfile.TemporaryDirectory(prefix="tidegate-signoff-") as name:
        folder = Path(name)
        (folder / "data.json").write_text(data, encoding="utf-8")
        command = [
            *(str(tool), "-m", model, "-i", "http", "-u", url.partition("://")[2]),
            *("--concurrency-range", str(CONNECTIONS), "--input-data", str(folder / "data.json")),
            *("--input-tensor-format", "json", "--output-tensor-format", "json"),
            *("--measurement-interval", str(round(1000 * seconds)), "--max-trials", "3"),
            *("--stability-percentage", "999", "-f", str(folder / "figures.csv")),
        ]
        if key:  # on the command line: there is no other way
            command += ["-H", f"Authorization: Bearer {key}"]
        run, cpu = _run("perf_analyzer", command, _libraries(tool), 120 + 10 * seconds)
        if run.returncode != 0 or not (folder / "figures.csv").exists():
            output = " ".join((run.stderr.strip() or run.stdout.strip())[-300:].split())
            raise NotCompared(f"perf_analyzer ended with {run.returncode}: {output}")
        rate, p50_ms = figures_of((folder / "figures.csv").read_text(encoding="utf-8"))
    return Client(rate, p50_ms, cpu)


def aiperf(
    tool: Path,
    url: str,
    key: str,
    model: str,
    texts: Sequence[str],
    seconds: float,
    servers: ServersTime,
) -> Client:
    """One run of AIPerf over streamed chat completions, and the time of the ``servers``. Raises
    NotCompared with the end of its output if it ends without figures."""
    with tempfile.TemporaryDirectory(prefix="tidegate-signoff-") as name:
        folder = Path(name)
        rows = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (folder / "texts.jsonl").write_text(rows, encoding="utf-8")
        (folder / "tokenizer.json").write_text(_WORDS, encoding="utf-8")
        (folder / "tokenizer_config.json").write_text(_WORDS_CONFIG, encoding="utf-8")
        command = [
            *(str(tool), "profile", "--model", model, "--url", url, "--endpoint-type", "chat"),
            *("--streaming", "--concurrency", str(CONNECTIONS)),
            *("--benchmark-duration", str(round(seconds)), "--ui-type", "none"),
            *("--input-file", str(folder / "texts.jsonl"), "--custom-dataset-type", "single_turn"),
            *("--tokenizer", name, "--extra-inputs", json.dumps({"max_tokens": CHAT_TOKENS})),
            *("--workers-max", "1", "--record-processors", "1", "--no-gpu-telemetry"),
            *("--no-server-metrics", "--output-artifact-dir", str(folder / "figures")),
        ]
        if key:  # on the command line: there is no other way
            command += ["--api-key", key]
        servers.start()
        run, cpu = _run("AIPerf", command, {}, 180 + 10 * seconds)
        served_s = servers.used_s()
        files = list((folder / "figures").rglob("profile_export_aiperf.json"))
        if run.returncode != 0 or not files:
            output = " ".join((run.stderr.strip() or run.stdout.strip())[-300:].split())
            raise NotCompared(f"AIPerf ended with {run.returncode}: {output}")
        text = files[0].read_text(encoding="utf-8")
        return replace(chat_figures_of(text, served_s), cpu=cpu)


def chat_figures_of(text: str, served_s: float = math.nan) -> Client:
    """What AIPerf's JSON says, whose latencies are in milliseconds; the servers used ``served_s``
    of processor time meanwhile."""
    try:
        figures = json.loads(text)
        return Client(
            float(figures["request_throughput"]["avg"]),
            float(figures["request_latency"]["p50"]),
            0.0,
            float(figures["time_to_first_token"]["p50"]),
            1000 * served_s / float(figures["request_count"]["avg"]),
        )
    except (KeyError, ValueError, TypeError, ZeroDivisionError):
        raise NotCompared(f"AIPerf's figures cannot be read: {text[:200]!r}") from None


def processor_s(root: psutil.Process | None) -> float:
    """The processor time that a process and its descendants have used; NaN of None, or if one of
    them ends meanwhile."""
    if root is None:
        return math.nan
    try:
        times = [process.cpu_times() for process in (root, *root.children(recursive=True))]
    except psutil.Error:
        return math.nan
    return sum(time.user + time.system for time in times)


def _run(
    name: str, command: list[str], variables: Mapping[str, str], timeout_s: float
) -> tuple["subprocess.CompletedProcess[str]", float]:
    """The ended process, and the share of a core that it used. NotCompared if it did not end."""
    before = os.times()
    try:
        run = subprocess.run(
            command,
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotCompared(f"{name} did not end well: {error}") from None
    after = os.times()
    used_s = sum(after[2:4]) - sum(before[2:4])  # of children
    return run, used_s / (after.elapsed - before.elapsed)


def figures_of(text: str) -> tuple[float, float]:
    """Its CSV's requests per second, and its median latency in milliseconds (there in us)."""
    try:
        row = next(csv.DictReader(text.splitlines()))
        return float(row["Inferences/Second"]), float(row["p50 latency"]) / 1e3
    except (StopIteration, KeyError, ValueError, TypeError):
        raise NotCompared(f"perf_analyzer's figures cannot be read: {text[:200]!r}") from None


def _libraries(tool: Path) -> dict[str, str]:
    """It links against CUDA's runtime, which stands in its environment."""
    folders = tool.parent.parent.glob("lib/python3*/site-packages/nvidia/cuda_runtime/lib")
    return {"LD_LIBRARY_PATH": ":".join(map(str, folders))}
