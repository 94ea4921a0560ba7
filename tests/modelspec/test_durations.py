"""Durations as people write them."""

import pytest

from modelspec.durations import seconds_of


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("250ms", 0.25), ("90s", 90), ("1.5m", 90), ("24h", 86400), ("30d", 30 * 86400), (" 1s ", 1)],
)
def test_a_duration_is_read(text, seconds):
    assert seconds_of(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "90", "0s", "-1s", "1 s", "1w", "1e3s", "99999d", "٣s", "nan"]
)
def test_anything_else_says_how_to_write_one(text):
    with pytest.raises(ValueError, match="write 250ms, 90s, 10m, 24h or 30d"):
        seconds_of(text)
