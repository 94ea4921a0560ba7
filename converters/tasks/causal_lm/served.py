"""Prove what Triton serves of a language model, under the contract of Triton's vLLM backend."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import Queue
from typing import Any

import numpy as np
from tritonclient import grpc as triton
from tritonclient.utils import InferenceServerException

from converters.errors import ProofFailed
from converters.proof.checks import Check, at_most
from converters.proof.reference import Reference
from converters.tasks.causal_lm.checks import first_difference, has_ended
from converters.tasks.causal_lm.samples import STEPS

TIMEOUT_S = 120.0
FLAGS = ("return_finish_reason", "return_num_input_tokens", "return_num_output_tokens")


@dataclass(frozen=True)
class Completion:
    """One generation: its text, why it ended, and the tokens counted."""

    text: str
    reason: str
    input_tokens: int
    output_tokens: int


def served_checks(address: str, reference: Reference) -> list[Check]:
    """Checks of the model at ``address``: the original's prompts, whole and as streams, one after
    the other and together."""
    prompts = [str(prompt) for prompt in reference.outputs["prompts"]]
    served = _Served(address, reference.name)
    whole = [served.complete(prompt, stream=False) for prompt in prompts]
    streamed = [served.complete(prompt, stream=True) for prompt in prompts]
    with ThreadPoolExecutor(len(prompts)) as pool:
        together = list(pool.map(lambda prompt: served.complete(prompt, stream=True), prompts))
    return [
        *_original_checks(whole, reference),
        _same("the same streamed", whole, streamed, prompts),
        _same(f"the same, {len(prompts)} streams together", whole, together, prompts),
    ]


def _original_checks(completions: Sequence[Completion], reference: Reference) -> list[Check]:
    original = reference.outputs
    worst, label = 0.0, ""
    counts, reasons = [], []
    for index, completion in enumerate(completions):
        prompt = str(original["prompts"][index])
        if completion.input_tokens != original["prompt_ids_lengths"][index]:
            counts.append(f"{prompt[-40:]!r}: {completion.input_tokens}")
        text = str(original["greedy_texts"][index])
        if completion.text == text:
            if completion.reason != ("stop" if has_ended(reference, index) else "length"):
                reasons.append(f"{prompt[-40:]!r}: {completion.reason}")
            continue
        # In the original's own words: about this many tokens were equal.
        share = first_difference(completion.text, text) / max(len(text), 1)
        steps = int((original["greedy_ids"][index] >= 0).sum())
        near = slice(max(0, int(share * steps) - 2), min(steps, int(share * steps) + 3))
        leads = (
            original["top_log_probs"][index, near, 0] - original["top_log_probs"][index, near, 1]
        )
        if leads.min() > worst:
            worst, label = float(leads.min()), f"{prompt[-40:]!r}: {completion.text[:60]!r}"
    limit = reference.tolerance.difference
    return [
        at_most("parity: the original's lead near the first other text", worst, limit, label),
        at_most("prompt tokens counted otherwise", len(counts), 0, "; ".join(counts)),
        at_most("finish reasons that are wrong", len(reasons), 0, "; ".join(reasons)),
    ]


def _same(
    name: str, expected: Sequence[Completion], actual: Sequence[Completion], prompts: Sequence[str]
) -> Check:
    pairs = zip(prompts, expected, actual, strict=True)
    different = [prompt[-40:] for prompt, one, other in pairs if one != other]
    return at_most(name, len(different), 0, "; ".join(different))


class _Served:
    def __init__(self, address: str, model: str) -> None:
        self.address, self.model = address, model

    def complete(self, prompt: str, *, stream: bool) -> Completion:
        """Greedy, of at most STEPS tokens; ProofFailed with the server's reason if it refuses."""
        responses: Queue[tuple[Any, InferenceServerException | None]] = Queue()
        text, reason, output_tokens, input_tokens = [], "None", 0, 0
        with triton.InferenceServerClient(self.address) as client:
            client.start_stream(callback=lambda result, error: responses.put((result, error)))
            client.async_stream_infer(
                self.model, _inputs(prompt, stream), enable_empty_final_response=True
            )
            while True:
                result, error = responses.get(timeout=TIMEOUT_S)
                if error is not None:
                    raise ProofFailed(f"{self.model} refused a prompt: {error.message()}")
                response = result.get_response()
                if response.outputs:
                    text.append(result.as_numpy("text_output").reshape(-1)[0].decode())
                    reason = result.as_numpy("finish_reason").reshape(-1)[0].decode()
                    input_tokens = int(result.as_numpy("num_input_tokens").reshape(-1)[0])
                    output_tokens += int(result.as_numpy("num_output_tokens").reshape(-1)[0])
                if response.parameters["triton_final_response"].bool_param:
                    return Completion("".join(text), reason, input_tokens, output_tokens)


def _inputs(prompt: str, stream: bool) -> list[triton.InferInput]:
    sampling = json.dumps({"temperature": 0, "max_tokens": STEPS})
    values: list[tuple[str, str, object]] = [
        ("text_input", "BYTES", prompt.encode()),
        ("sampling_parameters", "BYTES", sampling.encode()),
        ("stream", "BOOL", stream),
        ("exclude_input_in_output", "BOOL", True),
        *((name, "BOOL", True) for name in FLAGS),
    ]
    inputs = []
    for name, dtype, value in values:
        tensor = triton.InferInput(name, [1], dtype)
        tensor.set_data_from_numpy(np.array([value], dtype=bool if dtype == "BOOL" else object))
        inputs.append(tensor)
    return inputs
