"""Triton's requests as jobs of a runner, and the runner's results as Triton's responses.

The backend torch_export has a copy (serving/triton/backend_directory.py).
"""

from collections.abc import Sequence
from typing import Any

from ort_jobs import BatchError, InvalidInput, Job, JobRunner, Tensors

try:
    import triton_python_backend_utils as pb_utils
except ImportError:  # outside Triton: unit tests set their own stand-in
    pb_utils = None

# Asking whether a request was cancelled is a round trip to the server process: 45 us measured on
# 2 cores, a third of the throughput of a trivial model. It pays only where a run costs more.
ASK_CANCELLED_ABOVE_S = 0.001


def responses(runner: JobRunner, requests: Sequence[Any]) -> list[object]:
    """The InferenceResponse to each request, in order, with its outputs or its error."""
    jobs = [_read(runner, request) for request in requests]
    results = iter(runner.run([job for job in jobs if isinstance(job, Job)]))
    return [_response(next(results) if isinstance(job, Job) else job) for job in jobs]


def _read(runner: JobRunner, request: Any) -> Any:
    """The request as a Job, or the TritonError to answer it with."""
    if runner.last_run_s > ASK_CANCELLED_ABOVE_S and request.is_cancelled():
        return pb_utils.TritonError("the request was cancelled", pb_utils.TritonError.CANCELLED)
    try:
        feeds = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        return runner.job(feeds, frozenset(request.requested_output_names()))
    except BatchError as error:
        return _triton_error(error)


def _response(result: Tensors | BatchError | Any) -> object:
    if isinstance(result, BatchError):
        result = _triton_error(result)
    if isinstance(result, pb_utils.TritonError):
        return pb_utils.InferenceResponse(output_tensors=[], error=result)
    return pb_utils.InferenceResponse(
        output_tensors=[pb_utils.Tensor(name, array) for name, array in result.items()]
    )


def _triton_error(error: BatchError) -> Any:
    if isinstance(error, InvalidInput):
        return pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
    # With its cause, including paths: those belong in the operator's log only.
    pb_utils.Logger.log_error(f"{error} ({error.__cause__!r})")
    return pb_utils.TritonError(str(error), pb_utils.TritonError.INTERNAL)
