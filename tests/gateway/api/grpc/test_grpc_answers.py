"""A stream's responses: which request each is for, whether it is the last, the client's id."""

import pytest
from tritonclient.grpc import service_pb2

from gateway.api.grpc.response import RESPONSE_TAG, StreamResponse
from gateway.errors import UpstreamError

Response = service_pb2.ModelStreamInferResponse


def _response(final: bool | None, outputs: int = 1, identifier: str = "7") -> Response:
    response = Response()
    inner = response.infer_response
    inner.model_name, inner.model_version, inner.id = "m", "1", identifier
    # The model's own parameter, whose value looks like Triton's.
    inner.parameters["another"].string_param = "triton_final_response\x08\x00"
    if final is not None:
        inner.parameters["triton_final_response"].bool_param = final
    for n in range(outputs):
        inner.outputs.add(name=f"y{n}", datatype="FP32", shape=[1])
        inner.raw_output_contents.append(b"\x1a\x01x\x22")
    return response


@pytest.mark.parametrize("final", [True, False, None])
@pytest.mark.parametrize("outputs", [0, 1, 3])
@pytest.mark.parametrize("client_id", ["", "a", "ä" * 200])
def test_a_response_gets_its_clients_id(final, outputs, client_id):
    expected = _response(final, outputs)
    data = expected.SerializeToString()
    assert data.startswith(RESPONSE_TAG)
    response = StreamResponse(data)
    assert response.id == b"7"
    assert response.is_last == (final is not False)
    assert response.has_outputs == (outputs > 0)
    expected.infer_response.id = client_id
    assert Response.FromString(response.for_client(client_id.encode())) == expected


def test_another_message_is_refused():
    with pytest.raises(UpstreamError):
        StreamResponse(b"\x12\x02\x08\x01")
