"""The command line: one small file a verb. It composes the other packages and imports them late."""
