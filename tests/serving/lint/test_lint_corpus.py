"""The linter and a real Triton on 500 small models: what one refuses, the other refuses."""

import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import serving.triton.control
from serving.errors import ModelLoadFailed
from serving.lint.check import lint
from serving.lint.finding import Finding, Severity
from serving.repository.model_repository import ModelRepository
from serving.triton.launch import LaunchOptions, TritonServer
from serving.triton.ports import Ports, free_ports
from tests.serving.lint.corpus import graphs
from tests.serving.lint.corpus.all import CASES, SHARED, write
from tests.serving.lint.corpus.case import Case
from tests.serving.lint.corpus.quick_backend import use_quick_backend

# A model of our ONNX backend takes two seconds to load. The linter and the backend decide with the
# same code what to refuse, so Triton only loads a few of these: to check that the linter calls it
# correctly.
LOADED_GRAPHS = {
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


def test_the_names_are_unique_and_the_loaded_graphs_exist():
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names) > 500
    assert {case.name for case in graphs.CASES} >= LOADED_GRAPHS


def test_the_linter_agrees_with_the_corpus(tmp_path):
    """The next test checks that Triton agrees with the corpus, too."""
    repository = tmp_path / "models"
    write(repository)
    findings = _lint_errors(repository)
    mismatches = [
        (case, " ".join(finding.code for finding in findings.get(case.name, ())) or "nothing")
        for case in CASES
        if bool(findings.get(case.name)) == case.loads
    ]
    assert not mismatches, _table(mismatches, "the linter")


@pytest.mark.timeout(600)
# Python's protobuf only warns of an escape in a string that Triton refuses.
@pytest.mark.filterwarnings("ignore:.*invalid escape sequence:DeprecationWarning")
def test_triton_agrees_with_the_corpus(tmp_path, monkeypatch):
    monkeypatch.setattr(serving.triton.control, "LOAD_TIMEOUT_S", 60.0)
    repository = tmp_path / "models"
    write(repository)
    use_quick_backend(repository)
    cases = [case for case in CASES if not case.hangs and _is_loaded(case)]
    options = LaunchOptions(ModelRepository(repository), tmp_path, Ports(*free_ports(3)))
    with TritonServer(options) as server:
        for shared in SHARED:
            server.control.load(shared)
        with ThreadPoolExecutor(3) as pool:
            refusals = list(pool.map(lambda case: _refusal(server, case), cases))
        reasons = _reasons(server.log_file)
        server.stop(gently=False)
    mismatches = [
        (case, refusal or "loads")
        for case, refusal in zip(cases, refusals, strict=True)
        if (refusal == "") != case.loads
    ]
    assert not mismatches, _table(
        [(case, reasons.get(case.name, reason)) for case, reason in mismatches], "Triton"
    )


def _is_loaded(case: Case) -> bool:
    return case not in graphs.CASES or case.name in LOADED_GRAPHS


def _refusal(server: TritonServer, case: Case) -> str:
    """Why Triton refuses the model; '' if it loads."""
    assert server.is_alive(), f"Triton ended before {case.name} was loaded"
    try:
        server.control.load(case.name)
    except ModelLoadFailed as refused:
        assert server.is_alive(), f"Triton ended while {case.name} was loaded"
        return str(refused)
    server.control.unload(case.name)
    return ""


def _reasons(log: Path) -> Mapping[str, str]:
    """Why models failed to poll; only the log says it."""
    pairs = re.findall(
        r"Poll failed for model directory '([^']+)': (.*)", log.read_text(errors="replace")
    )
    return dict(pairs)


def _lint_errors(repository: Path) -> Mapping[str, list[Finding]]:
    errors: dict[str, list[Finding]] = {}
    for finding in lint(ModelRepository(repository), cores=2):
        if finding.severity is Severity.ERROR:
            errors.setdefault(re.split("[/:]", finding.location)[0], []).append(finding)
    return errors


def _table(mismatches: Iterable[tuple[Case, str]], source: str) -> str:
    rows = [
        f"{case.name:40} {'loads' if case.loads else 'refused':8} {reason}"
        for case, reason in mismatches
    ]
    return "\n".join([f"\n{'model':40} {'corpus':8} {source}", *rows])
