"""``multilingual_embedding``: Chinese or English text -> a vector, by the encoder of
``multilingual_e5`` as it is. Nothing is trained: what is measured is how often the nearest entry of
a knowledge base is the right one."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from training import multilingual_e5
from training.knowledge_base import default_entries, evaluate, questions
from training.recipe import Metric, ModelCard, Progress, reproducible, required_folder

NAME, TASK = "multilingual_embedding", "embedding"
LAYERS = 12  # all of them
MAX_TOKENS = 256  # as many as text_embedding reads
LANGUAGES = {"zh": "Chinese", "en": "English"}
CARD = ModelCard(
    purpose="Turn a Chinese or English text into a vector: near vectors mean near meanings.",
    limits="Chinese and frequent words in ASCII letters only: the tokens of other scripts are left "
    "out. The package has the weights in 4 bits, which costs accuracy. Texts that have nothing to "
    "do with each other still have a cosine of about 0.8: choose thresholds from data. In English, "
    "text_embedding finds more. The model was trained with the prompts 'query: ' and 'passage: '. "
    "They are not added for you: on the messages that choose the thresholds of a knowledge base, "
    "they find as much as no prompt does.",
    license="MIT",
    language=("zh", "en"),
    datasets=("about a billion pairs of texts in many languages, chosen by intfloat",),
    base_model=multilingual_e5.CARD_NAME,
)
# As sentence-transformers writes them. The encoder was trained with the mean of its tokens.
_MODULE = "sentence_transformers.models."
_FILES: dict[str, Any] = {
    "modules.json": [
        {"idx": 0, "name": "0", "path": "", "type": f"{_MODULE}Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{_MODULE}Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": f"{_MODULE}Normalize"},
    ],
    "sentence_bert_config.json": {"max_seq_length": MAX_TOKENS, "do_lower_case": False},
}


def train(folder: Path, seed: int, report: Progress) -> list[Metric]:
    """Write the encoder, as a sentence-transformers folder; its metrics on messages that were
    written by hand."""
    from sentence_transformers import SentenceTransformer

    packed = required_folder(multilingual_e5.PACKAGE) / multilingual_e5.FILE
    report("nothing is trained: the encoder is measured as it is")
    multilingual_e5.save(packed, folder, LAYERS)
    _save_modules(folder)
    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)

    def embed(texts: Sequence[str]) -> np.ndarray:
        return np.asarray(model.encode([*texts], show_progress_bar=False), dtype=np.float32)

    metrics, samples = [], []
    with reproducible(seed):
        for language, name in LANGUAGES.items():
            entries, asked = default_entries(language), questions(language)
            vectors = embed([entry.embedded for entry in entries])
            metrics += [
                Metric(metric.name, metric.value, f"{metric.data}, {name}")
                for metric in evaluate(entries, vectors, embed, asked).metrics
                if metric.name.startswith("recall")
            ]
            samples += [question.message for question in asked[1]]
    (folder / "samples.txt").write_text("\n".join(samples) + "\n", encoding="utf-8")
    CARD.save(folder, NAME, metrics)
    return metrics


def _save_modules(folder: Path) -> None:
    width = json.loads((folder / "config.json").read_text(encoding="utf-8"))["hidden_size"]
    pooling = {"word_embedding_dimension": width, "pooling_mode_mean_tokens": True}
    for name, document in {**_FILES, "1_Pooling/config.json": pooling}.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(document, indent=1), encoding="utf-8")
