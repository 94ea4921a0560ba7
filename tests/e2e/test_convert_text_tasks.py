"""Unfamiliar embedders and token classifiers are converted, proved and served, or refused."""

import itertools
import json
import os
import shutil

import numpy as np
import openai
import pytest
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

from converters.tasks.text.samples import default_texts, multilingual_texts
from tests.command_line import tidegate
from tests.running import launch, stop, wait_ready
from tests.tiny_models import save_classifier, save_embedder, save_encoder, save_tagger
from tidegate.app.convert import ConvertOptions, run
from tidegate.app.paths import Paths

TEXTS = [
    "Where is my parcel?",
    "  two  spaces,\ta tab and John Smith of Acme Corp.  ",
    "👩‍👩‍👧 in 北京 and São Paulo",
    "Zoe\u0308 met Rene\u0301e",
    "x",
]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    samples = [*default_texts(12), *multilingual_texts()]
    (folder / "samples.txt").write_text("\n".join(samples))
    save_embedder("xlm-roberta", folder / "embedder", Pooling(32, "mean"), Normalize())
    save_tagger("bert", folder / "tagger")
    save_classifier("bert", folder / "ranker", ["relevant"])
    pairs = (f"{query}\t{passage}" for query, passage in itertools.pairwise(samples))
    (folder / "pairs.txt").write_text("\n".join(pairs))
    return folder


@pytest.fixture(scope="module")
def home(models, tmp_path_factory):
    """A home with all, converted in this process: the command itself is tested elsewhere."""
    home = tmp_path_factory.mktemp("text-tasks")
    samples = models / "samples.txt"
    for name, task in (("embedder", "embedding"), ("tagger", "token-classification")):
        options = ConvertOptions(str(models / name), task, name, samples)
        run(options, Paths(home), lambda text: None)
    options = ConvertOptions(str(models / "ranker"), "text-ranking", "ranker", models / "pairs.txt")
    run(options, Paths(home), lambda text: None)
    return home


@pytest.fixture(scope="module")
def served(home):
    running = launch(home, "embedder", "tagger", "ranker")
    wait_ready(running)
    yield running
    assert stop(running) == 0


def test_the_vectors_are_the_originals(served, models):
    from sentence_transformers import SentenceTransformer

    original = SentenceTransformer(str(models / "embedder"), device="cpu").encode(TEXTS)
    response = served.post("/v1/embedder", json={"inputs": [{"text": text} for text in TEXTS]})
    assert response.status_code == 200, response.text
    mine = np.array([row["embedding"] for row in response.json()["outputs"]])
    assert np.abs(mine - original).max() < 1e-5
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key=served.key)
    embeddings = client.embeddings.create(model="embedder", input=TEXTS, encoding_format="float")
    assert np.abs(np.array([item.embedding for item in embeddings.data]) - original).max() < 1e-5


def test_the_entities_are_the_originals(served, models):
    from transformers import pipeline

    original = pipeline(
        "token-classification", str(models / "tagger"), aggregation_strategy="simple", device="cpu"
    )
    response = served.post("/v1/tagger", json={"inputs": [{"text": text} for text in TEXTS]})
    assert response.status_code == 200, response.text
    for text, mine in zip(TEXTS, response.json()["outputs"], strict=True):
        theirs = original(text)
        assert [(e["start"], e["end"], e["label"]) for e in mine["entities"]] == [
            (e["start"], e["end"], e["entity_group"]) for e in theirs
        ]
        scores = [e["score"] for e in mine["entities"]]
        assert scores == pytest.approx([e["score"] for e in theirs], abs=1e-4)
        assert all(e["text"] == text[e["start"] : e["end"]] for e in mine["entities"])
        assert mine["token_count"] > 0


def test_the_relevance_is_the_originals(served, models):
    from transformers import pipeline

    original = pipeline("text-classification", str(models / "ranker"), device="cpu")
    query, passages = "Where is my parcel?", [*TEXTS, "[SEP] It is on its way. [SEP]"]
    expected = [
        original({"text": query, "text_pair": text}, function_to_apply="sigmoid")["score"]
        for text in passages
    ]
    body = {"model": "ranker", "text_1": query, "text_2": passages}
    response = served.post("/v1/score", json=body)
    assert response.status_code == 200, response.text
    scores = [entry["score"] for entry in response.json()["data"]]
    assert scores == pytest.approx(expected, abs=1e-5)
    assert len({round(score, 6) for score in scores}) == len(passages)
    body = {"model": "ranker", "query": query, "documents": passages}
    results = served.post("/v1/rerank", json=body).json()["results"]
    assert [result["index"] for result in results] == np.argsort(-np.array(scores)).tolist()
    too_long = served.post(
        "/v1/score", json={"model": "ranker", "text_1": query, "text_2": "a " * 99}
    )
    assert too_long.status_code == 422 and "tokens together" in too_long.json()["detail"]
    empty = served.post(
        "/v1/rerank", json={"model": "ranker", "query": query, "documents": ["a", " "]}
    )
    assert (empty.status_code, empty.json()["param"]) == (422, "documents.1")


def test_a_text_without_an_entity_has_none(served, models):
    """Over REST an empty list; over V2 one empty element, and a count of 0."""
    from transformers import pipeline

    original = pipeline(
        "token-classification", str(models / "tagger"), aggregation_strategy="simple", device="cpu"
    )
    text = next(character for character in map(chr, range(33, 1000)) if not original(character))
    response = served.post("/v1/tagger", json={"text": text}).json()
    assert response["entities"] == []
    tensor = {"name": "text", "datatype": "BYTES", "shape": [1, 1], "data": [text]}
    v2 = served.post("/v2/models/tagger/infer", json={"inputs": [tensor]}).json()
    outputs = {output["name"]: output for output in v2["outputs"]}
    assert outputs["count"]["data"] == [0]
    assert outputs["entity"]["shape"] == [1, 1]


def test_a_redacted_text_is_the_same_over_rest_and_v2(served):
    text = "Ann 👍 13800138000 ann@example.com"
    plain = served.post("/v1/tagger", json={"text": text}).json()
    assert "redacted" not in plain
    response = served.post("/v1/tagger", json={"text": text, "redact": True}).json()
    assert response["entities"] == plain["entities"]
    redacted = response["redacted"]
    assert "[" in redacted and not any(part in redacted for part in ("1380", "8000", "example"))
    tensor = {"name": "text", "datatype": "BYTES", "shape": [1, 1], "data": [text]}
    request = {"inputs": [tensor], "outputs": [{"name": "redacted"}]}
    for parameters, expected in (({"redact": True}, redacted), ({}, "")):
        v2 = served.post("/v2/models/tagger/infer", json={**request, "parameters": parameters})
        assert v2.json()["outputs"][0]["data"] == [expected]


def test_a_redacted_text_ends_where_the_model_stopped_reading(served):
    body = {"text": "parcel " * 200 + "secret", "truncate": True, "redact": True}
    response = served.post("/v1/tagger", json=body).json()
    assert response["token_count"] == 64
    assert "secret" not in response["redacted"] and len(response["redacted"]) < 500


def test_a_text_that_is_too_long_is_refused_or_cut(served):
    long = {"text": "parcel " * 200}
    for name in ("embedder", "tagger"):
        assert served.post(f"/v1/{name}", json=long).status_code == 422
        response = served.post(f"/v1/{name}", json={**long, "truncate": True})
        assert response.json()["token_count"] == 64


def test_they_are_documented_as_what_they_are(served):
    document = served.get("/openapi.json").json()
    assert {"/v1/embedder", "/v1/tagger"} <= set(document["paths"])
    assert "PER, LOC, MISC" in json.dumps(document)


def _edit(path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("name", "step", "old", "new", "caught"),
    [
        ("tagger", "post", "group[-1].end\n", "group[-1].end + 1\n", "span F1"),
        ("embedder", "pre", "] = row.ids\n", "] = row.ids[::-1]\n", "parity"),
    ],
)
def test_prove_finds_a_fault_in_what_is_published(
    home, models, tmp_path, name, step, old, new, caught
):
    shutil.copytree(home / "model_repository", tmp_path / "model_repository")
    samples = ("--samples", str(models / "samples.txt"))
    against = ("prove", name, "--against", str(models / name), *samples)
    _edit(tmp_path / "model_repository" / f"{name}_{step}" / "1" / "model.py", old, new)
    run = tidegate(tmp_path, *against)
    assert run.returncode == 1, run.stdout + run.stderr
    line = next(line for line in run.stdout.splitlines() if "FAIL" in line and caught in line)
    assert "original" in line
    assert "Traceback" not in run.stderr


def _modules(folder) -> list[dict]:
    return json.loads((folder / "modules.json").read_text())


def _unknown_module(folder):
    modules = [*_modules(folder), {"idx": 9, "name": "9", "path": "9", "type": "os.system"}]
    (folder / "modules.json").write_text(json.dumps(modules))


def _module_outside(folder):
    modules = _modules(folder)
    modules[1]["path"] = "../../elsewhere"
    (folder / "modules.json").write_text(json.dumps(modules))


def _modules_no_json(folder):
    (folder / "modules.json").write_text("[" * 100_000)


def _prompt(folder):
    path = folder / "config_sentence_transformers.json"
    settings = {"prompts": {"query": "query: "}, "default_prompt_name": "query"}
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def _other_settings(folder):
    path = folder / "sentence_bert_config.json"
    settings = {**json.loads(path.read_text()), "model_args": {"attn_implementation": "eager"}}
    path.write_text(json.dumps(settings))


def _truncated(folder):
    weights = folder / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)


REFUSED = {
    _unknown_module: "names the module 'os.system', which is never loaded",
    _module_outside: "outside the folder",
    _modules_no_json: "is not JSON",
    _prompt: "remove default_prompt_name",
    _other_settings: "sets model_args",
    _truncated: "cannot be read safely",
}


@pytest.mark.parametrize("spoil", REFUSED, ids=lambda spoil: spoil.__name__.strip("_"))
def test_a_folder_that_cannot_be_converted_is_refused(models, tmp_path, spoil):
    from converters.errors import SourceRefused
    from converters.task import ConversionRequest
    from converters.tasks.embedding.task import Embedding

    folder = tmp_path / "model"
    shutil.copytree(models / "embedder", folder)
    spoil(folder)
    with pytest.raises(SourceRefused, match=REFUSED[spoil]):
        Embedding(ConversionRequest("x", str(folder)))


def test_a_refusal_is_one_line_and_leaves_nothing(models, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(models / "embedder", folder)
    _unknown_module(folder)
    run = tidegate(tmp_path, "convert", str(folder), "--task", "embedding", "--name", "x")
    assert (run.returncode, run.stderr.count("\n")) == (1, 1), run.stderr
    assert "never loaded" in run.stderr
    assert not (tmp_path / "model_repository").exists()


def test_a_tagger_without_its_head_is_refused(tmp_path):
    from converters.errors import SourceRefused
    from converters.task import ConversionRequest
    from converters.tasks.token_classification.task import TokenClassification

    folder = save_encoder("bert", tmp_path / "m")
    with pytest.raises(SourceRefused, match="lacks weights that this task needs"):
        TokenClassification(ConversionRequest("x", str(folder))).metadata()
