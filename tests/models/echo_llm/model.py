"""A language model's stand-in: says again the last user's words, one token each.

It follows the contract of Triton's vLLM backend. Temperature shuffles the words, by seed. Commands
among the words make it misbehave: ``[repeat N]`` says them N times, ``[delay S]`` waits so many
seconds before each token, ``[fail N]`` fails after N tokens, ``[die N]`` ends the process,
``[hang N]`` falls silent after N, ``[overrun]`` does not keep ``stop``, ``[made]`` and
``[cancelled]`` say how many tokens were made and how many requests were found cancelled.
"""

import itertools
import json
import os
import random
import re
import threading
import time

import numpy as np
import triton_python_backend_utils as pb_utils

DELAY_S = 0.002
MANY = 1_000_000  # tokens
HANG_S = 3
USER, END = "<|im_start|>user\n", "<|im_end|>"
COMMAND = re.compile(r"\[(\w+)(?: ([\d.]+))?\] ?")
TOKEN = re.compile(r"\s*\S+")


class TritonPythonModel:
    def initialize(self, args):
        self.made = self.cancelled = 0

    def execute(self, requests):
        for request in requests:
            work = (request, request.get_response_sender())
            threading.Thread(target=self._answer, args=work, daemon=True).start()

    def _answer(self, request, sender):
        try:
            asked = Asked(request)
            final = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
            responses = self._responses(asked, sender)
            before = next(responses, None)
            for response in responses:
                sender.send(before)
                before = response
            if before:
                sender.send(before, final)
            else:
                sender.send(flags=final)
        except Exception as error:
            fault = pb_utils.TritonError(f"secret path /root/model.bin: {error}")
            sender.send(pb_utils.InferenceResponse(error=fault), final)

    def _responses(self, asked, sender):
        """One a token, or one in all; none when the caller has gone."""
        text, count = asked.echoed, 0
        for token, reason in asked.tokens(self):
            if sender.is_cancelled():
                self.cancelled += 1
                return
            self.made += bool(token)
            text, count = text + token, count + bool(token)
            if asked.stream:
                yield asked.response(token, reason, 1)
        if not asked.stream:
            yield asked.response(text, reason, count)


class Asked:
    """What one request says."""

    def __init__(self, request):
        self.prompt = _text(request, "text_input")
        self.stream = _flag(request, "stream", False)
        exclude = _flag(request, "exclude_input_in_output", self.stream)
        if self.stream and not exclude:
            raise ValueError("when streaming, exclude_input_in_output = False is not allowed")
        self.echoed = "" if exclude else self.prompt
        self.sampling = json.loads(_text(request, "sampling_parameters") or request.parameters())
        self.returned = {
            name: _flag(request, f"return_{name}", False)
            for name in ("finish_reason", "num_input_tokens", "num_output_tokens")
        }
        text = self._last_user_text()
        self.commands = {name: float(value or 0) for name, value in COMMAND.findall(text)}
        self.words = COMMAND.sub("", text)

    def _last_user_text(self):
        """Of the last turn that has an end; the whole prompt if there is none."""
        start = self.prompt.rfind(USER, 0, self.prompt.rfind(END) + 1)
        if start < 0:
            return self.prompt
        start += len(USER)
        return self.prompt[start : self.prompt.index(END, start)]

    def tokens(self, model):
        """(text, why it ends or "None"), each."""
        most = int(self.sampling.get("max_tokens", 16))
        words = self._said(model, most + 1)
        stops = [] if "overrun" in self.commands else self.sampling.get("stop", [])
        whole = "".join(words[:most])
        end = min((at for at in map(whole.find, stops) if at >= 0), default=len(whole))
        reason = "length" if len(words) > most and end == len(whole) else "stop"
        at = 0
        for place, word in enumerate(words[:most]):
            self._misbehave(place)
            token, at = whole[at : min(at + len(word), end)], at + len(word)
            yield token, reason if at >= end else "None"
            if at >= end:
                return

    def _said(self, model, most):
        """All its words, or at least the first ``most``."""
        if "made" in self.commands or "cancelled" in self.commands:
            return [str(model.made if "made" in self.commands else model.cancelled)]
        is_shuffled = self.sampling.get("temperature", 0) > 0
        if not is_shuffled and "repeat" not in self.commands and 0 < most <= MANY:
            tokens = [match[0] for match in itertools.islice(TOKEN.finditer(self.words), most)]
            return tokens or ["nothing"]
        tokens = TOKEN.findall(self.words) * int(self.commands.get("repeat", 1))
        if is_shuffled:
            random.Random(self.sampling.get("seed")).shuffle(tokens)  # noqa: S311 - no secret
        return tokens or ["nothing"]

    def _misbehave(self, place):
        time.sleep(self.commands.get("delay", DELAY_S))
        if self.commands.get("fail") == place:
            raise RuntimeError("told to fail")
        if self.commands.get("die") == place:
            os._exit(1)
        if self.commands.get("hang") == place:
            time.sleep(HANG_S)

    def response(self, text, reason, count):
        outputs = [_strings("text_output", text)]
        if self.returned["finish_reason"]:
            outputs.append(_strings("finish_reason", reason))
        for name, count_of in (
            ("num_input_tokens", lambda: len(TOKEN.findall(self.prompt))),
            ("num_output_tokens", lambda: count),
        ):
            if self.returned[name]:
                outputs.append(pb_utils.Tensor(name, np.array([count_of()], dtype=np.uint32)))
        return pb_utils.InferenceResponse(outputs)


def _text(request, name):
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return tensor.as_numpy().item().decode() if tensor else ""


def _flag(request, name, default):
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return bool(tensor.as_numpy().item()) if tensor else default


def _strings(name, text):
    return pb_utils.Tensor(name, np.array([text.encode()], dtype=object))
