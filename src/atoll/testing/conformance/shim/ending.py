"""Checks of a shim's end, of its Sandbox service, and those that kill and disturb."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable

from atoll import errors
from atoll.concurrency import TaskOwner
from atoll.linux import process
from atoll.linux.mounts import read_mountinfo
from atoll.runtime.bundle import Bundle
from atoll.runtime.task import TaskStatus
from atoll.sandbox.controller import CreateOptions, State, TypedAny
from atoll.testing.conformance.check import Check, NotApplicable, check, equal, true
from atoll.testing.conformance.remote import CONFIG_TYPE, host_network
from atoll.testing.conformance.shim.subject import ShimTrial
from atoll.ttrpc import address as addresses

TASK = "containerd.task.v3.Task"
SANDBOX = "containerd.runtime.sandbox.v1.Sandbox"
DELETE = "containerd's shim protocol, delete"
KILLED = 128 + signal.SIGKILL
CONNECTIONS = 20
GARBAGE = (b"GET / HTTP/1.1\r\n\r\n", b"\0" * 4096, b"\xff" * 10, b"\0\0\0\x05\0\0\0\x01\x01\0nope!")


async def shutdown_waits_for_the_last_container(trial: ShimTrial) -> None:
    """Shutdown of a shim that has a container is ok and ignored; without one it ends, and its socket goes."""
    bundle, shim, _ = await trial.running()
    await shim.tasks.shutdown(bundle.id)
    await asyncio.sleep(0.1)
    equal("status of the container", TaskStatus.RUNNING, (await shim.tasks.state(bundle.id)).status)
    await shim.tasks.kill(bundle.id, signal.SIGKILL)
    await shim.tasks.wait(bundle.id)
    await shim.tasks.delete(bundle.id)
    name = addresses.socket_names(shim.bootstrap.address)[0]
    await shim.tasks.shutdown(bundle.id)
    true("the shim's process", "gone after Shutdown", await trial.is_gone(trial.server(bundle)), "it lives")
    if name.startswith("/"):
        true(f"socket {name}", "gone", await trial.soon(lambda: not os.path.lexists(name)), "it is there")


async def delete_of_a_container_unmounts_it(trial: ShimTrial) -> None:
    """After Delete nothing is mounted in the bundle."""
    bundle, shim, _ = await trial.running()
    true("mounts in the bundle while it runs", "some", bool(_mounts(bundle)), "none")
    await shim.tasks.kill(bundle.id, signal.SIGKILL)
    await shim.tasks.wait(bundle.id)
    await shim.tasks.delete(bundle.id)
    equal("mounts in the bundle", [], _mounts(bundle))


def _mounts(bundle: Bundle) -> list[str]:
    return [mount.mount_point for mount in read_mountinfo() if mount.mount_point.startswith(f"{bundle.path}/")]


async def a_sandbox_lives_and_ends(trial: ShimTrial) -> None:
    """The Sandbox service makes, starts, tells of, stops and shuts down one sandbox; then the shim has ended."""
    bundle, shim = await trial.launched()
    sandbox, value = shim.sandbox, host_network().SerializeToString()
    options = CreateOptions(options=TypedAny(type_url=CONFIG_TYPE, value=value))
    try:
        await sandbox.create(bundle.id, str(bundle.path), options)
    except errors.Unimplemented as error:
        raise NotApplicable(f"it does not serve {SANDBOX}") from error
    true("state after create", "not READY", (await sandbox.status(bundle.id, False)).state is not State.READY, "READY")
    instance = await sandbox.start(bundle.id)
    true("pid", "a living process", await trial.host.is_alive(instance.pid), instance.pid)
    status = await sandbox.status(bundle.id, False)
    equal("state and pid", (State.READY, instance.pid), (status.state, status.pid))
    await sandbox.ping(bundle.id)
    equal("os", "linux", (await sandbox.platform(bundle.id)).os)
    async with TaskOwner("waiter") as owner:
        waiting = owner.spawn(sandbox.wait(bundle.id), name="waiter")
        await asyncio.sleep(0.02)
        true("wait on a running sandbox", "no answer", not waiting.done(), "it answered")
        await sandbox.stop(bundle.id, 1.0)
        await asyncio.wait({waiting}, timeout=trial.subject.within_s)
        true("wait on a stopped sandbox", "an answer", waiting.done(), "none")
        equal("wait, asked again", waiting.result(), await sandbox.wait(bundle.id))
    await sandbox.stop(bundle.id, None)
    equal("state after stop", State.NOTREADY, (await sandbox.status(bundle.id, False)).state)
    await sandbox.shutdown(bundle.id)
    true("the shim's process", "gone after ShutdownSandbox", await trial.is_gone(trial.server(bundle)), "it lives")


# --- destructive ---


async def a_killed_container_is_told(trial: ShimTrial) -> None:
    """A container whose process somebody else kills has ended with 137."""
    bundle, shim, pid = await trial.running()
    os.kill(pid, signal.SIGKILL)
    equal("exit status", KILLED, (await shim.tasks.wait(bundle.id)).exit_status)
    equal("status", TaskStatus.STOPPED, (await shim.tasks.state(bundle.id)).status)


async def delete_clears_what_a_killed_shim_left(trial: ShimTrial) -> None:
    """After SIGKILL of the shim its `delete` ends the container, unmounts it and prints how it ended."""
    bundle, _, pid = await trial.running()
    process.send_signal(trial.server(bundle), signal.SIGKILL)
    true("the shim", "gone", await trial.is_gone(trial.server(bundle)), "it lives")
    answer = await trial.delete(bundle)
    equal("exit status that delete prints", KILLED, answer.exit_status)
    gone = await trial.soon(lambda: process.stat(pid) is None)
    true(f"process {pid} of the container", "gone", gone, "it lives")
    equal("mounts in the bundle", [], _mounts(bundle))


async def lost_connections_lose_nothing(trial: ShimTrial) -> None:
    """Connections that are cut in the middle of Wait leave the container and the shim as they were."""
    bundle, shim, pid = await trial.running()
    async with TaskOwner("waiters") as owner:
        for _ in range(CONNECTIONS):
            other = await trial.connect(bundle)
            owner.spawn(_ignore(other.tasks.wait(bundle.id)), name="waiter")
            await asyncio.sleep(0)
            await other.aclose()
    state = await shim.tasks.state(bundle.id)
    equal("state", (TaskStatus.RUNNING, pid), (state.status, state.pid))
    equal("who serves", trial.server(bundle).pid, (await shim.tasks.connect(bundle.id))[0])


async def _ignore(work: Awaitable[object]) -> None:
    try:
        await work
    except errors.AtollError:
        return


async def garbage_is_survived(trial: ShimTrial) -> None:
    """Bytes that are no ttrpc on its socket disturb no other connection."""
    bundle, shim, pid = await trial.running()
    for garbage in GARBAGE:
        connection = await addresses.connect(shim.bootstrap.address, timeout_s=trial.subject.within_s)
        with connection:
            await asyncio.get_running_loop().sock_sendall(connection, garbage)
    state = await shim.tasks.state(bundle.id)
    equal("state", (TaskStatus.RUNNING, pid), (state.status, state.pid))


CHECKS: tuple[Check[ShimTrial], ...] = (
    check(shutdown_waits_for_the_last_container, source=f"{TASK}/Shutdown"),
    check(delete_of_a_container_unmounts_it, source=f"{TASK}/Delete"),
    check(a_sandbox_lives_and_ends, source=SANDBOX),
)
DESTRUCTIVE: tuple[Check[ShimTrial], ...] = (
    check(a_killed_container_is_told, source=f"{TASK}/Wait", destructive=True),
    check(delete_clears_what_a_killed_shim_left, source=DELETE, destructive=True),
    check(lost_connections_lose_nothing, source=TASK, destructive=True),
    check(garbage_is_survived, source="ttrpc's framing", destructive=True),
)
