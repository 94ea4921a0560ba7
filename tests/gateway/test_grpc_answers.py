"""Whose an answer of a stream is, whether it is the last, and the client's id put back."""

import pytest
from tritonclient.grpc import service_pb2

from gateway.api.grpc.response import ANSWER_TAG, StreamAnswer
from gateway.errors import UpstreamError

Response = service_pb2.ModelStreamInferResponse


def _answer(final: bool | None, outputs: int = 1, identifier: str = "7") -> Response:
    answer = Response()
    inner = answer.infer_response
    inner.model_name, inner.model_version, inner.id = "m", "1", identifier
    # A model's own parameter, before Triton's and behind it.
    inner.parameters["another"].string_param = "triton_final_response\x08\x00"
    if final is not None:
        inner.parameters["triton_final_response"].bool_param = final
    for n in range(outputs):
        inner.outputs.add(name=f"y{n}", datatype="FP32", shape=[1])
        inner.raw_output_contents.append(b"\x1a\x01x\x22")
    return answer


@pytest.mark.parametrize("final", [True, False, None])
@pytest.mark.parametrize("outputs", [0, 1, 3])
@pytest.mark.parametrize("own", ["", "a", "ä" * 200])
def test_an_answer_gets_its_clients_id(final, outputs, own):
    answer = _answer(final, outputs)
    data = answer.SerializeToString()
    assert data.startswith(ANSWER_TAG)
    found = StreamAnswer(data)
    assert (found.id, found.is_last, found.has_outputs) == (b"7", final is not False, outputs > 0)
    answer.infer_response.id = own
    assert Response.FromString(found.for_client(own.encode())) == answer


def test_what_is_no_answer_is_refused():
    with pytest.raises(UpstreamError):
        StreamAnswer(b"\x12\x02\x08\x01")
