"""A pipeline of two small Python models, staged in as many versions as a test needs.

``mood`` outputs FP32 ``score``: its engine's number plus the input. A version's golden sample
expects what that version outputs, so a mix of two versions cannot pass.
"""

import itertools
import shutil
from collections.abc import Sequence
from pathlib import Path

from modelspec.endpoint_schema import EndpointSchema
from modelspec.golden import Golden
from modelspec.layout import staging_folder
from modelspec.model import Instances, ModelSpec, Pipeline, StepSpec, TensorSpec
from modelspec.staging import stage_model
from serving.publish.deployment import Deployment
from serving.publish.publish import publish
from serving.repository.model_repository import ModelRepository

NAME = "mood"
MODELS = ["mood_pre", "mood_onnx", "mood"]
X, MIDDLE, SCORE = (TensorSpec(name, "FP32", (1,)) for name in ("x", "middle", "score"))
_count = itertools.count()

# While the file SICK is newer than the process, the output is 100 too high.
STEP = """
import os
import time
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        self.started = time.time()
        {initialize}

    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        value = pb_utils.get_input_tensor_by_name(request, "{source}").as_numpy()
        output = pb_utils.Tensor("{target}", value + self._number(value))
        return pb_utils.InferenceResponse([output])

    def _number(self, value):
        sick = os.path.exists({sick!r}) and os.path.getmtime({sick!r}) > self.started
        return value.dtype.type({add} + 100 * sick)
"""
FIELD = {"type": "number"}
ENDPOINT_SCHEMA = EndpointSchema(
    purpose="A test.",
    request={"type": "object", "properties": {"x": {**FIELD, "x-tensor": "x"}}},
    response={"type": "object", "properties": {"score": {**FIELD, "x-tensor": "score"}}},
    example={"x": 1},
)


def step(ends: tuple[str, str], add: float, initialize: str = "pass", sick: str = "") -> str:
    """The source of a Python model that adds a number, in float32."""
    source, target = ends
    return STEP.format(source=source, target=target, add=add, initialize=initialize, sick=sick)


def pipeline(add: float, card: str = "") -> Pipeline:
    """Its golden sample expects 1 + ``add`` for the input 1."""
    endpoint_schema = EndpointSchema(
        ENDPOINT_SCHEMA.purpose,
        ENDPOINT_SCHEMA.request,
        ENDPOINT_SCHEMA.response,
        ENDPOINT_SCHEMA.example,
        {"note": card},
    )
    return Pipeline(
        (
            ModelSpec("mood_pre", "python", 8, (X,), (MIDDLE,), versions=(1,), internal=True),
            ModelSpec(
                *("mood_onnx", "python", 8, (MIDDLE,), (SCORE,)),
                instances=Instances(2),
                versions=(1,),
                internal=True,
            ),
        ),
        ModelSpec(
            *(NAME, "ensemble", 8, (X,), (SCORE,)),
            steps=(
                StepSpec("mood_pre", 1, {"x": "x"}, {"middle": "middle"}),
                StepSpec("mood_onnx", 1, {"middle": "middle"}, {"score": "score"}),
            ),
            endpoint_schema=endpoint_schema,
            golden=Golden({"x": 1}, {"score": [1 + add]}, 0.01),
        ),
    )


def stage(
    repository: Path,
    add: float,
    golden: float | None = None,
    initialize: str = "pass",
    sick: str = "",
) -> Path:
    """The folder with a staged version whose engine adds ``add``; ``initialize`` is a line of its
    code that runs when it loads, ``sick`` the file that makes its output wrong."""
    staged = staging_folder(repository) / f"staged-{next(_count)}"
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    sources = {
        "mood_pre": step(("x", "middle"), 0),
        "mood_onnx": step(("middle", "score"), add, initialize, sick),
    }
    for spec in pipeline(add if golden is None else golden).models:
        files = {}
        if spec.name in sources:
            source = staged / f"{spec.name}.py"
            source.write_text(sources[spec.name])
            files["model.py"] = source
        stage_model(staged, spec, files)
    return staged


def publish_staged(staged: Path, repository: Path, models: Sequence[str] = MODELS) -> int:
    """Publish into the repository, with no server on it."""
    return publish(ModelRepository(staged), models, Deployment(ModelRepository(repository)))
