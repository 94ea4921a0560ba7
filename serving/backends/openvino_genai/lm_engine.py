"""The engine's process, which the model's process in Triton starts and watches (lm_supervisor):

    python lm_engine.py FOLDER       lm_jobs' lines in, until the input ends, and out

A process of its own, because what fails in native code ends its process: Triton 2.51 loses the
requests of a model whose process ends, and often ends itself.
"""

import contextlib
import ctypes
import json
import os
import signal
import sys
import threading
from dataclasses import astuple
from pathlib import Path
from typing import Any, BinaryIO

sys.path.insert(0, str(Path(__file__).parent))  # Python is isolated: it does not add it

import lm_sampling
from lm_driver import Driver, Job, Piece
from lm_jobs import Load, Question, SentPiece, failure_line, line
from lm_sampling import Refused
from lm_settings import ModelRefused, Settings
from lm_tokens import Tokenizer, reply_to, text_of

_PR_SET_PDEATHSIG = 1
OOM_SCORE = "500"  # if memory runs out, this process ends, which is soon replaced, and not Triton


class Replies:
    """Lines to the model's process, from any thread."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._lock = file, threading.Lock()

    def send(self, data: bytes) -> None:
        with self._lock:
            self._file.write(data)
            self._file.flush()


class Asked:
    """One request, as the driver sees it."""

    def __init__(
        self, number: int, question: Question, tokenizer: Tokenizer, replies: Replies
    ) -> None:
        """Raises Refused."""
        self.number, self.is_cancelled = number, False
        self._replies = replies
        prompt = question.prompt
        if question.prompt_ids:
            try:
                prompt = text_of(tokenizer.token_bytes, question.prompt_ids)
            except Refused as error:
                raise Refused(f"the prompt: {error}") from None
        self._echo = prompt if question.echoes else ""
        sampling = lm_sampling.parse(question.parameters)
        self.job = Job(
            prompt=prompt,
            prompt_ids=question.prompt_ids,
            sampling=sampling,
            is_stream=question.is_stream,
            wants_logprobs=sampling.logprobs is not None or question.wants_cumulative,
            send=self._send,
            fail=self._fail,
            is_cancelled=lambda: self.is_cancelled,
        )
        self.is_over = False

    def _send(self, job: Job, pieces: list[Piece], is_last: bool) -> None:
        self.is_over = is_last
        sent = [
            SentPiece(
                self._echo + piece.text,
                piece.tokens,
                piece.finish_reason,
                _logprobs(job, piece),
                piece.logprob_sum,
            )
            for piece in pieces
        ]
        tuples = [astuple(piece) for piece in sent]
        self._replies.send(line("send", self.number, job.prompt_tokens, tuples, is_last))

    def _fail(self, job: Job, error: Exception) -> None:
        self.is_over = True
        self._replies.send(failure_line(self.number, error))


def _logprobs(job: Job, piece: Piece) -> str:
    """JSON; ``null`` unless they were asked for."""
    if job.sampling.logprobs is None:
        return "null"
    rank = 1 if job.sampling.logprobs else None  # of a sampled token, the engine does not say
    return json.dumps(
        [
            {str(token): {"logprob": value, "rank": rank, "decoded_token": text}}
            for token, value, text in piece.logprobs
        ]
    )


class Listener:
    """Hands the lines that come in to the driver."""

    def __init__(self, driver: Driver, replies: Replies) -> None:
        self._driver, self._replies = driver, replies
        self._asked: dict[int, Asked] = {}

    def hear(self, message: list[Any]) -> None:
        kind, number, *values = message
        if kind == "cancel":
            if number in self._asked:
                self._asked[number].is_cancelled = True
            return
        question = Question(*values)
        try:
            if question.tokenizer_request:
                text = reply_to(self._driver, question.tokenizer_request)
                piece = SentPiece(text, 0, None, "null", 0.0)
                self._replies.send(line("send", number, 0, [astuple(piece)], True))
                return
            asked = Asked(number, question, self._driver, self._replies)
            self._driver.submit(asked.job)
        except Exception as error:
            self._replies.send(failure_line(number, error))
            return
        self._asked = {number: one for number, one in self._asked.items() if not one.is_over}
        self._asked[number] = asked


def main(folder: Path) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # A Ctrl-C goes to the whole group of processes, but requests may finish: the input ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(OOM_SCORE)
    replies = Replies(os.fdopen(os.dup(1), "wb"))
    os.dup2(2, 1)  # what the libraries print is no reply

    def report(load: Load) -> None:
        replies.send(line("load", *astuple(load)))

    def died(error: Exception) -> None:
        sys.stderr.write(f"the engine failed: {error!r}\n")
        sys.stderr.flush()
        os._exit(1)

    try:
        driver = Driver(folder, Settings.read(folder), report, died)
        driver.start()
        driver.wait_ready()
    except (ModelRefused, Refused, RuntimeError) as error:
        replies.send(line("refused", str(error)))
        return
    replies.send(line("ready"))
    listener = Listener(driver, replies)
    for data in sys.stdin.buffer:
        listener.hear(json.loads(data))
    driver.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
