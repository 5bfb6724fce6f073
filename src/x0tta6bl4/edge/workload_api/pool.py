"""Protobuf messages from the lines of a .proto file, in a pool of our own.

Everybody's `workload.proto` has no package, and protobuf's default pool refuses a second file with
the same names: a process that also imports another SPIFFE library would die.  A pool of our own
knows nothing of theirs.

Source: Protocol Buffers, proto3 language guide and descriptor.proto; only what the services on the
Workload API's socket need: scalars, messages, repeated fields, maps, one level of oneof and enum.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from google.protobuf import descriptor_pool, message_factory, struct_pb2
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)

_FIELD: Final = re.compile(
    r"(?:oneof (?P<oneof>\w+): )?(?:(?P<repeated>repeated) )?"
    r"(?:map<string, (?P<value>\w+)>|(?P<type>[\w.]+)) (?P<name>\w+) = (?P<number>\d+)"
)
_SCALARS: Final = {
    "bool": FieldDescriptorProto.TYPE_BOOL,
    "bytes": FieldDescriptorProto.TYPE_BYTES,
    "int32": FieldDescriptorProto.TYPE_INT32,
    "string": FieldDescriptorProto.TYPE_STRING,
}
STRUCT: Final = "google.protobuf.Struct"


class Pool:
    """Message classes that belong to nobody else."""

    __slots__ = ("_pool",)

    def __init__(self) -> None:
        self._pool = descriptor_pool.DescriptorPool()

    def add(
        self,
        file: str,
        package: str,
        messages: Mapping[str, Sequence[str]],
        services: Mapping[str, Mapping[str, tuple[str, str]]],
        enums: Mapping[str, Sequence[str]] | None = None,
    ) -> dict[str, Any]:
        """Compile one file.

        Args:
            file: its name, as reflection tells it.
            package: "" for none.
            messages: name -> lines of fields, as in a .proto file without the semicolons; a field
                of a oneof is written `oneof NAME: string x = 1`.
            services: name -> method -> request and response; a response that is a stream is
                written `stream X`, a request too.
            enums: name -> values from 0 on.
        Returns:
            Message classes by name.
        """
        out = FileDescriptorProto(name=file, package=package, syntax="proto3")
        prefix = f".{package}." if package else "."
        for name, values in (enums or {}).items():
            enum = out.enum_type.add(name=name)
            for number, value in enumerate(values):
                enum.value.add(name=value, number=number)
        for name, lines in messages.items():
            made = out.message_type.add(name=name)
            for line in lines:
                _add_field(made, line, prefix, enums or {})
        for name, methods in services.items():
            service = out.service.add(name=name)
            for method, (request, response) in methods.items():
                service.method.add(
                    name=method,
                    input_type=prefix + request.removeprefix("stream "),
                    output_type=prefix + response.removeprefix("stream "),
                    client_streaming=request.startswith("stream "),
                    server_streaming=response.startswith("stream "),
                )
        if any(STRUCT in line for lines in messages.values() for line in lines):
            out.dependency.append(struct_pb2.DESCRIPTOR.name)
            self._pool.AddSerializedFile(struct_pb2.DESCRIPTOR.serialized_pb)
        self._pool.AddSerializedFile(out.SerializeToString())
        described = self._pool.FindFileByName(file).message_types_by_name
        return {name: message_factory.GetMessageClass(x) for name, x in described.items()}

    def file(self, name: str) -> tuple[bytes, ...]:
        """A file and all that it depends on, serialised, the file itself first.

        Raises:
            KeyError: no such file.
        """
        found = self._pool.FindFileByName(name)
        return (
            found.serialized_pb,
            *(x for other in found.dependencies for x in self.file(other.name)),
        )

    def file_of(self, symbol: str) -> str:
        """Name of the file that has a message, a service, or a method or field of these.

        Raises:
            KeyError: nobody has.
        """
        try:
            return str(self._pool.FindFileContainingSymbol(symbol).name)
        except KeyError:
            of, dot, _ = symbol.rpartition(".")
            if not dot:
                raise
            return str(self._pool.FindFileContainingSymbol(of).name)


def _add_field(
    made: DescriptorProto, line: str, prefix: str, enums: Mapping[str, Sequence[str]]
) -> None:
    match = _FIELD.fullmatch(line)
    assert match is not None, line
    name = match["name"]
    field = made.field.add(name=name, number=int(match["number"]))
    many = bool(match["repeated"] or match["value"])
    field.label = FieldDescriptorProto.LABEL_REPEATED if many else _ONE
    if match["value"]:
        entry = "".join(part.capitalize() for part in name.split("_")) + "Entry"
        nested = made.nested_type.add(name=entry)
        nested.options.map_entry = True
        _add_field(nested, "string key = 1", prefix, enums)
        _add_field(nested, f"{match['value']} value = 2", prefix, enums)
        field.type = FieldDescriptorProto.TYPE_MESSAGE
        field.type_name = f"{prefix}{made.name}.{entry}"
    elif match["type"] in _SCALARS:
        field.type = _SCALARS[match["type"]]
    else:
        is_enum = match["type"] in enums
        field.type = (
            FieldDescriptorProto.TYPE_ENUM if is_enum else FieldDescriptorProto.TYPE_MESSAGE
        )
        kind = match["type"]
        field.type_name = f".{kind}" if "." in kind else prefix + kind
    if match["oneof"]:
        if not any(x.name == match["oneof"] for x in made.oneof_decl):
            made.oneof_decl.add(name=match["oneof"])
        field.oneof_index = [x.name for x in made.oneof_decl].index(match["oneof"])


_ONE: Final = FieldDescriptorProto.LABEL_OPTIONAL
