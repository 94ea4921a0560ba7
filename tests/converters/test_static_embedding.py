"""Static embeddings (model2vec's, through sentence-transformers): a table of a vector a token, and
their mean."""

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding
from tokenizers import Tokenizer

from converters.conversion import Reference
from converters.errors import SourceRefused
from converters.task import ConversionRequest
from converters.text.embedding import Embedding
from converters.text.samples import default_texts
from converters.tolerance import tolerance
from ensembles.steps.tokenize_text import BucketTokenizer
from tests.tiny_models import word_tokenizer

WIDTH, MOST = 24, 100
TEXTS = ("Where is my parcel?", "réparer, 高兴", "a", "the the the same words again " * 30)


def _saved(path, kind, most=0):
    """As sentence-transformers saves one, of this type of number and cut at so many tokens."""
    tokenizer = Tokenizer.from_str(word_tokenizer(512).backend_tokenizer.to_str())
    if most:
        tokenizer.enable_truncation(most)
    torch.manual_seed(0)
    table = torch.randn(tokenizer.get_vocab_size(), WIDTH).to(kind)
    static = StaticEmbedding(tokenizer, embedding_weights=table)
    SentenceTransformer(modules=[static, Normalize()], device="cpu").save_pretrained(str(path))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return _saved(tmp_path_factory.mktemp("static") / "model", torch.float16, MOST)


def test_the_graph_and_the_tokens_are_the_originals(folder, tmp_path):
    """From raw texts, padded and not: through our tokenizer's step and the exported graph."""
    import onnxruntime

    task = Embedding(ConversionRequest("passages", str(folder)))
    metadata = task.metadata()
    assert (metadata["width"], metadata["normalised"], metadata["buckets"][-1]) == (
        WIDTH,
        True,
        MOST,
    )
    for part in ("pre", "post"):
        (tmp_path / part).mkdir()
    task.write_steps(tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "pre" / "tokenizer.json"))
    step = BucketTokenizer(tokenizer, list(metadata["buckets"]), metadata["pad_id"])
    task.export(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    reported = SentenceTransformer(str(folder), device="cpu").float().encode(list(TEXTS))
    for text, wanted in zip(TEXTS, reported, strict=True):
        tokens = step([text.encode()], truncate=True)
        feed = {"input_ids": tokens.ids, "attention_mask": tokens.mask}
        assert np.abs(session.run(None, feed)[0][0] - wanted).max() < 1e-6
    task.samples = [*TEXTS, *default_texts(12)]
    answers = task.ask(tmp_path, lambda text: None)
    reference = Reference("passages", tmp_path, metadata, answers, tolerance(task.name, "fp32"))
    checks = task.prove_graph(tmp_path / "model.onnx", reference)
    assert len(checks) > 10
    assert [check.name for check in checks if not check.passed] == []
    assert "static" in task.card()["pooling"]


def test_a_tokenizer_that_cuts_nowhere_takes_as_much_as_any_model(tmp_path):
    task = Embedding(ConversionRequest("passages", str(_saved(tmp_path / "model", torch.float32))))
    assert task.buckets[-1] == 2048


def test_a_row_of_the_table_that_is_another_is_found(folder, tmp_path):
    """The graph of a table with two rows exchanged gives other vectors."""
    task = Embedding(ConversionRequest("passages", str(folder)))
    ids = torch.tensor([task.tokenizer.backend.encode(TEXTS[0]).ids])
    mask = torch.ones_like(ids)
    with torch.no_grad():
        right = task.module(ids, mask)
        first, second = ids[0, 0].item(), ids[0, 1].item()
        rows = task.module.table.weight
        rows[first] = rows[second].clone()
        assert (task.module(ids, mask) - right).abs().max() > 1e-3


def test_a_tokenizer_that_is_none_is_refused(folder, tmp_path):
    import shutil

    shutil.copytree(folder, tmp_path / "m")
    (tmp_path / "m" / "tokenizer.json").write_text("{}")
    with pytest.raises(SourceRefused) as refused:
        assert Embedding(ConversionRequest("passages", str(tmp_path / "m"))).metadata()
    assert "\n" not in str(refused.value)
