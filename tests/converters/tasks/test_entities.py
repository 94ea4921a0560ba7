"""The proof of a token classifier catches planted faults, by name."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from tokenizers import Tokenizer

from converters.conversion import ask_original, reference_in
from converters.errors import SourceRefused
from converters.proof.tolerance import tolerance
from converters.task import ConversionRequest
from converters.tasks.text.answered import reference_texts
from converters.tasks.text.samples import default_texts, multilingual_texts
from converters.tasks.token_classification.entities import (
    TextEntities,
    clear_entities,
    score_difference,
    slices_of_text,
    span_f1,
    undecided_characters,
)
from converters.tasks.token_classification.served import checks_of
from converters.tasks.token_classification.task import TokenClassification
from tests.in_process import InProcess, as_it_is, changed, step
from tests.tiny_models import save_tagger


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("tagger")


@pytest.fixture(scope="module")
def task(work):
    samples = work / "samples.txt"
    samples.write_text("\n".join([*default_texts(12), *multilingual_texts()]))
    return TokenClassification(
        ConversionRequest("tagger", str(save_tagger("roberta", work / "m")), samples)
    )


@pytest.fixture(scope="module")
def reference(task, work):
    folder = work / "reference"
    folder.mkdir()
    task.export(folder / "model.onnx")
    ask_original(task, folder, lambda text: None)
    return reference_in(folder, "tagger", task, "fp32")


def _failed(checks) -> dict[str, str]:
    return {check.name: check.worst for check in checks if not check.passed}


def _served(task, reference, pre=as_it_is, post=as_it_is) -> dict[str, str]:
    """The served checks that fail with these faults planted in the steps."""
    module = step("label_entities", post)
    find = module.EntityFinder(task.source.labels())

    def finish(logits, tokens, texts):
        return module.as_tensors(find(logits, tokens.span(), texts))

    graph = task.graph(reference.folder / "model.onnx", reference)
    return _failed(checks_of(InProcess(graph, reference, finish, pre), reference))


def test_the_conversion_as_it_is_passes(task, reference):
    assert _failed(task.prove_graph(reference.folder / "model.onnx", reference)) == {}
    assert _served(task, reference) == {}


POST_FAULTS = {
    "end is off by one": ("group[-1].end\n", "group[-1].end + 1\n", "span F1, alone"),
    "labels are swapped": ("[label], row[label]", "[label - 1], row[label]", "span F1, alone"),
    "B- begins nothing": ('.startswith("B-"))', '.startswith("Q-"))', "span F1, alone"),
    "score of the first token": (
        "np.mean([token.score for token in group])",
        "group[0].score",
        "largest difference of an entity's score, alone",
    ),
    "score a little off": (
        "score = float(",
        "score = 1.001 * float(",
        "largest difference of an entity's score, alone",
    ),
    "text by bytes": (
        "text[start:end], start, end, label",
        'text.encode()[start:end].decode("utf-8", "replace"), start, end, label',
        "no slice of their text, alone",
    ),
    "a batch's last row": (
        "return [\n            self._entities(scores",
        "logits = logits if len(logits) < 3 else logits[[*range(len(logits) - 1), 0]]\n"
        "        return [\n            self._entities(scores",
        "span F1, in batches of 8",
    ),
    "count is one less": ("[[len(entities)] for", "[[max(0, len(entities) - 1)] for", "span F1"),
    "special tokens are kept": ("span[:, 0] >= 0", "span[:, 0] >= -1", "span F1, alone"),
}
PRE_FAULTS = {
    "offsets of something else": (
        "np.array(encoding.offsets)[of_text]",
        "(np.array(encoding.offsets) + 1)[of_text]",
        "span F1, alone",
    ),
    "other scripts": (
        "_decoded(index, text))\n        if",
        "_decoded(index, text).encode('ascii', 'replace').decode())\n        if",
        "span F1, alone",
    ),
    "the longest": (
        "length = self._bucket(int(count.max()))",
        "length = self._bucket(int(count.max()))\n"
        "        count = np.where(count == self._buckets[-1], count - 1, count)",
        "token counts, alone",
    ),
    "cut one short": ("enable_truncation(limit,", "enable_truncation(limit - 1,", "that is cut"),
    "the mask of a batch": (
        "< count[:, None]).astype",
        "< count[::-1, None]).astype",
        "in batches of 8",
    ),
}


@pytest.mark.parametrize("fault", POST_FAULTS)
def test_a_fault_in_the_last_step_is_caught(task, reference, fault):
    old, new, caught = POST_FAULTS[fault]
    failed = _served(task, reference, post=changed(old, new))
    named = [worst for name, worst in failed.items() if caught in name]
    assert named, failed
    assert "original" in named[0]  # the sample and both values


def test_a_fault_in_the_last_step_does_not_hide_in_the_tolerance_of_8_bits(task, reference):
    loose = replace(reference, tolerance=task.tolerance("int8-static"))
    assert _served(task, loose) == {}
    old, new, _ = POST_FAULTS["score of the first token"]
    assert list(_served(task, loose, post=changed(old, new))) == [
        "scores of the original's own logits"
    ]


@pytest.mark.parametrize("fault", PRE_FAULTS)
def test_a_fault_in_the_first_step_is_caught(task, reference, fault):
    old, new, caught = PRE_FAULTS[fault]
    failed = _served(task, reference, pre=changed(old, new))
    named = [worst for name, worst in failed.items() if caught in name]
    assert named, failed
    assert "original" in named[0]


def _ignores_its_mask(model):
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = "ones" if name == "attention_mask" else name
    make = onnx.helper.make_node
    nodes = [make("Shape", ["input_ids"], ["shape"]), make("ConstantOfShape", ["shape"], ["ones"])]
    one = numpy_helper.from_array(np.ones(1, dtype=np.int64))
    nodes[1].attribute.append(onnx.helper.make_attribute("value", one))
    model.graph.node.insert(0, nodes[0])
    model.graph.node.insert(1, nodes[1])


def _is_scaled(model):
    """Every logit is 0.5 % larger: no label changes."""
    for node in model.graph.node:
        node.output[:] = ["unscaled" if name == "logits" else name for name in node.output]
    factor = numpy_helper.from_array(np.array(1.005, dtype=np.float32), "factor")
    model.graph.initializer.append(factor)
    model.graph.node.append(onnx.helper.make_node("Mul", ["unscaled", "factor"], ["logits"]))


@pytest.mark.parametrize(
    ("fault", "caught"),
    [
        (_ignores_its_mask, "padding invariance at 64"),
        (_is_scaled, "largest difference of a logit"),
    ],
)
def test_a_fault_in_the_graph_is_caught(task, reference, tmp_path, fault, caught):
    model = onnx.load(reference.folder / "model.onnx")
    fault(model)
    onnx.save(model, tmp_path / "model.onnx")
    failed = _failed(task.prove_graph(tmp_path / "model.onnx", reference))
    named = [worst for name, worst in failed.items() if caught in name]
    assert named, failed
    assert "original" in named[0]


def test_a_model_that_finds_nothing_cannot_be_proved(task, reference, monkeypatch):
    answers = {**reference.outputs, "row": reference.outputs["row"][:0]}
    monkeypatch.setattr(
        "converters.tasks.token_classification.task.find_entities", lambda *_: answers
    )
    with pytest.raises(SourceRefused, match=r"no entity in any of .* --samples"):
        task.ask(reference.folder, lambda text: None)


ONE = TextEntities(((0, 3, "PER"),), (0.9,), ("Ann",))
TEXT = ["Ann"]


def test_spans_must_be_exact():
    for span in ((0, 2, "PER"), (1, 3, "PER"), (0, 3, "LOC")):
        check = span_f1("f1", [TextEntities((span,), (0.9,))], [ONE], 1.0, TEXT)
        assert (check.passed, check.measured) == (False, 0.0)
        assert str(span) in check.worst
        assert "(0, 3, 'PER')" in check.worst
    assert span_f1("f1", [ONE], [ONE], 1.0, TEXT).passed
    assert not span_f1("f1", [TextEntities((), ())], [ONE], 1.0, TEXT).passed
    assert not span_f1("f1", [ONE], [TextEntities((), ())], 1.0, TEXT).passed


def test_a_span_beside_an_undecided_token_does_not_count(reference):
    texts = reference_texts(reference)
    counts = reference.outputs["token_count"]
    row = next(row for row, text in enumerate(texts) if text.isascii() and counts[row] > 8)
    first = int(counts[:row].sum())
    sure = np.eye(len(reference.metadata["labels"]), dtype=np.float32)[0] * 9
    logits = np.tile(sure, (len(reference.outputs["logits"]), 1))
    logits[first + 4] = 0  # the fourth token after <s>
    unsure = replace(reference, outputs={**reference.outputs, "logits": logits})
    undecided = undecided_characters(unsure, tolerance("token-classification", "fp32"), texts)
    offsets = (
        Tokenizer.from_file(str(reference.folder / "pre" / "tokenizer.json"))
        .encode(texts[row])
        .offsets
    )
    start, end = offsets[3][0], offsets[5][1]
    assert undecided[row].tolist() == [start <= at < end for at in range(len(texts[row]))]
    assert not np.concatenate([part for at, part in enumerate(undecided) if at != row]).any()
    spans = (
        (0, start, "PER"),
        (start, end, "PER"),
        (end - 1, end + 3, "LOC"),
        (end, end + 3, "LOC"),
    )
    originals = [TextEntities((), ())] * len(texts)
    originals[row] = TextEntities(spans, (0.1, 0.2, 0.3, 0.4))
    clear = clear_entities(originals, undecided)[row]
    assert clear == TextEntities((spans[0], spans[3]), (0.1, 0.4))


def test_scores_are_compared_span_by_span_even_when_a_span_occurs_twice():
    twice = TextEntities(((0, 1, "PER"), (0, 1, "PER")), (0.2, 0.9))
    assert score_difference("s", [twice], [twice], 0.0, TEXT).passed
    swapped = TextEntities(twice.spans, (0.9, 0.2))
    check = score_difference("s", [swapped], [twice], 0.1, TEXT)
    assert check.measured == pytest.approx(0.7)
    nan = TextEntities(ONE.spans, (float("nan"),))
    assert not score_difference("s", [nan], [ONE], 0.1, TEXT).passed


def test_the_text_of_an_entity_is_a_slice_of_what_was_sent():
    assert slices_of_text("t", [ONE], TEXT).passed
    wrong = slices_of_text("t", [TextEntities(ONE.spans, ONE.scores, ("An",))], TEXT)
    assert not wrong.passed
    assert "'An', original 'Ann'" in wrong.worst
