"""A ModelRepository parses a config once, and always gives what is on disk."""

import pytest

from serving.errors import ServingError
from serving.repository.model_repository import ModelRepository


def test_a_config_is_what_is_on_disk_and_a_copy(tmp_path):
    repository = ModelRepository(tmp_path)
    (tmp_path / "m").mkdir()
    path = tmp_path / "m" / "config.pbtxt"
    path.write_text("max_batch_size: 4")
    config = repository.config("m")
    config.max_batch_size = 9
    assert repository.config("m").max_batch_size == 4
    path.write_text("max_batch_size: 5")  # as long as before, and moments later
    assert repository.config("m").max_batch_size == 5
    path.unlink()
    with pytest.raises(ServingError, match="there is no model 'm'"):
        repository.config("m")


def test_only_folders_named_in_ascii_digits_are_versions(tmp_path):
    for name in ("12", "1", "²", "٣", "x", "-1", "1.5", "configs"):
        (tmp_path / "mood" / name).mkdir(parents=True)
    (tmp_path / "mood" / "7").touch()
    assert ModelRepository(tmp_path).versions("mood") == [1, 12]
    assert ModelRepository(tmp_path).versions("other") == []


def test_a_member_has_generations_up_to_the_first_that_is_not_published(tmp_path):
    for name in ("m_onnx", "m_onnx.g2", "m_onnx.g4"):
        (tmp_path / name / "1").mkdir(parents=True)
        (tmp_path / name / "config.pbtxt").touch()
    assert ModelRepository(tmp_path).generations("m_onnx") == ["m_onnx", "m_onnx.g2"]
    assert ModelRepository(tmp_path).generations("other") == []
