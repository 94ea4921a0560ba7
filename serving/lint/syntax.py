"""Where Triton's reader of config.pbtxt (C++) and protobuf's Python reader differ."""

import re
from collections.abc import Iterator

_PART = re.compile(
    r"""(?P<comment>\#[^\n]*)|(?P<string>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')|(?P<code>[^#"']+|.)""",
    re.DOTALL,
)
_BAD_ESCAPE = re.compile(r"""\\(?:[^abfnrtv?'"\\0-7xXuU]|[xX][^0-9a-fA-F])""", re.DOTALL)
_ESCAPE = re.compile(r"\\.", re.DOTALL)
_NOT_ASCII = re.compile(r"[^\t\n\v\f\r -~]")
# Python accepts these as numbers, C++ does not.
_NOT_A_NUMBER = re.compile(r"\+\s*[0-9.]+|(?<![\w.])(?:[0-9]+_[0-9_]+|[0-9.]+[fF]{2,})")
# C++ accepts these, Python does not: a space after the sign, and 0x1 or 01 for true.
_SPACED_MINUS = re.compile(r"-\s+(?=[0-9.])")
_ODD_BIT = re.compile(r"(?<![\w.])0[xX]?0*([01])(?![\w.])")


def as_triton_reads(text: str) -> str:
    """The text, rewritten so that the Python reader reads it as Triton does; ValueError names a
    line that only the Python reader would accept."""
    return "".join(_parts(text))


def _parts(text: str) -> Iterator[str]:
    for part in _PART.finditer(text):
        content = part[0]
        if part["string"] is not None:
            for escape in _ESCAPE.finditer(content):
                if _BAD_ESCAPE.match(content, escape.start()):
                    message = f"{escape[0]!r} is not an escape sequence"
                    raise _fault(text, part.start() + escape.start(), message)
        elif part["code"] is not None:
            character = _NOT_ASCII.search(content)
            if character:
                message = f"the character {character[0]!r} is outside quotes"
                raise _fault(text, part.start() + character.start(), message)
            number = _NOT_A_NUMBER.search(content)
            if number:
                message = f"{number[0]!r} is not a number"
                raise _fault(text, part.start() + number.start(), message)
            content = _ODD_BIT.sub(r"\1", _SPACED_MINUS.sub("-", content))
        yield content


def _fault(text: str, offset: int, message: str) -> ValueError:
    line = text.count("\n", 0, offset) + 1
    column = offset - text.rfind("\n", 0, offset)
    return ValueError(f"config.pbtxt does not parse: {line}:{column} : {message}")
