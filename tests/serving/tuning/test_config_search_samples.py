"""The inputs of a config search: an endpoint schema's fields say how to read a file of samples."""

import base64
import json

import numpy as np
import pytest

from converters.errors import SourceMissing, SourceRefused
from ensembles.text_embedding import ENDPOINT_SCHEMA
from tidegate.app.config_search_samples import bodies

TEXT = ENDPOINT_SCHEMA.request["properties"]
IMAGE = {"image": {"type": "string", "x-bytes": True, "x-tensor": "image"}}
TABLE = {
    "age": {"type": ["number", "null"], "x-tensor": "age"},
    "town": {"type": "string", "x-tensor": "town"},
}


def test_without_a_file_the_conversions_samples_are_used():
    texts = bodies(TEXT, None)
    assert len(texts) > 100 and all(set(body) == {"text"} for body in texts)
    images = bodies(IMAGE, None)
    assert len(images) > 5
    assert all(base64.b64decode(body["image"]["b64"])[:1] for body in images)
    assert bodies(TABLE, None) == []  # only the golden sample


def test_each_file_format_is_read(tmp_path):
    lines, rows, table = tmp_path / "t.txt", tmp_path / "t.jsonl", tmp_path / "t.csv"
    lines.write_text("one\n\ntwo\n")
    assert bodies(TEXT, lines) == [{"text": "one"}, {"text": "two"}]
    rows.write_text(json.dumps({"text": "x", "truncate": True}) + "\n\n")
    assert bodies(TEXT, rows) == [{"text": "x", "truncate": True}]
    table.write_text("age,town\n4,Bonn\n,Köln\n", encoding="utf-8")
    assert bodies(TABLE, table) == [{"age": 4.0, "town": "Bonn"}, {"age": None, "town": "Köln"}]
    np.savez(tmp_path / "t.npz", age=np.array([[1.5], [2.5]]))
    assert bodies(TABLE, tmp_path / "t.npz") == [{"age": [1.5]}, {"age": [2.5]}]
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"abc")
    assert bodies(IMAGE, tmp_path / "images") == [{"image": {"b64": "YWJj"}}]


@pytest.mark.parametrize(
    ("name", "content", "fields", "message"),
    [
        ("a.jsonl", "{", TEXT, "line 1 is not JSON"),
        ("a.jsonl", "[1]", TEXT, "not an object"),
        ("a.jsonl", "", TEXT, "is empty"),
        ("a.csv", "city\nBonn\n", TABLE, "columns city"),
        ("a.csv", "age\nmany\n", TABLE, "could not convert"),
        ("a.csv", "age\n", TABLE, "has no row"),
        ("a.txt", "one\n", {**TABLE, "street": TABLE["town"]}, "pass a .jsonl"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path, name, content, fields, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(SourceRefused, match=message):
        bodies(fields, tmp_path / name)


def test_a_missing_file_is_reported(tmp_path):
    with pytest.raises(SourceMissing, match="no file"):
        bodies(TEXT, tmp_path / "nowhere.txt")
