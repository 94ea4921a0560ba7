"""Reads the catalogue of models from the Triton servers."""

import asyncio
import hashlib
import math
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from gateway.errors import DeadlineExceeded, GatewayError, NoCapacity
from gateway.models.catalogue import (
    Catalogue,
    Model,
    batch_delay_s,
    instance_count,
    read_model,
    sequence_slots,
)
from gateway.models.sequences import SequenceSlots
from gateway.upstream.replicas import Replica
from modelspec.errors import DeclarationError

# How many configs are read again at each refresh, twice a second: all of a small catalogue. Of a
# thousand models each one is read every 16 s, and all of them at once would take a whole core.
REREAD = 32
# A list of models that takes longer is waited for only while no replica has sent its own: one that
# hangs must not keep what the others serve from being known.
LATE_S = 1.0
# The models that an ensemble names, each with the version: NEWEST is whichever is ready.
_StepVersions = tuple[tuple[str, int], ...]
_NO_STEPS: _StepVersions = ()
NEWEST = -1


class CatalogueReader:
    """Reads the catalogue from the replicas; faults of single models are recorded, not fatal."""

    def __init__(self, expected: Iterable[str] = ()) -> None:
        self.faults: dict[str, str] = {}
        self.read_at = -math.inf  # when a replica last listed its models, monotonic seconds
        self.as_of = -math.inf  # when the versions in the last catalogue were asked for, likewise
        self.is_waiting = False  # for a response, or none came in time; False after a refusal
        self._expected = frozenset(expected)
        self._entries: dict[str, _Entry] = {}
        self._next_due = 0
        self._readings: dict[Replica, _Reading] = {}  # of the lists that are on their way

    async def read(self, replicas: Sequence[Replica]) -> Catalogue:
        """What the replicas serve together. Raises a GatewayError if none of them responds.

        Updates the versions of each replica. One that does not respond keeps the versions it had:
        its models are not unknown because it is away. A model's config comes from the first replica
        in the list that answers and has it; it is read when the model's versions change, and once
        in a while.
        """
        reachable = [replica for replica in replicas if replica.health]
        self.is_waiting = True
        readings = await self._read_indices(reachable)
        errors = {replica: reading.task.result() for replica, reading in readings.items()}
        responding = [replica for replica in reachable if errors.get(replica, _LATE) is None]
        if not responding:
            known = [error for error in errors.values() if error]
            self.is_waiting = any(isinstance(error, DeadlineExceeded) for error in known)
            raise next(iter(known), NoCapacity("no replica can be asked for its models"))
        self.read_at = time.monotonic()
        models = await self._read_models(replicas, responding)
        self.is_waiting = False
        if len(readings) == len(reachable):  # else a late one may have other versions by now
            self.as_of = min(reading.since for reading in readings.values())
        return Catalogue(models, self._expected)

    async def _read_indices(self, replicas: Sequence[Replica]) -> "dict[Replica, _Reading]":
        """Read the lists of models; the readings that have ended, one of them well if any can. The
        others go on, and are among those of a later call."""
        for replica in replicas:
            if replica not in self._readings:
                task = asyncio.create_task(_read_index(replica))
                self._readings[replica] = _Reading(time.monotonic(), task)
        readings = {replica: self._readings[replica] for replica in replicas}
        pending = {reading.task for reading in readings.values()}
        timeout_s: float | None = LATE_S
        until = asyncio.ALL_COMPLETED
        while pending:
            done, pending = await asyncio.wait(pending, timeout=timeout_s, return_when=until)
            timeout_s, until = None, asyncio.FIRST_COMPLETED
            if any(task.exception() or task.result() is None for task in done):
                break
        self._readings = {
            replica: reading
            for replica, reading in self._readings.items()
            if not reading.task.done()
        }
        return {replica: reading for replica, reading in readings.items() if reading.task.done()}

    async def _read_models(
        self, replicas: Sequence[Replica], responding: Sequence[Replica]
    ) -> dict[str, Model]:
        all_versions = _versions(replicas)
        entries: dict[str, _Entry] = {}
        unread: set[str] = set()  # models whose versions have changed since their config was read
        due, holders = self._due(all_versions), list(responding)
        for name, versions in all_versions.items():
            entry = self._entries.get(name)
            if entry is None or entry.versions != versions or name in due or not entry.config:
                # If that fails, the model or its server went away between the two requests, or is
                # too busy for the second one: neither is a reason for a 404.
                entry = await self._read_from_any(holders, name, versions) or entry
                if entry is None:
                    continue
                if entry.versions != versions:
                    unread.add(name)
            entries[name] = entry
        self._entries = entries
        self.faults = {name: entry.fault for name, entry in entries.items() if entry.fault}
        ready = _versions(replica for replica in replicas if replica.health)
        steps = _Steps(entries, ready, unread)
        return {
            name: steps.completed(entry.model) for name, entry in entries.items() if entry.model
        }

    def _due(self, names: Iterable[str]) -> set[str]:
        """The models whose configs are read again although their versions are the same: a few at a
        time, in turn."""
        ordered = sorted(names)
        start = self._next_due if self._next_due < len(ordered) else 0
        self._next_due = start + REREAD
        return set(ordered[start : start + REREAD])

    async def _read_from_any(
        self, holders: list[Replica], name: str, versions: tuple[str, ...]
    ) -> "_Entry | None":
        """Read the model from the first of the ``holders`` that has it and answers; None if there
        is none. One that does not answer in time is removed from them: it would keep each of the
        other models waiting for as long."""
        for replica in tuple(holders):
            if name not in (replica.versions or {}) or not replica.health:
                continue
            try:
                return await self._read_entry(replica, name, versions)
            except DeadlineExceeded:
                holders.remove(replica)
            except NoCapacity:
                continue
        return None

    async def _read_entry(self, holder: Replica, name: str, versions: tuple[str, ...]) -> "_Entry":
        """Raises NoCapacity or DeadlineExceeded if the server does not respond; a model's own fault
        is its entry's, and affects no other."""
        previous, config_bytes, slots = self._entries.get(name), b"", None
        delay_s, steps, instances = None, _NO_STEPS, 1
        try:
            config = (await holder.upstream.describe("ModelConfig", name)).config
            self.read_at = time.monotonic()
            config_bytes = config.SerializeToString(deterministic=True)
            if previous and (previous.versions, previous.config) == (versions, config_bytes):
                return previous
            slots, delay_s = sequence_slots(config), batch_delay_s(config)
            instances = max(1, instance_count(config))
            steps = tuple(
                (step.model_name, step.model_version) for step in config.ensemble_scheduling.step
            )
            model = read_model(config, versions)
        except (NoCapacity, DeadlineExceeded):
            raise
        except DeclarationError as error:
            return _Entry(
                versions, config_bytes, None, slots, delay_s, error.problem, steps, instances
            )
        except Exception as error:
            return _Entry(versions, b"", None, slots, delay_s, str(error) or type(error).__name__)
        fault = model.golden_fault if model else ""
        return _Entry(versions, config_bytes, model, slots, delay_s, fault, steps, instances)


_LATE = DeadlineExceeded("the replica has not listed its models yet")


class _Reading(NamedTuple):
    """Of a replica's list of models. ``since``: when it was asked for, monotonic seconds; the task
    returns None, or why it could not be read."""

    since: float
    task: asyncio.Task[GatewayError | None]


@dataclass(frozen=True)
class _Entry:
    """What was last read of one model. ``model``: None for an internal or an invalid one.
    ``config``: empty if the server refused to show it."""

    versions: tuple[str, ...]
    config: bytes
    model: Model | None
    slots: SequenceSlots | None
    batch_delay_s: float | None
    fault: str
    steps: _StepVersions = ()
    instances: int = 1


async def _read_index(replica: Replica) -> GatewayError | None:
    """Update the replica's ready versions. If it does not respond, returns the error, and the
    versions stay as they were."""
    try:
        replica.index_read(await replica.upstream.ready_versions())
    except GatewayError as error:
        return error
    return None


def _versions(replicas: Iterable[Replica]) -> dict[str, tuple[str, ...]]:
    """Model -> the versions that any of the replicas has, as far as they are known."""
    union: dict[str, tuple[str, ...]] = {}
    for replica in replicas:
        for name, versions in (replica.versions or {}).items():
            union[name] = tuple(dict.fromkeys((*union.get(name, ()), *versions)))
    return union


@dataclass(frozen=True)
class _Steps:
    """What the models say of one another. ``ready``: the versions on the replicas that are not
    down; ``unread``: the models whose present config is not known."""

    entries: "Mapping[str, _Entry]"
    ready: Mapping[str, tuple[str, ...]]
    unread: Collection[str]

    def completed(self, model: Model) -> Model:
        """An ensemble takes as many sequences as the step that takes the fewest, and gathers
        batches if one of its steps does; of its short requests as many go at a time as the step
        with the most instances has. A deterministic model gets what its responses are cached by."""
        steps = [entry for entry in map(self.entries.get, model.steps) if entry]
        short = model.short._replace(
            at_a_time=max([entry.instances for entry in (*steps, self.entries[model.name])])
        )
        delay_s, sequences = model.batch_delay_s, model.sequences
        if delays_s := [step.batch_delay_s for step in steps if step.batch_delay_s is not None]:
            delay_s = sum(delays_s)
        slots = [step.slots for step in steps if step.slots]
        if slots and not sequences:
            sequences = SequenceSlots(
                min(step.at_once for step in slots), max(step.idle_s for step in slots)
            )
        revision, version = "", ""
        if model.deterministic:
            revision = self._revision(model.name)
            ready = self.ready.get(model.name, ())
            version = ready[0] if len(ready) == 1 else ""
        known = (*(model.batch_delay_s, model.sequences), model.revision, model.only_version)
        if (delay_s, sequences, revision, version) == known and short == model.short:
            return model
        return replace(
            model,
            batch_delay_s=delay_s,
            sequences=sequences,
            short=short,
            revision=revision,
            only_version=version,
        )

    def _revision(self, model: str) -> str:
        """A digest of the configs of the model and of all its steps, and of the versions of the
        steps that it takes the newest of. '' if one of them is not known, or two are ready."""
        digest = hashlib.blake2b(digest_size=8)
        pending = [(model, 0)]  # which version of its own answers is no part of the revision
        for name, version in pending:
            entry = self.entries.get(name)
            if entry is None or not entry.config or name in self.unread:
                return ""
            if version == NEWEST:
                ready = self.ready.get(name) or entry.versions
                if len(ready) != 1:
                    return ""
                version = int(ready[0])
            head = repr((name, version, len(entry.config)))
            digest.update(head.encode())
            digest.update(entry.config)
            pending += [step for step in entry.steps if step not in pending]
        return digest.hexdigest()
