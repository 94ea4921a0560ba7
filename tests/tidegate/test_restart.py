"""What `tidegate restart` makes of a gateway that does not answer for a while, and when it lifts
its drain. The gateway is a listener that fails as it is told to."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from serving.errors import ServingError
from serving.health.restart_request import is_asked_for
from serving.triton.servers import Server
from tidegate.app import restart
from tidegate.app.claim import Running
from tidegate.app.paths import Paths
from tidegate.app.restart import RestartOptions, _Restart
from tidegate.app.top import Gateway

ADDRESS = "127.0.0.1:8011"
METRICS = (
    f'# TYPE tidegate_replica_drained gauge\ntidegate_replica_drained{{replica="{ADDRESS}"}} 1\n'
)
PAGES = {
    "/metrics": METRICS,
    "/admin/replicas": json.dumps({"replicas": []}),
    "/admin/models": json.dumps({"models": []}),
}


class _Listener(ThreadingHTTPServer):
    """``statuses`` are those of the next requests; 200 afterwards."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.statuses: list[int] = []
        self.calls: list[tuple[str, int]] = []  # method and status


class _Handler(BaseHTTPRequestHandler):
    def _respond(self):
        server = self.server
        status = server.statuses.pop(0) if server.statuses else 200
        server.calls.append((self.command, status))
        body = PAGES.get(self.path, "{}").encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_PUT = do_DELETE = _respond  # noqa: N815 - the names of http.server

    def log_message(self, *_):
        pass


@pytest.fixture
def listener():
    server = _Listener()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def job(listener, tmp_path, monkeypatch):
    """The restart of one replica."""
    monkeypatch.setattr(restart, "POLL_S", 0.01)
    running = Running(1, str(tmp_path), str(tmp_path), "", "", {}, 1, [], [])
    gateway = Gateway(f"http://127.0.0.1:{listener.server_port}", "key")
    options = RestartOptions(drain_timeout_s=20.0)
    return _Restart(options, Paths(tmp_path), running, gateway, ADDRESS, lambda line: None)


def _lifted(listener):
    return [status for method, status in listener.calls if method == "DELETE"]


def test_a_gateway_that_fails_for_a_while_is_asked_again(job, listener):
    listener.statuses = [503, 500, 200, 503]  # the drain twice, then the drain, then a look
    with job._drain():
        job._wait_drained()
    assert listener.calls[:4] == [("PUT", 503), ("PUT", 500), ("PUT", 200), ("GET", 503)]
    assert _lifted(listener) == [200]


def test_a_gateway_that_does_not_come_back_is_named_when_the_time_is_up(job, listener):
    listener.statuses = [503] * 100_000
    with pytest.raises(ServingError, match=r"is not up after 0 s \(http.*/metrics answers 503"):
        job._wait(lambda: job._metric(restart.HEALTHY) == 1, 0.05, "is not up")


@pytest.mark.parametrize("status", [401, 403, 404])
def test_what_the_gateway_refuses_is_not_asked_again(job, listener, status):
    listener.statuses = [status]
    started = time.monotonic()
    with pytest.raises(ServingError, match=f"answers {status}"), job._drain():
        job._wait_drained()
    assert time.monotonic() - started < job._options.drain_timeout_s / 2
    assert listener.calls == [("PUT", status), ("DELETE", 200)]


def test_a_replica_that_the_gateway_does_not_use_is_said_at_once(job, listener):
    with pytest.raises(ServingError, match="the gateway does not use the replica"):
        job._require_others()
    assert len(listener.calls) == len(PAGES)


def test_a_failure_before_the_restart_lifts_the_drain_and_one_after_it_does_not(
    job, listener, tmp_path, monkeypatch
):
    with pytest.raises(KeyboardInterrupt), job._drain():
        raise KeyboardInterrupt
    assert _lifted(listener) == [200]
    monkeypatch.setattr(restart, "TAKEN_S", 0.0)  # nobody takes the request
    with pytest.raises(ServingError, match="is not restarted by tidegate up"), job._drain():
        job._restart(Server(str(tmp_path), ADDRESS, "", pid=1))
    assert not is_asked_for(tmp_path / ".tidegate", ADDRESS)
    assert _lifted(listener) == [200]
