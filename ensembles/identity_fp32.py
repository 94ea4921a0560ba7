"""``identity_fp32``: returns its input. Probes and benchmarks use it; it has no endpoint schema."""

from modelspec.model import Batching, ModelSpec, Pipeline, TensorSpec
from modelspec.parameters import CANCELLABLE_PARAMETER

PIPELINE = Pipeline(
    members=(),
    public=ModelSpec(
        name="identity_fp32",
        backend="python",
        step="identity",
        max_batch_size=64,
        inputs=(TensorSpec("INPUT0", "FP32", (-1,)),),
        outputs=(TensorSpec("OUTPUT0", "FP32", (-1,)),),
        batching=Batching(),
        versions=(1,),
        parameters={CANCELLABLE_PARAMETER: "false"},  # the gateway may send it over HTTP/1.1
    ),
)
