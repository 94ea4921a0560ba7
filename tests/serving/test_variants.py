"""A member's hardware variants arrive with it, and serve the versions that its config serves."""

from modelspec.hardware import hardware_configs
from modelspec.model import ModelSpec, TensorSpec
from modelspec.pbtxt import parse, to_proto
from modelspec.staging import stage_model
from serving.pins import with_versions
from serving.variants import place_variants

X = TensorSpec("x", "FP32", (3,))
SPEC = ModelSpec("mood_onnx", "onnxruntime", 8, (X,), (X,), versions=(1,))


def test_they_are_named_and_versioned_as_the_model(tmp_path):
    graph = tmp_path / "model.onnx"
    graph.write_bytes(b"graph")
    staged = stage_model(tmp_path / "staged", SPEC, {"model.onnx": graph})
    repository = tmp_path / "repository"
    (tmp_path / ".repository.staging").mkdir()
    (repository / "mood_onnx.g2").mkdir(parents=True)
    config = with_versions(to_proto(SPEC), [2, 5])
    config.name = "mood_onnx.g2"
    place_variants(repository, config, staged)
    written = {path.stem: path for path in (repository / "mood_onnx.g2" / "configs").iterdir()}
    assert set(written) == set(hardware_configs(SPEC)) == {"gpu", "gpu-tensorrt"}
    for path in written.values():
        variant = parse(path.read_text())
        assert variant.name == "mood_onnx.g2"
        assert list(variant.version_policy.specific.versions) == [2, 5]
    before = {path: path.stat().st_mtime_ns for path in written.values()}
    place_variants(repository, config, staged)
    assert {path: path.stat().st_mtime_ns for path in written.values()} == before


def test_a_model_without_variants_gets_no_folder(tmp_path):
    (tmp_path / "repository" / "mood_pre").mkdir(parents=True)
    config = to_proto(ModelSpec("mood_pre", "python", 8, (X,), (X,)))
    place_variants(tmp_path / "repository", config, tmp_path / "staged")
    assert not (tmp_path / "repository" / "mood_pre" / "configs").exists()
