"""No field that a CRI client can set on a pod or a container is unknown to us, but Windows' own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args, get_type_hints

import msgspec
import pytest
from google.protobuf.descriptor import Descriptor

from atoll.api import cri_runtime_v1_pb2 as pb
from atoll.container.config import ContainerConfig
from atoll.sandbox.config import PodConfig


def struct_of(kind: object) -> type[msgspec.Struct] | None:
    """The struct in a hint such as `X`, `X | None` or `tuple[X, ...]`."""
    candidates = (kind, *get_args(kind))
    return next((one for one in candidates if isinstance(one, type) and issubclass(one, msgspec.Struct)), None)


def unknown(message: Descriptor, struct: type[msgspec.Struct], seen: set[str]) -> Iterator[str]:
    if message.full_name in seen:
        return
    seen.add(message.full_name)
    hints = get_type_hints(struct)
    for field in message.fields:
        if field.name not in struct.__struct_fields__:
            yield f"{message.name}.{field.name}"
        elif field.message_type is not None and (inner := struct_of(hints[field.name])) is not None:
            yield from unknown(field.message_type, inner, seen)


@pytest.mark.parametrize(
    ("message", "struct"),
    [(pb.PodSandboxConfig.DESCRIPTOR, PodConfig), (pb.ContainerConfig.DESCRIPTOR, ContainerConfig)],
    ids=["pod", "container"],
)
def test_every_field_is_known(message: Descriptor, struct: type[msgspec.Struct]) -> None:
    seen: set[str] = set()
    assert list(unknown(message, struct, seen)) == [f"{message.name}.windows"]
    assert len(seen) > 3
