"""Maps Triton's error texts for messages of a stream to errors.

A unary call's error has a status; a stream's has only Triton's text. So the statuses that Triton's
core and its gRPC frontend give these texts (release 24.10, which is 2.51) are recovered here, and
from then on both are treated alike. An unknown text is the model's own failure.
"""

import re

import grpc

from gateway.errors import GatewayError, InvalidRequest
from gateway.upstream.triton_errors import translate

# core: infer_request.cc, sequence_batch_scheduler.cc, ensemble_scheduler.cc; server: infer_handler
_INVALID = (
    r"must specify the START flag on the first request of the sequence",
    r"must specify batch-size 1 due to requirements of sequence batcher",
    r"inference request batch-size must be <=",
    r"expected \d+ inputs but got \d+ inputs for model '",
    r"expected number of inputs between \d+ and \d+ but got",
    r"unexpected inference (?:input|output) '",
    r"unexpected (?:input|shape for input) '",
    r"unexpected number of string elements \d+ for inference input '",
    r"expected \d+ (?:string elements|buffers) for inference input '",
    r"incomplete string (?:data|length indicator) for inference input '",
    r"input '[^']*' (?:does not exist in|already exists in|can't be added to) request",
    r"input '[^']*' (?:has no shape but model requires|batch size does not match other inputs)",
    r"input byte size mismatch for input '",
    r"inference input '[^']*' data-type is '",
    r"All input dimensions should be specified for input '",
    r"unexpected explicit tensor data for input tensor '",
    r"contents field must not be specified when using raw_input_contents",
    r"unable to find data for input tensor '",
    r"invalid value (?:type )?for '",
    r"parameter keys starting with 'triton_' are reserved",
)
_UNAVAILABLE = (
    r"scheduler for model has stopped accepting new inference requests",
    r"GRPC server is shutting down and has stopped accepting new requests",
    r"Server is stopping, ",
    r"Server not ready",
    r"Exceeds maximum queue size",
)
_TEXTS = (
    (re.compile("|".join(_INVALID)), grpc.StatusCode.INVALID_ARGUMENT),
    (re.compile("|".join(_UNAVAILABLE)), grpc.StatusCode.UNAVAILABLE),
    (re.compile(r"Request for unknown model: "), grpc.StatusCode.NOT_FOUND),
    (re.compile(r"Request timeout expired"), grpc.StatusCode.DEADLINE_EXCEEDED),
)
_LAPSED = re.compile(r"timeout of the corresponding sequence has been expired")
_HEAD_LENGTH = 4096  # characters searched: a model's own text may be long


def fault_of(text: str, whose: str = "") -> GatewayError:
    """The error for the client: what a unary call would have ended with. ``whose`` names the
    message in the log."""
    head = text[:_HEAD_LENGTH]
    if _LAPSED.search(head):  # a retry would not find it either
        return InvalidRequest("the sequence was idle for too long and has ended: start it again")
    statuses = (status for pattern, status in _TEXTS if pattern.search(head))
    return translate(next(statuses, grpc.StatusCode.UNKNOWN), text, whose)
