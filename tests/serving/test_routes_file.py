"""Weights go into gateway.toml without touching a byte of what the user wrote there."""

import tomllib

import pytest

from serving.errors import ServingError
from tidegate.app.routes_file import Route, read_route, set_weights

WRITTEN = """# ours, by hand
replicas = ["a:1"]   # two spaces  kept

[routes.other]
"other.v2" = 5

[audit]
record = "off"
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / ".tidegate" / "gateway.toml"


def test_a_missing_file_is_created_and_private(path):
    set_weights(path, "mood", {"mood.v7": 10})
    assert tomllib.loads(path.read_text()) == {"routes": {"mood": {"mood.v7": 10}}}
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_rest_of_the_file_is_unchanged(path):
    path.parent.mkdir()
    path.write_text(WRITTEN)
    set_weights(path, "mood", {"mood.v7": 10})
    assert path.read_text().startswith(WRITTEN.rstrip())
    set_weights(path, "mood", {"mood.v7": 50})
    assert tomllib.loads(path.read_text())["routes"]["mood"] == {"mood.v7": 50}
    set_weights(path, "mood", {})
    assert path.read_text().rstrip() == WRITTEN.rstrip()


@pytest.mark.parametrize("header", ["[routes.mood]", '[routes."mood"]', "[ routes . 'mood' ] # x"])
def test_an_existing_table_is_replaced_however_its_name_is_written(path, header):
    path.parent.mkdir()
    path.write_text(f'{header}\n"mood.v1" = 1\n\n[audit]\nrecord = "off"\n')
    set_weights(path, "mood", {"mood.v7": 10})
    assert tomllib.loads(path.read_text()) == {
        "audit": {"record": "off"},
        "routes": {"mood": {"mood.v7": 10}},
    }


@pytest.mark.parametrize("text", ['routes = { mood = { "mood.v1" = 3 } }\n', "no toml ["])
def test_a_file_that_cannot_be_changed_is_left_alone_and_reported(path, text):
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(ServingError, match=r"gateway\.toml"):
        set_weights(path, "mood", {"mood.v7": 10})
    assert path.read_text() == text


def test_the_end_marker_stays_the_last_line(path):
    path.parent.mkdir()
    path.write_text('[audit]\nrecord = "off"\n# end\n')
    set_weights(path, "mood", {"mood.v7": 10}, "request")
    assert path.read_text().endswith('per = "request"\n"mood.v7" = 10\n# end\n')
    assert read_route(path, "mood") == Route({"mood.v7": 10}, "request")
    set_weights(path, "mood", {})
    assert path.read_text() == '[audit]\nrecord = "off"\n# end\n'


def test_a_file_that_a_gateway_would_refuse_is_not_written(path):
    path.parent.mkdir()
    path.write_text('[audit]\nrecord = "of"\n')
    with pytest.raises(ServingError, match=r"a gateway would refuse this.*line 2"):
        set_weights(path, "mood", {"mood.v7": 10})
    with pytest.raises(ServingError, match="a gateway would refuse this"):
        read_route(path, "mood")
    assert path.read_text() == '[audit]\nrecord = "of"\n'
