"""The machine of a measurement is named, whatever the kernel says of it."""

import subprocess

from modelspec.machine import cpu_name, git_commit, installed_versions, usable_cores


def test_the_cpu_is_named(tmp_path):
    file = tmp_path / "cpuinfo"
    file.write_text("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\n")
    assert cpu_name(file) == "Some CPU @ 2 GHz"
    file.write_text("")
    assert cpu_name(file) == cpu_name(tmp_path / "missing") != ""
    assert usable_cores() >= 1


def test_only_what_is_installed_has_a_version():
    assert set(installed_versions(("numpy", "no-such-package"))) == {"numpy"}


def test_outside_git_there_is_no_commit(tmp_path):
    assert git_commit(tmp_path) == ""


def test_a_commit_says_whether_tracked_files_differ(tmp_path):
    def git(*arguments):
        names = ("-c", "user.name=a", "-c", "user.email=a@b")
        command = ["git", "-C", tmp_path, *names, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "--quiet")
    assert git_commit(tmp_path) == ""  # nothing is committed yet
    (tmp_path / "file").write_text("a")
    git("add", "file")
    git("commit", "--quiet", "--message=one")
    git("tag", "v1")
    commit = git("rev-parse", "HEAD")
    (tmp_path / "untracked").write_text("b")
    assert git_commit(tmp_path) == commit
    assert git_commit(tmp_path, short=True) == git("rev-parse", "--short", "HEAD")
    (tmp_path / "file").write_text("b")
    assert git_commit(tmp_path) == f"{commit}+changes"
