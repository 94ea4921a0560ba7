"""Weights go into gateway.toml without touching a byte of what the user wrote there."""

import tomllib
from concurrent.futures import ThreadPoolExecutor

import pytest

from serving.errors import ServingError
from serving.triton.servers import Server
from tidegate.app.canaries import policies
from tidegate.app.paths import Paths
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
    assert [line for line in WRITTEN.splitlines() if line not in path.read_text()] == []
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


@pytest.mark.parametrize(
    "text",
    [
        'routes = { mood = { "mood.v1" = 3 }, other = { "other.v2" = 5 } } # ours\n',
        '[routes] # ours\nmood = { "mood.v1" = 3 }\nother = { "other.v2" = 5 }\n',
        '[routes] # ours\nmood."mood.v1" = 3\nother."other.v2" = 5\n',
    ],
)
def test_a_route_is_changed_in_whatever_form_it_is_written(path, text):
    path.parent.mkdir()
    path.write_text(text)
    set_weights(path, "mood", {"mood.v7": 10})
    assert "# ours" in path.read_text()
    assert tomllib.loads(path.read_text()) == {
        "routes": {"mood": {"mood.v7": 10}, "other": {"other.v2": 5}}
    }


def test_comments_in_the_table_of_a_route_stay(path):
    path.parent.mkdir()
    path.write_text('[routes.mood]\n# ask before you change this\n"mood.v7" = 10 # since May\n')
    set_weights(path, "mood", {"mood.v7": 50})
    assert path.read_text() == (
        '[routes.mood]\n# ask before you change this\n"mood.v7" = 50 # since May\n'
    )


def test_routes_written_apart_from_each_other_are_changed_too(path):
    path.parent.mkdir()
    path.write_text(f'{WRITTEN}\n[routes.mood]\n"mood.v1" = 1\n')
    set_weights(path, "mood", {"mood.v7": 10}, "request")
    assert read_route(path, "mood") == Route({"mood.v7": 10}, "request")
    assert read_route(path, "other") == Route({"other.v2": 5})
    set_weights(path, "mood", {})
    assert path.read_text().rstrip() == WRITTEN.rstrip()


def test_a_file_that_is_not_toml_is_left_alone_and_reported(path):
    path.parent.mkdir()
    path.write_text("no toml [")
    with pytest.raises(ServingError, match=r"gateway\.toml"):
        set_weights(path, "mood", {"mood.v7": 10})
    assert path.read_text() == "no toml ["


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


def test_two_commands_at_once_lose_neither_ones_change(path):
    names = [f"model{number}" for number in range(24)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: set_weights(path, name, {f"{name}.v2": 10}), names))
    assert sorted(tomllib.loads(path.read_text())["routes"]) == sorted(names)


def test_a_link_into_a_checkout_stays_one_and_its_own_gateway_is_waited_for(path, tmp_path):
    """Not one whose state is beside the file that the link points to."""
    target = tmp_path / "checkout" / "gateway.toml"
    target.parent.mkdir()
    path.parent.mkdir()
    path.symlink_to(target)
    set_weights(path, "mood", {"mood.v7": 10})
    assert path.is_symlink()
    assert read_route(target, "mood").weights == {"mood.v7": 10}
    server = Server("repository", "127.0.0.1:1", "triton.key", work_dir=str(path.parent))
    assert policies(Paths.current(), [server]) == [path]
