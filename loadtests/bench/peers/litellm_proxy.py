"""LiteLLM's proxy with a master key, in front of one embedding with OpenAI's API."""

import json
import os
import sys
import tempfile
from pathlib import Path


def main() -> None:
    config = {
        "model_list": [
            {
                "model_name": "text_embedding",
                "litellm_params": {
                    "model": "openai/text_embedding",
                    "api_base": f"http://127.0.0.1:{os.environ['BENCH_UPSTREAM_PORT']}/v1",
                    "api_key": "none",
                },
            }
        ],
        "general_settings": {"master_key": os.environ["BENCH_KEY"]},
    }
    file = Path(tempfile.mkdtemp(prefix="tidegate-bench-")) / "config.yaml"
    file.write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
    program = Path(sys.executable).with_name("litellm")
    arguments = ["--config", str(file), "--host", "127.0.0.1", "--port", os.environ["BENCH_PORT"]]
    os.execv(program, [str(program), *arguments, "--num_workers", "1"])  # noqa: S606


if __name__ == "__main__":
    main()
