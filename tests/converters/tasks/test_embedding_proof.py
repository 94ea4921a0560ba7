"""The proof of an embedding catches faults planted in graph and steps, by name."""

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling

from converters.conversion import ask_original, reference_in
from converters.errors import ProofFailed
from converters.proof.invariance import texts_for_buckets
from converters.proof.token_graph import TokenGraph
from converters.proof.tolerance import tolerance
from converters.task import ConversionRequest
from converters.tasks.embedding.checks import graph_checks, parity
from converters.tasks.embedding.served import checks_of
from converters.tasks.embedding.task import Embedding
from converters.tasks.text.answered import reference_texts
from converters.tasks.text.samples import default_texts, multilingual_texts
from ensembles.text_embedding import GOLDEN, PIPELINE, declare
from tests.in_process import InProcess, as_it_is, changed
from tests.tiny_models import save_embedder

BUCKETS = (16, 32, 40)
# All ways of pooling, concatenated.
POOLING = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("embedder")


@pytest.fixture(scope="module")
def task(work):
    samples = work / "samples.txt"
    samples.write_text("\n".join([*default_texts(16), *multilingual_texts()]))
    modules = (Pooling(32, POOLING), Dense(6 * 32, 24), Normalize())
    folder = save_embedder("roberta", work / "m", *modules, max_seq_length=40, do_lower_case=True)
    return Embedding(ConversionRequest("embedder", str(folder), samples))


@pytest.fixture(scope="module")
def reference(task, work):
    folder = work / "reference"
    folder.mkdir()
    task.export(folder / "model.onnx")
    ask_original(task, folder, lambda text: None)
    return reference_in(folder, "embedder", task, "fp32")


def _failed(checks) -> dict[str, str]:
    return {check.name: check.worst for check in checks if not check.passed}


def _served(task, reference, pre=as_it_is) -> dict[str, str]:
    graph = task.graph(reference.folder / "model.onnx", reference)

    def finish(vectors, tokens, texts):
        return {"sentence_embedding": vectors}

    return _failed(checks_of(InProcess(graph, reference, finish, pre), reference))


def test_a_folder_of_many_modules_is_converted_as_it_says(task, reference):
    """Lower case, the length limit, every pooling, a dense layer and the normalisation."""
    assert reference.metadata["buckets"] == list(BUCKETS)
    assert (reference.metadata["width"], reference.metadata["normalised"]) == (24, True)
    assert np.linalg.norm(reference.outputs["vectors"], axis=1) == pytest.approx(1, abs=1e-5)
    assert _failed(task.prove_graph(reference.folder / "model.onnx", reference)) == {}
    assert _served(task, reference) == {}
    assert task.card()["pooling"] == "Pooling then Dense then Normalize"


PRE_FAULTS = {
    "other scripts": (
        "_decoded(index, text))\n        if",
        "_decoded(index, text).encode('ascii', 'replace').decode())\n        if",
        "parity: largest difference",
    ),
    "the longest": (
        "ids[index, : len(row.ids)] = row.ids",
        "ids[index, : len(row.ids)] = row.ids\n"
        "            if len(row.ids) == self._buckets[-1]:\n"
        "                ids[index, -2] = ids[index, -3]",
        "parity: largest difference",
    ),
    "rows of a batch change places": (
        "ids[index, : len(row.ids)] = row.ids",
        "ids[index, : len(row.ids)] = row.ids\n        ids = ids[::-1] if len(rows) == 8 else ids",
        "the same in batches of 8",
    ),
    "cut one short": ("enable_truncation(limit,", "enable_truncation(limit - 1,", "that is cut"),
    "cut from the other side": ('.get("direction", "right")', '.get("no", "left")', "that is cut"),
    "counts the padding": (
        "mask, count[:, None]",
        "mask, np.full_like(count[:, None], length)",
        "token counts, alone",
    ),
    "another normaliser": ("= tokenizer\n", "= _without_marks(tokenizer)\n", "parity: largest"),
}
WITHOUT_MARKS = """

def _without_marks(tokenizer):
    from tokenizers import normalizers
    without = [normalizers.Lowercase(), normalizers.Replace("?", "")]
    tokenizer.normalizer = normalizers.Sequence(without)
    return tokenizer
"""


@pytest.mark.parametrize("fault", PRE_FAULTS)
def test_a_fault_in_the_step_is_caught(task, reference, fault):
    old, new, caught = PRE_FAULTS[fault]
    plant = changed(old, new)
    failed = _served(task, reference, pre=lambda source: plant(source) + WITHOUT_MARKS)
    named = [worst for name, worst in failed.items() if caught in name]
    assert named, failed
    assert "original" in named[0]  # the sample and both values


SMALL_FAULTS = {
    "cut from the other side": ('.get("direction", "right")', '.get("no", "left")'),
    "an accent lost": ("= tokenizer\n", "= _without_accents(tokenizer)\n"),
    "another padding": ("self._pad_id = pad_id", "self._pad_id = pad_id + 1"),
    "the mask of its neighbour": ("return Tokens(ids, mask,", "return Tokens(ids, mask[::-1],"),
    "the last token lost": (
        "ids[index, : len(row.ids)] = row.ids",
        "ids[index, : len(row.ids)] = row.ids\n"
        "            ids[index, len(row.ids) - 1] = self._pad_id",
    ),
}
WITHOUT_ACCENTS = """

def _without_accents(tokenizer):
    from tokenizers import normalizers
    own = [tokenizer.normalizer] if tokenizer.normalizer else []
    tokenizer.normalizer = normalizers.Sequence([*own, normalizers.Replace("é", "e")])
    return tokenizer
"""


@pytest.mark.parametrize("fault", SMALL_FAULTS)
def test_a_token_is_right_at_every_precision(task, reference, fault):
    """8 bits may round off more of a vector than some of these faults change."""
    reference = replace(reference, tolerance=tolerance("embedding", "int8-static"))
    plant = changed(*SMALL_FAULTS[fault])
    failed = _served(task, reference, pre=lambda source: plant(source) + WITHOUT_ACCENTS)
    assert [name for name in failed if name.startswith("tokens")], failed


def _tampered(task, reference, target, change) -> dict[str, str]:
    model = onnx.load(reference.folder / "model.onnx")
    change(model)
    onnx.save(model, target)
    return _failed(task.prove_graph(target, reference))


def _largest_weight(model: onnx.ModelProto):
    return max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))


def _with_weights(change):
    def plant(model):
        tensor = _largest_weight(model)
        values = change(numpy_helper.to_array(tensor).copy())
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))

    return plant


def _nudged(values):
    values[100:300, 0] += 0.5  # not a whole row: LayerNorm would take that out again
    return values


def _is_nan(values):
    values[100:300] = np.nan
    return values


def _scaled(model):
    for node in model.graph.node:
        name = "sentence_embedding"
        node.output[:] = ["unscaled" if output == name else output for output in node.output]
    factor = numpy_helper.from_array(np.array(1.001, dtype=np.float32), "factor")
    model.graph.initializer.append(factor)
    make = onnx.helper.make_node
    model.graph.node.append(make("Mul", ["unscaled", "factor"], ["sentence_embedding"]))


@pytest.mark.parametrize(
    ("fault", "caught", "message"),
    [
        (_with_weights(_nudged), "parity: largest difference", "original"),
        (_with_weights(_is_nan), "parity: largest difference", "is not finite"),
        (_scaled, "parity: largest difference", "original"),
    ],
)
def test_a_fault_in_the_graph_is_caught(task, reference, tmp_path, fault, caught, message):
    failed = _tampered(task, reference, tmp_path / "m.onnx", fault)
    assert message in failed[caught]


def test_a_graph_with_a_baked_batch_says_which_shape_it_refuses(task, reference, tmp_path):
    def bake(model):
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2

    with pytest.raises(ProofFailed, match="does not run on 1 texts of"):
        _tampered(task, reference, tmp_path / "m.onnx", bake)


class Planted(TokenGraph):
    """The real graph with a fault added to its vectors, of a kind that an exporter can make."""

    fault = staticmethod(lambda ids, mask, vectors: vectors)

    def run(self, input_ids, attention_mask):
        vectors = super().run(input_ids, attention_mask)
        return type(self).fault(input_ids, attention_mask, vectors)


def _mixes_the_batch(ids, mask, vectors):
    return vectors + 1e-2 * vectors.mean(axis=0) * (len(vectors) > 1)


def _depends_on_the_padding(ids, mask, vectors):
    return vectors + 1e-3 * (mask.shape[1] - mask.sum(axis=1, keepdims=True))


def _has_a_fixed_batch(ids, mask, vectors):
    return vectors[:8]


def _is_random(ids, mask, vectors):
    return vectors + np.random.default_rng().normal(0, 1e-7, vectors.shape).astype(np.float32)


@pytest.mark.parametrize(
    ("fault", "caught"),
    [
        (_mixes_the_batch, "batch invariance"),
        (_depends_on_the_padding, "padding invariance at 32"),
        (_has_a_fixed_batch, "dynamic axes"),
        (_is_random, "determinism"),
    ],
)
def test_a_planted_fault_is_caught_by_its_check(task, reference, fault, caught):
    real = task.graph(reference.folder / "model.onnx", reference)
    real.__class__ = type("Faulty", (Planted,), {"fault": staticmethod(fault)})
    failed = _failed(graph_checks(real, reference_texts(reference), reference))
    assert [name for name in failed if name.startswith(caught)], failed


def test_vectors_that_are_not_normalised_may_differ_in_proportion(reference):
    """Vectors 100 times as long, with one element off by 9e-6 or 1e-3 of their length."""
    long = replace(
        reference, outputs={**reference.outputs, "vectors": reference.outputs["vectors"] * 100}
    )
    texts = reference_texts(reference)
    for gap, passes in ((9e-6, True), (1e-3, False)):
        vectors = long.outputs["vectors"].copy()
        vectors[3, 5] += 100 * gap
        checks = {check.name: check.passed for check in parity(vectors, long, texts)}
        assert checks["parity: largest difference"] is passes


def test_another_neighbour_is_caught_and_a_tie_has_none(reference):
    texts, vectors = reference_texts(reference), reference.outputs["vectors"]
    rolled = vectors[np.roll(np.arange(len(vectors)), 1)]
    failed = _failed(parity(rolled, reference, texts))
    assert "task: same nearest neighbour" in failed
    tied = np.tile(vectors[:1], (len(vectors), 1))
    same = replace(reference, outputs={**reference.outputs, "vectors": tied})
    assert _failed(parity(tied, same, texts)) == {}


def test_the_samples_are_real_and_reach_into_every_bucket(task, reference):
    texts = default_texts()
    assert len(texts) == len(set(texts)) > 200
    tokens = task.tokenizer.counter()
    lengths = [tokens(text) for text in texts_for_buckets(texts, BUCKETS, tokens)]
    filled = zip(lengths, BUCKETS, strict=True)
    assert all(bucket - 3 <= length <= bucket for length, bucket in filled)
    assert sum(not text.isascii() for text in reference_texts(reference)) >= 10


def test_the_graph_has_no_custom_operators(reference):
    """It loads in plain ONNX Runtime, and every operator is of the standard domain."""
    path = str(reference.folder / "model.onnx")
    onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert {node.domain for node in onnx.load(path).graph.node} <= {"", "ai.onnx"}


METADATA = {"buckets": [16, 32, 64, 128, 256], "pad_id": 0, "width": 384, "normalised": True}


def test_the_known_pipeline_is_the_committed_one():
    card = {"precision": "fp32"}
    assert declare("text_embedding", METADATA, GOLDEN, card) is PIPELINE
    wide = replace(GOLDEN, tolerance=0.1)
    static = declare("text_embedding", METADATA, wide, {"precision": "int8-static"})
    assert static.public.golden.tolerance == 0.1
    assert static.public.endpoint_schema.card["precision"] == "int8-static"
    assert static.public.outputs == PIPELINE.public.outputs


@pytest.mark.parametrize(
    ("metadata", "golden", "message"),
    [
        ({"buckets": [16, 512]}, {}, "the declaration says"),
        ({"width": 768}, {}, "the declaration says"),
        ({}, {"token_count": [8]}, "token_count of .* is .8."),
        ({}, {"sentence_embedding": [0.1] * 8}, "golden sample is not the original's"),
        ({}, {"sentence_embedding": [float("nan")] * 8}, "golden sample is not the original's"),
    ],
)
def test_an_original_that_is_not_the_declared_one_is_refused(metadata, golden, message):
    other = replace(GOLDEN, expect={**GOLDEN.expect, **golden})
    with pytest.raises(ValueError, match=message):
        declare("text_embedding", {**METADATA, **metadata}, other, {"precision": "fp32"})
