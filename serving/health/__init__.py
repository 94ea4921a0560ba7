"""Watch a running Triton: dead and hung processes, failing golden samples, restarts."""
