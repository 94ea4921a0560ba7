"""The invariants of ARCHITECTURE.md, each kept by a test."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = (
    "tidegate",
    "modelspec",
    "converters",
    "ensembles",
    "serving",
    "gateway",
    "loadtests",
    "training",
)
MAY_IMPORT = {
    "tidegate": set(PACKAGES),
    "modelspec": set(),
    "converters": {"modelspec"},
    "ensembles": {"modelspec"},
    "serving": {"modelspec"},
    "gateway": {"modelspec"},
    "loadtests": {"modelspec"},
    "training": {"modelspec"},
}
INSIDE_TRITON = ("ensembles/steps", "serving/backends")
HEAVY = ("torch", "onnx", "onnxruntime", "transformers")
BANNED = {"utils", "helpers", "common", "base", "manager", "misc"}
SHADOWING = {"triton", "onnx", "tensorrt", "locust"}


def _files(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def _imports(path: Path) -> set[str]:
    """The top-level names that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names


def test_every_package_has_files():
    assert all(len(_files(package)) > 2 for package in PACKAGES)


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_what_they_may(package):
    ours = set(PACKAGES) - {package} - MAY_IMPORT[package]
    wrong = {
        str(path.relative_to(ROOT)): found
        for path in _files(package)
        if (found := _imports(path) & ours)
    }
    assert not wrong


def test_modelspec_imports_only_numpy_and_protobuf():
    """And Triton's own messages, which a process can register only once."""
    imported = set()
    for path in _files("modelspec"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported |= {f"{node.module}.{alias.name}" for alias in node.names}
    known = {*sys.stdlib_module_names, "modelspec"}
    foreign = {name for name in imported if name.partition(".")[0] not in known}
    messages = ("tritonclient.grpc.model_config_pb2", "tritonclient.grpc.service_pb2")
    assert {name for name in foreign if not name.startswith(messages)} == {
        "numpy",
        "google.protobuf.text_format",
    }


def test_tidegate_imports_the_heavy_packages_late():
    """``tidegate --help`` and ``tidegate keys list`` need neither torch nor onnx."""
    code = "import sys, tidegate.cli"
    for module in ("commands.keys", "commands.up", "app.stack", "commands.convert"):
        code += f", tidegate.{module}"
    assert not _loaded_by(code)


def test_a_table_is_opened_without_torch(tmp_path):
    """skops imports all of scikit-learn, which has an adapter for torch's arrays."""
    import skops.io
    from sklearn.linear_model import LinearRegression

    model = tmp_path / "model.skops"
    skops.io.dump(LinearRegression().fit([[1.0], [2.0]], [1.0, 2.0]), model)
    code = "import sys; from pathlib import Path; "
    code += "from converters.sources.skops_file import load_skops;"
    assert "torch" not in _loaded_by(f"{code} load_skops(Path({str(model)!r}))")


def test_the_gateway_starts_without_the_heavy_packages():
    blocked = "; ".join(f"sys.modules[{name!r}] = None" for name in HEAVY)
    code = f"import sys; {blocked}; import gateway.app; from gateway.settings import Settings; "
    code += "gateway.app.create_app(Settings())"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr


def _loaded_by(code: str) -> set[str]:
    code += f"; print([name for name in {HEAVY} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    return set(ast.literal_eval(run.stdout))


def test_code_that_runs_inside_triton_imports_nothing_of_ours():
    for path in _files(*INSIDE_TRITON):
        assert not _imports(path) & set(PACKAGES), path


def test_code_that_runs_inside_triton_stands_once_in_git():
    listed = subprocess.run(
        ["git", "ls-files", "model_repository"], capture_output=True, text=True, cwd=ROOT
    ).stdout.split()
    assert not [path for path in listed if path.endswith((".py", ".onnx", ".plan"))]


def test_only_what_locust_loads_imports_locust():
    importers = {
        str(path.relative_to(ROOT)) for path in _files(*PACKAGES) if "locust" in _imports(path)
    }
    assert importers <= {"loadtests/users.py", "loadtests/listeners.py"}


def test_names_say_something_and_shadow_nothing():
    for path in _files(*PACKAGES):
        inside = path.relative_to(ROOT)
        assert not {*inside.parent.parts, path.stem} & BANNED, inside
    tracked = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT).stdout
    at_the_top = {path.partition("/")[0].removesuffix(".py") for path in tracked.splitlines()}
    assert "serving" in at_the_top
    assert not at_the_top & SHADOWING


def test_there_is_no_import_cycle():
    """The contract of pyproject.toml, which covers imports inside functions too."""
    code = (
        "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stdout + run.stderr


# Installed by whoever uses them: the peers of the bench with make bench-peers and make bench-chat,
# KServe's client and TensorRT by hand; triton_python_backend_utils is Triton's own.
NOT_INSTALLED = {
    "bentoml",
    "kserve",
    "litserve",
    "tensorrt",
    "triton_python_backend_utils",
    "xllamacpp",
}


def _distribution(requirement: str) -> str:
    name = re.match(r"[\w.-]+", requirement)
    assert name, requirement
    return re.sub(r"[-_.]+", "-", name[0]).lower()


def test_every_imported_package_is_declared_and_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = (project["dependencies"], *project["optional-dependencies"].values())
    declared = {_distribution(line) for group in groups for line in group}
    constraints = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {_distribution(line) for line in constraints if "==" in line}
    distributions = packages_distributions()
    files = _files(*PACKAGES, "deploy", "tests")
    # Some files import those that lie beside them.
    known = {*sys.stdlib_module_names, *NOT_INSTALLED, *PACKAGES, "deploy", "tests"}
    known |= {path.stem for path in files}
    imported = set().union(*map(_imports, files)) - known
    assert {"numpy", "fastapi", "torch", "pytest"} <= imported
    names = {
        module: set(map(_distribution, distributions.get(module, ["nothing installed"])))
        for module in imported
    }
    assert not {module for module, owners in names.items() if not owners & declared}
    assert not {module for module, owners in names.items() if not owners & pinned}
