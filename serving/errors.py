"""What can go wrong while serving.

ServingError                 the message says what failed and what to do
|- TritonMissing             there is no tritonserver, or a library that it needs is missing
|- PortTaken                 something else listens on a port that was requested
|- DeadlineExceeded            no answer in time, or a full queue: Triton is busy, or hangs
|- TritonDied                the server process ended by itself
|- ModelLoadFailed           Triton refused a model; carries its name
|  `- StubCrashed            one of its Python processes lost a race: a new server will load it
|- PublishFailed             nothing was published
|- RepositoryBusy            another publisher holds the repository's lock
|- Tampered                  a file differs from its manifest; carries the file's name
|- RolloutStopped            some replicas serve the new version, and others do not
`- NotOurServer              a server runs on the repository, and its key cannot be read
"""


class ServingError(RuntimeError):
    """The base of the tree above."""


class TritonMissing(ServingError):
    pass


class PortTaken(ServingError):
    pass


class DeadlineExceeded(ServingError):
    pass


class TritonDied(ServingError):
    pass


class ModelLoadFailed(ServingError):
    def __init__(self, model: str, reason: str) -> None:
        super().__init__(f"model {model} failed to load: {reason}")
        self.model = model


class StubCrashed(ModelLoadFailed):
    pass


class PublishFailed(ServingError):
    pass


class RepositoryBusy(ServingError):
    pass


class Tampered(ServingError):
    def __init__(self, file: str, what: str) -> None:
        super().__init__(
            f"{file} {what}: it is not what was proved and published; nothing was changed"
        )
        self.file = file


class RolloutStopped(ServingError):
    pass


class NotOurServer(ServingError):
    pass
