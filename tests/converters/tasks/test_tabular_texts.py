"""scikit-learn's text pipelines: whatever the vectorizer does, the served prediction is the
same."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import skops.io
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import RandomForestClassifier, VotingClassifier
from sklearn.feature_extraction.text import (
    CountVectorizer,
    HashingVectorizer,
    TfidfTransformer,
    TfidfVectorizer,
)
from sklearn.linear_model import LogisticRegression, Ridge, SGDClassifier
from sklearn.naive_bayes import BernoulliNB, ComplementNB, MultinomialNB
from sklearn.pipeline import FeatureUnion, make_pipeline, make_union
from sklearn.preprocessing import OneHotEncoder
from sklearn.svm import LinearSVC

from ensembles.tabular import declare
from tests.in_process import step
from tests.tables_in_process import build_reference, failed_checks, graph_scores, open_task

GOOD = [
    "очень хороший товар", "мне нравится", "отличное качество", "very good, I like it",
    "a great buy", "äußerst schöne Möbel für Bäder", "très bon café",
    "物 が 良 い", "this is a good buy",
    "i love U", "größer ist besser", "naïve but excellent",
]  # fmt: skip
BAD = [
    "плохое качество, сломан", "ужасный товар, не работает", "сломан и не работает",
    "very bad, I hate it", "a terrible buy", "häßliche Möbel, kaputt", "très mauvais café",
    "this is not a good buy", "I do not like x or y", "kaputte Tür",
    "broken again, C 3", "poor résumé",
]  # fmt: skip
TEXTS, CLASSES = (GOOD + BAD) * 4, (["good"] * len(GOOD) + ["bad"] * len(BAD)) * 4
NEW_TEXTS = [
    *GOOD, *BAD, "", "x", "GOOD buy", "Café", "cafe", "cafe\u0301", "KAUPUTT", "größer als Möbel",
    "Я не работает", "good-buy", "not good", "İ", "unknown words only", "плохое", "😀", "a", "I",
]  # fmt: skip

VECTORIZERS = {
    "tfidf": TfidfVectorizer(),
    "count": CountVectorizer(),
    "case": CountVectorizer(lowercase=False),
    "one letter": TfidfVectorizer(token_pattern=r"(?u)\b\w+\b"),
    "bigrams": TfidfVectorizer(ngram_range=(1, 3), sublinear_tf=True),
    "characters": TfidfVectorizer(analyzer="char", ngram_range=(2, 4)),
    "in words": CountVectorizer(analyzer="char_wb", ngram_range=(1, 3)),
    "stop words": TfidfVectorizer(stop_words="english", norm="l1"),
    "own stop words": CountVectorizer(stop_words=["a", "i", "не"], binary=True),
    "accents": TfidfVectorizer(strip_accents="unicode"),
    "ascii": TfidfVectorizer(strip_accents="ascii", use_idf=False),
    "hashed": HashingVectorizer(n_features=2**10, alternate_sign=True),
    "fixed": CountVectorizer(vocabulary=["good", "bad", "не", "möbel"]),
    "narrow": TfidfVectorizer(dtype=np.float32),
}


@pytest.mark.parametrize("name", VECTORIZERS)
def test_texts_are_served_as_scikit_learn_predicts_them(tmp_path, name):
    """As the step in Triton runs it, and as the proof does."""
    model = make_pipeline(VECTORIZERS[name], LogisticRegression()).fit(TEXTS, CLASSES)
    skops.io.dump(model, tmp_path / "m.skops")
    task = open_task(tmp_path / "m.skops")
    reference = build_reference(task, tmp_path / "c")
    assert failed_checks(task, reference) == []
    expected = model.predict_proba(NEW_TEXTS)
    assert graph_scores(reference, {"text": np.array(NEW_TEXTS)}) == pytest.approx(
        expected, abs=1e-6
    )
    assert _scores_through_the_step(reference, NEW_TEXTS) == pytest.approx(
        expected.max(axis=1), abs=1e-6
    )
    if hasattr(model[0], "vocabulary_"):
        assert any("terms of its vocabulary" in note for note in task.exercised(reference))


def _scores_through_the_step(reference, texts):
    import onnxruntime

    vectorize = step("vectorize_text").TextVectorizers(
        json.loads((reference.folder / "pre" / "texts.json").read_text())
    )
    session = onnxruntime.InferenceSession(str(reference.folder / "model.onnx"))
    feed = vectorize({"text": [text.encode() for text in texts]})
    return session.run(["score"], feed)[0][:, 0]


HEADS = {
    "bayes": MultinomialNB(),
    "complement": ComplementNB(),
    "bernoulli": BernoulliNB(),
    "gradient": SGDClassifier(loss="log_loss", random_state=0),
    "calibrated": CalibratedClassifierCV(LinearSVC(), cv=3),
    "forest": RandomForestClassifier(5, random_state=0),
    "support vectors": LinearSVC(),
}


@pytest.mark.parametrize("name", HEADS)
def test_heads_of_text_pipelines(tmp_path, name):
    model = make_pipeline(CountVectorizer(), TfidfTransformer(), HEADS[name]).fit(TEXTS, CLASSES)
    skops.io.dump(model, tmp_path / "m.skops")
    task = open_task(tmp_path / "m.skops")
    reference = build_reference(task, tmp_path / "c")
    assert failed_checks(task, reference) == []
    actual = graph_scores(reference, {"text": np.array(NEW_TEXTS)})
    if hasattr(model, "predict_proba"):
        assert actual == pytest.approx(model.predict_proba(NEW_TEXTS), abs=1e-6)
    else:
        margins = model.decision_function(NEW_TEXTS)
        assert actual == pytest.approx(np.stack([-margins, margins], 1), abs=1e-6)


@pytest.mark.parametrize(
    "model",
    [
        CalibratedClassifierCV(make_pipeline(TfidfVectorizer(min_df=2), LinearSVC()), cv=3),
        VotingClassifier(
            [
                ("words", make_pipeline(CountVectorizer(), LogisticRegression())),
                ("letters", make_pipeline(TfidfVectorizer(analyzer="char"), MultinomialNB())),
            ],
            voting="soft",
        ),
    ],
    ids=["calibrated", "a vote"],
)
def test_estimators_around_text_pipelines(tmp_path, model):
    model.fit(TEXTS, CLASSES)
    skops.io.dump(model, tmp_path / "m.skops")
    task = open_task(tmp_path / "m.skops")
    reference = build_reference(task, tmp_path / "c")
    assert failed_checks(task, reference) == []
    expected = model.predict_proba(NEW_TEXTS)
    actual = graph_scores(reference, {"text": np.array(NEW_TEXTS)})
    assert actual == pytest.approx(expected, abs=1e-6)
    assert _scores_through_the_step(reference, NEW_TEXTS) == pytest.approx(
        expected.max(axis=1), abs=1e-6
    )


def test_three_classes_and_a_union_of_vectorizers(tmp_path):
    classes = np.where(np.arange(len(TEXTS)) % 5 == 0, "other", CLASSES)
    union = FeatureUnion(
        [
            ("words", TfidfVectorizer()),
            ("letters", make_pipeline(CountVectorizer(analyzer="char"), TfidfTransformer())),
        ],
        transformer_weights={"words": 2.0, "letters": 0.5},
    )
    model = make_pipeline(union, LogisticRegression()).fit(TEXTS, classes)
    skops.io.dump(model, tmp_path / "m.skops")
    task = open_task(tmp_path / "m.skops")
    reference = build_reference(task, tmp_path / "c")
    assert failed_checks(task, reference) == []
    actual = graph_scores(reference, {"text": np.array(NEW_TEXTS)})
    assert actual == pytest.approx(model.predict_proba(NEW_TEXTS), abs=1e-6)


def test_text_columns_beside_others(tmp_path):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "отзыв": TEXTS,
            "plan": rng.choice(["a", "b"], len(TEXTS)),
            "stars": rng.normal(3, 1, len(TEXTS)),
            "title": rng.permutation(TEXTS),
        }
    )
    columns = ColumnTransformer(
        [
            ("t", CountVectorizer(lowercase=False), "отзыв"),
            ("u", make_union(TfidfVectorizer(), TfidfVectorizer(analyzer="char")), "title"),
            ("c", OneHotEncoder(handle_unknown="ignore"), ["plan"]),
        ],
        remainder="passthrough",
    )
    model = make_pipeline(columns, LogisticRegression()).fit(frame, CLASSES)
    skops.io.dump(model, tmp_path / "m.skops")
    task = open_task(tmp_path / "m.skops")
    reference = build_reference(task, tmp_path / "c")
    assert failed_checks(task, reference) == []
    new_rows = frame.assign(отзыв=rng.permutation(TEXTS), title=rng.permutation(TEXTS))
    actual = graph_scores(reference, {name: new_rows[name].to_numpy() for name in new_rows})
    assert actual == pytest.approx(model.predict_proba(new_rows), abs=1e-6)
    pipeline = declare("t", reference.metadata, task.golden(reference), task.card())
    assert [model.name for model in pipeline.models] == ["t_pre", "t_onnx", "t"]


def test_a_regression_of_texts(tmp_path):
    model = make_pipeline(TfidfVectorizer(), Ridge()).fit(TEXTS, [len(text) for text in TEXTS])
    skops.io.dump(model, tmp_path / "m.skops")
    task = open_task(tmp_path / "m.skops")
    reference = build_reference(task, tmp_path / "c")
    assert failed_checks(task, reference) == []
    actual = graph_scores(reference, {"text": np.array(NEW_TEXTS)})
    assert actual[:, 0] == pytest.approx(model.predict(NEW_TEXTS), rel=1e-6)


PLANTED = {
    "case": lambda document: document["settings"].update(lowercase=False),
    "accents": lambda document: document["settings"].update(strip_accents="unicode"),
    "one letter": lambda document: document["settings"].update(token_pattern=r"(?u)\b\w+\b"),
    "ascii words": lambda document: document["settings"].update(token_pattern=r"(?a)\b\w\w+\b"),
    "norm": lambda document: document["settings"].update(norm="l1"),
    "unigrams": lambda document: document["settings"].update(ngram_range=[1, 1]),
    "stop words": lambda document: document["settings"].update(stop_words=["good"]),
    "idf": lambda document: document["idf"].reverse(),
    "two words swapped": lambda document: document["vocabulary"].update(
        good=document["vocabulary"]["bad"]
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_fault_in_the_vectorizer_is_caught(tmp_path, name):
    vectorizer = TfidfVectorizer(ngram_range=(1, 2))
    model = make_pipeline(vectorizer, LogisticRegression()).fit(
        [*TEXTS, "i x i x"], [*CLASSES, "bad"]
    )
    skops.io.dump(model, tmp_path / "m.skops")
    task = open_task(tmp_path / "m.skops")
    reference = build_reference(task, tmp_path / "c")
    file = Path(reference.folder / "pre" / "texts.json")
    documents = json.loads(file.read_text())
    PLANTED[name](documents[0])
    file.write_text(json.dumps(documents))
    assert failed_checks(task, reference)
