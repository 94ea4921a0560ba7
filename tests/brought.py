"""Small models as a user would bring them: real architectures and tokenizers, random weights.

Nothing can be downloaded here, and a proof asks whether a conversion keeps the answers, not whether
they are good ones.
"""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from converters.samples import default_texts

LABELS = ("angry", "calm", "高兴")
SMALL = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def word_tokenizer(max_tokens: int) -> PreTrainedTokenizerFast:
    """WordPiece, trained on the spot on the sample texts."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=800, special_tokens=special)
    tokenizer.train_from_iterator(default_texts(), trainer)
    ends = [(each, tokenizer.token_to_id(each)) for each in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=ends
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=max_tokens,
    )


def byte_tokenizer(max_tokens: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE with RoBERTa's special tokens: the padding is 1, not 0."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(
        vocab_size=800,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(default_texts(), trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        cls_token="<s>",
        sep_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_max_length=max_tokens,
    )


def _named(labels=LABELS) -> dict:
    return {
        "id2label": dict(enumerate(labels)),
        "label2id": {label: index for index, label in enumerate(labels)},
        "num_labels": len(labels),
    }


def save_classifier(kind: str, folder: Path, **config) -> Path:
    """A text classifier of this architecture in Hugging Face's form."""
    torch.manual_seed(0)
    build = {"bert": _bert, "distilbert": _distilbert, "roberta": _roberta}[kind]
    tokenizer, model = build(config)
    # Larger than the usual start: answers must differ between texts for a proof to mean anything.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3) if parameter.ndim > 1 else None
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def _bert(config):
    tokenizer = word_tokenizer(64)
    sizes = {"vocab_size": 800, "hidden_size": 32, "max_position_embeddings": 64}
    return tokenizer, BertForSequenceClassification(
        BertConfig(**SMALL, **sizes, **_named(), **config)
    )


def _distilbert(config):
    tokenizer = word_tokenizer(64)
    sizes = {"vocab_size": 800, "dim": 32, "max_position_embeddings": 64}
    layers = {"n_layers": 2, "n_heads": 2, "hidden_dim": 64}
    return tokenizer, DistilBertForSequenceClassification(
        DistilBertConfig(**layers, **sizes, **_named(), **config)
    )


def _roberta(config):
    tokenizer = byte_tokenizer(66)  # as many as its table has: two of them are no positions
    sizes = {"vocab_size": 800, "hidden_size": 32, "max_position_embeddings": 66}
    return tokenizer, RobertaForSequenceClassification(
        RobertaConfig(**SMALL, **sizes, **_named(), pad_token_id=1, **config)
    )
