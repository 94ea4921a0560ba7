"""Reads the catalogue of models from the Triton servers."""

import asyncio
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from tritonclient.grpc import model_config_pb2

from gateway.errors import DeadlineExceeded, GatewayError, NoCapacity
from gateway.models.catalogue import Catalogue, Model, read_model, sequence_slots
from gateway.models.sequences import SequenceSlots
from gateway.upstream.replicas import Replica
from modelspec.errors import DeclarationError


class CatalogueReader:
    """Reads the catalogue from the replicas; faults of single models are recorded, not fatal."""

    def __init__(self, expected: Iterable[str] = ()) -> None:
        self.faults: dict[str, str] = {}
        self.read_at = -math.inf  # when a replica last listed its models, monotonic seconds
        self.is_waiting = False  # for a response, or none came in time; False after a refusal
        self._expected = frozenset(expected)
        self._read: dict[bytes, Model | None] = {}
        self._last: dict[str, Model] = {}

    async def read(self, replicas: Sequence[Replica]) -> Catalogue:
        """What the replicas serve together. Raises a GatewayError if none of them responds.

        Updates the versions of each replica. One that does not respond keeps the versions it had:
        its models are not unknown because it is away. A model's config comes from the first replica
        in the list that has it.
        """
        reachable = [replica for replica in replicas if replica.health]
        self.is_waiting = True
        errors = await asyncio.gather(*map(_read_index, reachable))
        responding = [
            replica for replica, error in zip(reachable, errors, strict=True) if not error
        ]
        if not responding:
            self.is_waiting = any(isinstance(error, DeadlineExceeded) for error in errors)
            raise next(filter(None, errors), NoCapacity("no replica can be asked for its models"))
        self.read_at = time.monotonic()
        self._last = models = await self._read_models(replicas, responding)
        self.is_waiting = False
        return Catalogue(models, self._expected)

    async def _read_models(
        self, replicas: Sequence[Replica], responding: Sequence[Replica]
    ) -> dict[str, Model]:
        all_versions: dict[str, tuple[str, ...]] = {}
        for replica in replicas:
            for name, versions in (replica.versions or {}).items():
                all_versions[name] = tuple(dict.fromkeys((*all_versions.get(name, ()), *versions)))
        models, self.faults = {}, {}
        slots: dict[str, SequenceSlots | None] = {}
        for name, versions in all_versions.items():
            holder = next(
                (replica for replica in responding if name in (replica.versions or {})), None
            )
            if holder is None:
                if name in self._last:
                    models[name] = self._last[name]
                continue
            try:
                config = (await holder.upstream.describe("ModelConfig", name)).config
                self.read_at = time.monotonic()
                slots[name] = sequence_slots(config)
                model = self._compile(config, versions)
            except (NoCapacity, DeadlineExceeded):
                # The model or its server went away between the two requests, or is too busy for the
                # second one: neither is a reason for a 404.
                if name in self._last:
                    models[name] = self._last[name]
                continue
            except DeclarationError as error:
                self.faults[name] = error.problem
                continue
            except Exception as error:  # a fault of one model must not affect any other
                self.faults[name] = str(error) or type(error).__name__
                continue
            if model:
                models[name] = model
                if model.golden_fault:
                    self.faults[name] = model.golden_fault
        return {name: _with_slots_of_steps(model, slots) for name, model in models.items()}

    def _compile(
        self, config: model_config_pb2.ModelConfig, versions: tuple[str, ...]
    ) -> Model | None:
        """The model, compiled once per state of its config; None for an internal one."""
        key = config.SerializeToString(deterministic=True) + repr(versions).encode()
        if key not in self._read:
            if len(self._read) > 1024:
                self._read.clear()
            self._read[key] = read_model(config, versions)
        return self._read[key]


async def _read_index(replica: Replica) -> GatewayError | None:
    """Update the replica's ready versions. If it does not respond, returns the error, and the
    versions stay as they were."""
    try:
        replica.versions = await replica.upstream.ready_versions()
    except GatewayError as error:
        return error
    return None


def _with_slots_of_steps(model: Model, slots: Mapping[str, SequenceSlots | None]) -> Model:
    """An ensemble takes as many sequences as the step that takes the fewest."""
    step_slots = [step for step in map(slots.get, model.steps) if step]
    if not step_slots or model.sequences:
        return model
    return replace(
        model,
        sequences=SequenceSlots(
            min(step.at_once for step in step_slots), max(step.idle_s for step in step_slots)
        ),
    )
