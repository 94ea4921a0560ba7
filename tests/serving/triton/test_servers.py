"""The servers of a repository are found from every home, and nothing else is taken for one."""

import os
import shutil
from dataclasses import replace

import pytest

from modelspec.layout import staging_folder
from serving.errors import NotOurServer
from serving.publish.replica import connected
from serving.triton import servers
from serving.triton.servers import Server, announce, servers_of, withdraw


@pytest.fixture
def repository(tmp_path):
    folder = tmp_path / "one" / "model_repository"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def home(tmp_path):
    return tmp_path / "one" / ".tidegate"


@pytest.fixture
def server(repository, home):
    """This process, which is alive."""
    return Server.running(repository, "127.0.0.1:1", home / "triton.key", os.getpid(), home)


def test_another_home_finds_it_by_any_path(repository, home, server, tmp_path):
    assert announce(home, "a", server)
    link = tmp_path / "link"
    link.symlink_to(repository)
    for path in (repository, link):
        assert servers_of(tmp_path / "other", path) == [server]
    assert servers_of(home, repository) == [server]  # once, although there are two records
    withdraw(home, "a", repository)
    assert servers_of(home, repository) == []


def test_a_copy_of_everything_has_no_server(repository, home, server, tmp_path):
    announce(home, "a", server)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    copied = tmp_path / "two" / "model_repository"
    assert servers_of(tmp_path / "two" / ".tidegate", copied) == []


def test_if_the_folder_beside_it_is_not_writable_its_own_home_finds_it(repository, home, server):
    staging_folder(repository).write_text("in the way")
    assert not announce(home, "a", server)
    assert servers_of(home, repository) == [server]
    withdraw(home, "a", repository)
    assert servers_of(home, repository) == []


def test_a_repository_that_is_being_built_leaves_nothing_beside_it(repository, home, server):
    scratch = staging_folder(repository) / "mood+1+abc"
    scratch.mkdir(parents=True)
    built = replace(server, repository=str(scratch), inode="")
    assert announce(home, "a", built)
    assert servers_of(home, scratch) == [built]
    assert [path.name for path in staging_folder(repository).iterdir()] == [scratch.name]


def test_setting_the_clock_does_not_lose_a_server(repository, home, server, monkeypatch):
    announce(home, "a", server)
    monkeypatch.setattr("psutil._pslinux.boot_time", lambda: 0.0)
    assert servers_of(home, repository) == [server]


def test_a_server_that_has_ended_is_dropped_and_one_that_cannot_be_seen_is_kept(
    repository, home, server
):
    announce(home, "a", server)
    announce(home, "b", replace(server, started=server.started - 100))
    elsewhere = replace(server, pid_space="pid:[1]", started=0)
    announce(home, "c", elsewhere)
    assert servers_of(home, repository) == [server, elsewhere]
    announce(home, "d", server)
    records = sorted(path.name for path in (home / "servers").iterdir())
    assert records == ["a.json", "c.json", "d.json"]


def test_a_server_of_another_machine_is_known_until_its_owner_ends(repository, home, server):
    """Its pid namespace has the name of ours, and its pid may be anybody's here."""
    other = replace(server, boot="another", started=server.started - 100)
    announce(home, "b", other)
    announce(home, "a", server)
    assert servers_of(home, repository) == [server, other]
    for path in [path for path in servers._held if path.name == "b.json"]:
        servers._held.pop(path).close()  # as when the machine loses its power
    assert servers_of(home, repository) == [server]
    announce(home, "a", server)
    assert [path.name for path in (home / "servers").iterdir()] == ["a.json"]


def test_another_users_record_is_not_trusted(repository, home, server, monkeypatch):
    """A record decides to which address the content of which file is sent."""
    announce(home, "a", server)
    monkeypatch.setattr(servers, "_ROOT", -1)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    os.chown(repository, 12345, -1)
    assert servers_of(home, repository) == []


def test_a_key_that_cannot_be_read_is_reported_before_anything_is_changed(server):
    refused = pytest.raises(NotOurServer, match="cannot be updated; nothing was changed")
    with refused, connected([server]):
        pass
