"""No verb prints a traceback for a bad file; only models to be served are linted at the start."""

import sys

import pytest

from serving.errors import ServingError
from serving.repository.model_repository import ModelRepository
from tests.running import wait_until
from tests.serving.small_pipeline import stage
from tidegate import cli
from tidegate.app.faults import require_loadable
from tidegate.app.log_keeper import LogKeeper, rotate


@pytest.mark.parametrize(
    "words",
    ["up m", "status", "lint", "keys create a", "keys list", "audit verify", "rollback m"],
)
@pytest.mark.parametrize("failure", ["files", "folders"])
def test_an_unusable_home_is_reported_in_one_line(
    tmp_path, monkeypatch, capsys, caplog, words, failure
):
    """Files stand in for folders and folders for files. (Tests may run as root, who may read
    everything.)"""
    if failure == "files":
        (tmp_path / ".tidegate").touch()
        (tmp_path / ".model_repository.staging").touch()
    else:
        for name in ("up.json", "keys.toml", "pepper", "audit.log", "gateway.toml"):
            (tmp_path / ".tidegate" / name).mkdir(parents=True)
        (tmp_path / "model_repository" / "m" / "²").mkdir(parents=True)
        (tmp_path / "model_repository" / "m" / "config.pbtxt").mkdir()
    monkeypatch.setenv("TIDEGATE_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["tidegate", *words.split()])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    written = capsys.readouterr().err
    assert "Traceback" not in written
    assert "This is a bug" not in written
    assert ended.value.code in (0, 1), written
    assert ended.value.code == 0 or written.count("\n") <= 1


def test_only_errors_in_served_models_refuse_a_start(tmp_path):
    repository = tmp_path / "model_repository"
    stage(repository, 0).rename(repository)
    (repository / "mood_onnx" / "1" / "model.py").unlink()
    require_loadable(ModelRepository(repository), ["mood_pre"], "default")
    with pytest.raises(ServingError, match=r"mood_onnx/1: .*model\.py"):
        require_loadable(ModelRepository(repository), ["mood"], "default")


def test_an_error_in_another_config_profile_refuses_nothing(tmp_path):
    repository = tmp_path / "model_repository"
    stage(repository, 0).rename(repository)
    configs = repository / "mood_pre" / "configs"
    configs.mkdir()
    (configs / "gpu.pbtxt").write_text("max_batch_size: many")
    require_loadable(ModelRepository(repository), ["mood"], "tuned")
    with pytest.raises(ServingError, match=r"mood_pre/configs/gpu\.pbtxt"):
        require_loadable(ModelRepository(repository), ["mood"], "gpu")


def test_a_log_that_cannot_be_rotated_is_reported_once_and_stays(tmp_path, monkeypatch):
    logs, messages = [tmp_path / "gateway.log", tmp_path / "triton.log"], []
    for log in logs:
        log.write_bytes(b"x" * 100)
        log.with_name(f"{log.name}.1").mkdir()  # blocks the rotation, as a full disk would
    looked = []
    monkeypatch.setattr("tidegate.app.log_keeper.TROUBLE_S", 0.01)
    monkeypatch.setattr(
        "tidegate.app.log_keeper.rotate", lambda *log: (looked.append(1), rotate(*log))
    )
    keeper = LogKeeper(logs, 10, 1, messages.append)
    keeper.start()
    try:
        wait_until(lambda: len(looked) >= 6, 30, "three looks at each")
    finally:
        keeper.stop()
    for log in logs:
        assert sum(f"{log} cannot be rotated" in line for line in messages) == 1
        assert log.read_bytes() == b"x" * 100
    assert len(messages) == 2
