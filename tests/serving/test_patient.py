"""A sick model is treated with growing pauses, and given up."""

from serving.events import Events
from serving.patient import ATTEMPTS, LATER_S, WELL_AFTER_S, Patient


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_pauses_grow_and_after_the_last_attempt_it_is_tried_seldom():
    clock = Clock()
    patient = Patient("m", mark=1)
    pauses = []
    while not patient.is_given_up:
        assert patient.is_due(clock)
        patient.begin(clock)
        assert not patient.is_due(clock)
        pauses.append(patient.not_before - clock.now)
        patient.give_up()
        clock.now = patient.not_before
    assert pauses == [0.5, 1, 2, 4, 8]
    assert len(pauses) == ATTEMPTS
    clock.now = patient.last_trouble + LATER_S - 1
    assert not patient.is_due(clock)
    clock.now += 2
    assert patient.is_due(clock)  # what hindered may have passed
    patient.begin(clock)
    assert patient.give_up()
    assert patient.not_before - clock.now == LATER_S


def test_one_that_was_well_for_long_is_well():
    patient = Patient("m", mark=1)
    patient.begin(lambda: 1000.0)
    assert not patient.is_well(lambda: 1000.0 + WELL_AFTER_S)
    assert patient.is_well(lambda: 1001.0 + WELL_AFTER_S)


def test_events_are_logged_and_counted(tmp_path):
    events = Events(tmp_path)
    events.add("healed", "m", 'a "quoted" reason')
    events.add("healed", "m")
    log = (tmp_path / "logs" / "events.jsonl").read_text().splitlines()
    assert len(log) == 2
    assert '"event": "healed", "model": "m", "detail": "a \\"quoted\\" reason"' in log[0]
    metrics = (tmp_path / "watch.prom").read_text()
    assert 'tidegate_watch_events_total{event="healed",model="m"} 2\n' in metrics
    assert metrics.startswith("# HELP tidegate_watch_events_total ")
