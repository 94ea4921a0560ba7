"""What a sign-off is asked to do, handed from the command line to the process that does it."""

import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

OBJECTIVES = Path(__file__).parent.parent / "slo.toml"
ARRIVALS = ("poisson", "constant", "bursty")
PROFILE_NAMES = ("smoke", "quick", "full")


@dataclass(frozen=True)
class Options:
    """``target`` is a gateway's URL, '' for a stack of its own over ``repository``; ``pipelines``
    are those of the file of objectives to sign off, empty for all. ``only_target`` leaves out the
    search, the curve and the overload. With ``scale_to`` the highest rate is also measured with
    1, 2, ... so many replicas, each in a stack of its own. ``arrivals`` and ``burst``
    overrule those of the objectives, '' for none. ``keys`` is a file of the tenants' keys
    (loadtests/signoff/tenants.py), None for one caller.
    ``trace`` is replayed instead of loads at a rate, ``speed`` times as fast as it was recorded.
    ``kill_replica`` kills one of two replicas of a stack of its own, ``allow_kill`` is the process
    id of a replica of the target that may be killed, 0 for none.
    ``cross_check`` compares with perf_analyzer. ``generators`` are so many processes that load."""

    pipelines: tuple[str, ...]
    target: str
    grpc_address: str
    objectives: Path
    profile: str
    out: Path
    repository: Path
    as_json: bool
    only_target: bool = False
    scale_to: int = 1
    arrivals: str = ""
    burst: str = ""
    keys: Path | None = None
    trace: Path | None = None
    speed: float = 1.0
    kill_replica: bool = False
    allow_kill: int = 0
    cross_check: bool = False
    generators: int = 1

    def to_argument(self) -> str:
        return json.dumps(asdict(self), default=str)

    @classmethod
    def of_argument(cls, argument: str) -> "Options":
        fields = json.loads(argument)
        paths = {name: Path(fields[name]) for name in ("objectives", "out", "repository")}
        paths |= {name: Path(fields[name]) for name in ("keys", "trace") if fields[name]}
        return cls(**{**fields, **paths, "pipelines": tuple(fields["pipelines"])})


def become_generator(options: Options) -> NoReturn:
    """Replace this process with the load generator's, which gevent patches from its start: its exit
    code, its Ctrl-C and its output are the command's."""
    arguments = [sys.executable, "-m", "loadtests.signoff", options.to_argument()]
    sys.stdout.flush()
    os.execv(sys.executable, arguments)  # noqa: S606 - our own argument list, no shell
