"""Text pipelines of scikit-learn: whatever the vectorizer does, what is served is its answer."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import skops.io
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import RandomForestClassifier
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
from tests.tables_in_process import built, failed, opened, served

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
FRESH = [
    *GOOD, *BAD, "", "x", "GOOD buy", "Café", "cafe", "cafe\u0301", "KAUPUTT", "größer als Möbel",
    "Я не работает", "good-buy", "not good", "İ", "unknown words only", "плохое", "😀", "a", "I",
]  # fmt: skip

VECTORIZERS = {
    "tfidf": TfidfVectorizer(),
    "count": CountVectorizer(),
    "reference": CountVectorizer(lowercase=False),
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
def test_a_list_of_texts_is_served_as_scikit_learn_reads_it(tmp_path, name):
    """As the step in Triton runs it, and as the proof does."""
    model = make_pipeline(VECTORIZERS[name], LogisticRegression()).fit(TEXTS, CLASSES)
    skops.io.dump(model, tmp_path / "m.skops")
    task = opened(tmp_path / "m.skops")
    reference = built(task, tmp_path / "c")
    assert failed(task, reference) == []
    wanted = model.predict_proba(FRESH)
    assert served(reference, {"text": np.array(FRESH)}) == pytest.approx(wanted, abs=1e-6)
    assert _through_the_step(reference, FRESH) == pytest.approx(wanted.max(axis=1), abs=1e-6)
    if hasattr(model[0], "vocabulary_"):
        assert any("terms of its vocabulary" in note for note in task.exercised(reference))


def _through_the_step(reference, texts):
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
    task = opened(tmp_path / "m.skops")
    reference = built(task, tmp_path / "c")
    assert failed(task, reference) == []
    got = served(reference, {"text": np.array(FRESH)})
    if hasattr(model, "predict_proba"):
        assert got == pytest.approx(model.predict_proba(FRESH), abs=1e-6)
    else:
        margins = model.decision_function(FRESH)
        assert got == pytest.approx(np.stack([-margins, margins], 1), abs=1e-6)


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
    task = opened(tmp_path / "m.skops")
    reference = built(task, tmp_path / "c")
    assert failed(task, reference) == []
    got = served(reference, {"text": np.array(FRESH)})
    assert got == pytest.approx(model.predict_proba(FRESH), abs=1e-6)


def test_text_columns_beside_others(tmp_path):
    draw = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "отзыв": TEXTS,
            "plan": draw.choice(["a", "b"], len(TEXTS)),
            "stars": draw.normal(3, 1, len(TEXTS)),
            "title": draw.permutation(TEXTS),
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
    task = opened(tmp_path / "m.skops")
    reference = built(task, tmp_path / "c")
    assert failed(task, reference) == []
    fresh = frame.assign(отзыв=draw.permutation(TEXTS), title=draw.permutation(TEXTS))
    got = served(reference, {name: fresh[name].to_numpy() for name in fresh})
    assert got == pytest.approx(model.predict_proba(fresh), abs=1e-6)
    pipeline = declare("t", reference.metadata, task.golden(reference), task.card())
    assert [model.name for model in pipeline.models] == ["t_pre", "t_onnx", "t"]


def test_a_regression_of_texts(tmp_path):
    model = make_pipeline(TfidfVectorizer(), Ridge()).fit(TEXTS, [len(text) for text in TEXTS])
    skops.io.dump(model, tmp_path / "m.skops")
    task = opened(tmp_path / "m.skops")
    reference = built(task, tmp_path / "c")
    assert failed(task, reference) == []
    got = served(reference, {"text": np.array(FRESH)})
    assert got[:, 0] == pytest.approx(model.predict(FRESH), rel=1e-6)


PLANTED = {
    "reference": lambda held: held["settings"].update(lowercase=False),
    "accents": lambda held: held["settings"].update(strip_accents="unicode"),
    "one letter": lambda held: held["settings"].update(token_pattern=r"(?u)\b\w+\b"),
    "ascii words": lambda held: held["settings"].update(token_pattern=r"(?a)\b\w\w+\b"),
    "norm": lambda held: held["settings"].update(norm="l1"),
    "unigrams": lambda held: held["settings"].update(ngram_range=[1, 1]),
    "stop words": lambda held: held["settings"].update(stop_words=["good"]),
    "idf": lambda held: held["idf"].reverse(),
    "two words swapped": lambda held: held["vocabulary"].update(good=held["vocabulary"]["bad"]),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_fault_in_the_vectorizer_is_caught(tmp_path, name):
    vectorizer = TfidfVectorizer(ngram_range=(1, 2))
    model = make_pipeline(vectorizer, LogisticRegression()).fit(
        [*TEXTS, "i x i x"], [*CLASSES, "bad"]
    )
    skops.io.dump(model, tmp_path / "m.skops")
    task = opened(tmp_path / "m.skops")
    reference = built(task, tmp_path / "c")
    file = Path(reference.folder / "pre" / "texts.json")
    held = json.loads(file.read_text())
    PLANTED[name](held[0])
    file.write_text(json.dumps(held))
    assert failed(task, reference)
