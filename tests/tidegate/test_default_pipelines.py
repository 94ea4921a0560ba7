"""What `tidegate up` makes and serves, with names and without."""

import pytest

from serving.triton.ports import Ports
from tidegate.app.paths import Paths
from tidegate.app.stack import Stack, StackOptions
from tidegate.app.task_registry import KNOWN

SERVICES = [
    "topic_classification",
    "sentiment",
    "entity_recognition",
    "text_classification",
    "smart_reply",
    "customer_service",
]


@pytest.fixture
def stack_of(tmp_path, monkeypatch):
    monkeypatch.setenv("TIDEGATE_HOME", str(tmp_path))
    paths, stacks = Paths.current(), []
    (paths.repository / "mood" / "1").mkdir(parents=True)
    config = 'name: "mood"\nbackend: "python"\nmax_batch_size: 1\n'
    (paths.repository / "mood" / "config.pbtxt").write_text(config)

    def stack(*pipelines: str) -> Stack:
        options = StackOptions(paths, "127.0.0.1", 1, 2, 3, Ports(4, 5, 6), 1, pipelines)
        stacks.append(Stack(options, lambda line: None))
        return stacks[-1]

    yield stack
    for made in stacks:
        made._gateway_watch.stop()


def test_without_names_it_is_what_is_known_the_customer_service_and_what_the_user_has(stack_of):
    stack = stack_of()
    assert stack._models() == [*KNOWN, *SERVICES, "mood"]
    missing = stack._missing()
    assert set(missing) == {*KNOWN, *SERVICES}


def test_each_is_made_after_what_it_is_made_of(stack_of, monkeypatch):
    jobs = {}
    stack = stack_of()
    monkeypatch.setattr(stack._making, "run", lambda made: jobs.update({j.name: j for j in made}))
    stack._make(stack._missing())
    assert jobs.keys() == {*KNOWN, *SERVICES}
    assert set(jobs["smart_reply"].after) == {"text_embedding"}  # which embeds its entries
    assert set(jobs["text_classification"].after) == {"topic_classification", "sentiment"}
    assert {"text_classification", "entity_recognition", "smart_reply"} <= set(
        jobs["customer_service"].after
    )
    order = list(jobs)
    for name, job in jobs.items():
        assert all(order.index(first) < order.index(name) for first in job.after)


def test_with_names_it_is_no_more_than_they_need(stack_of):
    assert stack_of("mood")._models() == ["mood", "identity_fp32"]
    assert stack_of("mood")._missing() == ["identity_fp32"]
