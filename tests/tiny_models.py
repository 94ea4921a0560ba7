"""Small models like a user's: real architectures and tokenizers, random weights.

Nothing can be downloaded here, and a proof is about whether a conversion keeps the outputs, not
about whether they are good. The vocabularies are the same in every run: the trainers of WordPiece
and Unigram break ties by chance, and an 8-bit model may then pass its proof in one run only.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import torch
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedTokenizerFast,
)

from converters.tasks.text.samples import default_texts, multilingual_texts

LABELS = ("angry", "calm", "高兴")
TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC", "MISC")
VOCABULARY = 800
_SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
_ANGLED = {
    "cls_token": "<s>",
    "pad_token": "<pad>",
    "sep_token": "</s>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
}


@cache
def _words() -> str:
    """WordPiece, from the sample texts."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = list(_SPECIAL.values())
    counts = _frequent_pieces(tokenizer, [*default_texts(), *multilingual_texts()], special, "##")
    vocabulary = {piece: number for number, (piece, _) in enumerate(counts)}
    tokenizer.model = models.WordPiece(vocabulary, unk_token="[UNK]")
    tokenizer.add_special_tokens(special)
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    return tokenizer.to_str()


@cache
def _bytes() -> str:
    """Byte-level BPE with RoBERTa's special tokens: the padding is 1, not 0."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(_ANGLED.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(default_texts(), trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return tokenizer.to_str()


@cache
def _pieces() -> str:
    """Unigram over "▁", like SentencePiece's models."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = list(_ANGLED.values())
    counts = _frequent_pieces(tokenizer, [*default_texts(), *multilingual_texts()], special)
    total = sum(count for _, count in counts)
    vocabulary = [(piece, math.log(count / total) if count else 0.0) for piece, count in counts]
    tokenizer.model = models.Unigram(vocabulary, unk_id=special.index("<unk>"))
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer.to_str()


def _frequent_pieces(
    tokenizer: Tokenizer, texts: Iterable[str], special: Sequence[str], continued: str = ""
) -> list[tuple[str, int]]:
    """``VOCABULARY`` pieces with their counts: the special ones, every character, and the parts of
    words that hold most of the texts' characters. ``continued`` marks a piece within a word."""
    words: Counter[str] = Counter()
    for text in texts:
        normal = tokenizer.normalizer.normalize_str(text)
        words.update(word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normal))
    characters: Counter[str] = Counter()
    parts: Counter[str] = Counter()
    for word, count in words.items():
        for start in range(len(word)):
            for end in range(start + 1, len(word) + 1):
                piece = (continued if start else "") + word[start:end]
                (characters if end - start == 1 else parts)[piece] += count

    def held(piece: str) -> tuple[int, str]:
        return -parts[piece] * len(piece.removeprefix(continued)), piece

    chosen = [(piece, characters[piece]) for piece in sorted(characters)]
    chosen += [(piece, parts[piece]) for piece in sorted(parts, key=held)]
    return [*((piece, 0) for piece in special), *chosen][:VOCABULARY]


def word_tokenizer(max_tokens: int, **more) -> PreTrainedTokenizerFast:
    return _fast(_words(), _SPECIAL, max_tokens, **more)


def byte_tokenizer(max_tokens: int, **more) -> PreTrainedTokenizerFast:
    return _fast(_bytes(), _ANGLED, max_tokens, **more)


def piece_tokenizer(max_tokens: int, **more) -> PreTrainedTokenizerFast:
    return _fast(_pieces(), _ANGLED, max_tokens, **more)


def _fast(text: str, special: dict[str, str], max_tokens: int, **more) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(text), model_max_length=max_tokens, **special, **more
    )


_SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
# RoBERTa's table of positions has two rows that are not positions.
_OFFSET = {**_SMALL, "max_position_embeddings": 66, "pad_token_id": 1}
ARCHITECTURES = {
    "bert": (word_tokenizer, _SMALL),
    "distilbert": (
        word_tokenizer,
        {
            "vocab_size": VOCABULARY,
            "dim": 32,
            "n_layers": 2,
            "n_heads": 2,
            "hidden_dim": 64,
            "max_position_embeddings": 64,
        },
    ),
    "roberta": (byte_tokenizer, _OFFSET),
    "xlm-roberta": (piece_tokenizer, _OFFSET),
    "mpnet": (piece_tokenizer, _OFFSET),
    "albert": (piece_tokenizer, {**_SMALL, "embedding_size": 16, "pad_token_id": 1}),
    "electra": (word_tokenizer, {**_SMALL, "embedding_size": 16}),
    "deberta-v2": (piece_tokenizer, {**_SMALL, "pad_token_id": 1, "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"], "position_buckets": 16, "norm_rel_ebd": "layer_norm",
        "share_att_key": True, "position_biased_input": False}),
    "gpt2": (byte_tokenizer, {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 2,
        "n_positions": 64, "bos_token_id": 0, "eos_token_id": 2}),
    "modernbert": (byte_tokenizer, {**_SMALL, "pad_token_id": 1, "bos_token_id": 0,
        "eos_token_id": 2, "cls_token_id": 0, "sep_token_id": 2, "num_hidden_layers": 4,
        "local_attention": 16}),
}  # fmt: skip


def save_classifier(
    architecture: str, folder: Path, labels: Sequence[str] = LABELS, **config
) -> Path:
    """A Hugging Face folder with a text classifier of this architecture."""
    config = {**_label_config(labels), **config}
    return _save(architecture, folder, AutoModelForSequenceClassification, config)


def save_tagger(architecture: str, folder: Path, labels: Sequence[str] = TAGS, **config) -> Path:
    """A Hugging Face folder with a token classifier of this architecture."""
    config = {**_label_config(labels), **config}
    return _save(architecture, folder, AutoModelForTokenClassification, config)


def save_encoder(architecture: str, folder: Path, **config) -> Path:
    """A Hugging Face folder with an encoder without a head."""
    return _save(architecture, folder, AutoModel, config)


def save_embedder(architecture: str, folder: Path, *modules, **transformer) -> Path:
    """A sentence-transformers folder of this architecture and these modules; ``transformer`` goes
    into its sentence_bert_config.json."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Transformer

    plain = save_encoder(architecture, folder.with_name(f"{folder.name}-plain"))
    first = Transformer(str(plain), **transformer)
    SentenceTransformer(modules=[first, *modules], device="cpu").save(str(folder))
    return folder


def _save(architecture: str, folder: Path, auto_class, config: dict) -> Path:
    torch.manual_seed(0)
    make_tokenizer, sizes = ARCHITECTURES[architecture]
    model = auto_class.from_config(AutoConfig.for_model(architecture, **{**sizes, **config}))
    # Larger than usual initial weights: outputs must differ between texts for a proof to mean
    # anything.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
    make_tokenizer(sizes.get("max_position_embeddings", 64)).save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def _label_config(labels: Sequence[str]) -> dict:
    return {
        "id2label": dict(enumerate(labels)),
        "label2id": {label: index for index, label in enumerate(labels)},
        "num_labels": len(labels),
    }


def language_model(folder: Path, architecture: str = "llama", seed: int = 1) -> Path:
    """A causal language model of two layers with a chat template, random; ``qwen2`` has biases."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(default_texts(), trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    fast.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n"
        "{{ message.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    fast.save_pretrained(folder)
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        architecture,
        vocab_size=len(fast),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.15,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder
