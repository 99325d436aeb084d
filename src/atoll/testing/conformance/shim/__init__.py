"""The checks of shim binaries: containerd's shim protocol, its Task service, and the Sandbox service where it has one.

subject     the binary, the folder in which the kit is its daemon, the trial of one check
bootstrap   its command line: version, info, start of every generation, delete
task        the life of a container    processes   execs and stdio
ending      the shim's own end, its Sandbox service, and what kills and disturbs
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from atoll import errors
from atoll.api import containerd_services_events_ttrpc_v1_pb2 as forwarding
from atoll.linux.cgroup import Cgroup
from atoll.linux.cgroup_layout import detect
from atoll.runtime.binary import resolve
from atoll.testing.conformance.check import Check
from atoll.testing.conformance.report import Report
from atoll.testing.conformance.run import Bounds, Told, run_checks
from atoll.testing.conformance.shim import bootstrap, ending, processes, task
from atoll.testing.conformance.shim.subject import WITHIN_S, Events, ShimSubject, ShimTrial
from atoll.testing.conformance.workload import fill, find_busybox
from atoll.ttrpc.server import Server

SAFE: tuple[Check[ShimTrial], ...] = (*bootstrap.CHECKS, *task.CHECKS, *processes.CHECKS, *ending.CHECKS)
DESTRUCTIVE: tuple[Check[ShimTrial], ...] = ending.DESTRUCTIVE
CHECKS: tuple[Check[ShimTrial], ...] = (*SAFE, *DESTRUCTIVE)
FOLDER = Path("/run")
ROOTS = (Path("/run/containerd/runc"), Path("/run/atoll/oci"))
"""Where shims keep their OCI runtime's state, a folder a namespace, which none removes; a killed one may leave more."""


async def check_shim(
    subject: ShimSubject, checks: Sequence[Check[ShimTrial]] = CHECKS, *, jobs: int = 1, told: Told | None = None
) -> Report:
    """Run checks on a shim, up to `jobs` at a time; one that fails does not stop the others."""
    bounds = Bounds(call_s=subject.within_s, jobs=jobs)
    name = subject.binary.name
    return await run_checks(
        checks, lambda check: ShimTrial(subject, check.name), subject=name, bounds=bounds, told=told
    )


@asynccontextmanager
async def shim(binary: str, *, within_s: float = WITHIN_S, parent: Path = FOLDER) -> AsyncGenerator[ShimSubject]:
    """The subject for a runtime type or a path, with its daemon's folder and event service while the context is open.

    Raises `NotFound` for a binary that is not there, `FailedPrecondition` without root or busybox.
    """
    path = resolve(binary).absolute()
    busybox = find_busybox()
    if os.geteuid() != 0:
        raise errors.FailedPrecondition("shims make containers: run this as root")
    if busybox is None:
        raise errors.FailedPrecondition("the containers are busybox: install busybox-static")
    namespace = f"kit{secrets.token_hex(4)}"
    folder = Path(tempfile.mkdtemp(prefix="kit-", dir=parent))
    rootfs = folder / "rootfs"
    rootfs.mkdir()
    fill(rootfs, busybox)
    subject = ShimSubject(
        binary=path, folder=folder, rootfs=rootfs, namespace=namespace, events=Events(), within_s=within_s
    )
    try:
        async with Server(peer_uid=os.getuid()) as server:
            server.add_service(forwarding.DESCRIPTOR.services_by_name["Events"], subject.events)
            await server.serve(Path(subject.ttrpc_address))
            yield subject
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for root in ROOTS:
            shutil.rmtree(root / namespace, ignore_errors=True)
        _remove_cgroup(namespace)


def _remove_cgroup(namespace: str) -> None:
    """The parent of the containers' cgroups is the kit's own."""
    with suppress(OSError, errors.AtollError):
        Cgroup(f"/{namespace}", detect()).delete(0.5)
