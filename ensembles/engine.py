"""What every engine's declaration shares."""

from collections.abc import Sequence

from modelspec.model import Batching, Instances, ModelSpec, TensorSpec
from modelspec.names import Role, member_name
from modelspec.parameters import INTER_OP_THREADS, INTRA_OP_THREADS


def onnx_engine(
    pipeline: str,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    max_batch_size: int,
    lengths: Sequence[int] = (),
) -> ModelSpec:
    """``NAME_onnx``, two instances of one thread each: on 2 cores they beat one with two threads.
    ``lengths`` are the buckets that its axes of any length are padded to."""
    return ModelSpec(
        name=member_name(pipeline, Role.ENGINE),
        backend="onnxruntime",
        max_batch_size=max_batch_size,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        instances=Instances(count=2),
        batching=Batching(),
        parameters={INTRA_OP_THREADS: "1", INTER_OP_THREADS: "1"},
        versions=(1,),
        internal=True,
        lengths=tuple(lengths),
    )
