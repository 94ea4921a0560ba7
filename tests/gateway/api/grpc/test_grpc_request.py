"""What Triton receives of a gRPC request, and what it never receives."""

import pytest
from tritonclient.grpc import service_pb2

from gateway.api.grpc.request import check_request, timeout_s
from gateway.api.grpc.status import STATUS, trailers
from gateway.api.grpc.wire import RequestParts
from gateway.errors import GatewayError, InvalidRequest
from gateway.models.catalogue import Model, TensorMeta
from gateway.models.sequences import SequenceIds
from gateway.render import TABLE
from tests.gateway.request_contexts import context_of

Request = service_pb2.ModelInferRequest
INPUTS = {
    "x": TensorMeta("x", "FP32", (-1,)),
    "small": TensorMeta("small", "INT8", (-1,), optional=True),
    "fp16": TensorMeta("fp16", "FP16", (-1,), optional=True),
    "text": TensorMeta("text", "BYTES", (-1,), optional=True),
}
OUTPUTS = {name: TensorMeta(name, "FP32", (-1,)) for name in ("y", "z")}
MODEL = Model("m", ("1",), 0, INPUTS, OUTPUTS, False, None, None)


def sizes(name: str) -> tuple[int, int]:
    return len(INPUTS), len(OUTPUTS)


@pytest.fixture
def request_():
    """A valid request with one tensor."""
    request = Request(model_name="m", raw_input_contents=[bytes(8)])
    request.inputs.add(name="x", datatype="FP32", shape=[2])
    return request


@pytest.fixture
def ids(tmp_path):
    (tmp_path / "pepper").write_bytes(bytes(32))
    return SequenceIds(tmp_path / "pepper")


def _checked(request) -> Request:
    parts = RequestParts(request.SerializeToString(), sizes)
    check_request(parts, MODEL)
    return Request.FromString(parts.message())


def test_a_plain_request_is_forwarded_as_it_came(request_):
    request_.outputs.add(name="y").parameters["classification"].int64_param = 3
    data = request_.SerializeToString()
    parts = RequestParts(data, sizes)
    check_request(parts, MODEL)
    assert parts.message() is data


def test_parameters_that_triton_does_not_receive(request_):
    for key in ("priority", "timeout", "triton_x", "binary_data_output", "mine"):
        request_.parameters[key].int64_param = 1
    request_.parameters["triton_enable_empty_final_response"].bool_param = True
    request_.inputs[0].parameters["binary_data_size"].int64_param = 8
    request_.outputs.add(name="y").parameters["binary_data"].bool_param = True
    checked = _checked(request_)
    assert set(checked.parameters) == {"mine", "triton_enable_empty_final_response"}
    assert not checked.inputs[0].parameters
    assert not checked.outputs[0].parameters
    assert checked.raw_input_contents == request_.raw_input_contents


@pytest.mark.parametrize("part", ["request", "input", "output"])
def test_shared_memory_is_refused_in_every_part(request_, part):
    request_.outputs.add(name="y")
    parts = {"request": request_, "input": request_.inputs[0], "output": request_.outputs[0]}
    parts[part].parameters["shared_memory_region"].string_param = "r"
    with pytest.raises(InvalidRequest, match="shared memory"):
        _checked(request_)


@pytest.mark.parametrize(
    ("break_request", "message"),
    [
        (lambda r: r.raw_input_contents.append(b""), "1 inputs but 2 raw_input_contents"),
        (lambda r: r.raw_input_contents.__setitem__(0, bytes(7)), "needs 8 bytes"),
        (lambda r: r.inputs[0].shape.append(2), "needs 16 bytes"),
        (lambda r: r.inputs[0].shape.__setitem__(0, -2), "dimensions are 0 to"),
        (lambda r: r.inputs[0].shape.extend([1] * 20), "at most 16"),
        (lambda r: setattr(r.inputs[0], "datatype", "INT32"), "is FP32, not INT32"),
        (lambda r: setattr(r.inputs[0], "name", "w"), "no input 'w'"),
        (lambda r: r.inputs[0].contents.fp32_contents.append(1), "both contents and raw"),
        (lambda r: r.ClearField("inputs"), "at least one tensor"),
        (lambda r: r.outputs.add(name="w"), "no output 'w'"),
        (lambda r: [r.outputs.add(name="y") for _ in "ab"], "requested twice"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(request_, break_request, message):
    break_request(request_)
    with pytest.raises(InvalidRequest, match=message):
        _checked(request_)


@pytest.mark.parametrize(
    ("name", "dtype", "contents", "message"),
    [
        ("x", "FP32", {"fp32_contents": [1.0]}, "needs 2 elements in fp32_contents.*carries 1"),
        ("x", "FP32", {"fp64_contents": [1.0, 2.0]}, "carries 0"),
        ("x", "FP32", {"fp32_contents": [1, 2], "int_contents": [1]}, "needs 2 elements"),
        ("small", "INT8", {"int_contents": [1, 128]}, "does not fit INT8"),
        ("fp16", "FP16", {"fp32_contents": [1, 2]}, "send FP16 in raw_input_contents"),
        ("x", "NONSENSE", {}, "send NONSENSE in raw_input_contents"),
    ],
)
def test_values_that_do_not_fit_are_refused(name, dtype, contents, message):
    request = Request(model_name="m")
    request.inputs.add(name=name, datatype=dtype, shape=[2], contents=contents)
    if name != "x":
        request.inputs.add(name="x", datatype="FP32", shape=[2], contents={"fp32_contents": [1, 2]})
    with pytest.raises(InvalidRequest, match=message):
        _checked(request)


def test_the_requests_own_timeout(request_):
    assert timeout_s(RequestParts(request_.SerializeToString(), sizes)) is None
    request_.parameters["timeout"].int64_param = 1_500_000
    assert timeout_s(RequestParts(request_.SerializeToString(), sizes)) == 1.5


def test_a_sequence_is_its_tenants_own(request_, ids):
    """Equal in every worker; different for another tenant, model, id, or type of id."""
    own_ids = []
    for tenant, model, client_id in (
        ("a", "m", 7),
        ("b", "m", 7),
        ("a", "n", 7),
        ("a", "m", 8),
        ("a", "m", "7"),
    ):
        own = ids.own(tenant, model, client_id)
        assert type(own) is type(client_id)
        assert own == ids.own(tenant, model, client_id)
        own_ids.append(own if isinstance(own, int) else int(own, 16))
    assert len(set(own_ids)) == 5
    assert all(0 < own < 2**63 for own in own_ids)
    assert (ids.own("a", "m", 0), ids.own("a", "m", "")) == (0, "")


def test_a_secret_of_its_own_without_a_pepper(tmp_path, ids):
    alone = SequenceIds(tmp_path / "none")
    assert alone.own("a", "m", 7) == alone.own("a", "m", 7) != ids.own("a", "m", 7)


@pytest.mark.parametrize("field", ["int64_param", "uint64_param", "string_param"])
def test_the_sequence_id_is_replaced_and_its_flags_stay(request_, ids, field):
    setattr(request_.parameters["sequence_id"], field, "7" if field == "string_param" else 7)
    request_.parameters["sequence_start"].bool_param = True
    parts = RequestParts(request_.SerializeToString(), sizes)
    check_request(parts, MODEL)
    ids.put_own(parts.header, "a")
    parameters = Request.FromString(parts.message()).parameters
    assert parameters["sequence_start"].bool_param
    if field == "string_param":
        assert parameters["sequence_id"].string_param == ids.own("a", "m", "7")
    else:
        assert parameters["sequence_id"].int64_param == ids.own("a", "m", 7)


def test_an_invalid_sequence_id(request_, ids):
    request_.parameters["sequence_id"].bool_param = True
    with pytest.raises(InvalidRequest, match="sequence_id must be"):
        ids.put_own(RequestParts(request_.SerializeToString(), sizes).header, "a")


def test_every_error_has_a_status():
    assert STATUS.keys() == TABLE.keys()
    headers = [(b"x-request-id", b"id")]
    context = context_of({"type": "http", "path": "/", "headers": headers}, None)
    metadata = dict(trailers(context, GatewayError("text", retry_after_s=2)))
    assert metadata.pop("server-timing").startswith("gateway;dur=")
    assert metadata == {
        "x-request-id": "id",
        "tidegate-code": "internal",
        "retry-after": "2",
        "grpc-retry-pushback-ms": "2000",
    }
