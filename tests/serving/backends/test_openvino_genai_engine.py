"""The openvino_genai backend's engine: a small part of each proof of ``tests.conformance.engine``,
on a small model of random weights."""

import itertools
import json
import subprocess
import sys
from dataclasses import replace

import pytest

from converters.tasks.causal_lm.folder import LanguageModelFolder
from tests.conformance import engine
from tests.conformance.engine import PROMPTS, Asked, Settings
from tests.running import ROOT
from tests.tiny_models import language_model

sys.path.append(str(ROOT / "serving" / "backends" / "openvino_genai"))

from lm_driver import Job
from lm_jobs import Busy
from lm_waiting import Pace

SETTINGS = Settings(context_length=512, num_kv_blocks=64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    source = language_model(tmp_path_factory.mktemp("source") / "tiny")
    version = tmp_path_factory.mktemp("version")
    LanguageModelFolder.open(source).write(version / "model.gguf")
    (version / "model.json").write_text(json.dumps({"context_length": 512, "num_kv_blocks": 64}))
    return version


def test_answers_do_not_depend_on_the_requests_beside(folder):
    assert "all 32 equal" in engine.equality(folder, SETTINGS, 40)


def test_nothing_is_left_of_cancelled_requests(folder):
    assert "KV use 0" in engine.cancels(folder, SETTINGS, 200)


def test_what_does_not_fit_waits_or_is_refused(folder):
    assert "refused at once" in engine.bounds(folder, SETTINGS)


def test_sampled_tokens_are_as_frequent_as_their_probabilities(folder):
    assert "p: " in engine.distribution(folder, SETTINGS, 640)


def test_no_socket_is_opened(folder):
    command = [sys.executable, "-m", "tests.conformance.engine", str(folder), "--only", "silence"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "no socket is open" in done.stdout


def test_the_engine_is_opened_anew_when_its_structures_take_too_much_memory(folder):
    names = [f"name{number}" for number in range(40)]
    with engine.running(folder, replace(SETTINGS, max_structures_mib=1)) as driver:
        before = Asked(driver, PROMPTS[0], engine.greedy(16)).text()
        for number in range(12):
            properties = {f"{name}_{number}": {"type": "integer"} for name in names}
            schema = {"type": "object", "properties": properties}
            sampling = {**engine.greedy(1), "structured_outputs": json.dumps({"json": schema})}
            long = Asked(driver, PROMPTS[1], engine.greedy(16))
            assert Asked(driver, PROMPTS[0], sampling).text()
            assert long.text()
        assert driver.opened > 1
        assert Asked(driver, PROMPTS[0], engine.greedy(16)).text() == before


class SteadyPace(Pace):
    """What was measured once."""

    def __init__(self, *steps: float) -> None:
        super().__init__()
        for seconds in steps:
            super().step_took(seconds, 0)

    def step_took(self, seconds: float, prompt_tokens: int) -> None:
        pass


@pytest.mark.parametrize(
    ("steps", "most_s", "refused"),
    [
        ((), 20, 0),  # nothing is measured
        ((1.0,), 20, 4),  # a second a step, and half of the tokens are expected: 240 steps
        ((1.0,), 340, 3),  # and 200 more
        ((0.001,), 20, 0),
    ],
)
def test_who_would_wait_too_long_is_refused_at_once(folder, steps, most_s, refused):
    """One runs at a time, since it fills the cache."""
    small = replace(SETTINGS, num_kv_blocks=16, max_queue_s=most_s)
    with engine.running(folder, small) as driver:
        driver._pace = SteadyPace(*steps)
        first = Asked(driver, PROMPTS[0], engine.greedy(480))
        while not first.pieces:
            assert not first.ended.wait(0.001)
        others = [Asked(driver, PROMPTS[0], engine.greedy(400)) for _ in range(4)]
        for asked in others:
            assert asked.ended.wait(60)
        errors = [asked.error for asked in others if asked.error]
        assert first.text()
    assert len(errors) == refused
    for error in errors:
        assert isinstance(error, Busy)
        assert "its first token is expected" in str(error)
        assert 1 <= error.retry_after_s <= 30


def test_nobody_is_slowed_by_more_than_their_share(folder):
    """One client sends the longest prompt and a grammar without an end, and asks for ten million
    tokens. Each step reads a bounded part of that prompt, and generates a token of every other
    stream."""
    settings = replace(
        SETTINGS, max_num_batched_tokens=64, enable_prefix_caching=False, num_kv_blocks=128
    )
    monstrous = {
        **engine.greedy(10_000_000),
        "truncate_prompt_tokens": 300,
        "structured_outputs": json.dumps({"grammar": 'root ::= [a-z] root | [0-9] root | "."'}),
    }
    made: list[list[int]] = []  # tokens of each of the others, before each step
    reading = 0  # steps that read the monster's prompt
    with engine.running(folder, settings) as driver:
        # Its structure is compiled before, which is not the engine's thread's work.
        assert Asked(driver, PROMPTS[0], {**monstrous, "max_tokens": 2}).pieces_of_all()
        others = [Asked(driver, prompt, engine.greedy(300)) for prompt in PROMPTS[:5]]
        while not all(one.pieces for one in others):
            assert not any(one.ended.wait(0.001) for one in others)
        plain_step = driver._step

        def counting_step() -> None:
            nonlocal reading
            reading += any(job.reserved > 450 and not _made(job) for job in driver._running)
            made.append([_made(one._job) for one in others])
            plain_step()

        driver._step = counting_step  # type: ignore[method-assign]
        monster = Asked(driver, "word " * 2000, monstrous)
        for one in (*others, monster):
            assert one.ended.wait(120)
            assert one.error is None
    assert reading >= 300 // 64
    for counts in zip(*made, strict=True):
        gained = [after - before for before, after in itertools.pairwise(counts)]
        assert set(gained[: 300 - counts[0]]) == {1}


def _made(job: Job) -> int:
    return sum(one.made for one in job.sequences)
