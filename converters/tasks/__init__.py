"""The tasks, one same-shaped folder each: ``task``, ``reference``, ``checks``, ``served``."""
