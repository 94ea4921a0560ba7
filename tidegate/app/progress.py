"""What work that takes long reports to."""

from collections.abc import Callable

# Called with one line for each step, such as "converting mood ...".
Progress = Callable[[str], None]
