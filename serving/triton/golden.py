"""Probe a model with its golden sample, straight at Triton: the only proof that it is alive and
right.

The sample, and the endpoint schema that maps fields to tensors, travel in the model's own config,
so any pipeline can be probed, even a candidate under another name.
"""

from tritonclient.grpc.model_config_pb2 import ModelConfig

from modelspec.declaration import Declaration
from modelspec.golden import probe_time_s
from modelspec.probe import ProbeResponse
from serving.errors import DeadlineExceeded, ServingError
from serving.triton.control import TritonControl

NO_RESPONSE, IS_LATE = "does not answer its golden sample", " in time"


def fault(
    control: TritonControl, model: str, config: ModelConfig, timeout_s: float | None = None
) -> str:
    """'' if the model has no golden sample or gives the golden answer now, else what is wrong.

    A fault that ends with ``IS_LATE`` only says that there was no answer in ``timeout_s`` seconds
    (by default the time of a model that was never measured), or that the model's queue was full.
    """
    timeout_s = probe_time_s(None) if timeout_s is None else timeout_s
    declaration = Declaration.of(config)
    if declaration.error:
        return declaration.error.problem
    if declaration.probe is None:
        return ""
    probe_response, request = (
        ProbeResponse(declaration.probe.golden),
        declaration.probe.request_to(model),
    )
    try:
        if config.model_transaction_policy.decoupled:
            for response in control.stream_infer(request, timeout_s):
                probe_response.add(response)
        else:
            probe_response.add(control.infer(request, timeout_s))
    except DeadlineExceeded:
        return NO_RESPONSE + IS_LATE
    except ServingError as error:
        return f"{NO_RESPONSE} ({error})"
    return probe_response.fault()
