"""A Triton that ends while it starts: what is tried again, and what is not."""

from dataclasses import replace

import pytest

from serving.errors import TritonDied
from serving.installation import find_triton
from serving.launch import LaunchOptions, TritonServer
from serving.ports import Ports, free_ports

LOST_RACE = "E1125 08:57:23 ev_epoll1_linux.cc:373] Epoll1Poller:0x5 encountered epoll_wait error"


def _server(home, first_words: str) -> TritonServer:
    """One whose first start ends with these words; the second is a real Triton's."""
    real, script = find_triton(), home / "tritonserver"
    script.write_text(
        f'#!/bin/sh\n[ -e {home}/once ] && exec {real.binary} "$@"\n'
        f"touch {home}/once\necho '{first_words}' >&2\nexit 1\n"
    )
    script.chmod(0o755)
    (home / "models").mkdir()
    options = LaunchOptions(home / "models", home / "work", Ports(*free_ports(3)))
    return TritonServer(options, replace(real, binary=script))


def test_a_start_that_lost_a_race_is_tried_again(tmp_path):
    with _server(tmp_path, LOST_RACE) as server:
        assert server.control.is_live()


def test_what_would_happen_again_is_told_at_once(tmp_path):
    server = _server(tmp_path, "error: creating server: Invalid argument")
    with pytest.raises(TritonDied, match="Invalid argument"):
        server.start()
    assert not server.is_alive()
