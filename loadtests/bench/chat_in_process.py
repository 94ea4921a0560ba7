"""The engine without a server: ``python -m loadtests.bench.chat_in_process MODEL.gguf``.

A line in, ``{"prompts": [...], "tokens": n}``; a line out, ``[[asked_s, [piece_s, ...], tokens],
...]``, one for each prompt; the first line out says that it is ready. With the settings that
``serving/backends/openvino_genai`` has by default.
"""

import json
import os
import sys
import time
from typing import Any

os.environ["OPENVINO_TELEMETRY_OPT_OUT"] = "1"
import openvino_genai as genai

KV_BLOCKS, BATCHED_TOKENS = 256, 256
PROPERTIES = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f16"}


class Engine:
    def __init__(self, model: str) -> None:
        scheduler = genai.SchedulerConfig()
        scheduler.num_kv_blocks = KV_BLOCKS
        scheduler.max_num_batched_tokens = BATCHED_TOKENS
        scheduler.enable_prefix_caching = True
        self._pipeline = genai.ContinuousBatchingPipeline(model, scheduler, "CPU", PROPERTIES, {})
        self._tokenizer = self._pipeline.get_tokenizer()
        self._next = 0

    def generate(self, prompts: list[str], tokens: int) -> list[tuple[float, list[float], int]]:
        config = genai.GenerationConfig()
        config.apply_chat_template, config.max_new_tokens, config.ignore_eos = False, tokens, True
        asked_s = time.monotonic()
        handles = [self._begun(prompt, config) for prompt in prompts]
        times: list[list[float]] = [[] for _ in prompts]
        counts = [0] * len(prompts)
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
            for index, handle in enumerate(handles):
                while handle.can_read():
                    for output in handle.read().values():
                        counts[index] += len(output.generated_ids)
                    times[index].append(time.monotonic())
        return [(asked_s, times[i], counts[i]) for i in range(len(prompts))]

    def _begun(self, prompt: str, config: object) -> Any:
        self._next += 1
        ids = self._tokenizer.encode(prompt).input_ids
        return self._pipeline.add_request(self._next, ids, config)


def main(model: str) -> None:
    engine = Engine(model)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        asked = json.loads(line)
        sys.stdout.write(json.dumps(engine.generate(asked["prompts"], asked["tokens"])) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])
