"""No request, whether or not it fits the API's description, is answered with a 500."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

# Of a language model: a real one may write for minutes, so the echoing one is asked instead.
TEXT_ROUTES = "^/v1/(chat|completions|responses)"


@pytest.mark.parametrize(
    ("which", "flag", "least"),
    [("stack", "--exclude-path-regex", 400), ("echo", "--include-path-regex", 50)],
)
def test_no_generated_request_makes_the_gateway_fail(request, which, flag, least):
    stack = request.getfixturevalue(which)
    run = subprocess.run(
        [
            Path(sys.executable).parent / "schemathesis",
            "run",
            f"{stack.url}/openapi.json",
            "--header",
            f"Authorization: Bearer {stack.key}",
            flag,
            TEXT_ROUTES,
            "--checks",
            "not_a_server_error",
            "--phases",
            "examples,coverage,fuzzing",
            "--max-examples",
            "20",
            "--seed",
            "1",
            "--no-color",
        ],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=stack.home,
    )
    assert run.returncode == 0, run.stdout[-4000:]
    counted = re.search(r"(\d+) generated, (\d+) passed", run.stdout)
    assert counted and int(counted[1]) > least and counted[1] == counted[2]
