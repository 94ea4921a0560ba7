"""The engine proved: ``python -m tests.conformance.engine VERSION_FOLDER``, of a converted model.

It drives ``lm_driver`` in this process, as the backend does, but without Triton, so that thousands
of cancels test the engine and not the server around it. Each proof prints its figures, and raises
AssertionError if it fails; ``docs/chat-engine.md`` has what they came to.
"""

import contextlib
import ctypes
import json
import math
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np

sys.path.append(str(Path(__file__).parents[2] / "serving" / "backends" / "openvino_genai"))

import lm_sampling
from lm_driver import Driver, Job, Piece
from lm_jobs import Busy, Cancelled, Load
from lm_settings import BLOCK, Settings

MIB = 2**20
WAIT_S = 300.0
WAITING, TOGETHER = 100, 5  # requests when some leave, and how many leave at once
# Prompts of about 10 to 200 tokens.
PROMPTS = tuple(
    "Tell me about the sea. " * times + f"Story number {times}:"
    for times in (1, 3, 9, 20, 2, 30, 5, 12)
)
OPEN_END = "My favourite animal is the"  # many tokens may follow
LEAST_EXPECTED = 5.0  # of a bin of the chi-square test
LEAST_P = 1e-4  # below this a distribution is not the expected one
# The sampling parameters of each test of the distribution.
DISTRIBUTIONS: Mapping[str, Mapping[str, Any]] = {
    "temperature 1": {},
    "top_k 5": {"top_k": 5},
    "top_p 0.5": {"top_p": 0.5},
    "min_p 0.2": {"min_p": 0.2},
    "temperature 0.4": {"temperature": 0.4},
}


class Asked:
    """One request, and what came of it."""

    def __init__(
        self,
        driver: Driver,
        prompt: str,
        sampling: Mapping[str, Any],
        is_cancelled: Callable[[], bool] = lambda: False,
        is_stream: bool = True,
    ) -> None:
        """Raises Busy."""
        self.ended = threading.Event()
        self.pieces: list[list[Piece]] = []
        self.error: Exception | None = None
        parsed = lm_sampling.parse(json.dumps(sampling))
        wants_logprobs = parsed.logprobs is not None
        self._job = Job(
            prompt, parsed, is_stream, wants_logprobs, self._send, self._fail, is_cancelled
        )
        driver.submit(self._job)

    def _send(self, _: Job, pieces: list[Piece], is_last: bool) -> None:
        self.pieces.append(pieces)
        if is_last:
            self.ended.set()

    def _fail(self, _: Job, error: Exception) -> None:
        self.error = error
        self.ended.set()

    @property
    def phase(self) -> str:
        if self.pieces:
            return "in decode"
        return "in prefill" if self._job.sequences else "queued"

    def pieces_of_all(self) -> list[list[Piece]]:
        assert self.ended.wait(WAIT_S), "no answer"
        if self.error:
            raise self.error
        return self.pieces

    def text(self) -> str:
        return "".join(pieces[0].text for pieces in self.pieces_of_all())

    def logprobs(self) -> list[tuple[int, float]]:
        """The first token of each sequence, and its log-probability."""
        (pieces,) = self.pieces_of_all()
        return [piece.logprobs[0][:2] for piece in pieces]


@contextmanager
def running(folder: Path, settings: Settings) -> Iterator[Driver]:
    driver = Driver(folder, settings)
    driver.start()
    driver.wait_ready()
    try:
        yield driver
    finally:
        driver.stop()


def greedy(tokens: int) -> dict[str, Any]:
    return {"temperature": 0, "max_tokens": tokens, "ignore_eos": True}


def equality(folder: Path, settings: Settings, tokens: int) -> str:
    """Prompts of mixed lengths, together and in another order, against one at a time; the prefix
    cache off and on."""
    expected: dict[str, str] = {}
    for has_cache in (False, True):
        changed = replace(settings, enable_prefix_caching=has_cache)
        with running(folder, changed) as driver:
            if not expected:
                for prompt in PROMPTS:
                    expected[prompt] = Asked(driver, prompt, greedy(tokens)).text()
            for order in (PROMPTS, PROMPTS[::-1]):
                together = {prompt: Asked(driver, prompt, greedy(tokens)) for prompt in order}
                for prompt, asked in together.items():
                    assert asked.text() == expected[prompt], (has_cache, prompt[-40:])
    n = len(PROMPTS)
    return f"{n} prompts x {tokens} tokens, prefix cache off and on, two orders: all {4 * n} equal"


def cancels(folder: Path, settings: Settings, count: int) -> str:
    """Requests cancelled while they wait, while their prompt is read and while they are generated;
    nothing is left of them, and what is asked next is answered as before."""
    chosen = random.Random(1)  # noqa: S311 - no secret
    wide = replace(settings, max_queue_requests=count, max_queue_tokens=10**9, max_queue_s=10**6)
    phases = {"queued": 0, "in prefill": 0, "in decode": 0, "ended by itself": 0}
    with running(folder, wide) as driver:
        before = Asked(driver, PROMPTS[0], greedy(24)).text()
        rss_mib = resident_mib()
        waiting: list[tuple[Asked, threading.Event]] = []
        for number in range(count):
            left = threading.Event()
            prompt = f"{number} {chosen.choice(PROMPTS)}"
            asked = Asked(driver, prompt, greedy(150), left.is_set)
            waiting.append((asked, left))
            if len(waiting) == WAITING:
                _leave(waiting, chosen, phases)
        _leave(waiting, chosen, phases)
        load = idle(driver)
        assert (load.queued, load.running, load.kv_usage) == (0, 0, 0.0), load
        assert load.cancelled == count - phases["ended by itself"] > count / 2, (load, phases)
        assert Asked(driver, PROMPTS[0], greedy(24)).text() == before
    phase_counts = ", ".join(f"{number} {phase}" for phase, number in phases.items())
    return (
        f"{count} requests that their clients leave ({phase_counts}): queued, running and KV use "
        f"0; RSS {rss_mib} MiB before, {resident_mib()} MiB after"
    )


def _leave(
    waiting: list[tuple[Asked, threading.Event]], chosen: random.Random, phases: dict[str, int]
) -> None:
    """All leave, a few at a time and in any order."""
    chosen.shuffle(waiting)
    while waiting:
        group = [waiting.pop() for _ in range(min(len(waiting), TOGETHER))]
        at = [asked.phase for asked, _ in group]
        for _, left in group:
            left.set()
        for (asked, _), phase in zip(group, at, strict=True):
            assert asked.ended.wait(WAIT_S), "it was not cancelled"
            assert asked.error is None or isinstance(asked.error, Cancelled), asked.error
            phases[phase if asked.error else "ended by itself"] += 1


def bounds(folder: Path, settings: Settings) -> str:
    """What the KV cache does not hold waits, and what the queue does not hold is refused."""
    small = replace(
        settings, context_length=256, num_kv_blocks=16, max_queue_requests=8, max_queue_s=10**6
    )
    with running(folder, small) as driver:
        all_asked: list[Asked] = []
        for _ in range(32):
            with contextlib.suppress(Busy):
                all_asked.append(Asked(driver, PROMPTS[0], greedy(200)))
        most = 0
        while waits := [asked for asked in all_asked if not asked.ended.is_set()]:
            most = max(most, sum(asked.phase != "queued" for asked in waits))
            time.sleep(0.01)
        accepted = [asked for asked in all_asked if not isinstance(asked.error, Busy)]
        refused = 32 - len(accepted)
        assert refused, "nothing was refused"
        assert len(accepted) >= small.max_queue_requests
        for asked in accepted:
            asked.text()
        assert idle(driver).kv_usage == 0
    assert most <= small.num_kv_blocks * BLOCK // 200, most  # of 200 tokens and a prompt each
    return (
        f"32 requests for {small.num_kv_blocks} blocks and {small.max_queue_requests} places: "
        f"{len(accepted)} answered, at most {most} at a time, {refused} refused at once"
    )


def distribution(folder: Path, settings: Settings, count: int) -> str:
    """First tokens sampled at temperature 1 are as frequent as their log-probabilities say, and
    with top_k, top_p, min_p and another temperature as the shares that follow from these."""
    with running(folder, settings) as driver:
        drawn = {
            name: _sampled(driver, sampling, count) for name, sampling in DISTRIBUTIONS.items()
        }
    # A log-probability is the model's own, whatever the sampling parameters.
    shares = {token: math.exp(logprob) for draws in drawn.values() for token, logprob in draws}
    results = []
    for name, sampling in DISTRIBUTIONS.items():
        tokens = [token for token, _ in drawn[name]]
        p = _chi_square_p(tokens, _expected(shares, sampling), is_all=not sampling)
        results.append(f"{name} {p:.3f}")
        assert p > LEAST_P, results
    return f"{count} first tokens each, {len(shares)} different; p: {', '.join(results)}"


def _sampled(driver: Driver, sampling: Mapping[str, Any], count: int) -> list[tuple[int, float]]:
    n = lm_sampling.MAX_N
    settings = {"temperature": 1, "n": n, "max_tokens": 1, "logprobs": 0, "ignore_eos": True}
    settings |= sampling
    drawn: list[tuple[int, float]] = []
    while len(drawn) < count:
        group = [Asked(driver, OPEN_END, settings, is_stream=False) for _ in range(4)]
        drawn += [one for asked in group for one in asked.logprobs()]
    return drawn[:count]


def _expected(shares: Mapping[int, float], sampling: Mapping[str, Any]) -> dict[int, float]:
    """The shares of the tokens that these parameters leave: as they are at temperature 1, else up
    to one factor, because what was never drawn is not known."""
    ordered = sorted(shares.items(), key=lambda item: -item[1])
    if "top_k" in sampling:
        ordered = ordered[: sampling["top_k"]]
    if "top_p" in sampling:
        totals = np.cumsum([share for _, share in ordered])
        ordered = ordered[: int(np.searchsorted(totals, sampling["top_p"])) + 1]
    if "min_p" in sampling:
        least = sampling["min_p"] * ordered[0][1]
        ordered = [(token, share) for token, share in ordered if share >= least]
    power = 1 / sampling.get("temperature", 1)
    return {token: share**power for token, share in ordered}


def _chi_square_p(tokens: Sequence[int], shares: Mapping[int, float], is_all: bool) -> float:
    """The probability of counts as far from these shares. Rare tokens are one bin where the shares
    are of everything there is (``is_all``); else only the common ones are compared, with one
    another."""
    from scipy.stats import chi2

    beyond = sum(token not in shares for token in tokens)
    assert not beyond, f"{beyond} tokens that may not be"
    total = 1.0 if is_all else sum(shares.values())
    common = {
        token: share
        for token, share in shares.items()
        if len(tokens) * share / total >= LEAST_EXPECTED
    }
    observed = {token: tokens.count(token) for token in common}
    rest = 1 - sum(common.values()) if is_all else 0.0
    scale = (len(tokens) if is_all else sum(observed.values())) / (sum(common.values()) + rest)
    statistic = sum(
        (observed[token] - scale * share) ** 2 / (scale * share) for token, share in common.items()
    )
    if scale * rest < LEAST_EXPECTED:
        return float(chi2.sf(statistic, len(common) - 1))
    rest_seen = len(tokens) - sum(observed.values())
    statistic += (rest_seen - scale * rest) ** 2 / (scale * rest)
    return float(chi2.sf(statistic, len(common)))


def precisions(folder: Path) -> str:
    """Perplexity by the precisions of the arithmetic and the KV cache."""
    from converters.tasks.causal_lm.openvino_engine import PROPERTIES, OpenVinoEngine
    from converters.tasks.causal_lm.samples import default_passages

    lines = []
    passages = default_passages()
    reference: np.ndarray | None = None
    for inference, cache in (("f32", "f32"), ("f32", "f16"), ("f32", "u8"), ("", "f16")):
        properties = {**PROPERTIES, "KV_CACHE_PRECISION": cache}
        properties["INFERENCE_PRECISION_HINT"] = inference
        if not inference:
            del properties["INFERENCE_PRECISION_HINT"]
        engine = OpenVinoEngine(folder / "model.gguf", properties)
        rows = [np.array(engine.token_ids(passage)) for passage in passages]
        actual = np.concatenate(engine.log_probs(rows))
        reference = actual if reference is None else reference
        difference = np.abs(actual - reference)
        lines.append(
            f"arithmetic {inference or 'by default'}, KV {cache}: perplexity "
            f"{math.exp(-actual.mean()):.4f}, a token's log-probability differs by "
            f"{difference.mean():.5f} (largest {difference.max():.4f})"
        )
        del engine
    return f"{len(reference) if reference is not None else 0} tokens; " + "; ".join(lines)


def silence(folder: Path, settings: Settings) -> str:
    """The engine opens no socket, and openvino's telemetry is not there to do so."""
    with running(folder, settings) as driver:
        Asked(driver, PROMPTS[0], greedy(4)).text()
        assert sys.modules["openvino_telemetry"] is None
        sockets = [link for link in _open_files() if link.startswith("socket:")]
    assert not sockets, sockets
    return "no socket is open, and openvino_telemetry is not imported"


def _open_files() -> list[str]:
    links = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            links.append(os.readlink(entry))  # noqa: PTH115 - what it names is no path
        except OSError:  # that of the folder itself
            continue
    return links


def idle(driver: Driver) -> Load:
    """The load, once there is none."""
    until = time.monotonic() + WAIT_S
    while (driver.load.queued or driver.load.running) and time.monotonic() < until:
        time.sleep(0.01)
    return driver.load


def resident_mib() -> int:
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // MIB


def structures(folder: Path, settings: Settings, count: int) -> str:
    """As many different schemas, one after another, with little memory for them: it is bounded, and
    what is asked next is answered as before."""
    sizes = []
    with running(folder, replace(settings, max_structures_mib=16)) as driver:
        before = Asked(driver, PROMPTS[0], greedy(24)).text()
        for number in range(count):
            names = [f"p{number}_{index}" for index in range(10)]
            schema = {
                "type": "object",
                "properties": {name: {"type": "integer"} for name in names},
                "required": names,
                "additionalProperties": False,
            }
            sampling = {**greedy(1), "structured_outputs": json.dumps({"json": schema})}
            Asked(driver, PROMPTS[0], sampling).text()
            if number % max(1, count // 10) == 0:
                sizes.append(resident_mib())
        assert Asked(driver, PROMPTS[0], greedy(24)).text() == before
        assert idle(driver).kv_usage == 0
        opened = driver.opened
    return f"{count} schemas, opened {opened} times, RSS in MiB after each tenth: " + (
        ", ".join(map(str, sizes))
    )


PROOFS = {
    "equality": lambda folder, settings, tokens, **_: equality(folder, settings, tokens),
    "cancels": lambda folder, settings, cancelled, **_: cancels(folder, settings, cancelled),
    "bounds": lambda folder, settings, **_: bounds(folder, settings),
    "distribution": lambda folder, settings, samples, **_: distribution(folder, settings, samples),
    "precisions": lambda folder, settings, **_: precisions(folder),
    "structures": lambda folder, settings, schemas, **_: structures(folder, settings, schemas),
    "silence": lambda folder, settings, **_: silence(folder, settings),
}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--only", type=click.Choice(list(PROOFS)))
@click.option("--tokens", default=200, show_default=True, help="Of each of 8 prompts.")
@click.option("--cancelled", default=2000, show_default=True)
@click.option("--samples", default=2000, show_default=True, help="Of each distribution.")
@click.option("--schemas", default=500, show_default=True)
def main(folder: Path, only: str | None, **sizes: int) -> None:
    """Prove the engine with the model in a version FOLDER."""
    settings = Settings.read(folder)
    for name, proof in PROOFS.items():
        if only in (None, name):
            began = time.monotonic()
            report = proof(folder, settings, **sizes)
            click.echo(f"{name}: {report} ({time.monotonic() - began:.0f} s)")


if __name__ == "__main__":
    main(prog_name="python -m tests.conformance.engine")
