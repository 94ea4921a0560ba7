"""The verbs of the command line, one a file: its options, one call, its exit code."""
