"""The limits of a pod, changed while it runs: in its sandbox, in its record, and in what is told of it."""

from __future__ import annotations

from dataclasses import replace

import msgspec

from atoll.engine.parts import Parts
from atoll.engine.pod import Pod
from atoll.oci.config import LinuxContainerResources
from atoll.oci.resources import limits
from atoll.sandbox.controller import Controller, TypedAny
from atoll.sandbox.resources import EXTENSION, NOTHING, URL, UpdatedResources, decode_updated, merged

FIELDS = (f"extensions.{EXTENSION}",)


def resources_now(pod: Pod) -> UpdatedResources:
    """The overhead and the limits of a pod's containers together, as they were last asked for."""
    last = pod.sandbox.extensions.get(EXTENSION)
    if last is not None:
        return decode_updated(last.value)
    linux = pod.config.linux
    if linux is None:
        return UpdatedResources()
    return UpdatedResources(overhead=linux.overhead, resources=linux.resources)


async def update(
    parts: Parts,
    controller: Controller,
    pod: Pod,
    *,
    overhead: LinuxContainerResources | None,
    resources: LinuxContainerResources | None,
) -> None:
    """Change what is set in `overhead` and `resources`; zero values stay as they are, as does a part that is None.

    The sandbox first: it applies them to a cgroup of its own, all or none. Raises `InvalidArgument` naming the field,
    `FailedPrecondition` for a pod that is not READY and for what the kernel cannot grant now, `Unimplemented` where its
    sandboxer cannot update.
    """
    for asked in (overhead, resources):
        if asked is not None:
            limits(asked, parts.host)
    async with pod.lock:
        pod.require_open("its limits cannot be changed")
        now = resources_now(pod)
        wanted = UpdatedResources(
            overhead=merged(now.overhead or NOTHING, overhead), resources=merged(now.resources or NOTHING, resources)
        )
        value = TypedAny(type_url=URL, value=msgspec.json.encode(wanted))
        asked_for = replace(pod.sandbox, extensions={**pod.sandbox.extensions, EXTENSION: value})
        async with parts.nri.changing():
            await parts.nri.update_pod(pod, overhead, resources)
            await controller.update(pod.id, asked_for, FIELDS)
            pod.sandbox = await parts.sandboxes.update(asked_for, FIELDS)
        await parts.nri.updated_pod(pod)
