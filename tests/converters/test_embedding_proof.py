"""The proof has teeth: faults planted in a built graph and in its answers are caught, by name."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from converters.embedding_proof import prove
from converters.errors import ProofFailed
from converters.golden_proof import golden_checks
from converters.invariance import texts_for_buckets
from converters.proof import Proof
from converters.samples import default_texts
from converters.text_embedding import Recipe, convert
from converters.token_graph import TokenGraph
from ensembles.text_embedding import BUCKETS, GOLDEN

SHORT_BUCKETS = (16, 32)


@pytest.fixture(scope="module")
def converted():
    recipe = Recipe(
        "text_embedding", BUCKETS, GOLDEN.request["text"], GOLDEN.expect, GOLDEN.tolerance
    )
    return convert(recipe, lambda text: None)


@pytest.fixture(scope="module")
def sample(converted):
    """24 texts and their original vectors."""
    oracle = converted.oracle()
    return [str(text) for text in oracle["texts"][:24]], oracle["vectors"][:24]


def _prove(graph: TokenGraph, sample) -> Proof:
    texts, vectors = sample
    return prove("planted", graph, texts, vectors, SHORT_BUCKETS)


def _failed(proof: Proof) -> str:
    with pytest.raises(ProofFailed, match="nothing was published") as refused:
        proof.require()
    return str(refused.value)


def test_the_real_conversion_passes(converted, sample):
    graph = TokenGraph(converted.engine, converted.tokenizer, BUCKETS[-1])
    proof = _prove(graph, sample)
    proof.require()
    assert proof.samples == 24
    assert '"passed": true' in converted.proof.read_text()


def _tampered(converted, target, change) -> TokenGraph:
    model = onnx.load(converted.engine)
    change(model)
    onnx.save(model, target)
    return TokenGraph(target, converted.tokenizer, BUCKETS[-1])


def _largest_weight(model: onnx.ModelProto):
    return max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))


def test_a_weight_that_was_changed_is_caught(converted, sample, tmp_path):
    """One column of 2,000 rows of the embedding table is off."""

    def change(model):
        tensor = _largest_weight(model)
        values = numpy_helper.to_array(tensor).copy()
        values[1000:3000, 0] += 0.5  # not a whole row: LayerNorm would take that out again
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))

    message = _failed(_prove(_tampered(converted, tmp_path / "m.onnx", change), sample))
    assert "parity: largest difference" in message
    assert "original" in message  # both values are shown


def test_a_nan_in_the_weights_is_caught(converted, sample, tmp_path):
    def change(model):
        tensor = _largest_weight(model)
        values = numpy_helper.to_array(tensor).copy()
        values[1000:3000] = np.nan
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))

    message = _failed(_prove(_tampered(converted, tmp_path / "m.onnx", change), sample))
    assert "is not finite" in message


class Planted(TokenGraph):
    """The real graph, with a fault added to its answers: faults that an exporter can make."""

    fault = staticmethod(lambda ids, mask, vectors: vectors)

    def run(self, ids, mask):
        return type(self).fault(ids, mask, super().run(ids, mask))


def _mixes_the_batch(ids, mask, vectors):
    return vectors + 1e-3 * vectors.mean(axis=0) * (len(vectors) > 1)


def _minds_the_padding(ids, mask, vectors):
    return vectors + 1e-3 * (mask.shape[1] - mask.sum(axis=1, keepdims=True))


def _has_a_fixed_batch(ids, mask, vectors):
    return vectors[:8]


def _throws_dice(ids, mask, vectors):
    return vectors + np.random.default_rng().normal(0, 1e-7, vectors.shape).astype(np.float32)


@pytest.mark.parametrize(
    ("fault", "caught"),
    [
        (_mixes_the_batch, "batch invariance"),
        (_minds_the_padding, "padding invariance at 32"),
        (_has_a_fixed_batch, "dynamic axes"),
        (_throws_dice, "determinism"),
    ],
)
def test_a_planted_fault_is_caught_by_its_check(converted, sample, fault, caught):
    graph = type("Faulty", (Planted,), {"fault": staticmethod(fault)})(
        converted.engine, converted.tokenizer, BUCKETS[-1]
    )
    assert caught in _failed(_prove(graph, sample))


def test_a_golden_sample_that_is_not_the_originals_is_caught():
    original = {"sentence_embedding": np.arange(384) / 384, "token_count": np.array([7])}
    good = {"sentence_embedding": [0, 1 / 384], "token_count": [7]}
    assert all(check.passed for check in golden_checks(good, 1e-3, original))
    wrong = golden_checks({**good, "token_count": [8]}, 1e-3, original)
    assert [check.name for check in wrong if not check.passed] == ["golden sample: token_count"]


def test_the_samples_are_real_and_reach_into_every_bucket(converted):
    texts = default_texts()
    assert len(texts) == len(set(texts)) > 200
    graph = TokenGraph(converted.engine, converted.tokenizer, BUCKETS[-1])
    lengths = [graph.length(text) for text in texts_for_buckets(texts, BUCKETS)]
    below = (0, *BUCKETS)
    for length, low, high in zip(lengths, below, BUCKETS, strict=False):
        assert low < length <= high, (lengths, BUCKETS)


def test_a_second_conversion_comes_from_the_cache(converted):
    said: list[str] = []
    recipe = Recipe(
        "text_embedding", BUCKETS, GOLDEN.request["text"], GOLDEN.expect, GOLDEN.tolerance
    )
    assert convert(recipe, said.append).folder == converted.folder
    assert said == ["text_embedding: converted and proved before, taken from the cache"]


def test_the_graph_has_no_custom_operators(converted):
    """It loads in plain ONNX Runtime, and every operator is of the standard domain."""
    onnxruntime.InferenceSession(str(converted.engine), providers=["CPUExecutionProvider"])
    domains = {node.domain for node in onnx.load(converted.engine).graph.node}
    assert domains <= {"", "ai.onnx"}
