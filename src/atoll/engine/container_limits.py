"""The limits of a container, changed while it is there: in its cgroup, in its spec, and in what is told of it."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import AsyncGenerator
from typing import TypeVar

import msgspec

from atoll import errors, faults
from atoll.api import nri_v1alpha1_pb2 as nri
from atoll.container.status import ContainerResources, State, Status
from atoll.container.store import Container
from atoll.engine.lines import tasks_of
from atoll.engine.parts import Parts
from atoll.engine.paths import NAMESPACE
from atoll.engine.pod import Pod
from atoll.linux import process
from atoll.nri.limits import overlay
from atoll.oci import resources
from atoll.oci import spec as oci
from atoll.oci.config import LinuxContainerResources
from atoll.runtime.bundle import Bundle
from atoll.sandbox.resources import in_cri_words

PartT = TypeVar("PartT", bound=oci.Part)

NOTHING = LinuxContainerResources()
MEMORY_LIFTED = oci.Memory(limit=-1, reservation=-1, swap=-1)
CPU_LIFTED = oci.CPU(shares=1024, quota=-1, period=100_000)
"""What the kernel has where nothing was set; no value says so of a cpuset."""
log = logging.getLogger(__name__)


async def update(parts: Parts, pod: Pod, container: Container, asked: LinuxContainerResources) -> None:
    """Change the limits that are set in `asked`; those that are zero stay as they are.

    A running container has them when this returns, a CREATED one when it starts. Plugins may change them.
    """
    async with parts.nri.changing():
        _require_updatable(container)
        resources.resolve(asked, parts.host)
        resources.oom_score_adj(asked.oom_score_adj, parts.host)
        await _change(parts, pod, container, asked, await parts.nri.update(pod, container, asked))
    await parts.nri.updated(pod, container)


async def change(parts: Parts, pod: Pod, container: Container, wanted: nri.LinuxResources) -> None:
    """Change the limits that a plugin has set; the same guarantees."""
    await _change(parts, pod, container, NOTHING, wanted)


async def _change(
    parts: Parts,
    pod: Pod,
    container: Container,
    asked: LinuxContainerResources,
    wanted: nri.LinuxResources | None,
) -> None:
    async def apply(now: Status) -> Status:
        _require_updatable(container)
        before = oci.decode(container.record.spec)
        assert before.linux is not None
        current = before.linux.resources or oci.Resources()
        merged = _merge(now.resources.linux if now.resources is not None else None, asked)
        limits = _over(current, resources.resolve(merged, parts.host, current.devices))
        if wanted is not None:
            limits = overlay(limits, wanted, parts.host)
            merged = told(merged, limits)
        after = msgspec.structs.replace(before, linux=msgspec.structs.replace(before.linux, resources=limits))
        score = resources.oom_score_adj(asked.oom_score_adj, parts.host) if asked.oom_score_adj else None
        if score is not None and after.process is not None:
            after = msgspec.structs.replace(after, process=msgspec.structs.replace(after.process, oom_score_adj=score))
        spec = oci.encode(after)
        async with _put_back(pod, container, undoing(current, limits) if now.state is State.RUNNING else None):
            if now.state is State.RUNNING:
                tasks = await tasks_of(pod)
                with faults.step("update/runtime"):
                    await tasks.update(container.id, oci.encode(msgspec.structs.replace(limits, devices=())))
                if score is not None:  # no OCI runtime changes it
                    await parts.blocking.run(process.set_oom_score_adj, await tasks.pids(container.id), score)
            else:
                bundle = Bundle(id=container.id, namespace=NAMESPACE, path=parts.paths.bundles / container.id)
                await parts.blocking.run(bundle.write_spec, spec)
            with faults.step("update/record"):
                await parts.containers.update(container.id, spec=spec)
        return dataclasses.replace(now, resources=ContainerResources(linux=merged))

    await container.status.update_around(apply)


@contextlib.asynccontextmanager
async def _put_back(pod: Pod, container: Container, old: oci.Resources | None) -> AsyncGenerator[None]:
    """An OCI runtime writes one limit after the other: where one is refused those before it are in force."""
    try:
        yield
    except (errors.AtollError, OSError):
        if old is not None:
            try:
                await (await tasks_of(pod)).update(container.id, oci.encode(old))
            except errors.AtollError as error:
                log.warning("container %s: has a part of the limits that were refused: %s", container.id[:13], error)
        raise


def undoing(old: oci.Resources, new: oci.Resources) -> oci.Resources:
    """What takes `new` back: the limits of `old`, and those that only `new` set lifted, where a value does that."""
    return msgspec.structs.replace(
        old,
        devices=(),
        memory=_laid(_lifted(new.memory, MEMORY_LIFTED), old.memory),
        cpu=_laid(_lifted(new.cpu, CPU_LIFTED), old.cpu),
        pids=old.pids or (oci.Pids(limit=-1) if new.pids is not None else None),
    )


def _lifted(new: PartT | None, lifted: PartT) -> PartT | None:
    """Of `lifted` what `new` sets."""
    if new is None:
        return None
    unset = {name: None for name in new.__struct_fields__ if getattr(lifted, name) and getattr(new, name) is None}
    return msgspec.structs.replace(lifted, **unset)


def _require_updatable(container: Container) -> None:
    if not container.status.get().can_update:
        raise errors.FailedPrecondition(f"container {container.id[:13]}: cannot be updated in its state")


def told(asked: LinuxContainerResources, limits: oci.Resources) -> LinuxContainerResources:
    """What the CRI is told of limits that plugins had a say in. No swap is what it need not ask for."""
    seen = in_cri_words(limits)
    has_swap = seen.memory_swap_limit_in_bytes != seen.memory_limit_in_bytes
    return msgspec.structs.replace(
        asked,
        cpu_period=seen.cpu_period,
        cpu_quota=seen.cpu_quota,
        cpu_shares=seen.cpu_shares,
        cpuset_cpus=seen.cpuset_cpus,
        cpuset_mems=seen.cpuset_mems,
        memory_limit_in_bytes=seen.memory_limit_in_bytes,
        memory_swap_limit_in_bytes=seen.memory_swap_limit_in_bytes if has_swap else 0,
    )


def _merge(old: LinuxContainerResources | None, new: LinuxContainerResources) -> LinuxContainerResources:
    """`old` with every value that is set in `new`; unified keys are merged one by one."""
    old = old or NOTHING
    changes = {name: getattr(new, name) for name in new.__struct_fields__ if name != "unified" and getattr(new, name)}
    return msgspec.structs.replace(old, unified={**old.unified, **new.unified}, **changes)


def _over(now: oci.Resources, new: oci.Resources) -> oci.Resources:
    """`now` with every value that is set in `new`: plugins may have set others."""
    return msgspec.structs.replace(
        now,
        memory=_laid(now.memory, new.memory),
        cpu=_laid(now.cpu, new.cpu),
        pids=new.pids or now.pids,
        hugepage_limits=new.hugepage_limits or now.hugepage_limits,
        unified={**now.unified, **new.unified},
    )


def _laid(now: PartT | None, new: PartT | None) -> PartT | None:
    if now is None or new is None:
        return new or now
    changes = {name: value for name in new.__struct_fields__ if (value := getattr(new, name))}
    return msgspec.structs.replace(now, **changes)
