"""The linter and a real Triton on 500 small models: what one refuses, the other refuses."""

import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import serving.control
from serving.errors import ModelLoadFailed
from serving.launch import LaunchOptions, TritonServer
from serving.lint.check import lint
from serving.lint.finding import Finding, Severity
from serving.ports import Ports, free_ports
from tests.serving.lint_corpus import graphs
from tests.serving.lint_corpus.all import CASES, SHARED, write
from tests.serving.lint_corpus.case import Case
from tests.serving.lint_corpus.quick_backend import use_quick_backend

# A model of our ONNX backend takes two seconds to load. What it refuses is decided by one piece of
# code for both, so that Triton is asked about a few of these: that the linter asks it rightly.
ASKED_OF_GRAPHS = {
    "graph_no_config",
    "graph_no_backend",
    "graph_no_types",
    "graph_input_missing_no_backend",
    "graph_batch_fixed_no_backend",
    "graph_output_fixed_where_open",
    "graph_output_open_where_fixed",
    "graph_max_absent",
    "graph_max_absent_bare",
    "graph_default_optional",
    "graph_inferred",
    "graph_inferred_open",
    "graph_vector_reshaped",
    "graph_broken",
    "graph_threads_no_number",
    "graph_accelerator_unknown",
    "graph_newest_differs",
    "simple_sequence",
    "simple_dyna_sequence",
    "sequence_control_unlisted",
}


def test_the_names_are_different_and_the_asked_are_there():
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names) > 500
    assert {case.name for case in graphs.CASES} >= ASKED_OF_GRAPHS


def test_the_linter_says_what_triton_said(tmp_path):
    """As it is written in the corpus, which the next test asks Triton about."""
    repository = tmp_path / "models"
    write(repository)
    said = _said_by_linter(repository)
    wrong = [
        (case, " ".join(each.code for each in said.get(case.name, ())) or "nothing")
        for case in CASES
        if bool(said.get(case.name)) == case.loads
    ]
    assert not wrong, _table(wrong, "the linter")


@pytest.mark.timeout(600)
# Python's protobuf only warns of an escape in a string that Triton refuses.
@pytest.mark.filterwarnings("ignore:.*invalid escape sequence:DeprecationWarning")
def test_triton_says_what_is_written_in_the_corpus(tmp_path, monkeypatch):
    monkeypatch.setattr(serving.control, "LOAD_TIMEOUT_S", 60.0)
    repository = tmp_path / "models"
    write(repository)
    use_quick_backend(repository)
    asked = [case for case in CASES if not case.hangs and _is_asked(case)]
    options = LaunchOptions(repository, tmp_path, Ports(*free_ports(3)))
    with TritonServer(options) as server:
        for shared in SHARED:
            server.control.load(shared)
        with ThreadPoolExecutor(3) as pool:
            answers = list(pool.map(lambda case: _ask(server, case), asked))
        reasons = _reasons(server.log_file)
    wrong = [
        (case, answer or "loads")
        for case, answer in zip(asked, answers, strict=True)
        if (answer == "") != case.loads
    ]
    assert not wrong, _table([(case, reasons.get(case.name, why)) for case, why in wrong], "Triton")


def _is_asked(case: Case) -> bool:
    return case not in graphs.CASES or case.name in ASKED_OF_GRAPHS


def _ask(server: TritonServer, case: Case) -> str:
    """Why Triton refuses the model; '' when it loads."""
    assert server.is_alive(), f"Triton ended before {case.name} was asked about"
    try:
        server.control.load(case.name)
    except ModelLoadFailed as refused:
        assert server.is_alive(), f"Triton ended while {case.name} was asked about"
        return str(refused)
    server.control.unload(case.name)
    return ""


def _reasons(log: Path) -> Mapping[str, str]:
    """Why models failed to poll: only the log says it."""
    found = re.findall(
        r"Poll failed for model directory '([^']+)': (.*)", log.read_text(errors="replace")
    )
    return dict(found)


def _said_by_linter(repository: Path) -> Mapping[str, list[Finding]]:
    errors: dict[str, list[Finding]] = {}
    for each in lint(repository, cores=2):
        if each.severity is Severity.ERROR:
            errors.setdefault(re.split("[/:]", each.place)[0], []).append(each)
    return errors


def _table(wrong: Iterable[tuple[Case, str]], who: str) -> str:
    rows = [f"{case.name:40} {'loads' if case.loads else 'refused':8} {why}" for case, why in wrong]
    return "\n".join([f"\n{'model':40} {'corpus':8} {who}", *rows])
