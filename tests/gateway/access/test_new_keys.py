"""A key is valid at its first request, however soon after its creation; a flood of wrong keys costs
no more than a few looks at the file."""

import asyncio

import pytest

from gateway.access import control
from gateway.errors import Unauthenticated
from tests.gateway.access.test_unreadable_files import access_controlled
from tests.gateway.request_contexts import context_of
from tests.gateway.settled import write_settled
from tidegate.app.key_store import KeyStore, generate_key


async def _never():
    await asyncio.Future()


def _context(key):
    headers = [(b"authorization", f"Bearer {key}".encode())] if key else []
    return context_of({"path": "/v1/models", "headers": headers}, _never)


@pytest.fixture
async def running(tmp_path):
    write_settled(tmp_path / "gateway.toml", "")
    async with access_controlled(tmp_path, keys="") as (access_control, _):
        yield access_control, KeyStore(tmp_path / "keys.toml", tmp_path / "pepper")


async def test_a_key_that_was_just_created_is_valid(running):
    access_control, store = running
    record, key = store.create("new")
    context = _context(key)
    await access_control.identify(context)  # nothing has read the file since
    assert context.principal.id == record.key_id


async def test_it_is_valid_for_all_who_use_it_at_once(running):
    access_control, store = running
    _, key = store.create("new")
    contexts = [_context(key) for _ in range(8)]
    await asyncio.gather(*(access_control.identify(context) for context in contexts))
    assert all(context.principal for context in contexts)


async def test_a_flood_of_wrong_keys_looks_seldom_at_the_file(running, monkeypatch):
    access_control, store = running
    looks: list[float] = []
    is_stale = access_control.keys.is_stale

    def counted():
        looks.append(0.0)
        return is_stale()

    monkeypatch.setattr(access_control.keys, "is_stale", counted)
    monkeypatch.setattr(control, "EARLY_LOOK_S", 3600.0)
    for _ in range(100):
        with pytest.raises(Unauthenticated):
            await access_control.identify(_context(generate_key()[1]))
    assert len(looks) == 1
    _, key = store.create("new")
    with pytest.raises(Unauthenticated):  # the next look is due in an hour
        await access_control.identify(_context(key))
    access_control._next_early_look = 0.0
    await access_control.identify(_context(key))
    with pytest.raises(Unauthenticated):
        await access_control.identify(_context(""))
    assert len(looks) == 2
