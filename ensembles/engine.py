"""What every engine's declaration shares."""

from collections.abc import Sequence

from modelspec.model import Batching, Instances, ModelSpec, TensorSpec


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
        name=f"{pipeline}_onnx",
        backend="onnxruntime",
        max_batch_size=max_batch_size,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        instances=Instances(count=2),
        batching=Batching(),
        parameters={"intra_op_thread_count": "1", "inter_op_thread_count": "1"},
        versions=(1,),
        internal=True,
        lengths=tuple(lengths),
    )
