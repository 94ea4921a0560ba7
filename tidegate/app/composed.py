"""What composed pipelines have in common."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from modelspec.model import Pipeline

if TYPE_CHECKING:
    from tritonclient.grpc import InferenceServerClient, InferResult

    from serving.repository.model_repository import ModelRepository

_DEADLINE_S = 120.0


class Composition(Protocol):
    """A pipeline that is composed of other pipelines."""

    @property
    def name(self) -> str:
        """Its own."""

    @property
    def members(self) -> Sequence[str]:
        """The pipelines that it is composed of."""

    @property
    def has_their_steps(self) -> bool:
        """Whether their steps are steps of this one, at the versions that were active when it was
        composed. Otherwise it asks them by name, and they are served along with it."""

    def declare(self, repository: "ModelRepository") -> Pipeline:
        """The pipeline, of its members as they are published; its ``members`` are its own steps."""

    def prove(self, client: "InferenceServerClient", repository: "ModelRepository") -> None:
        """PublishFailed unless it answers as its members do, which are loaded beside it."""


def ask(
    client: "InferenceServerClient",
    model: str,
    texts: Sequence[str],
    parameters: Mapping[str, Any] | None = None,
) -> "InferResult":
    """The answer to ``texts`` as one request."""
    from tritonclient.grpc import InferInput

    tensor = InferInput("text", [len(texts), 1], "BYTES")
    tensor.set_data_from_numpy(np.array([text.encode() for text in texts], dtype=object)[:, None])
    options = dict(parameters or {})
    return client.infer(model, [tensor], parameters=options, client_timeout=_DEADLINE_S)
