"""No request, whether or not it fits the API's description, is answered with a 500."""

import re
import subprocess
import sys
from pathlib import Path


def test_no_generated_request_makes_the_gateway_fail(stack):
    run = subprocess.run(
        [
            Path(sys.executable).parent / "schemathesis",
            "run",
            f"{stack.url}/openapi.json",
            "--header",
            f"Authorization: Bearer {stack.key}",
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
    assert counted and int(counted[1]) > 400 and counted[1] == counted[2]
