"""The public pipelines, one declaration each. ``steps/`` holds what runs inside Triton."""
