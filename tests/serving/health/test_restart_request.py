"""A restart is asked for by a file, which names the process."""

from serving.health.restart_request import ask_for_restart, is_asked_for, take, withdraw

ADDRESS = "127.0.0.1:8001"


def test_a_request_is_taken_once_and_for_its_process_alone(tmp_path):
    assert not take(tmp_path, ADDRESS, 7)
    ask_for_restart(tmp_path, ADDRESS, 7)
    assert is_asked_for(tmp_path, ADDRESS)
    assert not take(tmp_path, "127.0.0.1:8011", 7)
    assert take(tmp_path, ADDRESS, 7)
    assert not is_asked_for(tmp_path, ADDRESS)
    assert not take(tmp_path, ADDRESS, 7)
    ask_for_restart(tmp_path, ADDRESS, 7)
    assert not take(tmp_path, ADDRESS, 8)  # which was started since then
    assert not is_asked_for(tmp_path, ADDRESS)


def test_a_request_can_be_withdrawn(tmp_path):
    ask_for_restart(tmp_path, ADDRESS, 7)
    withdraw(tmp_path, ADDRESS)
    withdraw(tmp_path, ADDRESS)
    assert not take(tmp_path, ADDRESS, 7)
