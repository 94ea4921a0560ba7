"""``tidegate signoff ARGUMENTS...`` again and again, each in a process that is forked from this
one, which has imported the load generator: that takes longer than to refuse a request.

    python -m tests.loadtests.signoff.forked < COMMANDS > OUTCOMES

A command is a line with a JSON list of the arguments, an outcome a line with the exit code and what
the command wrote to its standard error.
"""

import json
import os
import sys
import tempfile

from loadtests.signoff import __main__ as generator  # gevent patches this process
from loadtests.signoff.options import Options
from tidegate.commands import signoff


def _generate(options: Options) -> None:
    """What the process does that the command line's becomes."""
    sys.exit(generator.main(Options.of_argument(options.to_argument())))


def _outcome(arguments: list[str]) -> tuple[int, str]:
    with tempfile.TemporaryFile() as errors:
        child = os.fork()
        if not child:
            os.dup2(errors.fileno(), 2)
            os.dup2(2, 1)
            sys.excepthook = generator._end_unforeseen
            signoff.command.main(arguments, "tidegate signoff")
        _, status = os.waitpid(child, 0)
        errors.seek(0)
        return os.waitstatus_to_exitcode(status), errors.read().decode()


if __name__ == "__main__":
    signoff.become_generator = _generate  # type: ignore[assignment]
    for line in sys.stdin:
        print(json.dumps(_outcome(json.loads(line))), flush=True)  # noqa: T201
