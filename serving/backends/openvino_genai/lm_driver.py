"""One thread owns the engine: it takes requests in, looks who has left, steps, and hands text out.

Nothing here depends on Triton, so the bench runs it in process.
"""

import collections
import functools
import random
import sys
import threading
import time
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# openvino's import starts its telemetry, which keeps a device id in the home and calls home. Its
# own stand-in takes over where the package is missing, and so it is here.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]

import openvino_genai as genai
from lm_compiler import Compiler
from lm_jobs import Busy, Cancelled, EngineDied, Load
from lm_sampling import WHAT_FITS, PromptTooLong, Refused, Sampling
from lm_settings import BLOCK, Settings, model_path
from lm_structures import Structures
from lm_text import TextPieces, is_byte_level
from lm_waiting import Claim, Pace, first_token_waits

PROBE = "Größe 日本語 😀 a  b\n"  # text that a byte-level tokenizer gives back from its tokens
REPORT_S = 0.25
ALMOST_ONE = 0.999999  # openvino-genai 2026.4.1 ignores a min_p of 1
MOST_TOKENS = 8192  # OpenVINO's tokenizer of a GGUF file returns the last so many of a text
# Between two reports while there is nothing to do: they say that the thread is alive.
HEARTBEAT_S = 1.0
WAITS_S = 0.25  # between two looks at how long those that wait will wait


@dataclass
class Piece:
    """What is new of one sequence. ``logprobs``: (token id, log-probability, text) each."""

    text: str = ""
    tokens: int = 0
    finish_reason: str | None = None
    logprobs: list[tuple[int, float, str]] = field(default_factory=list)
    logprob_sum: float = 0.0  # of the whole sequence so far


@dataclass(eq=False)
class Job:
    """One request. The driver calls ``send`` (a Piece a sequence, and whether it is the last time)
    and ``fail`` from its thread; exactly one of them ends the request."""

    prompt: str
    sampling: Sampling
    is_stream: bool
    wants_logprobs: bool
    send: Callable[["Job", list[Piece], bool], None]
    fail: Callable[["Job", Exception], None]
    is_cancelled: Callable[[], bool]
    prompt_ids: list[int] = field(default_factory=list)  # instead of ``prompt``, if given
    asked_at: float = field(default_factory=time.monotonic)
    prompt_tokens: int = 0
    unread: int = 0  # tokens of the prompt, for all its sequences, that no step has read
    reserved: int = 0  # tokens of KV cache, at most, for all its sequences
    max_tokens: int = 0
    sequences: list["Sequence"] = field(default_factory=list)


@dataclass
class Sequence:
    """One of a job's continuations."""

    handle: Any
    text: TextPieces
    piece: Piece = field(default_factory=Piece)  # what has not been sent
    made: int = 0
    finish_reason: str | None = None


class Driver(threading.Thread):
    """``start`` it, then ``wait_ready``; ``submit`` from any thread."""

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        report: Callable[[Load], None] = lambda _: None,
        died: Callable[[Exception], None] = lambda _: None,
    ) -> None:
        super().__init__(name="engine", daemon=True)
        self._folder, self._settings = folder, settings
        self._report, self._died = report, died
        self._changed = threading.Condition()
        self._inbox: collections.deque[Job] = collections.deque()
        self._queue: collections.deque[Job] = collections.deque()
        self._running: list[Job] = []
        self._is_stopping = False
        self._error: Exception | None = None
        self._ready = threading.Event()
        self.context_length = settings.context_length
        self.token_bytes: dict[int, bytes] = {}
        self._compiling: list[Job] = []  # they wait for their structure
        self._pace = Pace()
        self._looked_at_waits = 0.0
        self._next_place_s = 0.0  # until the first in the queue begins
        self._next_id = 0
        self._reported = 0.0
        self._cancelled = self._generated = 0
        self.load = Load()
        self.opened = 0  # how often the engine has been opened

    def wait_ready(self) -> None:
        """Returns when the model is loaded. Raises what loading raised."""
        self._ready.wait()
        if self._error:
            raise self._error

    def submit(self, job: Job) -> None:
        """Raises Busy and EngineDied; everything later comes through ``job.fail``."""
        with self._changed:
            if self._error or self._is_stopping:
                raise EngineDied("the engine has stopped")
            waiting, settings = self._waiting(), self._settings
            if waiting >= settings.max_queue_requests + max(0, self._places()):
                raise Busy(f"{waiting} requests are waiting", self._next_place_s)
            structure = job.sampling.structure
            if structure and not self._structures.is_good(structure):
                self._compiling.append(job)
                self._structures.compile(
                    structure,
                    functools.partial(self._has_left, job),
                    functools.partial(self._compiled, job),
                )
            else:
                self._inbox.append(job)
                self._changed.notify()

    def stop(self) -> None:
        """End everything under way as cancelled, and the thread."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify()
        self.join()
        self._structures.stop()

    def _places(self) -> int:
        """For further sequences."""
        return self._settings.max_running - sum(job.sampling.n for job in self._running)

    def _waiting(self) -> int:
        return len(self._inbox) + len(self._queue) + len(self._compiling)

    def _has_left(self, job: Job) -> bool:
        return job not in self._compiling or job.is_cancelled()

    def _compiled(self, job: Job, error: Exception | None) -> None:
        """Called from the thread that compiles."""
        with self._changed:
            if job not in self._compiling:  # it has been told that it waited for too long
                return
            self._compiling.remove(job)
            if error is None and not self._is_stopping:
                self._inbox.append(job)
                self._changed.notify()
                return
        job.fail(job, error or self._ending())

    def _ending(self) -> Exception:
        """Why what is under way ends with the engine."""
        if self._error:
            return EngineDied("the engine failed")
        return Cancelled("the model is being unloaded")

    def run(self) -> None:
        try:
            self._open()
        except Exception as error:
            self._error = error
            self._ready.set()
            return
        self._ready.set()
        try:
            while self._wait():
                self._turn()
        except Exception as error:
            self._error = error
        with self._changed:
            left = [*self._running, *self._queue, *self._inbox]
            self._is_stopping = True
        for job in left:
            job.fail(job, self._ending())
        if self._error:
            self._died(self._error)
        del self._pipeline  # in the thread that made it

    def _open(self) -> None:
        self._load()
        self._eos: int = self._tokenizer.get_eos_token_id()
        self._ends = frozenset((self._eos, *self._settings.stop_token_ids))
        self.token_bytes = {token: text for text, token in self._tokenizer.get_vocab().items()}
        self._longest = max(map(len, self.token_bytes.values()))
        if not is_byte_level(self.token_bytes, self.encode(PROBE, False), PROBE):
            raise Refused("the tokenizer is not a byte-level one, which this engine needs")
        self._special: dict[int, bool] = {}
        self._structures = Structures(
            model_path(self._folder),
            Compiler(self._tokenizer),
            self._settings.max_compile_s,
            self._settings.max_structures_mib,
        )
        self._structures.start()

    def _load(self) -> None:
        settings = self._settings
        scheduler = genai.SchedulerConfig()
        scheduler.num_kv_blocks = settings.num_kv_blocks
        scheduler.max_num_batched_tokens = settings.max_num_batched_tokens
        scheduler.max_num_seqs = settings.max_running
        scheduler.enable_prefix_caching = settings.enable_prefix_caching
        properties: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": settings.inference_precision,
            "KV_CACHE_PRECISION": settings.kv_cache_precision,
        }
        if settings.threads:
            properties["INFERENCE_NUM_THREADS"] = settings.threads
        self._pipeline = genai.ContinuousBatchingPipeline(
            str(model_path(self._folder)), scheduler, "CPU", properties, {}
        )
        self._tokenizer = self._pipeline.get_tokenizer()
        self.opened += 1

    def _reopen(self) -> None:
        """Free the structures that the engine has compiled. Nothing runs now, what waits waits."""
        del self._pipeline
        self._load()
        self._structures.renew(Compiler(self._tokenizer))

    def encode(
        self, text: str, add_special_tokens: bool = True, may_cut: bool = False
    ) -> list[int]:
        """The ids of a text's tokens, or of its last ones if it ``may_cut``; from any thread, once
        the model is loaded. Raises Refused."""
        if self._settings.normalize_nfc:
            text = unicodedata.normalize("NFC", text)
        encoded = self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        ids: list[int] = encoded.input_ids.data[0].tolist()
        if len(ids) >= MOST_TOKENS and not may_cut:
            raise Refused(f"the text has {MOST_TOKENS} tokens or more: send less")
        return ids

    def _wait(self) -> bool:
        """Until there is something to do; False to stop."""
        while True:
            with self._changed:
                if not (self._inbox or self._queue or self._running or self._is_stopping):
                    self._changed.wait(HEARTBEAT_S)
                if self._is_stopping:
                    return False
                if self._inbox or self._queue or self._running:
                    return True
            self._look_for_cancelled()
            self._refuse_late()
            self._report_load()

    def _turn(self) -> None:
        self._take()
        self._look_for_cancelled()
        self._admit()
        self._refuse_late()
        self._refuse_many()
        if self._running:
            self._step()
            for job in tuple(self._running):
                self._read(job)
        if not self._running:
            # The first ends what was cancelled, the second makes the KV usage that of now.
            self._pipeline.step()
            self._pipeline.step()
            if self._structures.is_full:
                self._reopen()
        self._report_load()

    def _step(self) -> None:
        """Make one, and measure it. It generates a token a sequence whose prompt has been read, and
        reads of the other prompts, in order, what then fits."""
        sequences = [one for job in self._running for one in job.sequences]
        generating = sum(one.made > 0 and one.finish_reason is None for one in sequences)
        room = most = max(0, self._settings.max_num_batched_tokens - generating)
        for job in self._running:
            read = min(job.unread, room)
            job.unread, room = job.unread - read, room - read
        began = time.monotonic()
        self._pipeline.step()
        self._pace.step_took(time.monotonic() - began, most - room)

    def _take(self) -> None:
        while True:
            with self._changed:
                if not self._inbox:
                    return
                self._looked_at_waits = 0.0
                job = self._inbox.popleft()
                self._queue.append(job)
            try:
                self._measure(job)
                waiting = sum(other.reserved for other in self._queue)
                if len(self._queue) > 1 and waiting > self._settings.max_queue_tokens:
                    raise Busy(f"{waiting} tokens are waiting")
            except (Refused, Busy) as error:
                with self._changed:
                    self._queue.remove(job)
                job.fail(job, error)

    def _measure(self, job: Job) -> None:
        """Tokenize, and bound what it may use."""
        context = self._settings.context_length
        keep = job.sampling.truncate_prompt_tokens
        if keep == WHAT_FITS:
            keep = max(context - (job.sampling.max_tokens or context), context // 2)
        if keep and keep >= context:
            raise Refused(f"truncate_prompt_tokens must be below the context of {context} tokens")
        ids = job.prompt_ids or self._tokenized(job)
        if keep and len(ids) > keep:
            ids = ids[-keep:]
        if len(ids) >= context:
            raise PromptTooLong(
                f"the prompt has {len(ids)} tokens, and the context holds {context}, of which "
                "at least one is for the output"
            )
        most = context - len(ids)
        asked = job.sampling.max_tokens
        job.prompt_ids, job.prompt_tokens = ids, len(ids)
        job.max_tokens = most if asked is None else min(asked, most)
        blocks = -(-(len(ids) + job.max_tokens) // BLOCK)
        job.reserved = blocks * BLOCK * job.sampling.n
        if job.reserved > self._settings.num_kv_blocks * BLOCK:
            raise Refused(f"n {job.sampling.n}: so many continuations do not fit into memory")

    def _tokenized(self, job: Job) -> list[int]:
        context, keep = self._settings.context_length, job.sampling.truncate_prompt_tokens
        if not job.prompt:
            raise Refused("the prompt is empty")
        if len(job.prompt) > context * self._longest and not keep:
            raise PromptTooLong(f"the prompt is longer than the context of {context} tokens")
        # What is cut away for certain need not be tokenized.
        text = job.prompt[-context * self._longest :] if keep else job.prompt
        return self.encode(text, may_cut=bool(keep))

    def _look_for_cancelled(self) -> None:
        for job in [*self._compiling, *self._queue, *self._running]:
            if job.is_cancelled():
                for sequence in job.sequences:
                    sequence.handle.cancel()
                self._forget(job)
                self._cancelled += 1
                job.fail(job, Cancelled("the request was cancelled"))

    def _forget(self, job: Job) -> None:
        with self._changed:
            for jobs in (self._compiling, self._queue, self._running):
                if job in jobs:
                    jobs.remove(job)

    def _admit(self) -> None:
        """In order, as long as the worst case of all that run fits into the KV cache."""
        if self._structures.is_full:  # the engine is opened anew when those that run have ended
            return
        free = self._settings.num_kv_blocks * BLOCK - sum(job.reserved for job in self._running)
        places = self._places()
        while self._queue:
            job = self._queue[0]
            if job.reserved > free or (job.sampling.n > places and self._running):
                return
            free, places = free - job.reserved, places - job.sampling.n
            with self._changed:
                self._queue.popleft()
            try:
                job.sequences = [self._begin(job, number) for number in range(job.sampling.n)]
                job.unread = job.prompt_tokens * job.sampling.n
            except RuntimeError as error:
                job.fail(job, error)
            else:
                self._running.append(job)

    def _refuse_many(self) -> None:
        """What came together with those that have begun, and is more than may wait."""
        while len(self._queue) > self._settings.max_queue_requests:
            waiting = len(self._queue)
            self._refuse(
                self._queue[-1], Busy(f"{waiting} requests are waiting", self._next_place_s)
            )

    def _refuse_late(self) -> None:
        """Those that have waited for their first token for too long, or will have."""
        now, most_s = time.monotonic(), self._settings.max_queue_s
        if now - self._looked_at_waits < WAITS_S:
            return
        self._looked_at_waits = now
        for job in self._compiling.copy():
            if now - job.asked_at > most_s:
                self._refuse(job, Busy("its structure was not compiled in time"))
        queue = list(self._queue)
        waits = first_token_waits(
            self._pace,
            [_claim(job, now) for job in self._running],
            [_claim(job, now) for job in queue],
            self._settings.num_kv_blocks * BLOCK,
            self._settings.max_running,
            most_s,
        )
        self._next_place_s = waits[0] if waits else 0.0
        for job, wait_s in zip(queue, waits, strict=True):
            total_s = now - job.asked_at + wait_s
            if total_s > most_s:
                words = f"its first token is expected {total_s:.0f} s after it came"
                self._refuse(job, Busy(words, total_s - most_s))

    def _refuse(self, job: Job, error: Busy) -> None:
        self._forget(job)
        job.fail(job, error)

    def _begin(self, job: Job, number: int) -> Sequence:
        sampling = job.sampling
        self._next_id += 1
        handle = self._pipeline.add_request(
            self._next_id, genai_tensor(job.prompt_ids), self._config(job, number)
        )
        pieces = TextPieces(sampling.stop, sampling.include_stop_str_in_output, sampling.min_tokens)
        return Sequence(handle, pieces)

    def _config(self, job: Job, number: int) -> Any:
        sampling = job.sampling
        config = genai.GenerationConfig()
        config.apply_chat_template = False
        config.set_eos_token_id(self._eos)
        # A request's own stop tokens are ours to find: the engine ignores them under ignore_eos.
        config.stop_token_ids = set(self._ends)
        config.max_new_tokens = job.max_tokens
        config.min_new_tokens = min(sampling.min_tokens, job.max_tokens)
        config.ignore_eos = sampling.ignore_eos
        config.logprobs = int(job.wants_logprobs)
        config.presence_penalty = sampling.presence_penalty
        config.frequency_penalty = sampling.frequency_penalty
        config.repetition_penalty = sampling.repetition_penalty
        if sampling.temperature > 0:
            config.do_sample = True
            config.temperature = sampling.temperature
            config.top_p = sampling.top_p
            config.min_p = min(sampling.min_p, ALMOST_ONE)
            if sampling.top_k:
                config.top_k = sampling.top_k
            seed = random.getrandbits(63) if sampling.seed is None else sampling.seed + number
            config.rng_seed = seed % 2**64
        if sampling.structure:
            kind, text = sampling.structure
            config.structured_output_config = genai.StructuredOutputConfig(**{kind: text})
        return config

    def _read(self, job: Job) -> None:
        for sequence in job.sequences:
            if sequence.finish_reason is None:
                self._read_sequence(job, sequence)
        is_last = all(sequence.finish_reason for sequence in job.sequences)
        is_news = any(one.piece.text or one.piece.finish_reason for one in job.sequences)
        if any(sequence.made for sequence in job.sequences):
            job.unread = 0
        if is_last:
            self._forget(job)
            for sequence in job.sequences:
                self._pace.ended(sequence.made, job.max_tokens)
        if is_last or (job.is_stream and is_news):
            pieces = [sequence.piece for sequence in job.sequences]
            for sequence in job.sequences:
                sequence.piece = Piece(
                    finish_reason=sequence.finish_reason, logprob_sum=sequence.piece.logprob_sum
                )
            job.send(job, pieces, is_last)

    def _read_sequence(self, job: Job, sequence: Sequence) -> None:
        piece = sequence.piece
        for token, logprob, reason in self._tokens(sequence.handle):
            self._generated += 1
            sequence.made += 1
            piece.tokens += 1
            piece.logprob_sum += logprob
            is_stop_token = token in job.sampling.stop_token_ids and (
                sequence.made > job.sampling.min_tokens
            )
            if is_stop_token and reason is None:
                sequence.handle.cancel()
            if is_stop_token:
                reason = "stop"
            is_stop_token = is_stop_token or (reason == "stop" and token in self._ends)
            hidden = is_stop_token or (job.sampling.skip_special_tokens and self._is_special(token))
            raw = self.token_bytes.get(token, b"")
            piece.text += sequence.text.add(b"" if hidden else raw)
            if job.sampling.logprobs is not None:
                piece.logprobs.append((token, logprob, raw.decode("utf-8", "replace")))
            if sequence.text.stopped:
                sequence.handle.cancel()
                sequence.finish_reason = "stop"
            elif reason:
                piece.text += sequence.text.end()
                # A stop string may have been completed by the held bytes of a last character.
                sequence.finish_reason = "stop" if sequence.text.stopped else reason
            if sequence.finish_reason:
                break
        else:
            if sequence.handle.get_status() != genai.GenerationStatus.RUNNING:
                raise EngineDied(f"the engine gave a request up: {sequence.handle.get_status()}")
        piece.finish_reason = sequence.finish_reason

    def _tokens(self, handle: Any) -> Iterator[tuple[int, float, str | None]]:
        """Each new token, its log-probability, and why the sequence ends with it."""
        while handle.can_read():
            for output in handle.read().values():
                reason = _REASONS[output.finish_reason]
                ids, logprobs = output.generated_ids, output.generated_log_probs
                for index, token in enumerate(ids):
                    is_last = index == len(ids) - 1
                    yield token, logprobs[index], reason if is_last else None

    def _is_special(self, token: int) -> bool:
        if token not in self._special:
            self._special[token] = (
                self._tokenizer.decode([token]) == ""
                and self._tokenizer.decode([token], skip_special_tokens=False) != ""
            )
        return self._special[token]

    def _report_load(self) -> None:
        now = time.monotonic()
        is_idle = not (self._running or self._queue or self._inbox)
        if now - self._reported < REPORT_S and not is_idle:
            return
        self._reported = now
        self.load = Load(
            queued=self._waiting(),
            running=sum(job.sampling.n for job in self._running),
            kv_usage=self._pipeline.get_metrics().cache_usage / 100,
            cancelled=self._cancelled,
            generated=self._generated,
            next_place_s=self._next_place_s if self._queue else 0.0,
        )
        self._report(self.load)


_REASONS: dict[Any, str | None] = {
    genai.GenerationFinishReason.NONE: None,
    genai.GenerationFinishReason.STOP: "stop",
    genai.GenerationFinishReason.LENGTH: "length",
}


def _claim(job: Job, now: float) -> Claim:
    made = max((one.made for one in job.sequences), default=0)
    unread = job.unread if job.sequences else job.prompt_tokens * job.sampling.n
    tokens = job.max_tokens - made
    return Claim(job.reserved, job.sampling.n, tokens, unread, now - job.asked_at)


def genai_tensor(ids: list[int]) -> Any:
    """The ids as an INT64 tensor of shape [1, tokens]."""
    import numpy as np
    import openvino

    return openvino.Tensor(np.array([ids], np.int64))
