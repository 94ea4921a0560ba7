"""What a search may set: the valid values of each serving parameter, for the pipeline and the
machine."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from serving.tuning.setting import Setting

# With more threads in all than this, they wait for a core longer than they work.
THREADS_PER_CORE = 2
QUEUE_DELAYS_US = (100, 500, 2000)
SMALLEST_BATCH = 4
# Bucket edges are multiples of it: with finer ones, requests find no others to share a batch with.
BUCKET_STEP = 4
FINE_UP_TO = 64


@dataclass(frozen=True)
class Space:
    """``lengths`` are the token counts of the samples; empty if the pipeline has no buckets."""

    default: Setting
    cores: int
    lengths: Sequence[int] = ()

    def moves(self, setting: Setting) -> Mapping[str, list[Setting]]:
        """The settings one serving parameter away from ``setting``, by serving parameter, in the
        order to try them."""
        choices_by_parameter: dict[str, list[dict[str, Any]]] = {
            "buckets": self._buckets(),
            "instances x threads": self._parallel(setting),
            "max batch": self._max_batch(),
            "dynamic batching": self._dynamic_batching(),
            "queue delay": self._queue_delay(setting),
            "pre instances": self._pre_instances(),
        }
        moves = {}
        for serving_parameter, choices in choices_by_parameter.items():
            others = dict.fromkeys(replace(setting, **choice) for choice in choices)
            others.pop(setting, None)
            if others:
                moves[serving_parameter] = list(others)
        return moves

    def _parallel(self, setting: Setting) -> list[dict[str, Any]]:
        if setting.instances is None:
            return []
        if setting.threads is None:
            return [{"instances": n} for n in _doubling(THREADS_PER_CORE * self.cores)]
        default = {"instances": self.default.instances or 1, "threads": self.default.threads or 1}
        return [default, *self._pairs()]

    def _pairs(self) -> Iterator[dict[str, int]]:
        limit = THREADS_PER_CORE * self.cores
        for threads in _doubling(self.cores):
            for instances in _doubling(limit):
                if self.cores / 2 <= instances * threads <= limit:
                    yield {"instances": instances, "threads": threads}

    def _max_batch(self) -> list[dict[str, object]]:
        """Never above what was declared and proved."""
        most = self.default.max_batch
        if most is None:
            return []
        sizes = [size for size in _doubling(most) if size >= min(SMALLEST_BATCH, most)]
        return [{"max_batch": size} for size in reversed(sizes)]

    def _dynamic_batching(self) -> list[dict[str, Any]]:
        if self.default.dynamic_batching is None:
            return []
        on = {"dynamic_batching": True, "queue_delay_us": self.default.queue_delay_us or 0}
        return [on, {"dynamic_batching": False, "queue_delay_us": None}]

    def _queue_delay(self, setting: Setting) -> list[dict[str, object]]:
        if setting.queue_delay_us is None:
            return []
        delays = sorted({0, self.default.queue_delay_us or 0, *QUEUE_DELAYS_US})
        return [{"queue_delay_us": delay} for delay in delays]

    def _buckets(self) -> list[dict[str, object]]:
        declared = self.default.buckets
        if declared is None:
            return []
        return [{"buckets": edges} for edges in proposals(declared, self.lengths)]

    def _pre_instances(self) -> list[dict[str, object]]:
        if self.default.pre_instances is None:
            return []
        counts = sorted({1, self.default.pre_instances, *_doubling(self.cores)})
        return [{"pre_instances": count} for count in counts]


def proposals(declared: tuple[int, ...], lengths: Sequence[int]) -> list[tuple[int, ...]]:
    """Bucket edges to try: the declared ones, the same with a shorter one added, the samples'
    quartiles, and fine ones. The last edge is always the longest text that the model takes."""
    last = declared[-1]
    shorter = (max(BUCKET_STEP, declared[0] // 2), *declared)
    fine = range(2 * BUCKET_STEP, min(FINE_UP_TO, last), BUCKET_STEP)
    candidates = [declared, _edges(shorter, last)]
    if lengths:
        candidates.append(_edges((*_quantiles(lengths), *declared), last))
    candidates.append(_edges((*fine[:3], *fine[4:8:2], *declared), last))
    candidates.append(_edges((*fine, *declared), last))
    return list(dict.fromkeys(candidates))


def _edges(lengths: Sequence[int], last: int) -> tuple[int, ...]:
    return tuple(sorted({length for length in lengths if 0 < length < last} | {last}))


def _quantiles(lengths: Sequence[int]) -> list[int]:
    """The quartiles and the 90th percentile, rounded up to whole steps."""
    ordered = sorted(lengths)
    quantiles = [
        ordered[min(len(ordered) - 1, int(len(ordered) * q))] for q in (0.25, 0.5, 0.75, 0.9)
    ]
    return [-(-length // BUCKET_STEP) * BUCKET_STEP for length in quantiles]


def _doubling(most: int) -> list[int]:
    """1, 2, 4 ... and ``most`` itself."""
    sizes = [2**power for power in range(most.bit_length()) if 2**power <= most]
    return sorted({*sizes, most})
