"""The gateway's parts, joined: what the doors call to have something inferred."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

from tritonclient.grpc import service_pb2

from gateway.catalogue import Catalogue, Model, Reader
from gateway.exchange import Exchange
from gateway.face import Face, Row
from gateway.keys import KeyRing
from gateway.replicas import Replica, ReplicaPool
from gateway.rows import Tensors, batches, read_tensors
from gateway.settings import Settings
from gateway.upstream import Upstream


class Gateway:
    """Holds the settings, the keys, the replicas and the catalogue of one running gateway."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.keys = KeyRing(settings.keys_file, settings.pepper_file)
        self.catalogue = Catalogue(expected=frozenset(settings.pipelines))
        self.reader = Reader(settings.pipelines)
        self.probes: Mapping[str, str] = {}  # pipeline -> '' when it answers, else what is wrong
        self.pool = ReplicaPool(
            [Replica(Upstream(each, settings.triton_key_file)) for each in settings.replicas],
            settings.max_inflight,
        )

    async def infer(
        self, exchange: Exchange, message: service_pb2.ModelInferRequest
    ) -> service_pb2.ModelInferResponse:
        """One inference for this exchange, cancelled when its client leaves."""
        with self.pool.permit() as upstream:
            asked = time.perf_counter()
            try:
                return await exchange.while_connected(
                    upstream.infer(message, exchange.remaining_s())
                )
            finally:
                exchange.upstream_s += time.perf_counter() - asked

    async def infer_rows(
        self, exchange: Exchange, model: Model, face: Face, rows: Sequence[Row]
    ) -> list[tuple[Tensors, int]]:
        """For each row the tensors it is in and its place there."""
        asked = time.perf_counter()
        try:
            return await exchange.while_connected(
                self.rows(model, face, rows, exchange.remaining_s())
            )
        finally:
            exchange.upstream_s = time.perf_counter() - asked

    async def rows(
        self, model: Model, face: Face, rows: Sequence[Row], timeout_s: float
    ) -> list[tuple[Tensors, int]]:
        """As ``infer_rows``, without a client to watch: what the probes use."""
        answers: dict[int, tuple[Tensors, int]] = {}

        async def ask(places: tuple[int, ...], message: Any) -> None:
            with self.pool.permit() as upstream:
                response = await upstream.infer(message, timeout_s)
            tensors = read_tensors(response, len(places))
            answers.update({place: (tensors, index) for index, place in enumerate(places)})

        work = batches(model, face, rows)
        if len(work) == 1:
            await ask(work[0].places, work[0].message)
        else:
            await _all([ask(batch.places, batch.message) for batch in work])
        return [answers[place] for place in range(len(rows))]


async def _all(work: list[Any]) -> None:
    """Run together; the first failure cancels the rest and is raised as it is."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
