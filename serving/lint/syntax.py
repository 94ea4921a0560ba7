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
# Python takes these for numbers, and C++ does not.
_NO_NUMBER = re.compile(r"\+\s*[0-9.]+|(?<![\w.])(?:[0-9]+_[0-9_]+|[0-9.]+[fF]{2,})")
# And these the other way: a space behind the sign, and 0x1 or 01 for true.
_SPACED_MINUS = re.compile(r"-\s+(?=[0-9.])")
_ODD_BIT = re.compile(r"(?<![\w.])0[xX]?0*([01])(?![\w.])")


def as_triton_reads(text: str) -> str:
    """The text in words that the Python reader takes alike; ValueError names the line that only
    that one would take."""
    return "".join(_parts(text))


def _parts(text: str) -> Iterator[str]:
    for part in _PART.finditer(text):
        found = part[0]
        if part["string"] is not None:
            for escape in _ESCAPE.finditer(found):
                if _BAD_ESCAPE.match(found, escape.start()):
                    raise _fault(text, part.start() + escape.start(), f"{escape[0]!r} is no escape")
        elif part["code"] is not None:
            strange = _NOT_ASCII.search(found)
            if strange:
                says = f"the character {strange[0]!r} stands outside quotes"
                raise _fault(text, part.start() + strange.start(), says)
            number = _NO_NUMBER.search(found)
            if number:
                says = f"{number[0]!r} is no number"
                raise _fault(text, part.start() + number.start(), says)
            found = _ODD_BIT.sub(r"\1", _SPACED_MINUS.sub("-", found))
        yield found


def _fault(text: str, offset: int, says: str) -> ValueError:
    line = text.count("\n", 0, offset) + 1
    column = offset - text.rfind("\n", 0, offset)
    return ValueError(f"config.pbtxt does not parse: {line}:{column} : {says}")
