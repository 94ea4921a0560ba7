"""Server reflection: lets grpcurl and similar tools work without .proto files.

It describes what is offered here and nothing else: not the methods of Triton's service that are
refused. Both versions of the protocol have the same messages, which are built here: grpcio has
none.
"""

import asyncio
import contextlib
from collections.abc import Collection, Iterable
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from gateway.errors import InvalidRequest, TooLarge

VERSIONS = ("v1", "v1alpha")
MESSAGE_BYTES = 4096
MAX_RESPONSES = 1000  # on one stream
_Field = descriptor_pb2.FieldDescriptorProto
_TEXT, _BYTES, _INT = _Field.TYPE_STRING, _Field.TYPE_BYTES, _Field.TYPE_INT32
# message -> its fields: (name, number, type or name of a message, whether it is repeated)
_MESSAGES: dict[str, tuple[tuple[str, int, Any, bool], ...]] = {
    "ExtensionRequest": (
        ("containing_type", 1, _TEXT, False),
        ("extension_number", 2, _INT, False),
    ),
    "ServerReflectionRequest": (
        ("host", 1, _TEXT, False),
        ("file_by_filename", 3, _TEXT, False),
        ("file_containing_symbol", 4, _TEXT, False),
        ("file_containing_extension", 5, "ExtensionRequest", False),
        ("all_extension_numbers_of_type", 6, _TEXT, False),
        ("list_services", 7, _TEXT, False),
    ),
    "FileDescriptorResponse": (("file_descriptor_proto", 1, _BYTES, True),),
    "ExtensionNumberResponse": (
        ("base_type_name", 1, _TEXT, False),
        ("extension_number", 2, _INT, True),
    ),
    "ServiceResponse": (("name", 1, _TEXT, False),),
    "ListServiceResponse": (("service", 1, "ServiceResponse", True),),
    "ErrorResponse": (("error_code", 1, _INT, False), ("error_message", 2, _TEXT, False)),
    "ServerReflectionResponse": (
        ("valid_host", 1, _TEXT, False),
        ("original_request", 2, "ServerReflectionRequest", False),
        ("file_descriptor_response", 4, "FileDescriptorResponse", False),
        ("all_extension_numbers_response", 5, "ExtensionNumberResponse", False),
        ("list_services_response", 6, "ListServiceResponse", False),
        ("error_response", 7, "ErrorResponse", False),
    ),
}
_ONE_OF = {
    "ServerReflectionRequest": "message_request",
    "ServerReflectionResponse": "message_response",
}
_NOT_FOUND = grpc.StatusCode.NOT_FOUND.value[0]


def service_name(version: str) -> str:
    return f"grpc.reflection.{version}.ServerReflection"


class Reflection:
    """``methods`` are the methods of Triton's service that are offered."""

    def __init__(self, methods: Collection[str]) -> None:
        inference_file = _copy(service_pb2.DESCRIPTOR)
        for index in reversed(range(len(inference_file.service[0].method))):
            if inference_file.service[0].method[index].name not in methods:
                del inference_file.service[0].method[index]
        files = [inference_file, _health_file(), *map(_reflection_file, VERSIONS)]
        dependencies = _dependencies(service_pb2.DESCRIPTOR)
        self._files = {file.name: file for file in (*dependencies, *files)}
        self.services = sorted(_services(files))
        self._symbols = {
            symbol: file.name for file in self._files.values() for symbol in _symbols(file)
        }
        pool = descriptor_pool.DescriptorPool()
        pool.Add(_reflection_file("v1"))
        self._request: Any = message_factory.GetMessageClass(
            pool.FindMessageTypeByName("grpc.reflection.v1.ServerReflectionRequest")
        )
        self._response: Any = message_factory.GetMessageClass(
            pool.FindMessageTypeByName("grpc.reflection.v1.ServerReflectionResponse")
        )

    async def run(self, call: grpc.aio.ServicerContext, idle_s: float) -> None:
        """Answer requests until the client closes the stream. Raises TimeoutError after ``idle_s``
        without a request, InvalidRequest and TooLarge as ``respond``."""
        for _ in range(MAX_RESPONSES):
            async with asyncio.timeout(idle_s):
                data = await call.read()
                if data is grpc.aio.EOF:
                    return
                response = self.respond(data)
                # It fails when the client has left: gRPC then cancels this task.
                with contextlib.suppress(grpc.aio.BaseError):
                    await call.write(response)
        raise InvalidRequest(
            f"a stream answers at most {MAX_RESPONSES} requests: open another stream for more"
        )

    def respond(self, data: bytes) -> bytes:
        """The ServerReflectionResponse to one ServerReflectionRequest, both serialised. Raises
        TooLarge and InvalidRequest."""
        if len(data) > MESSAGE_BYTES:
            raise TooLarge(f"the message is over {MESSAGE_BYTES} bytes: send a smaller one")
        try:
            request = self._request.FromString(data)
        except DecodeError:
            raise InvalidRequest("the message is not a ServerReflectionRequest") from None
        response = self._response(valid_host=request.host, original_request=request)
        self._fill(request, response)
        data_out: bytes = response.SerializeToString()
        return data_out

    def _fill(self, request: Any, response: Any) -> None:
        query = request.WhichOneof("message_request")
        if query == "list_services":
            for name in self.services:
                response.list_services_response.service.add(name=name)
        elif query == "all_extension_numbers_of_type" and (
            request.all_extension_numbers_of_type in self._symbols
        ):
            response.all_extension_numbers_response.base_type_name = (
                request.all_extension_numbers_of_type
            )
        else:
            name = self._file_name(query, request)
            if name in self._files:
                files = self._with_dependencies(name)
                response.file_descriptor_response.file_descriptor_proto.extend(files)
            else:
                response.error_response.error_code = _NOT_FOUND
                response.error_response.error_message = "this server has no such file or symbol"

    def _file_name(self, query: str | None, request: Any) -> str:
        if query == "file_by_filename":
            return str(request.file_by_filename)
        if query == "file_containing_symbol":
            return self._symbols.get(request.file_containing_symbol, "")
        return ""  # nothing here has extensions

    def _with_dependencies(self, name: str) -> list[bytes]:
        """The file and everything it imports, each once."""
        names = [name]
        for file_name in names:  # grows while it is iterated
            dependencies = self._files[file_name].dependency
            names += [dependency for dependency in dependencies if dependency not in names]
        return [self._files[file_name].SerializeToString() for file_name in names]


def _copy(file: FileDescriptor) -> descriptor_pb2.FileDescriptorProto:
    copy = descriptor_pb2.FileDescriptorProto()
    file.CopyToProto(copy)
    return copy


def _dependencies(file: FileDescriptor) -> Iterable[descriptor_pb2.FileDescriptorProto]:
    for dependency in file.dependencies:
        yield from _dependencies(dependency)
        yield _copy(dependency)


def _services(files: Iterable[Any]) -> Iterable[str]:
    for file in files:
        yield from (f"{file.package}.{service.name}" for service in file.service)


def _symbols(file: descriptor_pb2.FileDescriptorProto) -> Iterable[str]:
    """The full names of what a file defines."""
    scopes: list[tuple[str, Any, Any]] = [(file.package, file.message_type, file.enum_type)]
    for prefix, messages, enums in scopes:  # grows while it is iterated
        for definition in (*messages, *enums):
            yield f"{prefix}.{definition.name}"
        scopes += [(f"{prefix}.{m.name}", m.nested_type, m.enum_type) for m in messages]
    for service in file.service:
        name = f"{file.package}.{service.name}"
        yield name
        yield from (f"{name}.{method.name}" for method in service.method)


def _reflection_file(version: str) -> descriptor_pb2.FileDescriptorProto:
    package = f"grpc.reflection.{version}"
    file = descriptor_pb2.FileDescriptorProto(
        name=f"grpc/reflection/{version}/reflection.proto", package=package, syntax="proto3"
    )
    for name, fields in _MESSAGES.items():
        _add_message(file, name, fields)
    method = file.service.add(name="ServerReflection").method.add(name="ServerReflectionInfo")
    method.input_type = f".{package}.ServerReflectionRequest"
    method.output_type = f".{package}.ServerReflectionResponse"
    method.client_streaming = method.server_streaming = True
    return file


def _health_file() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(
        name="grpc/health/v1/health.proto", package="grpc.health.v1", syntax="proto3"
    )
    _add_message(file, "HealthCheckRequest", (("service", 1, _TEXT, False),))
    response = file.message_type.add(name="HealthCheckResponse")
    statuses = response.enum_type.add(name="ServingStatus")
    for number, status in enumerate(("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")):
        statuses.value.add(name=status, number=number)
    response.field.add(
        name="status",
        number=1,
        type=_Field.TYPE_ENUM,
        label=_Field.LABEL_OPTIONAL,
        type_name=".grpc.health.v1.HealthCheckResponse.ServingStatus",
    )
    service = file.service.add(name="Health")
    for name, streams in (("Check", False), ("Watch", True)):
        service.method.add(
            name=name,
            input_type=".grpc.health.v1.HealthCheckRequest",
            output_type=".grpc.health.v1.HealthCheckResponse",
            server_streaming=streams,
        )
    return file


def _add_message(
    file: descriptor_pb2.FileDescriptorProto,
    name: str,
    fields: Iterable[tuple[str, int, Any, bool]],
) -> None:
    message = file.message_type.add(name=name)
    if name in _ONE_OF:
        message.oneof_decl.add(name=_ONE_OF[name])
    for field_name, number, field_type, is_repeated in fields:
        field = message.field.add(name=field_name, number=number)
        field.label = _Field.LABEL_REPEATED if is_repeated else _Field.LABEL_OPTIONAL
        if isinstance(field_type, str):
            field.type = _Field.TYPE_MESSAGE
            field.type_name = f".{file.package}.{field_type}"
        else:
            field.type = field_type
        if name in _ONE_OF and field_name not in ("host", "valid_host", "original_request"):
            field.oneof_index = 0
