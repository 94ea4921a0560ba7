"""Turn texts into terms with scikit-learn's own vectorizer (a step that runs inside Triton).

Inputs: the text columns, BYTES [n, 1]. Outputs, for each vectorizer: its ids INT64 [n, length] and
values FP64 [n, length]; where a text has fewer terms, the id is the vocabulary's size and the value
0. Lengths are powers of two, at least 16, so that Triton can merge requests.

The file ``texts.json`` beside this module lists the vectorizers: class, settings, vocabulary, idf.
"""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.feature_extraction import text as sklearn_text

try:  # exists only inside Triton's Python stub
    import triton_python_backend_utils as pb_utils
except ImportError:
    pb_utils = None

# The gateway forwards to a client only messages that begin with this marker.
INVALID = "[tidegate:invalid_input] "
TEXT_LIMIT_BYTES = 65_536
LEAST_LENGTH = 16


class InvalidText(ValueError):
    """The client's text cannot be used; the message says what to do."""


class TextVectorizers:
    """The vectorizers of one pipeline, from the list in ``texts.json``."""

    def __init__(self, configs: list[dict[str, Any]]) -> None:
        self._vectorizers = [(config, _vectorizer(config)) for config in configs]
        self.inputs = list(dict.fromkeys(str(config["tensor"]) for config in configs))

    def __call__(self, texts: Mapping[str, list[bytes]]) -> dict[str, np.ndarray]:
        """The outputs by name; raises InvalidText for a text that is not UTF-8 or too long."""
        decoded = {
            name: [_decoded(name, text) for text in column] for name, column in texts.items()
        }
        outputs = {}
        for config, vectorizer in self._vectorizers:
            ids, values = _terms(vectorizer, decoded[config["tensor"]], int(config["size"]))
            outputs[config["ids"]], outputs[config["values"]] = ids, values
        return outputs


def _vectorizer(config: Mapping[str, Any]) -> Any:
    settings = dict(config["settings"])
    settings["ngram_range"] = tuple(settings["ngram_range"])
    settings["dtype"] = np.dtype(settings["dtype"]).type
    vectorizer = getattr(sklearn_text, config["class"])(**settings)
    if config["class"] == "HashingVectorizer":
        return vectorizer
    vectorizer.vocabulary_ = dict(config["vocabulary"])
    vectorizer.fixed_vocabulary_ = True
    if config["class"] == "TfidfVectorizer":
        names = ("norm", "use_idf", "smooth_idf", "sublinear_tf")
        options = {name: settings[name] for name in names}
        vectorizer._tfidf = sklearn_text.TfidfTransformer(**options)
        vectorizer._tfidf.n_features_in_ = int(config["size"])
        if config["idf"]:
            vectorizer._tfidf.idf_ = np.array(config["idf"], dtype=settings["dtype"])
    return vectorizer


def _terms(vectorizer: Any, texts: list[str], size: int) -> tuple[np.ndarray, np.ndarray]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of stop words that its tokenizer cannot produce
        rows = vectorizer.transform(texts).tocsr()
    counts = np.diff(rows.indptr)
    largest, length = int(counts.max(initial=0)), LEAST_LENGTH
    while length < largest:
        length *= 2
    ids = np.full((len(texts), length), size, dtype=np.int64)
    values = np.zeros((len(texts), length))
    is_term = np.arange(length) < counts[:, None]
    ids[is_term], values[is_term] = rows.indices, rows.data
    return ids, values


def _decoded(name: str, text: bytes) -> str:
    if len(text) > TEXT_LIMIT_BYTES:
        raise InvalidText(f"{name} has {len(text)} bytes: send at most {TEXT_LIMIT_BYTES}")
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidText(f"{name} is not UTF-8: encode it as UTF-8") from None


class TritonPythonModel:
    """Triton's entry point: requests in, terms out."""

    def initialize(self, args: dict[str, str]) -> None:
        folder = Path(args["model_repository"]) / args["model_version"]
        self._vectorize = TextVectorizers(json.loads((folder / "texts.json").read_text("utf-8")))

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._respond(request) for request in requests]

    def _respond(self, request: Any) -> Any:
        texts = {
            name: list(pb_utils.get_input_tensor_by_name(request, name).as_numpy().reshape(-1))
            for name in self._vectorize.inputs
        }
        try:
            outputs = self._vectorize(texts)
        except InvalidText as error:
            failure = pb_utils.TritonError(f"{INVALID}{error}", pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(error=failure)
        return pb_utils.InferenceResponse(
            output_tensors=[pb_utils.Tensor(name, values) for name, values in outputs.items()]
        )
