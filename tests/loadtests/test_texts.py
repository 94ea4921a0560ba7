"""The texts are real, short enough for the model, and sent evenly."""

import importlib.util
from collections import Counter
from itertools import islice, pairwise

import pytest

from loadtests.texts import LIMIT_CHARACTERS, CorpusMissing, endless, real_texts


def test_the_texts_are_distinct_and_have_their_real_lengths():
    texts = real_texts()
    words = sorted(len(text.split()) for text in texts)
    assert len(texts) == len(set(texts)) > 1500
    assert words[len(words) // 2] <= 10  # people write short messages
    assert words[-1] >= 50  # and some long ones
    assert max(map(len, texts)) <= LIMIT_CHARACTERS


@pytest.mark.parametrize("count", [1, 2, 3, 10, 97, 1898])
def test_every_text_is_sent_once_before_any_is_repeated(count):
    texts = [str(number) for number in range(count)]
    sent = list(islice(endless(texts), 3 * count))
    assert set(Counter(sent).values()) == {3}
    assert sent[:count] == sent[count : 2 * count]


def test_neighbours_in_the_corpus_are_not_neighbours_on_the_wire():
    sent = list(islice(endless([str(number) for number in range(1000)]), 100))
    assert min(abs(int(a) - int(b)) for a, b in pairwise(sent)) > 100


def test_a_missing_corpus_is_reported_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CorpusMissing, match=r"pip install 'tidegate\[load\]'"):
        real_texts()
