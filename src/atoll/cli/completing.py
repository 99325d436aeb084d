"""Completion of names from the live daemon: quick, and silent where none answers.

The names come over CRI in one or two calls, bounded by `WITHIN_S` together; nothing is started, and whatever goes wrong
gives no names. Bash, zsh and fish by typer: `atoll --install-completion`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from atoll.client.wire import Wire

WITHIN_S = 0.5
ID_LENGTH = 13
Names = Callable[["Wire"], Coroutine[None, None, set[str]]]


def containers(incomplete: str) -> list[str]:
    """Names of containers and pods, `pod/container`, and IDs once one is begun."""
    return _matching(incomplete, _containers)


def pods(incomplete: str) -> list[str]:
    return _matching(incomplete, _pods)


def images(incomplete: str) -> list[str]:
    """References, also in the short form in which people write them."""
    return _matching(incomplete, _images)


def things(incomplete: str) -> list[str]:
    """Containers, pods and images."""
    return _matching(incomplete, _things)


def snapshots(incomplete: str) -> list[str]:
    return _matching(incomplete, _snapshots)


def pools(incomplete: str) -> list[str]:
    return _matching(incomplete, _pools)


def processes(incomplete: str) -> list[str]:
    """IDs of processes beside the main ones, of every container."""
    return _matching(incomplete, _processes)


def sides(incomplete: str) -> list[str]:
    """`NAME:` of containers, and paths of this machine: a side of a copy."""
    if ":" in incomplete:
        return []
    if incomplete.startswith((".", "/")):
        return _paths(incomplete)
    return [f"{name}:" for name in containers(incomplete)] + _paths(incomplete)


def _paths(incomplete: str) -> list[str]:
    folder, name = os.path.split(incomplete)
    try:
        with os.scandir(folder or ".") as found:
            hits = [(one.name, one.is_dir()) for one in found if one.name.startswith(name)]
    except OSError:
        return []
    return sorted(os.path.join(folder, one) + ("/" if is_folder else "") for one, is_folder in hits)


def _matching(incomplete: str, names: Names) -> list[str]:
    import asyncio

    from atoll import errors

    try:
        found = asyncio.run(_ask(names))
    except (errors.AtollError, OSError, TimeoutError):
        return []
    return sorted(name for name in found if name.startswith(incomplete))


async def _ask(names: Names) -> set[str]:
    import asyncio

    from atoll.client.places import socket_path
    from atoll.client.private import answers
    from atoll.client.wire import Wire

    path = socket_path()
    if not answers(path):
        return set()
    connection = Wire(path)
    try:
        async with asyncio.timeout(WITHIN_S):
            return await names(connection)
    finally:
        await connection.aclose()


async def _pods(connection: Wire) -> set[str]:
    from atoll.api import cri_runtime_v1_pb2 as cri
    from atoll.client import wire

    answer = await connection.call(wire.LIST_PODS, cri.ListPodSandboxRequest(), timeout_s=WITHIN_S)
    return {name for one in answer.items for name in (one.metadata.name, one.id[:ID_LENGTH])}


async def _containers(connection: Wire) -> set[str]:
    from atoll.api import cri_runtime_v1_pb2 as cri
    from atoll.client import wire

    pods = await connection.call(wire.LIST_PODS, cri.ListPodSandboxRequest(), timeout_s=WITHIN_S)
    answer = await connection.call(wire.LIST_CONTAINERS, cri.ListContainersRequest(), timeout_s=WITHIN_S)
    of = {one.id: one.metadata.name for one in pods.items}
    found = {name for one in pods.items for name in (one.metadata.name, one.id[:ID_LENGTH])}
    for one in answer.containers:
        found |= {one.metadata.name, one.id[:ID_LENGTH]}
        if (pod := of.get(one.pod_sandbox_id, "")) != one.metadata.name:
            found.add(f"{pod}/{one.metadata.name}")
    return found


async def _images(connection: Wire) -> set[str]:
    from atoll.api import cri_runtime_v1_pb2 as cri
    from atoll.client import wire

    answer = await connection.call(wire.LIST_IMAGES, cri.ListImagesRequest(), timeout_s=WITHIN_S)
    tags = {tag for one in answer.images for tag in one.repo_tags}
    short = {tag.removeprefix("docker.io/library/").removeprefix("docker.io/").removesuffix(":latest") for tag in tags}
    return tags | short


async def _snapshots(connection: Wire) -> set[str]:
    from atoll.api import atoll_branches_v1_pb2 as pb
    from atoll.client import branches

    answer = await connection.call(branches.LIST, pb.ListRequest(), timeout_s=WITHIN_S)
    return {name for one in answer.snapshots for name in (one.name, one.id[:ID_LENGTH])}


async def _pools(connection: Wire) -> set[str]:
    from atoll.api import atoll_pools_v1_pb2 as pb
    from atoll.client import pools

    answer = await connection.call(pools.LIST, pb.ListRequest(), timeout_s=WITHIN_S)
    return {one.name for one in answer.pools}


async def _processes(connection: Wire) -> set[str]:
    from atoll.api import atoll_processes_v1_pb2 as pb
    from atoll.client import wire

    answer = await connection.call(wire.PROCESS_LIST, pb.ListRequest(), timeout_s=WITHIN_S)
    return {one.id for one in answer.processes}


async def _things(connection: Wire) -> set[str]:
    return await _containers(connection) | await _images(connection)
