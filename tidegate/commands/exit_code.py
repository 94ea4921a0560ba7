"""The exit codes of every verb."""

from enum import IntEnum


class ExitCode(IntEnum):
    DONE = 0
    FAILED = 1  # refused, failed, or a check did not hold
    WRONG_USAGE = 2
    NOTHING = 3  # nothing there: no stack is running, or no candidate could be picked
    STOPPED = 130  # by Ctrl-C or SIGTERM


HELP = (
    "Exit codes: 0 done; 1 refused, failed, or a check did not hold; 2 wrong usage; 3 nothing "
    "there: no stack is running, or no candidate could be picked; 130 stopped by Ctrl-C or SIGTERM."
)
