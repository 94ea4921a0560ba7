"""The tokenizer step of cross-encoders, imported as an ordinary module, against transformers."""

import numpy as np
import pytest
from tokenizers import Tokenizer

from ensembles.steps.tokenize_pairs import InvalidPair, PairTokenizer, wants_truncation
from tests.tiny_models import byte_tokenizer, piece_tokenizer, word_tokenizer

BUCKETS = [16, 32, 64]
PAIRS = [
    ("Where is my parcel?", "It is on its way."),
    ("[SEP] inside", "[CLS] text [SEP]"),
    ("👩‍👩‍👧 北京", "Zoe\u0308 met Rene\u0301e"),
    ("a", "b"),
]


@pytest.fixture(params=[word_tokenizer, byte_tokenizer, piece_tokenizer])
def original(request):
    return request.param(64)


@pytest.fixture
def tokenize(original):
    backend = Tokenizer.from_str(original.backend_tokenizer.to_str())
    return PairTokenizer(backend, BUCKETS, original.pad_token_id)


def _encoded(*texts):
    return [text.encode() for text in texts]


def test_ids_types_and_padding_are_the_originals(tokenize, original):
    outputs = tokenize(*(_encoded(*column) for column in zip(*PAIRS, strict=True)), False)
    for row, (query, text) in enumerate(PAIRS):
        expected = original(query, text, return_token_type_ids=True)
        count = len(expected["input_ids"])
        assert outputs["token_count"][row, 0] == count == outputs["attention_mask"][row].sum()
        assert outputs["input_ids"][row, :count].tolist() == expected["input_ids"]
        assert outputs["token_type_ids"][row, :count].tolist() == expected["token_type_ids"]
        assert set(outputs["input_ids"][row, count:].tolist()) <= {original.pad_token_id}
        assert not outputs["token_type_ids"][row, count:].any()
    assert outputs["input_ids"].shape[1] in BUCKETS
    assert outputs["input_ids"].dtype == outputs["token_type_ids"].dtype == np.int64


@pytest.mark.parametrize(
    ("query", "text"), [("a", "b " * 90), ("a " * 90, "b"), ("a " * 70, "b " * 80)]
)
def test_a_pair_is_cut_as_the_original_cuts_it(tokenize, original, query, text):
    outputs = tokenize([query.encode()], [text.encode()], True)
    expected = original(query, text, truncation=True, max_length=64)["input_ids"]
    assert outputs["input_ids"][0].tolist() == expected
    with pytest.raises(InvalidPair, match=r"tokens together and the model takes 64.*truncate"):
        tokenize([query.encode()], [text.encode()], False)


@pytest.mark.parametrize(
    ("query", "text", "problem"),
    [
        (b"", b"b", "the query is empty"),
        (b"a", b" \n", "the text is empty"),
        (b"\xff", b"b", "the query is not UTF-8"),
        (b"a", b"x" * 65_537, "the text has 65537 bytes"),
    ],
)
def test_what_cannot_be_read_is_named(tokenize, query, text, problem):
    with pytest.raises(InvalidPair, match=problem) as caught:
        tokenize([b"a", query], [b"b", text], False)
    assert caught.value.row == 1
    assert caught.value.for_client.startswith("[tidegate:invalid_input row=1] ")


def test_truncate_is_a_parameter_of_the_request():
    assert wants_truncation('{"truncate": true}') and not wants_truncation("")
