"""What a verb refuses by itself; the other packages have errors of their own."""


class UsageError(Exception):
    """The options make no sense together, or name what does not exist: the command line ends with
    2 and its usage, as for an unknown option."""
