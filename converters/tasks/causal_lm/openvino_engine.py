"""A GGUF file in OpenVINO GenAI, in this process: what the served backend runs."""

import json
import os
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from converters.errors import ExportFailed, no_traceback
from modelspec.layout import SETTINGS_FILE

KV_BLOCKS = 256  # of 32 tokens: the proof's texts are short
# As the backend sets it: the CPU plugin may pick BF16 by itself.
PROPERTIES = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f16"}


@dataclass(frozen=True)
class Generated:
    """The tokens of a greedy continuation, the end token left out; ``ended`` if the model itself
    ended it."""

    ids: tuple[int, ...]
    ended: bool


class OpenVinoEngine:
    """One model, loaded, with the settings beside it; ExportFailed if OpenVINO cannot read it.

    ``end_ids`` are the tokens at which it ends a generation.
    """

    def __init__(self, path: Path, properties: Mapping[str, str] = PROPERTIES) -> None:
        os.environ["OPENVINO_TELEMETRY_OPT_OUT"] = "1"
        import openvino_genai

        scheduler = openvino_genai.SchedulerConfig()
        scheduler.num_kv_blocks = KV_BLOCKS
        scheduler.max_num_batched_tokens = 512
        what = f"OpenVINO cannot read {path.name}"
        remedy = "for a GPU, --engine vllm takes a Hugging Face folder as it is"
        with no_traceback(ExportFailed, what, remedy):
            self._pipeline = openvino_genai.ContinuousBatchingPipeline(
                str(path), scheduler, "CPU", dict(properties), {}
            )
        self._tokenizer = self._pipeline.get_tokenizer()
        file = path.with_name(SETTINGS_FILE)
        settings = json.loads(file.read_bytes()) if file.is_file() else {}
        self._is_nfc = settings.get("normalize_nfc", False)
        own = set(self._pipeline.get_config().stop_token_ids)
        self.end_ids = frozenset(own.union(settings.get("stop_token_ids", ())))
        self._next = 0

    def token_ids(self, text: str) -> list[int]:
        if self._is_nfc:
            text = unicodedata.normalize("NFC", text)
        encoded = self._tokenizer.encode(text, add_special_tokens=False)
        ids: list[int] = encoded.input_ids.data[0].tolist()
        return ids

    def log_probs(self, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The log-probability FP64 [len - 1] of each token but the first, for each row of ids."""
        config = self._config(1)
        config.echo, config.logprobs, config.ignore_eos = True, 1, True
        outputs = self._run(rows, config)
        return [
            np.array(output.generated_log_probs[1 : len(row)])
            for output, row in zip(outputs, rows, strict=True)
        ]

    def greedy(self, prompts: Sequence[np.ndarray], steps: int) -> list[Generated]:
        """The continuation of each, of at most ``steps`` tokens: all together."""
        generated = []
        for output in self._run(prompts, self._config(steps)):
            ids = tuple(output.generated_ids)
            ended = bool(ids) and ids[-1] in self.end_ids
            generated.append(Generated(ids[:-1] if ended else ids, ended))
        return generated

    def _config(self, steps: int) -> Any:
        import openvino_genai

        config = openvino_genai.GenerationConfig()
        config.max_new_tokens, config.apply_chat_template = steps, False
        config.stop_token_ids = set(self.end_ids)
        return config

    def _run(self, rows: Sequence[np.ndarray], config: object) -> list[Any]:
        import openvino

        handles = []
        for row in rows:
            tensor = openvino.Tensor(np.asarray(row, dtype=np.int64)[None])
            handles.append(self._pipeline.add_request(self._next, tensor, config))
            self._next += 1
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
        return [handle.read_all()[0] for handle in handles]
