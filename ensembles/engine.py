"""What every engine's declaration shares."""

from collections.abc import Sequence

from modelspec.model import Batching, Instances, ModelSpec, TensorSpec
from modelspec.names import Role, member_name
from modelspec.parameters import INTER_OP_THREADS, INTRA_OP_THREADS, PADDING_MASK, PADDING_VALUE


def onnx_engine(
    pipeline: str,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    max_batch_size: int,
    lengths: Sequence[int] = (),
    padding: tuple[str, int] | None = None,
) -> ModelSpec:
    """``NAME_onnx``, two instances of one thread each: on 2 cores they beat one with two threads.
    ``lengths`` are the buckets that its axes of any length are padded to, and ``padding`` is the
    input that is 0 in the padding, with the value that all others have there."""
    threads = {INTRA_OP_THREADS: "1", INTER_OP_THREADS: "1"}
    unpadded = {PADDING_MASK: padding[0], PADDING_VALUE: str(padding[1])} if padding else {}
    return ModelSpec(
        name=member_name(pipeline, Role.ENGINE),
        backend="onnxruntime",
        max_batch_size=max_batch_size,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        instances=Instances(count=2),
        batching=Batching(),
        parameters={**threads, **unpadded},
        versions=(1,),
        internal=True,
        lengths=tuple(lengths),
    )
