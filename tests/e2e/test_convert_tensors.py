"""A torch module and an ONNX graph, from the source to an endpoint."""

import contextlib
import subprocess

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from tritonclient import grpc as triton

from tests.command_line import tidegate
from tests.converters.tasks.test_tensors import MODULE, linear
from tests.running import launch, stop, wait_ready


def _tidegate(home, folder, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run tidegate in ``folder``, which holds the user's module."""
    with contextlib.chdir(folder):
        return tidegate(home, *arguments)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    (folder / "served_nets.py").write_text(MODULE)
    linear(folder / "probabilities.onnx")
    return folder


@pytest.fixture(scope="module")
def served(sources, tmp_path_factory):
    home = tmp_path_factory.mktemp("tensors_served")
    for source, name in (("served_nets:good", "net"), ("probabilities.onnx", "chances")):
        run = _tidegate(home, sources, "convert", source, "--name", name)
        assert run.returncode == 0, run.stderr
    running = launch(home, "net", "chances")
    wait_ready(running)
    yield running
    assert stop(running) == 0


@pytest.fixture
def net(sources):
    """The torch module itself."""
    created = {}
    exec(compile((sources / "served_nets.py").read_text(), "served_nets", "exec"), created)  # noqa: S102
    return created["Net"]().eval()


def test_the_module_answers_over_rest_as_in_torch(served, net):
    rows = torch.linspace(-2, 2, 18).reshape(3, 6)
    ids = torch.tensor([[1, 2, 3], [9, 0, 5], [4, 4, 4]])
    body = [{"x": x.tolist(), "ids": i.tolist()} for x, i in zip(rows, ids, strict=True)]
    response = served.post("/v1/net", json={"inputs": body})
    assert response.status_code == 200, response.text
    with torch.inference_mode():
        expected = net(rows, ids)
    for index, output in enumerate(response.json()["outputs"]):
        assert output["scores"] == pytest.approx(expected["scores"][index].tolist(), abs=1e-5)
        assert output["embedding"] == pytest.approx(expected["embedding"][index].tolist(), abs=1e-5)
        assert output["top"] == int(expected["top"][index])


def test_the_module_answers_over_grpc_with_its_own_shapes(served, net):
    rows, ids = torch.randn(5, 6), torch.randint(0, 10, (5, 3))
    tensors = []
    for name, value, dtype in (("x", rows, "FP32"), ("ids", ids, "INT64")):
        tensor = triton.InferInput(name, list(value.shape), dtype)
        tensor.set_data_from_numpy(value.numpy())
        tensors.append(tensor)
    with triton.InferenceServerClient(served.grpc_address) as client:
        result = client.infer("net", tensors)
    with torch.inference_mode():
        assert result.as_numpy("scores") == pytest.approx(
            net(rows, ids)["scores"].numpy(), abs=1e-5
        )


def test_a_row_of_another_length_is_refused(served):
    assert served.post("/v1/net", json={"x": [0.0] * 5, "ids": [1, 2, 3]}).status_code == 422
    assert served.post("/v1/chances", json={"x": [0.0] * 4}).status_code == 200


def test_the_served_graph_is_the_users_file(served, sources):
    engine = served.home / "model_repository" / "chances_onnx" / "1" / "model.onnx"
    assert engine.read_bytes() == (sources / "probabilities.onnx").read_bytes()


def test_a_graph_that_was_scaled_a_little_fails_its_proof(served, sources):
    engine = served.home / "model_repository" / "chances_onnx" / "1" / "model.onnx"
    whole = engine.read_bytes()
    model = onnx.load(engine)
    weight = numpy_helper.to_array(model.graph.initializer[0]) * np.float32(1.005)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w"))
    onnx.save(model, engine)
    try:
        run = _tidegate(served.home, sources, "prove", "chances", "--against", "probabilities.onnx")
    finally:
        engine.write_bytes(whole)
    assert run.returncode == 1
    assert "'y' of sample" in run.stdout
    assert "original" in run.stdout


def test_a_fixed_batch_axis_is_refused_and_leaves_nothing(tmp_path, sources):
    model = onnx.load(sources / "probabilities.onnx")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(model, tmp_path / "fixed.onnx")
    run = _tidegate(tmp_path, tmp_path, "convert", "fixed.onnx", "--name", "fixed")
    assert run.returncode == 1
    assert "first axis is fixed to 1" in run.stderr
    assert "Traceback" not in run.stderr
    assert not (tmp_path / "model_repository").exists()
