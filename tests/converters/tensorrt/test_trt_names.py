"""TensorRT does not run here. What can be tested all the same: the binaries of both releases have
every TensorRT name that the code uses, and our files use nothing that 11 has removed."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.converters.tensorrt.trt_names import used
from tests.tensorrt_parts import RELEASES, PartMissing, binary, wheel

ROOT = Path(__file__).parents[3]
# From NVIDIA's migration guide: removed in 11, present in 10.
REMOVED_IN_11 = ("FP16", "EXPLICIT_BATCH", "IInt8EntropyCalibrator2", "int8_calibrator")


def _names_by_file() -> dict[str, set[str]]:
    """The TensorRT names of each file that imports tensorrt."""
    paths = [*(ROOT / "converters").rglob("*.py"), *(ROOT / "deploy").rglob("*.py")]
    by_file = {str(path.relative_to(ROOT)): used(path.read_text()) for path in paths}
    return {path: names for path, names in by_file.items() if names}


def _has(library: bytes, name: str) -> bool:
    """pybind11 stores names as C strings. The linker may merge one into the tail of another, so
    what precedes it proves nothing; the type checker knows which class has which name."""
    return f"{name}\0".encode() in library


@pytest.mark.parametrize("release", RELEASES)
def test_every_name_that_the_code_uses_is_in_the_binary(release):
    library = binary(release)
    names_by_file = _names_by_file()
    assert {"converters/tensorrt/build.py", "converters/tensorrt/runner.py"} <= set(names_by_file)
    missing = {
        path: sorted(name for name in names if not _has(library, name))
        for path, names in names_by_file.items()
    }
    assert not any(missing.values()), f"TensorRT {release} does not have: {missing}"


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize(
    "planted",
    [
        ("clear_flag", "clear_flags_of"),
        ("STRONGLY_TYPED", "STRONG_TYPES"),
        ("build_serialized_network", "build_serialised_network"),
        ("config.progress_monitor", "config.progres_monitor"),
    ],
)
def test_a_wrong_name_is_found(release, planted):
    source = (ROOT / "converters" / "tensorrt" / "build.py").read_text()
    right, wrong = planted
    assert right in source
    names = used(source.replace(right, wrong))
    assert [n for n in names if not _has(binary(release), n)] == [wrong.rpartition(".")[2]]


def test_a_callback_of_a_wrong_name_is_found():
    source = (ROOT / "converters" / "tensorrt" / "monitor.py").read_text()
    names = used(source.replace("def step_complete", "def step_completed"))
    assert "step_completed" in names and not _has(binary("11"), "step_completed")


@pytest.mark.parametrize("name", REMOVED_IN_11)
def test_what_11_removed_is_seen_to_be_gone_and_is_not_used(name):
    assert _has(binary("10"), name)
    assert not _has(binary("11"), name)
    assert name not in set().union(*_names_by_file().values())


def test_the_type_checker_sees_what_is_wrong(tmp_path):
    """A method, an enumerator and an argument that TensorRT's stubs do not have."""
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        "import tensorrt as trt\n"
        "builder = trt.Builder(trt.Logger())\n"
        "builder.create_netwrk()\n"
        "print(trt.DataType.FLAOT)\n"
        "builder.create_network(flag=1)\n"
    )
    process = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", "pyproject.toml", str(wrong)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    errors = [line for line in process.stdout.splitlines() if ": error: " in line]
    assert len(errors) == 3, process.stdout
    assert '"Builder" has no attribute "create_netwrk"' in errors[0]
    assert '"type[DataType]" has no attribute "FLAOT"' in errors[1]
    assert 'Unexpected keyword argument "flag"' in errors[2]


def test_without_the_wheels_it_fails_and_says_what_to_run(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(PartMissing, match=r"run python -m tests\.tensorrt_parts"):
        wheel("11")
