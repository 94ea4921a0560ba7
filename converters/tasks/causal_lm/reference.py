"""Answer with ``transformers`` in FP32, in a process of its own.

python -m converters.tasks.causal_lm.reference SOURCE PASSAGES.json ANSWERS.npz
"""

import json
import sys
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from converters.proof.reference_process import ask
from converters.tasks.causal_lm.gguf_reader import GgufReader
from converters.tasks.causal_lm.samples import (
    COMBINED,
    QUESTIONS,
    STEPS,
    conversations,
    token_texts,
)

RANKS = 8  # of the likeliest tokens at each step, to explain a divergence
# One of the prompt's step and one of a step that decodes: every few seconds, probes ask for them.
GOLDEN_STEPS = 2


def ask_original(source: Path, passages: list[str], folder: Path) -> dict[str, np.ndarray]:
    """Ragged arrays are written flat, with ``NAME_lengths``.

    passage_ids INT64, log_probs FP64     each passage's tokens, and the log-probability of all but
                                          the first
    prompts, prompt_ids INT64             as rendered by the chat template, if there is one
    greedy_ids INT64 [n, STEPS]           -1 after the end
    top_ids INT64, top_log_probs FP64 [n, STEPS, RANKS]
    greedy_texts, golden_texts            decoded: all, and the first GOLDEN_STEPS tokens
    token_texts, token_ids INT64          without special tokens added
    is_nfc BOOL                           whether its tokenizer normalizes text to NFC
    conversations, rendered               JSON, and its prompt; ``refused`` BOOL where there is none
    template, end_ids INT64
    """
    passages_file = folder / "passages.json"
    passages_file.write_text(json.dumps(passages), encoding="utf-8")
    module = "converters.tasks.causal_lm.reference"
    return ask(module, source, passages_file, answers=folder / "answers.npz")


def ragged(outputs: Any, name: str) -> list[np.ndarray]:
    """The arrays that were written flat under this name."""
    lengths = outputs[f"{name}_lengths"]
    return np.split(outputs[name], np.cumsum(lengths)[:-1])


def _flat(name: str, arrays: Sequence[Any]) -> dict[str, np.ndarray]:
    lengths = np.array([len(array) for array in arrays])
    return {name: np.concatenate([np.asarray(a) for a in arrays]), f"{name}_lengths": lengths}


def main(source: str, passages_file: str, target: str) -> None:
    import gguf
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # It opens the file for the tokenizer, for the config and for the weights.
    gguf.GGUFReader = lru_cache(maxsize=1)(GgufReader)  # type: ignore[assignment,misc]
    path = Path(source)
    where: dict[str, Any] = {"pretrained_model_name_or_path": str(path)}
    if path.is_file():
        where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    model: Any = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    model.eval()
    original = _Original(tokenizer, model)
    passages = json.loads(Path(passages_file).read_text(encoding="utf-8"))
    with torch.inference_mode():
        outputs = {
            **original.scored(passages),
            **original.continued(),
            **original.tokenized(),
            **original.rendered(),
        }
    np.savez(target, **outputs)


class _Original:
    def __init__(self, tokenizer: Any, model: Any) -> None:
        self.tokenizer, self.model = tokenizer, model
        end = model.generation_config.eos_token_id
        if end is None:
            end = tokenizer.eos_token_id
        self.end_ids = [end] if isinstance(end, int) else list(end or ())

    def ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return ids

    def scored(self, passages: Sequence[str]) -> dict[str, np.ndarray]:
        import torch

        ids = [self.ids(passage) for passage in passages]
        log_probs = []
        for row in ids:
            logits = self.model(torch.tensor([row])).logits[0, :-1].double()
            chosen = torch.tensor(row[1:])[:, None]
            log_probs.append(logits.log_softmax(-1).gather(1, chosen)[:, 0].numpy())
        return {**_flat("passage_ids", ids), **_flat("log_probs", log_probs)}

    def continued(self) -> dict[str, np.ndarray]:
        prompts = [self._prompt(question) for question in QUESTIONS]
        ids = [self.ids(prompt) for prompt in prompts]
        rows = [self._greedy(row) for row in ids]
        greedy = np.stack([row[0] for row in rows])
        return {
            "prompts": np.array(prompts),
            **_flat("prompt_ids", ids),
            "greedy_ids": greedy,
            "top_ids": np.stack([row[1] for row in rows]),
            "top_log_probs": np.stack([row[2] for row in rows]),
            "greedy_texts": np.array([self._text(row) for row in greedy]),
            "golden_texts": np.array([self._text(row[:GOLDEN_STEPS]) for row in greedy]),
            "end_ids": np.array(self.end_ids, dtype=np.int64),
        }

    def _prompt(self, question: str) -> str:
        if not self.tokenizer.chat_template:
            return question
        return self._rendered({"messages": [{"role": "user", "content": question}]})

    def _rendered(self, conversation: dict[str, Any]) -> str:
        text: str = self.tokenizer.apply_chat_template(
            conversation["messages"],
            tools=conversation.get("tools"),
            tokenize=False,
            add_generation_prompt=True,
        )
        return text

    def _greedy(self, prompt: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        import torch

        ids = np.full(STEPS, -1, dtype=np.int64)
        top_ids = np.full((STEPS, RANKS), -1, dtype=np.int64)
        top = np.full((STEPS, RANKS), -np.inf)
        inputs, past = torch.tensor([prompt]), None
        for step in range(STEPS):
            output = self.model(inputs, past_key_values=past, use_cache=True)
            past = output.past_key_values
            best = output.logits[0, -1].double().log_softmax(-1).topk(RANKS)
            top_ids[step], top[step] = best.indices.numpy(), best.values.numpy()
            ids[step] = top_ids[step, 0]
            if ids[step] in self.end_ids:
                break
            inputs = torch.tensor([[int(ids[step])]])
        return ids, top_ids, top

    def _text(self, ids: np.ndarray) -> str:
        kept = [int(token) for token in ids if token >= 0]
        text: str = self.tokenizer.decode(
            kept, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def tokenized(self) -> dict[str, np.ndarray]:
        special = [str(token) for token in self.tokenizer.all_special_tokens]
        texts = [*token_texts(), *(f"it says {token} here" for token in special)]
        ids = [self.ids(text) for text in texts]
        is_nfc = self.ids(COMBINED) == self.ids(unicodedata.normalize("NFC", COMBINED))
        return {
            "token_texts": np.array(texts),
            **_flat("token_ids", ids),
            "is_nfc": np.array(is_nfc),
        }

    def rendered(self) -> dict[str, np.ndarray]:
        prompts, refused = [], []
        for conversation in conversations() if self.tokenizer.chat_template else ():
            try:
                prompts.append(self._rendered(conversation))
                refused.append(False)
            except Exception:  # a template may raise anything, to refuse a conversation
                prompts.append("")
                refused.append(True)
        asked = [json.dumps(c, ensure_ascii=False) for c in conversations()[: len(prompts)]]
        return {
            "conversations": np.array(asked, dtype=np.str_),
            "rendered": np.array(prompts, dtype=np.str_),
            "refused": np.array(refused, dtype=bool),
            "template": np.array([self.tokenizer.chat_template or ""]),
        }


if __name__ == "__main__":
    main(*sys.argv[1:])
