"""Triton backend "openvino_genai": language models on a CPU, many streams at once, under the
contract of Triton's vLLM backend (docs/chat-engine.md).

Triton copies nothing in: this folder, with libtriton_python.so in ``python/`` beside it, *is* the
backend. It must not contain an ``__init__.py``, which would shadow the real package. A model's
version folder holds ``model.gguf`` or OpenVINO's own format, and ``model.json`` (lm_settings.py).

lm_request.py is between Triton's tensors and lm_supervisor.py, which has the engine in a process
of its own. There lm_driver.py runs it, lm_sampling.py reads what a request asks for, lm_text.py
cuts text, and lm_tokens.py answers what only concerns the tokenizer.
"""

import sys
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import triton_python_backend_utils as pb_utils
from lm_jobs import Busy
from lm_request import FINAL, LmRequest, Metrics, failure, left_request
from lm_sampling import Refused
from lm_settings import ModelRefused, Settings
from lm_supervisor import EngineFailed, Supervisor


class TritonPythonModel:
    """One model: an engine in a process of its own."""

    def initialize(self, args: dict[str, str]) -> None:
        folder = Path(args["model_repository"]) / args["model_version"]
        model = args["model_name"]
        # Those under way, by id: the supervisor holds them.
        self._under_way: WeakValueDictionary[str, LmRequest] = WeakValueDictionary()
        # Isolated, as Triton's own Python is: the packages are those of the interpreter.
        engine = [sys.executable, "-I", str(Path(__file__).with_name("lm_engine.py")), str(folder)]
        try:
            settings = Settings.read(folder)
            self._engine = Supervisor(
                engine,
                settings.max_queue_requests + settings.max_running,
                settings.max_step_s,
                Metrics(model, args["model_version"]).set,
                lambda text: pb_utils.Logger.log_error(f"model '{model}': {text}"),
            )
            self._engine.start()
            self._engine.wait_ready()
        except (ModelRefused, EngineFailed) as error:
            raise pb_utils.TritonModelException(f"model '{model}': {error}") from None

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            sender = request.get_response_sender()
            try:
                if left := left_request(request):
                    self._leave(left)
                    sender.send(flags=FINAL)
                    continue
                asked = LmRequest(request, sender)
                self._engine.submit(asked)
                if request.request_id():
                    self._under_way[request.request_id()] = asked
            except (Refused, Busy) as error:
                sender.send(failure(error), FINAL)

    def _leave(self, identifier: str) -> None:
        """Stop working for this request, if it is still under way."""
        asked = self._under_way.get(identifier)
        if asked:
            asked.leave()

    def finalize(self) -> None:
        self._engine.stop()
