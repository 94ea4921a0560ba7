"""Static embeddings (model2vec's, through sentence-transformers): the mean of one vector per
token."""

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding
from tokenizers import Tokenizer

from converters.conversion import Reference
from converters.errors import SourceRefused
from converters.proof.tolerance import tolerance
from converters.task import ConversionRequest
from converters.tasks.embedding.task import Embedding
from converters.tasks.text.samples import default_texts
from ensembles.steps.tokenize_text import BucketTokenizer
from tests.tiny_models import word_tokenizer

WIDTH, MAX_TOKENS = 24, 100
TEXTS = ("Where is my parcel?", "réparer, 高兴", "a", "the the the same words again " * 30)


def _save_static(path, dtype, max_tokens=0):
    """Save a model as sentence-transformers does, with weights of this dtype and texts truncated to
    ``max_tokens``."""
    tokenizer = Tokenizer.from_str(word_tokenizer(512).backend_tokenizer.to_str())
    if max_tokens:
        tokenizer.enable_truncation(max_tokens)
    torch.manual_seed(0)
    table = torch.randn(tokenizer.get_vocab_size(), WIDTH).to(dtype)
    static = StaticEmbedding(tokenizer, embedding_weights=table)
    SentenceTransformer(modules=[static, Normalize()], device="cpu").save_pretrained(str(path))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return _save_static(tmp_path_factory.mktemp("static") / "model", torch.float16, MAX_TOKENS)


def test_the_graph_and_the_tokens_match_the_original(folder, tmp_path):
    """From raw texts, padded and not: through our tokenizer step and the exported graph."""
    import onnxruntime

    task = Embedding(ConversionRequest("passages", str(folder)))
    metadata = task.metadata()
    assert (metadata["width"], metadata["normalised"], metadata["buckets"][-1]) == (
        WIDTH,
        True,
        MAX_TOKENS,
    )
    for part in ("pre", "post"):
        (tmp_path / part).mkdir()
    task.write_steps(tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "pre" / "tokenizer.json"))
    step = BucketTokenizer(tokenizer, list(metadata["buckets"]), metadata["pad_id"])
    task.export(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    vectors = SentenceTransformer(str(folder), device="cpu").float().encode(list(TEXTS))
    for text, expected in zip(TEXTS, vectors, strict=True):
        tokens = step([text.encode()], truncate=True)
        feed = {"input_ids": tokens.ids, "attention_mask": tokens.mask}
        assert np.abs(session.run(None, feed)[0][0] - expected).max() < 1e-6
    task.samples = [*TEXTS, *default_texts(12)]
    answers = task.ask(tmp_path, lambda text: None)
    reference = Reference("passages", tmp_path, metadata, answers, tolerance(task.name, "fp32"))
    checks = task.prove_graph(tmp_path / "model.onnx", reference)
    assert len(checks) > 10
    assert [check.name for check in checks if not check.passed] == []
    assert "static" in task.card()["pooling"]


def test_a_tokenizer_without_truncation_gets_the_general_limit(tmp_path):
    task = Embedding(
        ConversionRequest("passages", str(_save_static(tmp_path / "model", torch.float32)))
    )
    assert task.buckets[-1] == 2048


def test_a_wrong_row_of_the_table_changes_the_vectors(folder, tmp_path):
    """The graph of a table with one row overwritten by another gives other vectors."""
    task = Embedding(ConversionRequest("passages", str(folder)))
    ids = torch.tensor([task.tokenizer.backend.encode(TEXTS[0]).ids])
    mask = torch.ones_like(ids)
    with torch.no_grad():
        expected = task.module(ids, mask)
        first, second = ids[0, 0].item(), ids[0, 1].item()
        rows = task.module.table.weight
        rows[first] = rows[second].clone()
        assert (task.module(ids, mask) - expected).abs().max() > 1e-3


def test_an_invalid_tokenizer_is_refused(folder, tmp_path):
    import shutil

    shutil.copytree(folder, tmp_path / "m")
    (tmp_path / "m" / "tokenizer.json").write_text("{}")
    with pytest.raises(SourceRefused) as refused:
        assert Embedding(ConversionRequest("passages", str(tmp_path / "m"))).metadata()
    assert "\n" not in str(refused.value)
