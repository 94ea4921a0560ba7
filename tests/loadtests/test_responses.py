"""A wrong answer is refused, and the same fault always has the same message."""

import base64
import json

import numpy as np
import pytest

from loadtests.responses import KnownVectors, WrongResponse, openai_rows, read, task_rows, v2_rows


def unit(index: int) -> np.ndarray:
    vector = np.zeros(384, dtype=np.float32)
    vector[index] = 1
    return vector


def content(body) -> bytes:
    return json.dumps(body).encode()


def base64_entry(index: int) -> dict:
    return {"index": index, "embedding": base64.b64encode(unit(index).tobytes()).decode()}


def test_the_answers_of_each_api_are_read():
    pair = np.array([unit(0), unit(1)])
    task = content({"embedding": unit(0).tolist(), "token_count": 4})
    openai = content({"data": [base64_entry(0), base64_entry(1)]})
    output = {"name": "sentence_embedding", "shape": [2, 384], "data": pair.ravel().tolist()}
    assert (read(200, task, task_rows) == pair[:1]).all()
    assert (read(200, openai, openai_rows) == pair).all()
    assert (read(200, content({"outputs": [output]}), v2_rows) == pair).all()


@pytest.mark.parametrize(
    ("body", "reader"),
    [
        (b"", task_rows),
        (b"<html>", task_rows),
        (content({"vector": []}), task_rows),
        (content([1]), v2_rows),
        (content({"outputs": []}), v2_rows),
        (content({"data": [base64_entry(1), base64_entry(0)]}), openai_rows),
        (content({"data": [{"index": 0, "embedding": "not base64"}]}), openai_rows),
    ],
)
def test_an_answer_of_a_different_shape_is_refused(body, reader):
    with pytest.raises(WrongResponse, match="different shape"):
        read(200, body, reader)


@pytest.mark.parametrize(
    "body",
    [
        {"detail": "no key", "request_id": "abc"},
        {"error": {"message": "no key", "request_id": "abc"}},
        {"error": "no key (request abc)"},
    ],
)
def test_the_error_of_each_api_is_quoted_without_its_request_id(body):
    with pytest.raises(WrongResponse) as caught:
        read(401, content(body), task_rows)
    assert str(caught.value) == "HTTP 401: no key"


@pytest.mark.parametrize("body", [b"", None, b"<html>", b"[1]", b'{"error": {}}'])
def test_an_error_that_is_not_the_gateways_is_named_as_such(body):
    with pytest.raises(WrongResponse, match=r"HTTP 502: \(not one of the gateway's errors\)"):
        read(502, body, task_rows)


def test_no_answer_at_all():
    with pytest.raises(WrongResponse, match="no HTTP answer"):
        read(0, None, task_rows)


@pytest.mark.parametrize(
    ("vectors", "fault"),
    [
        (np.zeros((1, 3), np.float32), "shape"),
        (np.array([unit(0), unit(1)]), "shape"),
        (np.array([unit(0) * 1.1]), "unit length"),
        (np.array([unit(0) * np.nan]), "unit length"),
    ],
)
def test_a_wrong_vector_is_refused(vectors, fault):
    with pytest.raises(WrongResponse, match=fault):
        KnownVectors().check(["one text"], vectors)


def test_answers_swapped_within_a_batch_are_noticed():
    book = KnownVectors()
    book.check(["a", "b"], np.array([unit(0), unit(1)]))
    book.check(["b"], np.array([unit(1)]))
    with pytest.raises(WrongResponse, match="a different vector than before"):
        book.check(["a", "b"], np.array([unit(1), unit(0)]))
