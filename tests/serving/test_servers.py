"""Who serves a repository is found from every home, and nobody is taken for a server of it who is
none."""

import os
import shutil
from dataclasses import replace

import pytest

from modelspec.layout import staging_folder
from serving import servers
from serving.errors import NotOurServer
from serving.replica import connected
from serving.servers import Server, announce, servers_of, withdraw


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
    """This very process, which lives."""
    return Server.running(repository, "127.0.0.1:1", home / "triton.key", os.getpid(), home)


def test_another_home_finds_it_by_whatever_path(repository, home, server, tmp_path):
    assert announce(home, "a", server)
    link = tmp_path / "link"
    link.symlink_to(repository)
    for path in (repository, link):
        assert servers_of(tmp_path / "other", path) == [server]
    assert servers_of(home, repository) == [server]  # once, though there are two records
    withdraw(home, "a", repository)
    assert servers_of(home, repository) == []


def test_a_copy_of_everything_has_no_server(repository, home, server, tmp_path):
    announce(home, "a", server)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    copied = tmp_path / "two" / "model_repository"
    assert servers_of(tmp_path / "two" / ".tidegate", copied) == []


def test_where_nothing_may_be_written_beside_it_its_own_home_finds_it(repository, home, server):
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


def test_a_clock_that_is_set_ends_no_server(repository, home, server, monkeypatch):
    announce(home, "a", server)
    monkeypatch.setattr("psutil._pslinux.boot_time", lambda: 0.0)
    assert servers_of(home, repository) == [server]


def test_one_that_has_ended_is_none_and_one_that_cannot_be_seen_may_be(repository, home, server):
    announce(home, "a", server)
    announce(home, "b", replace(server, started=server.started - 100))
    elsewhere = replace(server, pid_space="pid:[1]", started=0)
    announce(home, "c", elsewhere)
    assert servers_of(home, repository) == [server, elsewhere]
    announce(home, "d", server)
    left = sorted(path.name for path in (home / "servers").iterdir())
    assert left == ["a.json", "c.json", "d.json"]


def test_a_record_of_a_stranger_is_not_believed(repository, home, server, monkeypatch):
    """It says to which address the content of which file is sent."""
    announce(home, "a", server)
    monkeypatch.setattr(servers, "_ROOT", -1)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    os.chown(repository, 12345, -1)
    assert servers_of(home, repository) == []


def test_a_key_that_cannot_be_read_is_told_before_anything_is_changed(server):
    refused = pytest.raises(NotOurServer, match="cannot be updated; nothing was changed")
    with refused, connected([server]):
        pass
