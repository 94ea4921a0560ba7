"""The file of objectives: what it means, and what is refused with its place."""

import pytest

from loadtests.signoff.arrivals import Arrivals, Burst
from loadtests.signoff.slo import Limit, Slo, SloError, read_objectives


def _read(folder, text):
    path = folder / "slo.toml"
    path.write_text(text)
    return read_objectives(path).slos


def test_a_file_with_everything(tmp_path):
    slos = _read(
        tmp_path,
        """
        [text_embedding]
        rate = "300/min"
        headroom = 0.2
        p50 = "20ms"
        p99.9 = "1s"
        errors = 0.001
        soak = "10m"
        arrivals = "bursty"
        burst = "10 every 5s"
        [chat]
        rate = "2/s"
        first_token_p95 = "450ms"
        gap_p99 = "40ms"
        goodput = 0.95
        """.replace("p99.9", '"p99.9"'),
    )
    assert slos["text_embedding"] == Slo(
        "text_embedding",
        5.0,
        (Limit("", 0.5, 0.02), Limit("", pytest.approx(0.999), 1.0)),
        headroom=0.2,
        errors=0.001,
        soak_s=600.0,
        arrivals=Arrivals("bursty", Burst(10, 5.0)),
    )
    assert slos["text_embedding"].tested_rate == 6.0
    assert [limit.name for limit in slos["chat"].limits] == ["first_token_p95", "gap_p99"]
    assert slos["chat"].goodput == 0.95


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no objectives"),
        ("rate", "is not TOML"),
        ("chat = 3", r"chat must be a table: write \[chat\]"),
        ('[chat]\np99 = "1s"', "the rate is missing"),
        ('[chat]\nrate = "1/s"', "there is no limit"),
        ('[chat]\nrate = 50\np99 = "1s"', 'rate = 50 has no unit: write "50/s" or "50/min"'),
        ('[chat]\nrate = "0/s"\np99 = "1s"', "is not a rate above 0"),
        ('[chat]\nrate = "50"\np99 = "1s"', "is not a rate above 0"),
        ('[chat]\nrate = "1/s"\np99 = 100', 'p99 = 100 has no unit: write "100ms" or "100s"'),
        ('[chat]\nrate = "1/s"\np99 = "100 parsecs"', "p99: '100 parsecs' is not a duration"),
        ('[chat]\nrate = "1/s"\np0 = "1s"', "p0 is no percentile"),
        (
            '[chat]\nrate = "1/s"\np99 = "1s"\nheadrom = 0.2',
            "'headrom' is not known: did you mean headroom",
        ),
        ('[chat]\nrate = "1/s"\np100 = "1s"', "'p100' is not known"),
        ('[chat]\nrate = "1/s"\np99 = "1s"\nerrors = "1%"', "errors = '1%' is not a number from 0"),
        ('[chat]\nrate = "1/s"\np99 = "1s"\nerrors = true', "errors = True is not a number"),
        ('[chat]\nrate = "1/s"\np99 = "1s"\nsoak = "-1m"', "soak: '-1m' is not a duration"),
        (
            '[chat]\nrate = "1/s"\np99 = "1s"\narrivals = "odd"',
            "poisson, constant, bursty, not 'odd'",
        ),
        ('[chat]\nrate = "1/s"\np99 = "1s"\narrivals = "bursty"', "bursty arrivals need a burst"),
        ('[chat]\nrate = "1/s"\np99 = "1s"\nburst = "5 every 9s"', "a burst is of bursty arrivals"),
        (
            '[chat]\nrate = "1/s"\np99 = "1s"\narrivals = "bursty"\nburst = "50 every 10s"',
            r"\[chat\]: bursts of 50 every 10s are 5 requests a second",
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path, text, message):
    with pytest.raises(SloError, match=message):
        _read(tmp_path, text)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(SloError, match=r"slo\.toml cannot be read: No such file"):
        read_objectives(tmp_path / "slo.toml")


def test_what_the_report_shows_is_what_was_read(tmp_path):
    path = tmp_path / "slo.toml"
    path.write_text('[a]\nrate = "1/s"\np50 = "1s"  # ours\n')
    objectives = read_objectives(path)
    path.unlink()
    assert objectives.text == '[a]\nrate = "1/s"\np50 = "1s"  # ours\n'
    assert list(objectives.slos) == ["a"]
