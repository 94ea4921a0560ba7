"""The contract of Triton's vLLM backend, as one table of expectations.

Each asks a served model something and asserts what the contract says of the answer, so it holds for
every model: ``tests/conformance/test_conformance.py`` runs the table on our engine, and

    python -m tests.conformance --url HOST:GRPC --model NAME

on any server. Only tritonclient and numpy are needed.
"""

import json
import queue
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

PROMPT = "<|im_start|>user\nCount from one to ten.<|im_end|>\n<|im_start|>assistant\n"
GREEDY: Mapping[str, Any] = {"temperature": 0, "max_tokens": 12, "ignore_eos": True}
RETURNS = (
    "return_finish_reason",
    "return_cumulative_logprob",
    "return_logprobs",
    "return_num_input_tokens",
    "return_num_output_tokens",
)


@dataclass
class Answer:
    """The responses, each with its outputs by name, and the error that ended them ('' if none)."""

    responses: list[dict[str, np.ndarray]]
    error: str

    def joined(self, sequence: int = 0) -> str:
        return "".join(one["text_output"][sequence].decode() for one in self.responses)

    def last(self, output: str) -> np.ndarray:
        return self.responses[-1][output]


class Server:
    """A model on a server. ``timeout_s`` is for each response."""

    def __init__(self, address: str, model: str, timeout_s: float = 60) -> None:
        self._address, self._model, self._timeout_s = address, model, timeout_s

    def ask(
        self,
        sampling: Mapping[str, Any] | str | None = GREEDY,
        prompt: str = PROMPT,
        stream: bool | None = True,
        exclude: bool | None = None,
        returns: tuple[str, ...] = RETURNS,
        parameters: Mapping[str, Any] | None = None,
    ) -> Answer:
        """What the model answers. None leaves an input out; ``parameters`` are Triton's own."""
        inputs = [_tensor("text_input", prompt)]
        if sampling is not None:
            text = sampling if isinstance(sampling, str) else json.dumps(sampling)
            inputs.append(_tensor("sampling_parameters", text))
        if stream is not None:
            inputs.append(_tensor("stream", stream))
        if exclude is not None:
            inputs.append(_tensor("exclude_input_in_output", exclude))
        inputs += [_tensor(name, True) for name in returns]
        arrived: queue.Queue[tuple[Any, Any]] = queue.Queue()
        responses: list[dict[str, np.ndarray]] = []
        with grpc.InferenceServerClient(self._address) as client:
            client.start_stream(lambda result, error: arrived.put((result, error)))
            client.async_stream_infer(
                self._model, inputs, enable_empty_final_response=True, parameters=parameters
            )
            while True:
                result, error = arrived.get(timeout=self._timeout_s)
                if error:
                    return Answer(responses, str(error))
                response = result.get_response()
                if response.outputs:
                    names = [output.name for output in response.outputs]
                    responses.append({name: result.as_numpy(name) for name in names})
                if response.parameters["triton_final_response"].bool_param:
                    return Answer(responses, "")


def _tensor(name: str, value: str | bool) -> grpc.InferInput:
    dtype = "BOOL" if isinstance(value, bool) else "BYTES"
    array = np.array([value], np.bool_) if dtype == "BOOL" else np.array([value.encode()], object)
    tensor = grpc.InferInput(name, [1], dtype)
    tensor.set_data_from_numpy(array)
    return tensor


def text_is_streamed_as_deltas(server: Server) -> None:
    streamed, whole = server.ask(), server.ask(stream=False, exclude=True)
    assert len(streamed.responses) > 2
    assert len(whole.responses) == 1
    assert streamed.joined() == whole.joined() != ""
    assert not streamed.joined().startswith(PROMPT)


def prompt_is_prepended_unless_streaming(server: Server) -> None:
    without = server.ask(stream=False, exclude=True).joined()
    assert server.ask(stream=False).joined() == PROMPT + without
    assert server.ask(stream=None).joined() == PROMPT + without


def prompt_cannot_be_prepended_to_a_stream(server: Server) -> None:
    assert server.ask(exclude=False).error


def finish_reason_is_none_until_the_last(server: Server) -> None:
    reasons = [one["finish_reason"][0] for one in server.ask().responses]
    assert reasons[-1] == b"length"
    assert set(reasons[:-1]) == {b"None"}
    assert server.ask(stream=False).last("finish_reason")[0] == b"length"


def input_tokens_are_a_scalar_on_every_response(server: Server) -> None:
    counts = [one["num_input_tokens"] for one in server.ask().responses]
    assert {(count.shape, count.dtype, int(count)) for count in counts} == {
        ((), np.dtype(np.uint32), int(counts[0]))
    }
    assert int(counts[0]) > 5


def output_tokens_are_deltas(server: Server) -> None:
    counts = [one["num_output_tokens"] for one in server.ask().responses]
    assert {count.shape for count in counts} == {(1,)}
    assert {count.dtype for count in counts} == {np.dtype(np.uint32)}
    assert sum(int(count[0]) for count in counts) == GREEDY["max_tokens"]


def logprobs_are_null_unless_asked_for(server: Server) -> None:
    for answer in (server.ask(), server.ask(stream=False)):
        assert {one["logprobs"][0] for one in answer.responses} == {b"null"}


def logprobs_are_deltas_by_token_id(server: Server) -> None:
    answer = server.ask({**GREEDY, "logprobs": 0})
    total, entries = 0.0, 0
    for response in answer.responses:
        for entry in json.loads(response["logprobs"][0]):
            ((token, chosen),) = entry.items()
            assert token.isdecimal()
            assert set(chosen) == {"logprob", "rank", "decoded_token"}
            total, entries = total + chosen["logprob"], entries + 1
    assert entries == GREEDY["max_tokens"]
    assert abs(total - float(answer.last("cumulative_logprob")[0])) < 1e-3


def outputs_are_returned_only_if_asked_for(server: Server) -> None:
    assert set(server.ask(returns=()).responses[-1]) == {"text_output"}
    assert set(server.ask().responses[-1]) == {
        "text_output",
        *(name.removeprefix("return_") for name in RETURNS),
    }


def numbers_may_be_strings(server: Server) -> None:
    as_text = {"temperature": "0", "max_tokens": "12", "ignore_eos": True}
    assert server.ask(as_text).joined() == server.ask().joined()


def sixteen_tokens_unless_told(server: Server) -> None:
    answer = server.ask({"temperature": 0, "ignore_eos": True}, stream=False)
    assert int(answer.last("num_output_tokens")[0]) == 16


def n_sequences_in_one_output(server: Server) -> None:
    sampling = {"n": 3, "temperature": 1, "seed": 1, "max_tokens": 6, "ignore_eos": True}
    whole = server.ask(sampling, stream=False, exclude=True)
    assert whole.last("text_output").shape == (3,)
    assert whole.last("finish_reason").tolist() == [b"length"] * 3
    assert whole.last("num_output_tokens").tolist() == [6] * 3
    assert len(set(whole.last("text_output").tolist())) > 1


def n_sequences_are_streamed_together(server: Server) -> None:
    sampling = {"n": 3, "temperature": 1, "seed": 1, "max_tokens": 6, "ignore_eos": True}
    answer = server.ask(sampling)
    assert len(answer.responses) > 1
    for output in ("text_output", "finish_reason", "num_output_tokens", "cumulative_logprob"):
        assert {one[output].shape for one in answer.responses} == {(3,)}, output
    assert {one["num_input_tokens"].shape for one in answer.responses} == {()}
    counts = np.sum([one["num_output_tokens"] for one in answer.responses], axis=0)
    assert counts.tolist() == [6] * 3
    assert len({answer.joined(sequence) for sequence in range(3)}) > 1


def request_parameters_are_sampling_parameters(server: Server) -> None:
    asked = {"temperature": "0", "max_tokens": 12, "ignore_eos": True}
    assert server.ask(None, parameters=asked).joined() == server.ask().joined()


def one_candidate_is_greedy(server: Server) -> None:
    """top_k, top_p and min_p that leave one token, at a temperature."""
    greedy = server.ask().joined()
    for sampling in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1}):
        assert server.ask({**GREEDY, "temperature": 1, **sampling}).joined() == greedy, sampling


def penalties_change_the_text(server: Server) -> None:
    # What any model continues with more of the same, which is what is penalized.
    prompt, asked = "one two " * 6, {**GREEDY, "max_tokens": 24}
    plain = server.ask(asked, prompt).joined()
    for penalty in (
        {"repetition_penalty": 5},
        {"presence_penalty": 2},
        {"frequency_penalty": 2},
    ):
        assert server.ask({**asked, **penalty}, prompt).joined() != plain, penalty


def min_tokens_put_the_end_off(server: Server) -> None:
    asked = {"temperature": 0, "max_tokens": 40, "min_tokens": 40}
    assert int(server.ask(asked, stream=False).last("num_output_tokens")[0]) == 40


def a_seed_repeats(server: Server) -> None:
    sampling = {"temperature": 1, "seed": 42, "max_tokens": 12, "ignore_eos": True}
    assert (
        server.ask(sampling).joined() == server.ask(sampling, stream=False, exclude=True).joined()
    )


def a_stop_string_is_not_sent(server: Server) -> None:
    text = server.ask().joined()
    stop = text[len(text) // 2 :][:3]
    for stream in (True, False):
        answer = server.ask({**GREEDY, "stop": [stop]}, stream=stream, exclude=True)
        assert answer.joined() == text[: text.index(stop)]
        assert answer.last("finish_reason")[0] == b"stop"
    kept = server.ask({**GREEDY, "stop": stop, "include_stop_str_in_output": True})
    assert kept.joined() == text[: text.index(stop) + len(stop)]


def a_token_stops(server: Server) -> None:
    answer = server.ask({**GREEDY, "logprobs": 0})
    tokens = [
        next(iter(entry))
        for response in answer.responses
        for entry in json.loads(response["logprobs"][0])
    ]
    stop = tokens[4]
    stopped = server.ask({**GREEDY, "stop_token_ids": [int(stop)]})
    assert answer.joined().startswith(stopped.joined())
    assert stopped.last("finish_reason")[0] == b"stop"
    count = sum(int(one["num_output_tokens"][0]) for one in stopped.responses)
    assert count == tokens.index(stop) + 1


def structures_are_json_in_json(server: Server) -> None:
    schema = {
        "type": "object",
        "properties": {"answer": {"enum": ["yes", "no"]}},
        "required": ["answer"],
        "additionalProperties": False,
    }
    asked = {"temperature": 0, "max_tokens": 60}
    structure = json.dumps({"json": schema})
    answer = server.ask({**asked, "structured_outputs": structure})
    assert json.loads(answer.joined())["answer"] in ("yes", "no")
    answer = server.ask({**asked, "structured_outputs": json.dumps({"json_object": True})})
    assert answer.joined().lstrip().startswith("{")
    grammar = {"grammar": 'root ::= "yes" | "no"'}
    assert server.ask({**asked, "structured_outputs": json.dumps(grammar)}).joined() in "yes no"
    for structure, expected in (
        ({"choice": ["red", "green"]}, ("red", "green")),
        ({"regex": "[ab]{3}"}, tuple(a + b + c for a in "ab" for b in "ab" for c in "ab")),
    ):
        answer = server.ask({**asked, "structured_outputs": json.dumps(structure)})
        assert answer.joined() in expected


def what_is_wrong_is_an_error(server: Server) -> None:
    for sampling in (
        "no JSON",
        "[]",
        {"temperature": "hot"},
        {"temperature": -1},
        {"top_p": 2},
        {"max_tokens": 0},
        {"structured_outputs": '{"json": {"type": "object"}, "regex": "a"}'},
        {"structured_outputs": '{"json": {"type": "no-such-type"}}'},
        {"structured_outputs": '{"regex": "(["}'},
        {"lora_name": "no-such-adapter"},
    ):
        answer = server.ask(sampling)
        assert answer.error, sampling
        assert not answer.responses, sampling
    assert server.ask().joined(), "and it still serves"


def a_prompt_beyond_the_context_is_an_error(server: Server) -> None:
    answer = server.ask(prompt="word " * 200_000)
    assert answer.error
    assert not answer.responses


CONTRACT: tuple[Callable[[Server], None], ...] = (
    text_is_streamed_as_deltas,
    prompt_is_prepended_unless_streaming,
    prompt_cannot_be_prepended_to_a_stream,
    finish_reason_is_none_until_the_last,
    input_tokens_are_a_scalar_on_every_response,
    output_tokens_are_deltas,
    logprobs_are_null_unless_asked_for,
    logprobs_are_deltas_by_token_id,
    outputs_are_returned_only_if_asked_for,
    numbers_may_be_strings,
    sixteen_tokens_unless_told,
    n_sequences_in_one_output,
    n_sequences_are_streamed_together,
    request_parameters_are_sampling_parameters,
    one_candidate_is_greedy,
    penalties_change_the_text,
    min_tokens_put_the_end_off,
    a_seed_repeats,
    a_stop_string_is_not_sent,
    a_token_stops,
    structures_are_json_in_json,
    what_is_wrong_is_an_error,
    a_prompt_beyond_the_context_is_an_error,
)


def failures(server: Server) -> dict[str, str]:
    """The expectations that do not hold, and why."""
    failed = {}
    for expectation in CONTRACT:
        try:
            expectation(server)
        except (AssertionError, InferenceServerException, queue.Empty, KeyError, ValueError) as why:
            failed[expectation.__name__] = repr(why)
    return failed
