"""Text vectorizers of scikit-learn: what is kept of one, and what it makes of texts.

ONNX cuts words in another way than scikit-learn (letters without accents, no other scripts), so no
graph does it: the pipeline's step runs scikit-learn's own vectorizer, from the file written here,
and the graph takes the terms that it gives.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from converters.errors import SourceRefused

FILE = "texts.json"
NAMES = ("CountVectorizer", "TfidfVectorizer", "HashingVectorizer")
# What a row is spread out to in the graph, in FP64.
MOST_TERMS = 2**20
CALLABLES = ("tokenizer", "preprocessor")


def is_vectorizer(part: Any) -> bool:
    module = type(part).__module__
    return type(part).__name__ in NAMES and module == "sklearn.feature_extraction.text"


def size_of(vectorizer: Any) -> int:
    """How many terms it tells apart."""
    if type(vectorizer).__name__ == "HashingVectorizer":
        return int(vectorizer.n_features)
    return int(max(vectorizer.vocabulary_.values())) + 1


def words_of(vectorizer: Any) -> list[str]:
    """Its vocabulary in the order of its terms; empty for one that hashes."""
    found = getattr(vectorizer, "vocabulary_", {})
    return [str(word) for word in sorted(found, key=found.__getitem__)]


def written(vectorizer: Any) -> dict[str, Any]:
    """The vectorizer as JSON; SourceRefused for what only its own code can do."""
    name, settings = type(vectorizer).__name__, dict(vectorizer.get_params())
    settings.pop("vocabulary", None)
    called = [key for key in CALLABLES if settings.get(key) is not None]
    if called or callable(settings["analyzer"]):
        raise SourceRefused(
            f"a {name} with a function of its own ({', '.join(called) or 'analyzer'}) is not "
            "converted, because a model's code is never run: use token_pattern, stop_words and "
            "strip_accents instead"
        )
    if settings["input"] != "content":
        raise SourceRefused(
            f"a {name}(input={settings['input']!r}) reads files, and what is sent is text: train "
            "it with input='content'"
        )
    if size_of(vectorizer) > MOST_TERMS:
        raise SourceRefused(
            f"a {name} with {size_of(vectorizer)} terms is not converted: {MOST_TERMS} is the most "
            "(max_features=, n_features=)"
        )
    settings["dtype"] = np.dtype(settings["dtype"]).name
    if settings["stop_words"] is not None and not isinstance(settings["stop_words"], str):
        settings["stop_words"] = sorted(settings["stop_words"])
    settings["ngram_range"] = list(settings["ngram_range"])
    idf = vectorizer.idf_.tolist() if settings.get("use_idf") else []
    vocabulary = {str(word): int(place) for word, place in _vocabulary(vectorizer).items()}
    return {"class": name, "settings": settings, "vocabulary": vocabulary, "idf": idf}


def write(path: Path, texts: Sequence[Mapping[str, Any]], vectorizers: Sequence[Any]) -> None:
    """The file that the step reads: each of ``texts`` (tensor, ids, values, size) with its
    vectorizer."""
    held = [{**text, **written(each)} for text, each in zip(texts, vectorizers, strict=True)]
    path.write_text(json.dumps(held, ensure_ascii=False), encoding="utf-8")


def read(path: Path) -> list[tuple[dict[str, Any], Any]]:
    """What ``write`` wrote: each text's tensors and its vectorizer."""
    return [(each, rebuilt(each)) for each in json.loads(path.read_text(encoding="utf-8"))]


def rebuilt(held: Mapping[str, Any]) -> Any:
    """scikit-learn's vectorizer from its JSON."""
    from sklearn.feature_extraction import text

    settings = dict(held["settings"])
    settings["ngram_range"] = tuple(settings["ngram_range"])
    settings["dtype"] = np.dtype(settings["dtype"]).type
    vectorizer = getattr(text, held["class"])(**settings)
    if held["class"] == "HashingVectorizer":
        return vectorizer
    vectorizer.vocabulary_ = dict(held["vocabulary"])
    vectorizer.fixed_vocabulary_ = True
    if held["class"] == "TfidfVectorizer":
        names = ("norm", "use_idf", "smooth_idf", "sublinear_tf")
        vectorizer._tfidf = text.TfidfTransformer(**{name: settings[name] for name in names})
        vectorizer._tfidf.n_features_in_ = int(held["size"])
        if held["idf"]:
            vectorizer._tfidf.idf_ = np.array(held["idf"], dtype=settings["dtype"])
    return vectorizer


def terms(vectorizer: Any, texts: Sequence[str], size: int) -> tuple[np.ndarray, np.ndarray]:
    """The terms of the texts: ``ids`` INT64 [n, most] and ``values`` FP64 of the same shape; where
    a text has fewer, the id is ``size`` and the value 0."""
    rows = vectorizer.transform(list(texts)).tocsr()
    counts = np.diff(rows.indptr)
    most = max(1, int(counts.max(initial=0)))
    ids = np.full((len(texts), most), size, dtype=np.int64)
    values = np.zeros((len(texts), most))
    held = np.arange(most) < counts[:, None]
    ids[held], values[held] = rows.indices, rows.data
    return ids, values


def _vocabulary(vectorizer: Any) -> Mapping[str, int]:
    found: Mapping[str, int] = getattr(vectorizer, "vocabulary_", {})
    return found


def vocabulary_note(column: str, vectorizer: Any, texts: Sequence[str]) -> str:
    """How many of its terms these texts have, and some that none has."""
    words = words_of(vectorizer)
    name = f"{type(vectorizer).__name__} of {column!r}"
    hit = np.unique(vectorizer.transform(list(texts)).tocsr().indices)
    if not words:
        return f"{name}: {len(hit)} of {size_of(vectorizer)} places were hit"
    left = [words[place] for place in np.setdiff1d(np.arange(len(words)), hit)[:5]]
    said = f"{name}: {len(hit)} of {len(words)} terms of its vocabulary were in the samples"
    return said + (f"; not {', '.join(map(repr, left))} and so on" if left else "")
