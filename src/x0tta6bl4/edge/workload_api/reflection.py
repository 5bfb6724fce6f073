"""gRPC health and reflection beside the Workload API: services of their own (SP-100, SP-101).

Tools such as grpcurl find out by them what is served here.  They tell nothing of any identity, so
they need neither the metadata of the Workload API nor attestation.

Source: grpc/health/v1/health.proto; grpc/reflection/v1/reflection.proto, and the same as v1alpha.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

from grpclib.const import Status

from x0tta6bl4.edge.workload_api import schema

HEALTH: Final = "grpc.health.v1.Health"
REFLECTION: Final = (
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
)
SERVICES: Final = (schema.SERVICE, HEALTH, *REFLECTION)
_SERVING, _SERVICE_UNKNOWN = 1, 3

_HEALTH: Final = schema.POOL.add(
    "grpc/health/v1/health.proto",
    "grpc.health.v1",
    {
        "HealthCheckRequest": ("string service = 1",),
        "HealthCheckResponse": ("ServingStatus status = 1",),
    },
    {
        "Health": {
            "Check": ("HealthCheckRequest", "HealthCheckResponse"),
            "Watch": ("HealthCheckRequest", "stream HealthCheckResponse"),
        }
    },
    {"ServingStatus": ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")},
)
HealthCheckRequest: Any = _HEALTH["HealthCheckRequest"]
HealthCheckResponse: Any = _HEALTH["HealthCheckResponse"]

_REFLECTION_MESSAGES: Final = {
    "ServerReflectionRequest": (
        "string host = 1",
        "oneof message_request: string file_by_filename = 3",
        "oneof message_request: string file_containing_symbol = 4",
        "oneof message_request: ExtensionRequest file_containing_extension = 5",
        "oneof message_request: string all_extension_numbers_of_type = 6",
        "oneof message_request: string list_services = 7",
    ),
    "ExtensionRequest": ("string containing_type = 1", "int32 extension_number = 2"),
    "ServerReflectionResponse": (
        "string valid_host = 1",
        "ServerReflectionRequest original_request = 2",
        "oneof message_response: FileDescriptorResponse file_descriptor_response = 4",
        "oneof message_response: ExtensionNumberResponse all_extension_numbers_response = 5",
        "oneof message_response: ListServiceResponse list_services_response = 6",
        "oneof message_response: ErrorResponse error_response = 7",
    ),
    "FileDescriptorResponse": ("repeated bytes file_descriptor_proto = 1",),
    "ExtensionNumberResponse": (
        "string base_type_name = 1",
        "repeated int32 extension_number = 2",
    ),
    "ListServiceResponse": ("repeated ServiceResponse service = 1",),
    "ServiceResponse": ("string name = 1",),
    "ErrorResponse": ("int32 error_code = 1", "string error_message = 2"),
}


def _reflection(package: str) -> dict[str, Any]:
    return schema.POOL.add(
        f"{package.replace('.', '/')}/reflection.proto",
        package,
        _REFLECTION_MESSAGES,
        {
            "ServerReflection": {
                "ServerReflectionInfo": (
                    "stream ServerReflectionRequest",
                    "stream ServerReflectionResponse",
                )
            }
        },
    )


_MADE: Final = {name: _reflection(name.removesuffix(".ServerReflection")) for name in REFLECTION}


def reflection_types(service: str) -> tuple[Any, Any]:
    """Request and response class of a version of the service."""
    made = _MADE[service]
    return made["ServerReflectionRequest"], made["ServerReflectionResponse"]


def check(service: str) -> Any | None:
    """Answer of Health.Check; None: no such service."""
    return HealthCheckResponse(status=_SERVING) if service in ("", *SERVICES) else None


async def watch(service: str) -> AsyncIterator[Any]:
    """Answers of Health.Watch: what there is to say does not change while this server runs."""
    yield check(service) or HealthCheckResponse(status=_SERVICE_UNKNOWN)
    await asyncio.get_running_loop().create_future()


def reflect(service: str, request: Any) -> Any:
    """The answer to one question about what is served here."""
    _, response = reflection_types(service)
    made = response(valid_host=request.host, original_request=request)
    asked = request.WhichOneof("message_request")
    try:
        if asked == "list_services":
            for name in SERVICES:
                made.list_services_response.service.add(name=name)
        elif asked == "file_by_filename":
            files = schema.POOL.file(request.file_by_filename)
            made.file_descriptor_response.file_descriptor_proto.extend(files)
        elif asked == "file_containing_symbol":
            files = schema.POOL.file(schema.POOL.file_of(request.file_containing_symbol))
            made.file_descriptor_response.file_descriptor_proto.extend(files)
        elif asked == "all_extension_numbers_of_type":  # Proto3 has none.
            schema.POOL.file_of(request.all_extension_numbers_of_type)
            made.all_extension_numbers_response.base_type_name = (
                request.all_extension_numbers_of_type
            )
        else:
            raise KeyError
    except KeyError:
        made.error_response.error_code = Status.NOT_FOUND.value
        made.error_response.error_message = "nothing here has that name"
    return made
