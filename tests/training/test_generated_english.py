"""English sentences with their entities: made from templates and names, or written by hand."""

import pytest

from training import entities
from training.generated_english import (
    Names,
    hand_written,
    marked,
    real_names,
    sentences,
    templates,
)


def _slices(text) -> list[tuple[str, str]]:
    return [(text.text[start:end], label) for start, end, label in text.entities]


def test_the_slots_of_a_template_become_entities():
    names = Names(["Ann"], ["Lee"], ["Rome"], ["Peru"], ["Nokia"], ["Africa"], ["Nile"])
    (text,) = sentences(["{CITY}: {PER} wrote to {PER}."], names, 1, 0, varied=False)
    labels = [label for _, label in _slices(text)]
    assert labels == ["LOC", "PER", "PER"] and text.text.endswith(".")
    assert all(slice_ in ("Rome", "Peru") or {"Ann", "Lee"} & {*slice_.replace("-", " ").split()}
               for slice_, _ in _slices(text))  # fmt: skip


def test_sentences_follow_the_seed_and_other_words_replace_ordinary_ones():
    lines, _ = templates(0)
    names, _ = real_names().parted(0)
    first, again, other = (sentences(lines, names, 200, seed, True) for seed in (1, 1, 2))
    assert first == again != other
    plain = sentences(["these words are never names"], names, 50, 0, varied=False)
    assert {text.text for text in plain} == {"these words are never names"}
    changed = sentences(["these words are never names"], names, 50, 0, varied=True)
    assert len({text.text for text in changed}) > 10
    assert all(text.entities == () for text in changed)


def test_entities_are_in_order_and_do_not_overlap():
    lines, held_out = templates(0)
    for text in sentences([*lines, *held_out], real_names(), 1000, 0, varied=True):
        ends = 0
        for start, end, _ in text.entities:
            assert ends <= start < end <= len(text.text)
            assert text.text[start:end].strip() == text.text[start:end]
            ends = end


@pytest.mark.parametrize("seed", [0, 5])
def test_what_is_held_out_shares_no_template_and_no_name(seed):
    lines, unseen_lines = templates(seed)
    assert lines and unseen_lines and not {*lines} & {*unseen_lines}
    kept, held_out = real_names().parted(seed)
    for field in vars(kept):
        names, unseen = getattr(kept, field), getattr(held_out, field)
        assert 0.1 < len(unseen) / (len(unseen) + len(names)) < 0.3
        assert not {*names} & {*unseen}


def test_no_hand_written_sentence_is_trained_on():
    training, held_out = entities.generated(0)
    known = {text.text for text in training}
    written = {text.text for text in hand_written("english")}
    assert 20 <= len(written) <= 60 and not written & known
    assert not {text.text for text in held_out} & known


def test_marked_entities_are_read():
    text = marked("[PER Ann Lee] left [LOC 上海] on [TIME 3 May].")
    assert text.text == "Ann Lee left 上海 on 3 May."
    assert _slices(text) == [("Ann Lee", "PER"), ("上海", "LOC"), ("3 May", "TIME")]


@pytest.mark.parametrize("language", ["english", "chinese"])
def test_the_hand_written_sentences_have_every_label(language):
    texts = hand_written(language)
    assert {label for text in texts for *_, label in text.entities} == {*entities.LABELS}
    assert any(not text.entities for text in texts)
    assert not any("[" in text.text or "]" in text.text for text in texts)
