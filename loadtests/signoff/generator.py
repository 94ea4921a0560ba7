"""One of several load generators: reads what to send from stdin, and writes what it measured to
stdout. ``loadtests/signoff/generators.py`` starts it."""

from gevent import monkey

monkey.patch_all()

import os  # noqa: E402
import pickle  # noqa: E402 - between our own processes
import resource  # noqa: E402
import sys  # noqa: E402
from typing import BinaryIO  # noqa: E402

import gevent  # noqa: E402

from loadtests.preflight import CannotStart  # noqa: E402
from loadtests.signoff.generators import (  # noqa: E402
    REPLAY,
    GeneratorLost,
    Order,
    Setup,
    receive,
)
from loadtests.signoff.open_loop import run  # noqa: E402
from loadtests.signoff.sending import Source  # noqa: E402
from loadtests.texts import CorpusMissing  # noqa: E402

_, MOST_FILES = resource.getrlimit(resource.RLIMIT_NOFILE)


def main() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (MOST_FILES, MOST_FILES))
    gevent.spawn(_end_with, os.getppid())
    # Whatever else is printed must not be read as a measurement.
    with os.fdopen(os.dup(1), "wb") as output:
        os.dup2(2, 1)
        setup: Setup = receive(sys.stdin.buffer)
        sources: dict[str, Source] = {}
        refusal = ""
        try:
            own = {
                name: setup.target.source(setup.served[name], apis)
                for name, apis in setup.apis.items()
            }
            sources = dict(own)
            if setup.trace and setup.trace.requests:
                sources[REPLAY] = setup.target.replay(setup.trace, own)
        except (CannotStart, CorpusMissing) as error:
            refusal = str(error)
        _write(output, refusal)
        while True:
            order: Order = receive(sys.stdin.buffer)
            source = sources[order.name]
            _write(output, run(source, order.due, order.rate, order.duration_s, began=order.began))


def _write(output: BinaryIO, message: object) -> None:
    pickle.dump(message, output)
    output.flush()


def _end_with(parent: int) -> None:
    """End when nobody is left to read what this measures."""
    while os.getppid() == parent:
        gevent.sleep(1.0)
    os._exit(1)


if __name__ == "__main__":
    try:
        main()
    except GeneratorLost:  # the one that asks has ended
        sys.exit(0)
