"""How many pieces of a stream one core passes on, per second:
``python -m tests.gateway.api.openai.stream_speed``.

CPU time of this process, without sockets: a model's response, read and written as an event.
"""

import time

from gateway.api.openai.generation import Generation, GenerationRequest, Prompt, TokenCounts
from gateway.api.openai.tools import Tools
from gateway.api.openai.writers import ChatWriter
from gateway.models.text_binding import Binding
from tests.gateway.llm import MODEL, response

PIECES, ROUNDS = 20_000, 5
BINDING = Binding.compile({"tools": {}, "reasoning": {}}, MODEL.inputs, MODEL.outputs)
PLAIN = Binding.compile({}, MODEL.inputs, MODEL.outputs)
NUMBERS = {"num_input_tokens": 20, "num_output_tokens": 1}
TOKEN = response(text_output=b" token", finish_reason=b"None", **NUMBERS)


def pieces_a_second(binding: Binding, tools: Tools | None, stop: tuple[str, ...]) -> float:
    """The best of some rounds."""
    request = GenerationRequest([Prompt("text_input", [""])], {"stop": stop}, tools=tools)
    best = 0.0
    for _ in range(ROUNDS):
        writer = ChatWriter("id", "llm", request)
        generation = Generation(binding, request, TokenCounts())
        began = time.process_time()
        for _ in range(PIECES):
            writer.piece(generation.feed(TOKEN))
        best = max(best, PIECES / (time.process_time() - began))
    return best


def main() -> None:
    rows = {
        "text": (PLAIN, None, ()),
        "text, 4 stops": (PLAIN, None, ("END", "\n\nUser:", "###", "stop")),
        "reasoning and tools": (BINDING, Tools([], "auto"), ()),
    }
    for name, (binding, tools, stop) in rows.items():
        print(f"{name:20} {pieces_a_second(binding, tools, stop):10,.0f} pieces/s")  # noqa: T201


if __name__ == "__main__":
    main()
