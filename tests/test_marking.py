"""Every test has one marker, and it is the right one."""

import subprocess

import pytest

from tests.marking import LISTED, MARKERS, has_unit_tests, marker_of
from tests.running import ROOT

TESTS = ROOT / "tests"


def test_each_test_has_one_marker(request):
    for item in request.session.items:
        assert len([mark for mark in item.iter_markers() if mark.name in MARKERS]) == 1, item


def test_what_is_listed_is_there_and_listed_once():
    entries = [entry for listed in LISTED.values() for entry in listed]
    assert len(entries) == len(set(entries))
    for entry in entries:
        path, _, name = entry.partition("::")
        file = TESTS / f"{path}.py"
        assert (TESTS / path).is_dir() or file.is_file(), entry
        assert not name or f"def {name}(" in file.read_text(), entry


def test_markers():
    assert marker_of("tests/e2e/test_up.py::test_it") == "stack"
    assert marker_of("tests/e2e/test_publish.py::test_it[a]") == "triton"
    assert marker_of("tests/converters/tasks/test_tensors.py::test_it") == "slow"
    assert marker_of("tests/modelspec/test_golden.py::test_it", frozenset(("stack",))) == "stack"
    assert marker_of("tests/modelspec/test_golden.py::test_it", frozenset(("tmp_path",))) == "unit"
    assert has_unit_tests(TESTS / "gateway/api/grpc/test_grpc_wire.py", TESTS)
    assert not has_unit_tests(TESTS / "e2e/test_up.py", TESTS)


@pytest.mark.parametrize("command", [["tritonserver"], ["/usr/sbin/nginx", "-v"]])
def test_a_unit_test_starts_no_server(command):
    with pytest.raises(RuntimeError, match=r"list it in tests/marking\.py"):
        subprocess.run(command, check=False)
