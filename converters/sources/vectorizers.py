"""scikit-learn's text vectorizers: how one is stored, and the terms that it finds in texts.

ONNX splits words differently from scikit-learn (no accented letters, no other scripts), so no graph
does it: the pipeline's step runs scikit-learn's own vectorizer, from the file written here, and the
graph takes the terms that it gives.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from converters.errors import SourceRefused

FILE = "texts.json"
CLASS_NAMES = ("CountVectorizer", "TfidfVectorizer", "HashingVectorizer")
# The width to which the graph expands a row, in FP64.
MAX_TERMS = 2**20
CALLABLE_SETTINGS = ("tokenizer", "preprocessor")


def is_vectorizer(part: Any) -> bool:
    module = type(part).__module__
    return type(part).__name__ in CLASS_NAMES and module == "sklearn.feature_extraction.text"


def size_of(vectorizer: Any) -> int:
    """The number of distinct terms."""
    if type(vectorizer).__name__ == "HashingVectorizer":
        return int(vectorizer.n_features)
    return int(max(vectorizer.vocabulary_.values())) + 1


def words_of(vectorizer: Any) -> list[str]:
    """Its vocabulary in the order of its terms; [] for one that hashes."""
    vocabulary = getattr(vectorizer, "vocabulary_", {})
    return [str(word) for word in sorted(vocabulary, key=vocabulary.__getitem__)]


def vectorizer_document(vectorizer: Any) -> dict[str, Any]:
    """The vectorizer as JSON; SourceRefused for one that needs its own code."""
    name, settings = type(vectorizer).__name__, dict(vectorizer.get_params())
    settings.pop("vocabulary", None)
    functions = [key for key in CALLABLE_SETTINGS if settings.get(key) is not None]
    if functions or callable(settings["analyzer"]):
        raise SourceRefused(
            f"a {name} with its own function ({', '.join(functions) or 'analyzer'}) is not "
            "converted, because a model's code is never run: use token_pattern, stop_words and "
            "strip_accents instead"
        )
    if settings["input"] != "content":
        raise SourceRefused(
            f"a {name}(input={settings['input']!r}) reads files, but clients send text: train it "
            "with input='content'"
        )
    if size_of(vectorizer) > MAX_TERMS:
        raise SourceRefused(
            f"a {name} with {size_of(vectorizer)} terms is not converted: the limit is {MAX_TERMS} "
            "(max_features=, n_features=)"
        )
    settings["dtype"] = np.dtype(settings["dtype"]).name
    if settings["stop_words"] is not None and not isinstance(settings["stop_words"], str):
        settings["stop_words"] = sorted(settings["stop_words"])
    settings["ngram_range"] = list(settings["ngram_range"])
    idf = vectorizer.idf_.tolist() if settings.get("use_idf") else []
    vocabulary = {str(word): int(index) for word, index in _vocabulary(vectorizer).items()}
    return {"class": name, "settings": settings, "vocabulary": vocabulary, "idf": idf}


def write(path: Path, texts: Sequence[Mapping[str, Any]], vectorizers: Sequence[Any]) -> None:
    """Write the file that the step reads: each of ``texts`` (tensor, ids, values, size) with its
    vectorizer."""
    documents = [
        {**text, **vectorizer_document(vectorizer)}
        for text, vectorizer in zip(texts, vectorizers, strict=True)
    ]
    path.write_text(json.dumps(documents, ensure_ascii=False), encoding="utf-8")


def read(path: Path) -> list[tuple[dict[str, Any], Any]]:
    """The inverse of ``write``: each text's tensors and its vectorizer."""
    return [
        (document, rebuilt(document)) for document in json.loads(path.read_text(encoding="utf-8"))
    ]


def rebuilt(document: Mapping[str, Any]) -> Any:
    """scikit-learn's vectorizer from its JSON document."""
    from sklearn.feature_extraction import text

    settings = dict(document["settings"])
    settings["ngram_range"] = tuple(settings["ngram_range"])
    settings["dtype"] = np.dtype(settings["dtype"]).type
    vectorizer = getattr(text, document["class"])(**settings)
    if document["class"] == "HashingVectorizer":
        return vectorizer
    vectorizer.vocabulary_ = dict(document["vocabulary"])
    vectorizer.fixed_vocabulary_ = True
    if document["class"] == "TfidfVectorizer":
        names = ("norm", "use_idf", "smooth_idf", "sublinear_tf")
        vectorizer._tfidf = text.TfidfTransformer(**{name: settings[name] for name in names})
        vectorizer._tfidf.n_features_in_ = int(document["size"])
        if document["idf"]:
            vectorizer._tfidf.idf_ = np.array(document["idf"], dtype=settings["dtype"])
    return vectorizer


def terms(vectorizer: Any, texts: Sequence[str], size: int) -> tuple[np.ndarray, np.ndarray]:
    """The terms of the texts: ``ids`` INT64 [n, most] and ``values`` FP64 of the same shape; a text
    with fewer terms is padded with the id ``size`` and the value 0."""
    rows = vectorizer.transform(list(texts)).tocsr()
    counts = np.diff(rows.indptr)
    most = max(1, int(counts.max(initial=0)))
    ids = np.full((len(texts), most), size, dtype=np.int64)
    values = np.zeros((len(texts), most))
    is_term = np.arange(most) < counts[:, None]
    ids[is_term], values[is_term] = rows.indices, rows.data
    return ids, values


def _vocabulary(vectorizer: Any) -> Mapping[str, int]:
    vocabulary: Mapping[str, int] = getattr(vectorizer, "vocabulary_", {})
    return vocabulary


def vocabulary_note(column: str, vectorizer: Any, texts: Sequence[str]) -> str:
    """How many of its terms these texts contain, and some that none contains."""
    words = words_of(vectorizer)
    name = f"{type(vectorizer).__name__} of {column!r}"
    used = np.unique(vectorizer.transform(list(texts)).tocsr().indices)
    if not words:
        return f"{name}: {len(used)} of {size_of(vectorizer)} hash buckets were used"
    unused = [words[index] for index in np.setdiff1d(np.arange(len(words)), used)[:5]]
    note = f"{name}: {len(used)} of {len(words)} terms of its vocabulary were in the samples"
    return note + (f"; not {', '.join(map(repr, unused))} and so on" if unused else "")
