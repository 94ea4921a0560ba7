"""The repository index, while folders come and go."""

import threading

from serving.repository.model_repository import ModelRepository
from serving.triton.launch import LaunchOptions, TritonServer
from serving.triton.ports import Ports, free_ports

CALLS = 300


def test_a_folder_that_disappears_meanwhile_does_not_fail_the_index(tmp_path):
    """Without a second try, about one call in five fails here."""
    repository, ended = tmp_path / "models", threading.Event()
    repository.mkdir()

    def come_and_go() -> None:
        while not ended.is_set():
            for name in "abcd":
                (repository / name).mkdir()
            for name in "abcd":
                (repository / name).rmdir()

    options = LaunchOptions(ModelRepository(repository), tmp_path / "work", Ports(*free_ports(3)))
    thread = threading.Thread(target=come_and_go)
    with TritonServer(options) as server:
        thread.start()
        try:
            for _ in range(CALLS):
                server.control.index(tries=20)
        finally:
            ended.set()
            thread.join()
