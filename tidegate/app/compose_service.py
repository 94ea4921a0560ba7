"""``customer_service``: several pipelines that are asked about one message."""

from typing import TYPE_CHECKING

import numpy as np

from ensembles.customer_service import CALLS, MEMBERS, NAME, declare
from modelspec.golden import Golden
from modelspec.model import Pipeline
from serving.errors import PublishFailed
from tidegate.app.compose_classifiers import samples
from tidegate.app.composed import ask

if TYPE_CHECKING:
    from tritonclient.grpc import InferenceServerClient, InferResult

    from serving.repository.model_repository import ModelRepository

CARD = {
    "task": "customer-service",
    "license": "those of the pipelines that it asks: see their cards",
    "language": ["en", "zh"],
    "members": MEMBERS,
    "limits": "Each answer is that of the pipeline that gives it, in the languages that it reads "
    "at the time: see their cards. `steps` says what was not answered, and why.",
}
SAMPLES = 8  # of each language
TOLERANCE = 1e-5  # the same graphs run, in other batches
EXAMPLE = {"text": "My new laptop has no sound. Can somebody from the London office call me?"}


class AskedPipelines:
    """The pipelines answer in the versions that are active when they are asked."""

    name = NAME
    members = MEMBERS
    has_their_steps = False

    def declare(self, repository: "ModelRepository") -> Pipeline:
        # What the pipelines answer may change with each of their versions; that they are asked does
        # not.
        expect = {"language": ["en"], "step_name": [call.name for call in CALLS]}
        return declare(Golden(EXAMPLE, expect, TOLERANCE), CARD)

    def prove(self, client: "InferenceServerClient", repository: "ModelRepository") -> None:
        """PublishFailed unless each pipeline's answer is in it as that pipeline gives it alone, or
        why there is none."""
        texts = [text for language in ("en", "zh") for text in samples(language)[:SAMPLES]]
        together = ask(client, NAME, texts)
        for row, text in enumerate(texts):
            _compare(together, row, text, client)
            _compare(ask(client, NAME, [text]), 0, text, client)


def _compare(result: "InferResult", row: int, text: str, client: "InferenceServerClient") -> None:
    from tritonclient.utils import InferenceServerException

    errors = result.as_numpy("step_error")[row]
    for call, error in zip(CALLS, errors, strict=True):
        try:
            expected = ask(client, call.pipeline, [text], call.parameters)
        except InferenceServerException as refused:
            if not error or error.decode() not in str(refused):
                raise _differs(text, call.name, error.decode(), str(refused)) from None
            continue
        if error:
            raise _differs(text, call.name, error.decode(), "an answer")
        for theirs, ours in call.outputs.items():
            alone, actual = expected.as_numpy(theirs)[0], result.as_numpy(ours)[row]
            actual = actual[: len(alone)]  # other rows may have more
            same = (
                actual.tolist() == alone.tolist()
                if alone.dtype == object
                else np.allclose(actual, alone, rtol=0, atol=TOLERANCE)
            )
            if not same:
                raise _differs(text, f"{call.name}.{theirs}", actual.tolist(), alone.tolist())


def _differs(text: str, what: str, actual: object, expected: object) -> PublishFailed:
    return PublishFailed(
        f"{text!r}: {what} is {actual}, and the pipeline itself says {expected}: nothing was "
        "published"
    )
