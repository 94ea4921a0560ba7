"""The command line: one small file a verb. It composes the other packages and imports them late."""

import serving  # noqa: F401 - before anything imports gRPC: see there
