"""Compiles a structure (a JSON schema, a regular expression, a grammar) without the engine.

openvino-genai compiles it in the step that begins a request, and what fails there fails the engine
with all its requests. So a model of no weights compiles it first, and one more does so in a child
process, because some structures take minutes or gigabytes:

    python lm_compiler.py MODEL        a line of JSON in, [kind, text]; a line out, [fault, bytes]

with '' for no fault, and the memory that it took and keeps.
"""

import contextlib
import ctypes
import json
import os
import re
import resource
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

# See lm_driver.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]

import numpy as np
import openvino
import openvino_genai as genai
from openvino import opset13 as ops

MEMORY = 2**30  # bytes of address space that a structure may take
NICENESS = 5
_PR_SET_PDEATHSIG = 1
_SOURCE_LINE = re.compile(r"^.*?\.cc:\d+: (?:Check failed: \(.*\) is false: )?", re.DOTALL)
MAX_FAULT = 200  # characters


class Compiler:
    """Compiles with a tokenizer's own grammar compiler, whose cache every pipeline of that
    tokenizer shares: what was compiled here costs the engine's step nothing."""

    def __init__(self, tokenizer: Any) -> None:
        text, weights = _flat_model(len(tokenizer.get_vocab()))
        self._pipeline = genai.LLMPipeline(
            text, weights, tokenizer, "CPU", None, ATTENTION_BACKEND="SDPA"
        )
        self._prompt = openvino.Tensor(np.array([[0]], np.int64))

    def fault(self, kind: str, text: str) -> str:
        """Why it cannot be compiled; '' if it can."""
        config = genai.GenerationConfig()
        config.apply_chat_template = False
        config.max_new_tokens = 1
        config.structured_output_config = genai.StructuredOutputConfig(**{kind: text})
        try:
            self._pipeline.generate(self._prompt, config)
        except RuntimeError as error:
            return _SOURCE_LINE.sub("", str(error)).strip()[:MAX_FAULT] or "it cannot be compiled"
        return ""


def _flat_model(n_tokens: int) -> tuple[str, Any]:
    """A model to which all tokens are equally likely: its XML, and its weights as a tensor."""
    names = {"input_ids": 2, "attention_mask": 2, "position_ids": 2, "beam_idx": 1}
    inputs = []
    for name, rank in names.items():
        dtype = np.int32 if name == "beam_idx" else np.int64
        node = ops.parameter([-1] * rank, dtype, name=name)
        node.output(0).set_names({name})
        inputs.append(node)
    shape = ops.concat([ops.shape_of(inputs[0], "i64"), ops.constant(np.array([n_tokens]))], 0)
    logits = ops.broadcast(ops.constant(np.zeros((1, 1, 1), np.float32)), shape)
    logits.output(0).set_names({"logits"})
    model = openvino.Model([ops.result(logits)], inputs, "flat")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "flat.xml"
        openvino.serialize(model, file)
        weights = np.fromfile(file.with_suffix(".bin"), np.uint8)
        return file.read_text(encoding="utf-8"), openvino.Tensor(weights)


def main(model: Path) -> None:
    """Until its input ends. A structure that needs more memory than it may ends the process."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.nice(NICENESS)
    with os.fdopen(os.dup(1), "w", buffering=1) as replies:
        os.dup2(2, 1)  # what the libraries print is no reply
        compiler = Compiler(genai.Tokenizer(str(model)))
        compiler.fault("regex", "a")  # what is loaded at first use is not the structures' memory
        limit = _memory()[0] + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        replies.write('["", 0]\n')
        for line in sys.stdin:
            before = _memory()[1]
            fault = compiler.fault(*json.loads(line))
            replies.write(json.dumps([fault, max(0, _memory()[1] - before)]) + "\n")


def _memory() -> tuple[int, int]:
    """Bytes of address space, and of those in memory."""
    pages = Path("/proc/self/statm").read_text().split()[:2]
    size, resident = (int(count) * resource.getpagesize() for count in pages)
    return size, resident


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main(Path(sys.argv[1]))
