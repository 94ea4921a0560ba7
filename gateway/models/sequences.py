"""Sequence ids: the client's mapped to ours, so that no tenant can reach into another's sequence.

Ours is a keyed hash of whose it is. So every worker and every replica of the gateway gives the same
one, nothing is kept that could grow or would have to expire, and nobody without the pepper can tell
which id another tenant's sequence has. That two sequences under way meet has a chance of
about n**2 / 2**64: for a million at once, 5 in 100 million.
"""

import hashlib
import secrets
from pathlib import Path
from typing import Any

from gateway.errors import Malformed

SEQUENCE_ID = "sequence_id"


class SequenceIds:
    """Without a pepper the secret is this process's own: sequences then stay with one worker."""

    def __init__(self, pepper_file: Path) -> None:
        pepper = pepper_file.read_bytes() if pepper_file.exists() else b""
        secret = pepper or secrets.token_bytes(32)
        self._keyed = hashlib.blake2b(key=secret[:64], digest_size=8, person=b"tg-sequence")

    def put_own(self, request: Any, tenant: str) -> None:
        """Put our sequence id in the place of the client's, in a ModelInferRequest; Malformed if it
        is not an id."""
        if SEQUENCE_ID not in request.parameters:
            return
        given = request.parameters[SEQUENCE_ID]
        kind = given.WhichOneof("parameter_choice")
        if kind not in ("int64_param", "uint64_param", "string_param"):
            raise Malformed("sequence_id must be an integer or a string", param=SEQUENCE_ID)
        own = self.own(tenant, request.model_name, getattr(given, kind))
        if isinstance(own, str):
            given.string_param = own
        else:
            given.int64_param = own  # the kind that every release of Triton takes

    def own(self, tenant: str, model: str, given: int | str) -> int | str:
        """Our id for the client's, of the same kind; 0 and '' mean no sequence, and stay.

        Numbers are 1 to 2**63 - 1, texts their hexadecimal digits.
        """
        if not given:
            return given
        keyed = self._keyed.copy()
        keyed.update(repr((tenant, model, given)).encode())
        number = int.from_bytes(keyed.digest()) >> 1 or 1
        return number if isinstance(given, int) else f"{number:016x}"
