"""The deadline of a request to a served pipeline follows the slowest answer so far."""

from converters.proof.served_client import FIRST_S, LEAST_S, MOST_S, Deadline


def test_a_deadline_follows_what_a_model_took():
    deadline = Deadline()
    assert deadline.seconds("a") == FIRST_S
    deadline.took("a", 0.01)
    assert deadline.seconds("a") == LEAST_S
    deadline.took("a", 8.0)  # the machine became busy
    deadline.took("a", 0.5)
    assert deadline.seconds("a") == 160
    assert deadline.seconds("a", rows=2) == 320
    assert deadline.seconds("a", rows=64) == MOST_S
    assert deadline.seconds("b") == FIRST_S
