"""Clients that know nothing of Tidegate work unchanged: tritonclient on both ports, openai."""

import numpy as np
import openai
import pytest
from tritonclient import grpc as triton_grpc
from tritonclient import http as triton_http
from tritonclient.utils import InferenceServerException

from tests.running import RunningStack

TEXT = "Where is my parcel?"


def _text_input(module, texts):
    tensor = module.InferInput("text", [len(texts), 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[t.encode()] for t in texts], dtype=object))
    return tensor


@pytest.fixture(scope="module")
def direct(stack: RunningStack) -> np.ndarray:
    """The vector from Triton's own gRPC port."""
    with triton_grpc.InferenceServerClient(stack.grpc_address) as client:
        result = client.infer("text_embedding", [_text_input(triton_grpc, [TEXT])])
    return result.as_numpy("sentence_embedding")


def test_triton_grpc_answers_the_contract(direct):
    assert direct.shape == (1, 384)
    assert direct.dtype == np.float32
    assert np.linalg.norm(direct) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("version", ["", "1"])
def test_tritonclient_http_works_with_only_the_key_header(stack, direct, version):
    with triton_http.InferenceServerClient(stack.url.removeprefix("http://")) as client:
        result = client.infer(
            "text_embedding",
            [_text_input(triton_http, [TEXT])],
            model_version=version,
            headers=stack.headers,
        )
    assert np.allclose(result.as_numpy("sentence_embedding"), direct, atol=1e-5)
    assert result.as_numpy("token_count").tolist() == [[7]]
    assert result.get_response()["model_name"] == "text_embedding"


def test_tritonclient_http_json_both_ways(stack, direct):
    """No binary data at all: JSON in, JSON out."""
    tensor = triton_http.InferInput("text", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[TEXT]], dtype=object), binary_data=False)
    expected = [triton_http.InferRequestedOutput("sentence_embedding", binary_data=False)]
    with triton_http.InferenceServerClient(stack.url.removeprefix("http://")) as client:
        result = client.infer("text_embedding", [tensor], outputs=expected, headers=stack.headers)
    assert np.allclose(result.as_numpy("sentence_embedding"), direct, atol=1e-5)
    assert [output["name"] for output in result.get_response()["outputs"]] == ["sentence_embedding"]


def test_tritonclient_http_metadata_and_health(stack):
    headers = stack.headers
    with triton_http.InferenceServerClient(stack.url.removeprefix("http://")) as client:
        assert client.is_server_live(headers=headers)
        assert client.is_server_ready(headers=headers)
        assert client.is_model_ready("text_embedding", headers=headers)
        assert not client.is_model_ready("no_such_model", headers=headers)
        assert "binary_tensor_data" in client.get_server_metadata(headers=headers)["extensions"]
        metadata = client.get_model_metadata("text_embedding", headers=headers)
    assert metadata["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1, 1]}]
    assert metadata["outputs"][0] == {
        "name": "sentence_embedding",
        "datatype": "FP32",
        "shape": [-1, 384],
    }


def test_request_id_and_parameters_go_through(stack):
    """The request's id comes back; the parameter ``truncate`` reaches the step."""
    texts = ["word " * 400]
    with triton_http.InferenceServerClient(stack.url.removeprefix("http://")) as client:
        result = client.infer(
            "text_embedding",
            [_text_input(triton_http, texts)],
            request_id="mine",
            parameters={"truncate": True},
            headers=stack.headers,
        )
    assert result.get_response()["id"] == "mine"
    assert result.as_numpy("token_count").tolist() == [[256]]


def test_openai_client_embeds(stack, direct):
    client = openai.OpenAI(api_key=stack.key, base_url=f"{stack.url}/v1")
    response = client.embeddings.create(
        model="text_embedding", input=[TEXT, "I want my money back."]
    )
    assert np.allclose(response.data[0].embedding, direct[0], atol=1e-5)
    assert [item.index for item in response.data] == [0, 1]
    assert response.usage.prompt_tokens == 7 + 8
    as_floats = client.embeddings.create(
        model="text_embedding", input=TEXT, encoding_format="float"
    )
    assert np.allclose(as_floats.data[0].embedding, direct[0], atol=1e-5)
    client.close()


def test_openai_client_lists_models(stack):
    client = openai.OpenAI(api_key=stack.key, base_url=f"{stack.url}/v1")
    names = [model.id for model in client.models.list()]
    assert "text_embedding" in names
    assert not {"identity_fp32", "text_embedding_onnx", "text_embedding_pre"} & set(names)
    assert client.models.retrieve("text_embedding").id == "text_embedding"
    client.close()


def test_openai_client_raises_its_own_errors(stack):
    stranger = openai.OpenAI(api_key="nonsense", base_url=f"{stack.url}/v1", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        stranger.embeddings.create(model="text_embedding", input="hello")
    stranger.close()
    client = openai.OpenAI(api_key=stack.key, base_url=f"{stack.url}/v1", max_retries=0)
    with pytest.raises(openai.NotFoundError, match="no_such_model"):
        client.embeddings.create(model="no_such_model", input="hello")
    with pytest.raises(openai.BadRequestError, match="tokens"):
        client.embeddings.create(model="text_embedding", input="word " * 1000)
    with pytest.raises(openai.BadRequestError, match="the token id -3 is not in the vocabulary"):
        client.embeddings.create(model="text_embedding", input=[[1, 2, -3]])
    client.close()


def test_task_route_gives_the_same_vector(stack, direct):
    one = stack.post("/v1/text_embedding", json={"text": TEXT}).json()
    assert np.allclose(one["embedding"], direct[0], atol=1e-5)
    assert one["token_count"] == 7
    texts = [TEXT, "x " * 100, "short", TEXT]
    many = stack.post("/v1/text_embedding", json={"inputs": [{"text": t} for t in texts]}).json()
    vectors = np.array([row["embedding"] for row in many["outputs"]])
    assert vectors.shape == (4, 384)
    assert np.allclose(vectors[[0, 3]], direct[0], atol=1e-5)


def test_more_rows_than_a_batch_takes_are_split(stack):
    rows = [{"text": f"parcel number {n}", "truncate": n % 2 == 0} for n in range(150)]
    response = stack.post("/v1/text_embedding", json={"inputs": rows})
    assert response.status_code == 200
    assert len({tuple(row["embedding"][:4]) for row in response.json()["outputs"]}) == 150


def test_third_party_clients_find_what_they_look_for(stack):
    """KServe's client reads the bodies of health routes; NVIDIA's examples the server's name."""
    assert stack.get("/v2/health/live").json() == {"live": True}
    assert stack.get("/v2/health/ready").json() == {"ready": True}
    address, headers = f"127.0.0.1:{stack.grpc_api_port}", stack.headers
    with (
        triton_http.InferenceServerClient(stack.url.removeprefix("http://")) as http,
        triton_grpc.InferenceServerClient(address) as grpc,
    ):
        assert http.get_server_metadata(headers=headers)["name"] == "triton"
        grpc_headers = {"authorization": headers["Authorization"]}
        assert grpc.get_server_metadata(headers=grpc_headers).name == "triton"
        for client, client_headers in ((http, headers), (grpc, grpc_headers)):
            with pytest.raises(InferenceServerException) as caught:
                client.get_model_metadata("wrong_model_name", headers=client_headers)
            assert caught.value.message().startswith("Request for unknown model")
        # perf_analyzer sends what follows the colon, including the blank.
        blank = {"authorization": f" {headers['Authorization']}"}
        assert grpc.is_server_live(headers=blank)


def test_the_requests_of_perf_analyzer_for_a_pipeline(stack):
    """It follows the pipeline's config to its steps, and requests the statistics of all at once."""
    headers = {"authorization": stack.headers["Authorization"]}
    config = stack.get("/v2/models/text_embedding/config").json()
    steps = [step["model_name"] for step in config["ensemble_scheduling"]["step"]]
    assert len(steps) == 2
    counted = stack.get("/v2/models/stats").json()["model_stats"]
    with triton_grpc.InferenceServerClient(f"127.0.0.1:{stack.grpc_api_port}") as client:
        statistics = client.get_inference_statistics(headers=headers).model_stats
        assert {*steps, "text_embedding"} <= {model.name for model in statistics}
        assert {model["name"] for model in counted} == {model.name for model in statistics}
        for step in steps:
            assert stack.get(f"/v2/models/{step}/config").json()["name"] == step
            assert client.get_model_config(step, headers=headers).config.name == step
            # Readable, but not callable.
            assert stack.post(f"/v2/models/{step}/infer", json={}).status_code == 404
            assert not client.is_model_ready(step, headers=headers)
