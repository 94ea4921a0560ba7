"""The audit log: any change of a line is detected, and writing costs the event loop nothing."""

import collections
import errno
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gateway.audit import log as audit
from gateway.audit.log import AuditLog, Decision, append, locked
from tests.gateway.request_contexts import context_of
from tests.running import wait_until
from tidegate.app.audit_check import verify

PEPPER = b"pepper"
FIELDS = {
    *("number", "time", "request_id", "principal", "tenant", "action", "model"),
    *("decision", "status", "before"),
}
ONE = Decision("r1", "key1", "acme", "infer", "text_embedding", "allow", 200)


def _write(folder, count, size=5):
    """``count`` lines in batches of ``size``."""
    for start in range(0, count, size):
        batch = [
            (time.time(), ONE._replace(request_id=f"r{n}")) for n in range(start, start + size)
        ]
        append(folder, PEPPER, batch)


@pytest.fixture
def lines(tmp_path):
    """Twenty valid lines, and a function that writes others in their place."""
    _write(tmp_path, 20)
    good = (tmp_path / "audit.log").read_bytes().splitlines()
    assert len(good) == 20
    return good, lambda other: (tmp_path / "audit.log").write_bytes(
        b"".join(line + b"\n" for line in other)
    )


def _faults(folder):
    return verify(folder, PEPPER).faults


def test_an_untouched_log_is_intact_and_holds_only_what_was_allowed(tmp_path, lines):
    report = verify(tmp_path, PEPPER)
    assert (report.first, report.last, report.faults) == (1, 20, [])
    for line in lines[0]:
        assert set(json.loads(line)) == FIELDS
    for name in ("audit.log", "audit.head"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600


def test_nothing_written_is_intact(tmp_path):
    report = verify(tmp_path, PEPPER)
    assert (report.last, report.faults) == (0, [])


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (0, "line 1, or its hash in line 2, was"),
        (9, "line 10, or its"),
        (19, "line 20 was changed"),
    ],
)
def test_a_changed_line_is_named(tmp_path, lines, index, message):
    good, write = lines
    good[index] = good[index].replace(b'"allow"', b'"deny!"')
    write(good)
    (fault,) = _faults(tmp_path)
    assert fault.startswith(message)


def test_a_line_that_is_no_longer_one_is_named(tmp_path, lines):
    good, write = lines
    good[9] = b"\x00" * len(good[9])
    write(good)
    assert _faults(tmp_path) == ["line 10 was changed: audit.log:10 cannot be read"]


def test_a_changed_number_is_named(tmp_path, lines):
    good, write = lines
    good[9] = good[9].replace(b'"number":10', b'"number":77')
    write(good)
    assert _faults(tmp_path)[0] == "line 10 was changed: it is numbered 77"


@pytest.mark.parametrize(
    ("kept", "messages"),
    [
        ([*range(9), *range(10, 20)], ["line 10 was removed"]),
        ([*range(1, 20)], ["line 1 was removed"]),
        ([*range(5), *range(7, 20)], ["line 6 was removed", "line 7 was removed"]),
        ([*range(19)], ["lines 20 to 20 were cut off"]),
        ([*range(12)], ["lines 13 to 20 were cut off"]),
        ([], ["lines 1 to 20 were cut off"]),
        ([*range(8), 9, 8, *range(10, 20)], ["line 9 was moved: it comes after line 10"]),
        ([*range(10), 9, *range(10, 20)], ["line 10 appears twice, or its number was changed"]),
    ],
)
def test_lines_removed_moved_doubled_and_cut_off_are_named(tmp_path, lines, kept, messages):
    good, write = lines
    write([good[index] for index in kept])
    assert _faults(tmp_path)[: len(messages)] == messages


def test_half_a_last_line_is_named(tmp_path, lines):
    good, write = lines
    write(good)
    os.truncate(tmp_path / "audit.log", (tmp_path / "audit.log").stat().st_size - 30)
    assert _faults(tmp_path) == ["line 20 was changed: audit.log:20 cannot be read"]


def test_a_chain_that_was_computed_anew_is_found_by_its_head(tmp_path, lines):
    """SHA-256 alone can be computed by anybody: the head is signed with the pepper."""
    (tmp_path / "audit.log").unlink()
    (tmp_path / "audit.head").unlink()
    append(tmp_path, b"guess", [(time.time(), ONE)] * 20)
    assert _faults(tmp_path)[0].startswith("audit.head was not signed with this pepper")


def test_a_missing_head_is_a_fault_and_nothing_is_overwritten(tmp_path, lines):
    (tmp_path / "audit.head").unlink()
    before = (tmp_path / "audit.log").read_bytes()
    assert _faults(tmp_path)[0].startswith("audit.head is missing")
    with pytest.raises(audit.AuditError, match=r"move audit.\* away"):
        _write(tmp_path, 5)
    assert (tmp_path / "audit.log").read_bytes() == before


def test_a_cut_is_not_healed_by_what_is_written_later(tmp_path, lines):
    os.truncate(tmp_path / "audit.log", (tmp_path / "audit.log").stat().st_size - 30)
    _write(tmp_path, 5)
    assert "line 20 was changed: audit.log:20 cannot be read" in _faults(tmp_path)
    assert verify(tmp_path, PEPPER).last == 25


def test_what_a_dead_gateway_left_unsigned_is_cleared_away(tmp_path, lines):
    with (tmp_path / "audit.log").open("ab") as file:
        file.write(b'{"number":21,"half a li')
    assert _faults(tmp_path) != []
    _write(tmp_path, 5)
    report = verify(tmp_path, PEPPER)
    assert (report.last, report.faults) == (25, [])


def test_rotation_keeps_the_chain(tmp_path, monkeypatch):
    monkeypatch.setattr(audit, "FILE_LIMIT_BYTES", 2000)
    _write(tmp_path, 40)
    old = sorted(path.name for path in tmp_path.glob("audit.0*.log"))
    assert old[0] == "audit.000000000001.log"
    assert len(old) > 2
    report = verify(tmp_path, PEPPER)
    assert (report.first, report.last, report.faults) == (1, 40, [])
    (tmp_path / old[1]).rename(tmp_path / "away")
    assert "was removed" in _faults(tmp_path)[0]
    (tmp_path / old[0]).unlink()  # the oldest ones may be archived: it is said where it begins
    report = verify(tmp_path, PEPPER)
    assert report.first > 1
    assert report.faults == []


def test_a_new_day_is_a_new_file(tmp_path):
    _write(tmp_path, 5)
    yesterday = time.time() - 86400
    os.utime(tmp_path / "audit.log", (yesterday, yesterday))
    _write(tmp_path, 5)
    assert (tmp_path / "audit.000000000001.log").exists()
    assert verify(tmp_path, PEPPER).faults == []
    (tmp_path / "audit.000000000001.log").unlink()
    first = (tmp_path / "audit.log").read_bytes().splitlines(keepends=True)
    (tmp_path / "audit.log").write_bytes(b"".join(first[1:]))
    assert _faults(tmp_path) == ["line 6 was removed"]


def test_a_gateway_that_died_while_rotating_loses_nothing(tmp_path):
    _write(tmp_path, 5)
    (tmp_path / "audit.log").rename(tmp_path / "audit.000000000001.log")
    assert _faults(tmp_path) == []
    _write(tmp_path, 5)
    report = verify(tmp_path, PEPPER)
    assert (report.last, report.faults) == (10, [])


def _work(folder, worker):
    log = AuditLog(folder, folder / "pepper")
    log.start()
    for number in range(200):
        log.record(ONE._replace(principal=f"w{worker}", request_id=f"{number}"))
        if number % 20 == 0:
            time.sleep(0.03)
    log.close()


def test_several_workers_share_one_chain(tmp_path):
    (tmp_path / "pepper").write_bytes(PEPPER)
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_work, args=(tmp_path, n)) for n in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    report = verify(tmp_path, PEPPER)
    assert (report.last, report.faults) == (600, [])
    lines = [json.loads(line) for line in (tmp_path / "audit.log").read_bytes().splitlines()]
    for n in range(3):
        numbers = [int(line["request_id"]) for line in lines if line["principal"] == f"w{n}"]
        assert numbers == list(range(200))
    assert len({line["principal"] for line in lines[:300]}) > 1  # they took turns


def test_recording_waits_for_nobody(tmp_path, monkeypatch):
    """The log is locked: recording continues, and what is too much is counted, not stored."""
    monkeypatch.setattr(audit, "MAX_WAITING", 500)
    (tmp_path / "pepper").write_bytes(PEPPER)
    log = AuditLog(tmp_path, tmp_path / "pepper")
    log.start()
    with locked(tmp_path):
        for _ in range(3000):
            log.record(ONE)  # one that waited for the lock would never return
        time.sleep(0.3)
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "audit.log").read_bytes().splitlines()]
    lost = sum(line["status"] for line in lines if line["decision"] == "lost")
    assert lost > 0
    assert lost + sum(line["decision"] == "allow" for line in lines) == 3000
    assert _faults(tmp_path) == []


def test_a_disk_that_fails_for_a_while_loses_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(audit, "RETRY_S", 0.05)
    folder = tmp_path / "state"
    log = AuditLog(folder, tmp_path / "pepper")
    log.start()
    (folder / "audit.log").mkdir()  # nothing can be appended to a folder
    log.record(ONE)
    time.sleep(0.4)
    (folder / "audit.log").rmdir()
    log.record(ONE)
    deadline = time.monotonic() + 20
    while verify(folder, b"").last < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    log.close()
    assert (verify(folder, b"").last, verify(folder, b"").faults) == (2, [])


@pytest.mark.parametrize("name", ["audit.log", "audit.head"])
def test_a_first_line_that_could_not_be_written_is_written_later(tmp_path, monkeypatch, name):
    """Whichever of the two files the disk had no room for, or a crash came before."""
    batch = [(0.0, ONE)]
    with monkeypatch.context() as patch:

        def has_no_room(path, *arguments, **options):
            if Path(path).name.startswith((name, f".{name}")):
                raise OSError(errno.ENOSPC, "No space left on device")
            return os_open(path, *arguments, **options)

        os_open = os.open
        patch.setattr(os, "open", has_no_room)
        with pytest.raises(OSError, match="No space"):
            audit.append(tmp_path, b"", batch)
    audit.append(tmp_path, b"", batch)
    assert (verify(tmp_path, b"").last, verify(tmp_path, b"").faults) == (1, [])


def test_a_gateway_that_died_amid_its_first_line_goes_on_later(tmp_path, monkeypatch):
    def die(descriptor):
        raise SystemExit

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(audit.os, "fsync", die)
        patch.setattr(audit, "write_private", lambda path, data: path.write_bytes(data))
        audit.append(tmp_path, b"", [(0.0, ONE)])
    assert (tmp_path / "audit.log").stat().st_size > 0
    audit.append(tmp_path, b"", [(0.0, ONE)])
    assert (verify(tmp_path, b"").last, verify(tmp_path, b"").faults) == (1, [])


@pytest.fixture
def running(tmp_path, monkeypatch):
    """A running log, what it counted, and its folder."""
    monkeypatch.setattr(audit, "RETRY_S", 0.05)
    counted = collections.Counter()
    log = AuditLog(
        tmp_path / "state", tmp_path / "pepper", lambda what, n: counted.update({what: n})
    )
    log.start()
    yield log, counted, tmp_path / "state"
    log.close()


def _lines(folder):
    # The head is written after the lines, and an empty one before the first.
    head, log = folder / "audit.head", folder / "audit.log"
    if not head.exists() or not log.exists():
        return []
    lines = log.read_bytes()[: json.loads(head.read_bytes())["size"]]
    return [json.loads(line) for line in lines.splitlines()]


@pytest.mark.parametrize(
    "odd",
    [
        {"principal": "jwt:corp:\ud800"},
        {"tenant": "\udfff" * 400},
        {"model": "a\x00b\nc\u2028d\x85"},
        {"status": 2**70},
        {"status": float("nan")},
        {"status": 10**5000},
        {"action": b"\xff"},
        {"model": type("Odd", (), {"__repr__": lambda self: 1 / 0})()},
    ],
)
def test_no_decision_can_end_the_log_or_hold_up_the_others(running, odd):
    log, _, folder = running
    for decision in (ONE, ONE._replace(request_id="odd", **odd), ONE._replace(request_id="r3")):
        log.record(decision)
    wait_until(lambda: len(_lines(folder)) == 3, 30, "three lines")
    log.record(ONE._replace(request_id="r4"))
    wait_until(lambda: len(_lines(folder)) == 4, 30, "the log goes on")
    assert log.fault() == ""
    lines = _lines(folder)
    assert [line["request_id"] for line in lines[::2]] == ["r1", "r3"]
    assert lines[3]["request_id"] == "r4"
    assert verify(folder, b"").faults == []
    assert len((folder / "audit.log").read_text().splitlines()) == 4


def test_a_lone_surrogate_is_escaped(running):
    log, _, folder = running
    log.record(ONE._replace(principal="jwt:corp:\ud800x"))
    wait_until(lambda: _lines(folder), 30, "a line")
    assert _lines(folder)[0]["principal"] == "jwt:corp:\\ud800x"


@pytest.mark.parametrize(
    "error",
    [SystemExit(1), RuntimeError("bug"), MemoryError(), OSError(28, "No space left on device")],
)
def test_the_thread_outlives_whatever_is_raised(running, monkeypatch, error):
    log, counted, folder = running
    real = audit.append

    def fails(*arguments):
        raise error

    monkeypatch.setattr(audit, "append", fails)
    log.record(ONE)
    wait_until(lambda: counted["failed"] > 1, 30, "it tries again")
    assert log.fault().startswith("cannot be written: ")
    monkeypatch.setattr(audit, "append", real)
    wait_until(lambda: len(_lines(folder)) == 1 and log.fault() == "", 30, "the line")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_ended_all_the_same_is_noticed_and_restarted(running, monkeypatch):
    log, _, folder = running
    monkeypatch.setattr(log, "_handle_failure", lambda error: 1 / 0)
    monkeypatch.setattr(log, "_round", lambda last: 1 / 0)
    wait_until(lambda: log.fault() == "its thread has ended", 30, "the end")
    monkeypatch.undo()
    log.record(ONE)
    assert log.revive()
    wait_until(lambda: len(_lines(folder)) == 1 and log.fault() == "", 30, "the line")
    assert not log.revive()


def test_a_disk_that_does_not_come_back_is_noticed(running, monkeypatch):
    log, _, folder = running
    monkeypatch.setattr(audit, "STALL_S", 0.3)
    with locked(folder):
        log.record(ONE)
        wait_until(lambda: "has been waiting for the disk" in log.fault(), 30, "the stall")
    wait_until(lambda: log.fault() == "", 30, "it goes on")


def test_a_folder_that_was_deleted_is_created_again_and_the_numbers_continue(running):
    log, _, folder = running
    log.record(ONE)
    wait_until(lambda: len(_lines(folder)) == 1, 30, "a line")
    shutil.rmtree(folder)
    log.record(ONE._replace(request_id="r2"))
    wait_until(lambda: len(_lines(folder)) == 2, 30, "another, and one that says so")
    assert [line["decision"] for line in _lines(folder)] == ["lost", "allow"]
    report = verify(folder, b"")
    assert (report.first, report.last, report.faults) == (2, 3, [])
    assert report.gaps == [
        "line 2: the log was removed or replaced under the running gateway, after line 1"
    ]


def test_an_older_state_that_was_put_in_its_place_is_reported_too(running):
    log, _, folder = running
    log.record(ONE)
    wait_until(lambda: len(_lines(folder)) == 1, 30, "a line")
    shutil.copytree(folder, folder.with_name("old"))
    log.record(ONE)
    wait_until(lambda: len(_lines(folder)) == 2, 30, "another")
    for name in ("audit.log", "audit.head"):
        shutil.copy(folder.with_name("old") / name, folder / name)
    log.record(ONE)
    wait_until(lambda: len(_lines(folder)) == 3, 30, "two more")
    report = verify(folder, b"")
    assert (report.last, report.faults) == (3, [])
    assert report.gaps == [
        "line 2: the log was removed or replaced under the running gateway, after line 2"
    ]


def test_strangers_have_a_small_budget_and_are_counted(running, monkeypatch):
    """3,000 refusals without an identity: a few lines, one with their number, and the real
    decisions between them."""
    log, counted, folder = running
    stranger = context_of({"path": "/v1/models", "headers": []}, None)
    stranger.principal = None
    known = context_of({"path": "/v1/models", "headers": []}, None)
    for index in range(3000):
        log.note(stranger, 401, "all")
        if index % 100 == 0:
            log.note(known, 200, "all")
    log.close()
    lines = _lines(folder)
    by_status = collections.Counter(line["decision"] for line in lines)
    assert by_status["allow"] == 30
    assert 50 <= by_status["deny"] <= 53
    suppressed = sum(line["status"] for line in lines if line["decision"] == "suppressed")
    assert suppressed + by_status["deny"] == 3000
    assert counted["suppressed"] == suppressed
    assert verify(folder, b"").gaps == []


def test_what_was_lost_is_found_by_verify(tmp_path):
    append(
        tmp_path,
        PEPPER,
        [(time.time(), ONE), (time.time(), ONE._replace(decision="lost", status=11))],
    )
    report = verify(tmp_path, PEPPER)
    assert report.faults == []
    assert report.gaps == ["line 2: 11 decisions were lost"]


def test_a_long_field_is_cut(tmp_path):
    append(tmp_path, PEPPER, [(time.time(), ONE._replace(model="m" * 100_000))])
    assert (tmp_path / "audit.log").stat().st_size < 1000


def _verb(home, *arguments):
    return subprocess.run(
        [
            sys.executable,
            "-c",
            "from tidegate.commands.audit import command; command()",
            *arguments,
        ],
        env={**os.environ, "TIDEGATE_HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_verb_says_what_is_wrong_and_exits_1(tmp_path):
    state = tmp_path / ".tidegate"
    assert "tidegate up" in _verb(tmp_path, "verify").stderr
    state.mkdir()
    (state / "pepper").write_bytes(PEPPER)
    _write(state, 10)
    run = _verb(tmp_path, "verify")
    assert (run.returncode, run.stdout.count("\n")) == (0, 1)
    assert "lines 1 to 10: intact; last hash " in run.stdout
    good = (state / "audit.log").read_bytes()
    (state / "audit.log").write_bytes(good.replace(b'"r3"', b'"r4"'))
    run = _verb(tmp_path, "verify", "--json")
    assert run.returncode == 1
    report = json.loads(run.stdout)
    assert report["intact"] is False
    assert report["faults"] == ["line 4, or its hash in line 5, was changed"]


def test_the_verb_reports_older_files_that_are_missing(tmp_path, monkeypatch):
    state = tmp_path / ".tidegate"
    state.mkdir()
    (state / "pepper").write_bytes(PEPPER)
    monkeypatch.setattr(audit, "FILE_LIMIT_BYTES", 2000)
    _write(state, 20)
    (state / "audit.000000000001.log").unlink()
    first = verify(state, PEPPER).first
    run = _verb(tmp_path, "verify")
    assert run.returncode == 1
    assert f"lines 1 to {first - 1} are missing: the files that held them" in run.stdout
    assert _verb(tmp_path, "verify", "--first", str(first)).returncode == 0
    assert _verb(tmp_path, "verify", "--first", str(first - 1)).returncode == 1
