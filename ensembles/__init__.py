"""The public pipelines, one declaration each. ``steps/`` has the code that runs inside Triton."""
