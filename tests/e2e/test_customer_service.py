"""One message, four answers at the same time: the ones that the pipelines give alone; where one of
them does not answer, it is named and the rest is there."""

import json

import numpy as np
import pytest
from tritonclient import grpc as triton

from tests.command_line import tidegate
from tests.running import launch, stop, wait_ready, wait_until
from tests.tiny_models import save_classifier, save_tagger
from tidegate.app.convert import ConvertOptions, run
from tidegate.app.demo_conversation import MESSAGES
from tidegate.app.paths import Paths

NAME = "customer_service"
ENGLISH, CHINESE = "Where is my parcel?", "物流很快\uff0c昨天下单今天就到了。"
STEPS = ["topic", "sentiment", "entities", "reply"]
ANSWERS = "question,answer,source\nWhere is my parcel?,It is on its way.,faq.csv\n"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder, home = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("home")
    samples = folder / "samples.txt"
    samples.write_text(f"{ENGLISH}\n{CHINESE}\nI want my money back.\n", encoding="utf-8")
    topics, moods = folder / "topics", folder / "moods"
    # The models and samples of test_compose and test_convert_text_tasks: exported once for all.
    for source, task, name in (
        (
            save_classifier("bert", topics, ("orders", "returns", "other")),
            "text-classification",
            "topic_classification",
        ),
        (save_classifier("bert", moods, ("bad", "good")), "text-classification", "sentiment"),
        (save_tagger("bert", folder / "tagger"), "token-classification", "entity_recognition"),
    ):
        run(ConvertOptions(str(source), task, name, samples), Paths(home), lambda line: None)
    (home / "faq.csv").write_text(ANSWERS)
    for command in (
        ("convert", "text_embedding"),
        ("compose", "text_classification"),
        ("kb", "build", str(home / "faq.csv")),
        ("compose", NAME),
    ):
        ended = tidegate(home, *command)
        assert ended.returncode == 0, ended.stderr
    running = launch(home, NAME)  # with the pipelines that it asks
    wait_ready(running)
    yield running
    assert stop(running) == 0


def _alone(served, pipeline, **body):
    response = served.post(f"/v1/{pipeline}", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def test_each_answer_is_the_one_that_its_pipeline_gives(served):
    answer = _alone(served, NAME, text=ENGLISH)
    assert answer["language"] == "en"
    topic = _alone(served, "text_classification", text=ENGLISH, task="topic_classification")
    assert answer["topic"] == topic["labels"]
    sentiment = _alone(served, "text_classification", text=ENGLISH, task="sentiment")
    assert answer["sentiment"] == sentiment["labels"]
    assert [step["error"] for step in answer["steps"]] == [""] * 4
    assert answer["entities"] == _alone(served, "entity_recognition", text=ENGLISH)["entities"]
    for entity in answer["entities"]:
        assert ENGLISH[entity["start"] : entity["end"]] == entity["text"]
    reply = _alone(served, "smart_reply", text=ENGLISH)
    assert [answer[name] for name in ("reply", "source")] == ["It is on its way.", "faq.csv"]
    assert answer["confidence"] == pytest.approx(reply["confidence"], abs=1e-6)


def test_what_has_no_answer_is_named_and_the_rest_is_there(served):
    answer = _alone(served, NAME, text=CHINESE)
    steps = {step["name"]: step for step in answer["steps"]}
    assert list(steps) == STEPS
    assert "supported are en" in steps["topic"]["error"]
    assert [steps[name]["error"] for name in ("sentiment", "entities", "reply")] == [""] * 3
    assert all(step["ms"] > 0 for step in steps.values())
    assert (answer["language"], answer["topic"]) == ("zh", [])
    alone = _alone(served, "text_classification", text=CHINESE, task="sentiment")
    assert answer["sentiment"] == alone["labels"]


def test_rows_are_independent(served):
    rows = [{"text": text} for text in (CHINESE, ENGLISH)]
    outputs = _alone(served, NAME, inputs=rows)["outputs"]
    for output, row in zip(outputs, rows, strict=True):
        alone = _alone(served, NAME, **row)
        for name in ("language", "reply", "source", "from"):
            assert output[name] == alone[name]
        for name in ("topic", "sentiment", "entities"):
            assert [one["label"] for one in output[name]] == [one["label"] for one in alone[name]]
        assert [step["error"] for step in output["steps"]] == [
            step["error"] for step in alone["steps"]
        ]


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ({"text": ""}, "text"),
        ({"text": " \n"}, "empty"),
        ({"text": "x" * 100_000}, "text"),
        ({"inputs": [{"text": ENGLISH}, {"text": " "}]}, "inputs.1"),
    ],
)
def test_a_message_that_nothing_answers_is_refused_with_what_to_do(served, body, problem):
    response = served.post(f"/v1/{NAME}", json=body)
    assert response.status_code == 422, response.text
    assert problem in response.json()["detail"]


def test_grpc_gives_the_same(served):
    answer = _alone(served, NAME, text=ENGLISH)
    with triton.InferenceServerClient(f"127.0.0.1:{served.grpc_api_port}") as client:
        column = triton.InferInput("text", [1, 1], "BYTES")
        column.set_data_from_numpy(np.array([[ENGLISH.encode()]], dtype=object))
        result = client.infer(NAME, [column], headers={"authorization": f"Bearer {served.key}"})
    assert result.as_numpy("reply")[0, 0].decode() == answer["reply"]
    labels = [label.decode() for label in result.as_numpy("topic_label")[0]]
    assert labels == [one["label"] for one in answer["topic"]]
    assert result.as_numpy("step_name")[0].tolist() == [name.encode() for name in STEPS]


def test_the_demo_plays_a_conversation(served):
    shown = served.tidegate("demo")
    assert shown.returncode == 0, shown.stderr
    for message in MESSAGES:
        assert message in shown.stdout
    assert shown.stdout.count("    reply ") == len(MESSAGES)
    assert "\x1b" not in shown.stdout  # no terminal, no colours
    conversation = json.loads(served.tidegate("demo", "--json").stdout)["conversation"]
    assert [turn["message"] for turn in conversation] == list(MESSAGES)
    assert all(turn["answer"]["reply"] for turn in conversation)


def test_a_pipeline_whose_process_died_is_named_and_comes_back(served):
    for process in served.stubs("smart_reply_post"):
        process.kill()

    def error():
        steps = _alone(served, NAME, text=ENGLISH)["steps"]
        return next(step["error"] for step in steps if step["name"] == "reply")

    wait_until(lambda: error() != "", 20, "the failed step")
    assert _alone(served, NAME, text=ENGLISH)["topic"]
    wait_until(lambda: error() == "", 60, "its revival")
