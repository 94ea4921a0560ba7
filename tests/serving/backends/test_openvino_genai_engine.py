"""The openvino_genai backend's engine: a small part of each proof of ``tests.conformance.engine``,
on a small model of random weights."""

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
