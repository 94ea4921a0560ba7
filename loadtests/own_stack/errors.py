"""What can keep a measurement from starting."""


class NotStarted(RuntimeError):
    """A server that was to be measured did not start; the message has the end of its log."""
