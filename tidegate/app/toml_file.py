"""Edits a TOML file that people write too: comments and layout stay as they were written."""

import re
from collections.abc import Callable

import tomlkit

END = "# end"  # as the last line, it tells a gateway that the file is complete
_END = re.compile(rf"^{END}\s*\Z", re.MULTILINE)


def edited(text: str, edit: Callable[[tomlkit.TOMLDocument], None]) -> str:
    """The text after ``edit`` has changed the document; ``END`` stays the last line.

    Raises ValueError when the text is not TOML.
    """
    document = tomlkit.parse(_END.sub("", text))
    edit(document)
    lines = [tomlkit.dumps(document).strip(), *([END] if _END.search(text) else [])]
    return "".join(f"{line}\n" for line in lines if line)
