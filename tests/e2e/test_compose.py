"""Two classifiers behind one name: composed as they are published, and the same answers over every
API."""

import numpy as np
import pytest
from tritonclient import grpc as triton

from serving.repository.model_repository import ModelRepository
from serving.triton.ports import Ports
from tests.command_line import tidegate
from tests.running import launch, stop, wait_ready
from tests.tiny_models import save_classifier
from tidegate.app import compose
from tidegate.app.convert import ConvertOptions, run
from tidegate.app.paths import Paths
from tidegate.app.stack import Stack, StackOptions

NAME = "text_classification"
ENGLISH, CHINESE = "Where is my parcel?", "物流很快\uff0c昨天下单今天就到了。"
MODELS = {"topic_classification": ("orders", "returns", "other"), "sentiment": ("bad", "good")}


def _publish(folder, home, name, seed=0):
    source = save_classifier("bert", folder / f"{name}{seed}", MODELS[name], hidden_size=32 + seed)
    samples = folder / "samples.txt"
    samples.write_text(f"{ENGLISH}\n{CHINESE}\nI want my money back.\n", encoding="utf-8")
    options = ConvertOptions(str(source), "text-classification", name, samples, force=True)
    run(options, Paths(home), lambda line: None)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    for name in MODELS:
        _publish(tmp_path_factory.mktemp(name), home, name)
    ended = tidegate(home, "compose", NAME)
    assert ended.returncode == 0, ended.stderr
    assert f"{NAME}: version 1 is composed of topic_classification version 1" in ended.stdout
    return home


@pytest.fixture(scope="module")
def served(home):
    running = launch(home, NAME, *MODELS)
    wait_ready(running)
    yield running
    assert stop(running) == 0


def _expected(served, task, text):
    return served.post(f"/v1/{task}", json={"text": text}).json()["labels"]


@pytest.mark.parametrize(
    ("text", "task", "language"),
    [(ENGLISH, "topic_classification", "en"), (CHINESE, "sentiment", "zh")],
)
def test_every_api_gives_the_answer_of_the_model_that_reads_the_language(
    served, text, task, language
):
    labels = _expected(served, task, text)
    answer = served.post(f"/v1/{NAME}", json={"text": text}).json()
    assert (answer["task"], answer["language"]) == (task, language)
    assert answer["labels"] == labels and len(labels) == len(MODELS[task])
    assert {"label": answer["label"], "score": answer["score"]} == labels[0]

    tensor = {"name": "text", "datatype": "BYTES", "shape": [1, 1], "data": [text]}
    reply = served.post(f"/v2/models/{NAME}/infer", json={"inputs": [tensor]}).json()
    v2 = {output["name"]: output["data"] for output in reply["outputs"]}
    assert (v2["task"], v2["language"], v2["label"]) == ([task], [language], [answer["label"]])
    count = v2["label_count"][0]
    assert v2["labels"][:count] == [one["label"] for one in labels]
    assert v2["scores"][:count] == [one["score"] for one in labels]

    with triton.InferenceServerClient(f"127.0.0.1:{served.grpc_api_port}") as client:
        column = triton.InferInput("text", [1, 1], "BYTES")
        column.set_data_from_numpy(np.array([[text.encode()]], dtype=object))
        result = client.infer(NAME, [column], headers={"authorization": f"Bearer {served.key}"})
    assert result.as_numpy("labels")[0, :count].tolist() == [
        one["label"].encode() for one in labels
    ]
    assert result.as_numpy("scores")[0, :count].tolist() == pytest.approx(
        [one["score"] for one in labels], abs=1e-7
    )


def test_rows_of_both_languages_are_answered_together(served):
    rows = [{"text": text} for text in (CHINESE, ENGLISH, CHINESE)]
    outputs = served.post(f"/v1/{NAME}", json={"inputs": rows}).json()["outputs"]
    tasks = ["sentiment", "topic_classification", "sentiment"]
    assert [output["task"] for output in outputs] == tasks
    for output, task, row in zip(outputs, tasks, rows, strict=True):
        expected = _expected(served, task, row["text"])
        assert [one["label"] for one in output["labels"]] == [one["label"] for one in expected]
        scores = [one["score"] for one in output["labels"]]
        assert scores == pytest.approx([one["score"] for one in expected], abs=1e-5)


def test_the_language_and_the_task_may_be_named(served):
    body = {"text": "👍", "language": "zh"}
    assert served.post(f"/v1/{NAME}", json=body).json()["task"] == "sentiment"
    body = {"text": "👍", "task": "topic_classification"}
    assert served.post(f"/v1/{NAME}", json=body).json()["language"] == "en"


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ({"text": ""}, "text"),
        ({"text": " \n\t"}, "empty"),
        ({"text": "👍"}, "no letters"),
        ({"text": "Где мой заказ?"}, "cyrillic"),
        ({"text": "Wo bleibt denn mein Paket? Ich warte schon lange."}, "'de'"),
        ({"text": CHINESE, "task": "topic_classification"}, "supported are en"),
        ({"text": ENGLISH, "language": "fr"}, "language"),
        ({"text": ENGLISH, "task": "weather"}, "task"),
        ({"text": "x" * 100_000}, "text"),
        ({"text": "包" * 60_000}, "65536"),
        ({"inputs": [{"text": ENGLISH}, {"text": "👍"}]}, "no letters"),
    ],
)
def test_what_cannot_be_classified_is_refused_with_what_to_do(served, body, problem):
    response = served.post(f"/v1/{NAME}", json=body)
    assert response.status_code == 422, response.text
    assert problem in response.json()["detail"]
    if "inputs" in body:
        assert response.json()["detail"].startswith("inputs.1")


def test_invalid_utf8_is_refused_over_each_api(served):
    raw = served.post(f"/v1/{NAME}", content=b'{"text": "\xff\xfe"}')
    assert raw.status_code == 422
    with triton.InferenceServerClient(f"127.0.0.1:{served.grpc_api_port}") as client:
        column = triton.InferInput("text", [1, 1], "BYTES")
        column.set_data_from_numpy(np.array([[b"\xff\xfe"]], dtype=object))
        with pytest.raises(triton.InferenceServerException, match="UTF-8"):
            client.infer(NAME, [column], headers={"authorization": f"Bearer {served.key}"})


def test_up_makes_the_members_first(tmp_path):
    ports = Ports(4, 5, 6)
    options = StackOptions(Paths(tmp_path), "127.0.0.1", 1, 2, 3, ports, 1, (NAME,))
    stack = Stack(options, print)
    try:
        assert stack._missing() == [*MODELS, NAME, "identity_fp32"]
    finally:
        stack.stop()


def test_it_keeps_its_members_versions_until_it_is_composed_again(home, tmp_path):
    repository = ModelRepository(Paths(home).repository)
    assert compose.is_current(NAME, repository)
    _publish(tmp_path, home, "sentiment", seed=32)
    assert repository.active_version("sentiment") == 2
    assert not compose.is_current(NAME, repository)
    before = repository.pinned_members(NAME)
    assert compose.run(NAME, Paths(home), lambda line: None).members["sentiment"] == 2
    assert compose.is_current(NAME, repository)
    assert repository.active_version(NAME) == 2
    assert repository.pinned_members(NAME).items() != before.items()
