"""Checks of a shim's command line: version, info, start of every generation, delete."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError

from atoll import errors
from atoll.api import containerd_runtime_bootstrap_v1_pb2 as bootstrap_pb2
from atoll.api import containerd_types_pb2 as types_pb2
from atoll.runtime.shim import Shim
from atoll.testing.conformance.check import Broken, Check, NotApplicable, check, equal, refuses, told, true
from atoll.testing.conformance.shim.subject import ShimTrial
from atoll.ttrpc import address as addresses

START = "containerd's shim protocol, start"
UNKNOWN_FLAG = "flag provided but not defined"
PRIVATE = 0o077


async def version_is_told(trial: ShimTrial) -> None:
    """`-v` prints a version and succeeds."""
    answer = await trial.run(None, "-v")
    true("what -v prints", "a text", bool(answer.strip()), answer)


async def info_is_a_runtime_info(trial: ShimTrial) -> None:
    """`-info` prints a RuntimeInfo with a name."""
    try:
        answer = await trial.run(None, "-info", stdin=AnyMessage().SerializeToString())
    except errors.Unknown as error:
        if UNKNOWN_FLAG in str(error):
            raise NotApplicable("it has no -info, as shims before containerd 2.0") from error
        raise
    try:
        info = types_pb2.RuntimeInfo.FromString(answer)
    except DecodeError as error:
        raise Broken("what -info prints", "a RuntimeInfo", repr(answer[:100])) from error
    true("name", "given", bool(info.name), info.name)


async def start_answers_where_it_listens(trial: ShimTrial) -> None:
    """Start prints an address where the Task service answers with the pid of the shim."""
    bundle = trial.bundle()
    bootstrap = await trial.start(bundle)
    true("version", "2 or 3", bootstrap.version in (2, 3), bootstrap.version)
    equal("protocol", "ttrpc", bootstrap.protocol)
    shim = await trial.connect(bundle)
    shim_pid, task_pid = await shim.tasks.connect(bundle.id)
    true("shim_pid of Connect", "a living process", await trial.host.is_alive(shim_pid), shim_pid)
    equal("task_pid of a container that is not made", 0, task_pid)


async def start_understands_bootstrap_params(trial: ShimTrial) -> None:
    """Start of containerd 2.3, which tells all on stdin, prints a BootstrapResult with a socket in the folder told."""
    bundle = trial.bundle()
    try:
        answer = await trial.run(bundle, "start", stdin=trial.params(bundle))
    except errors.Unknown as error:
        raise NotApplicable(f"it is of an older generation: {error}") from error
    bootstrap = trial.answered(bundle, answer)
    await trial.connect(bundle)
    try:
        result = bootstrap_pb2.BootstrapResult.FromString(answer)
    except DecodeError as error:
        raise NotApplicable(f"it is of an older generation, and answers {answer[:100]!r}") from error
    equal("address of the BootstrapResult", bootstrap.address, result.address)
    inside = addresses.socket_names(result.address)[0].startswith(f"{trial.subject.sockets}/")
    true("socket", f"in {trial.subject.sockets}", inside, result.address)


async def start_understands_an_old_daemon(trial: ShimTrial) -> None:
    """Start of containerd 1.6, without options and without MAX_SHIM_VERSION, prints an address that answers."""
    bundle = trial.bundle()
    bootstrap = await trial.start(bundle, env={})
    await trial.connect(bundle)
    true("address", "of a unix socket", bool(addresses.socket_names(bootstrap.address)), bootstrap.address)


async def start_is_idempotent(trial: ShimTrial) -> None:
    """A second start of one bundle answers the same address, and the same process serves it."""
    bundle = trial.bundle()
    first = await trial.start(bundle)
    one = await (await trial.connect(bundle)).check_version()
    second = await trial.start(bundle)
    equal("address of the second start", first.address, second.address)
    equal("process that serves it", one, await (await trial.connect(bundle)).check_version())


async def a_pod_shares_a_shim(trial: ShimTrial) -> None:
    """Bundles with one sandbox ID in their annotations get one address."""
    first = trial.bundle()
    one = await trial.start(first)
    await trial.connect(first)
    second = trial.bundle(sandbox=first.id)
    two = await trial.start(second)
    await trial.connect(second)
    equal("address of a container of the same pod", one.address, two.address)


async def the_socket_is_private(trial: ShimTrial) -> None:
    """Nobody but its user may connect to a shim's socket."""
    bundle = trial.bundle()
    name = addresses.socket_names((await trial.start(bundle)).address)[0]
    await trial.connect(bundle)
    if not name.startswith("/"):
        raise NotApplicable("its socket is abstract: the kernel keeps no mode of it")
    modes = [stat.S_IMODE(os.stat(path).st_mode) for path in (name, Path(name).parent)]
    kept = any(mode & PRIVATE == 0 for mode in modes)
    true("modes of the socket and its folder", "one of them private", kept, [oct(mode) for mode in modes])


async def a_bundle_without_a_config_is_a_sandboxs(trial: ShimTrial) -> None:
    """Start without config.json gives a shim for a sandbox, where it serves those; else it fails, and says why."""
    _, shim = await trial.launched()
    bundle = trial.bundle(bare=True)
    if not await _serves_sandboxes(shim):
        error = await refuses("start", trial.run(bundle, "start"), errors.Unknown)
        true("what it says", "something of config.json", "config.json" in str(error), told(error))
        return
    try:
        await trial.start(bundle)
    except errors.Unknown as error:
        raise Broken("start", "an address, since its shim has the Sandbox service", told(error)) from error
    served = await _serves_sandboxes(await trial.connect(bundle))
    true("the Sandbox service of what it started", "served, as elsewhere", served, "it is not")


async def _serves_sandboxes(shim: Shim) -> bool:
    """Asks about a sandbox that was not made."""
    try:
        await shim.sandbox.status(shim.id, False)
    except errors.Unimplemented:
        return False
    except errors.AtollError:
        return True
    return True


async def delete_without_a_container_is_quick(trial: ShimTrial) -> None:
    """Delete of a bundle whose container was never made prints a DeleteResponse, or fails and says why."""
    bundle, shim = await trial.launched()
    await shim.tasks.shutdown(bundle.id)
    true("the shim", "gone after Shutdown", await trial.is_gone(trial.server(bundle)), "it lives")
    try:
        await trial.delete(bundle)
    except errors.Unknown as error:
        true("what it says", "a reason", len(str(error)) > len("exit status 1"), told(error))


CHECKS: tuple[Check[ShimTrial], ...] = (
    check(version_is_told, source="containerd's shim protocol, -v"),
    check(info_is_a_runtime_info, source="containerd's shim protocol, -info"),
    check(start_answers_where_it_listens, source=START),
    check(start_understands_bootstrap_params, source="containerd.runtime.bootstrap.v1"),
    check(start_understands_an_old_daemon, source=START),
    check(start_is_idempotent, source=START),
    check(a_pod_shares_a_shim, source="containerd's shim protocol, io.kubernetes.cri.sandbox-id"),
    check(the_socket_is_private, source=START),
    check(a_bundle_without_a_config_is_a_sandboxs, source=f"{START}, and the bundles of containerd's shim sandboxer"),
    check(delete_without_a_container_is_quick, source="containerd's shim protocol, delete"),
)
