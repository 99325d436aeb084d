"""What is done without a shim's server: removing what a dead shim left, and telling what a shim can do."""

from __future__ import annotations

import functools
import logging
import signal
import time
from collections.abc import Callable
from pathlib import Path

from google.protobuf.any_pb2 import Any as AnyMessage

import atoll
from atoll import errors
from atoll.api import containerd_task_v3_pb2 as task_pb2
from atoll.api import containerd_types_pb2 as types_pb2
from atoll.linux import process as processes
from atoll.linux import syscalls
from atoll.oci.runtime import OCIRuntime
from atoll.shim import cgroups, pod_files, pod_links, records, runtimes, wire
from atoll.shim.pod_cgroup import PodCgroup
from atoll.shim.pod_holder import holders_in
from atoll.shim.reaper import Reaper
from atoll.shim.records import ExitRecord, GuestRecord, SandboxRecord, TaskRecord
from atoll.shim.rootfs import unmount_root

log = logging.getLogger(__name__)

KILLED_STATUS = 137
FEATURES_URL = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"


async def delete(container_id: str, namespace: str, bundle: Path) -> bytes:
    """Remove the container of `bundle`, and the pod where it was one: processes, runtime state, mounts, cgroups.

    Idempotent. Returns a DeleteResponse: the recorded exit where there is one, else 137 and now. Raises the first error
    after everything was tried.
    """
    faults: list[str] = []
    task = records.last(bundle / records.TASK, TaskRecord)
    if task is not None:
        await _delete_task(task, bundle, faults)
    _attempt(faults, unmount_root, bundle / "rootfs")
    for guest in _guests(bundle):
        await _delete_guest(guest, bundle, faults)
    _delete_pod(bundle, faults)
    ended = records.last(bundle / records.EXIT, ExitRecord)
    if faults:
        raise errors.Internal(f"{container_id}: not removed: {'; '.join(faults)}")
    (bundle / records.TASK).unlink(missing_ok=True)
    (bundle / records.SANDBOX).unlink(missing_ok=True)
    response = task_pb2.DeleteResponse(
        pid=ended.pid if ended is not None else task.pid if task is not None else 0,
        exit_status=ended.exit_status if ended is not None else KILLED_STATUS,
        exited_at=wire.timestamp(ended.exited_at_ns if ended is not None else time.time_ns()),
    )
    return response.SerializeToString()


async def _delete_guest(guest: GuestRecord, bundle: Path, faults: list[str]) -> None:
    """Remove a container of the shim whose own bundle another daemon keeps, or has removed already."""
    before = len(faults)
    await _delete_task(guest.task, Path(guest.bundle), faults)
    _attempt(faults, unmount_root, Path(guest.bundle) / "rootfs")
    if len(faults) == before:
        records.forget_guest(bundle, guest.task.id)


def kill_guests(bundle: Path) -> None:
    """SIGKILL every process of the containers of a shim that is gone; what else they have stays. Blocks."""
    for guest in _guests(bundle):
        cgroups.kill(tuple(Path(folder) for folder in guest.task.cgroups))


def kill_holders(bundle: Path) -> None:
    """SIGKILL who holds the namespaces of a pod whose record is lost. Blocks."""
    for holder, _ in holders_in(bundle):
        processes.send_signal(holder, signal.SIGKILL)


def _guests(bundle: Path) -> list[GuestRecord]:
    found: list[GuestRecord] = []
    for path in records.guests(bundle):
        try:
            guest = records.read(path, GuestRecord)
        except errors.DataLoss as error:
            log.warning("a container is left alone: %s", error)
            continue
        if guest is not None:
            found.append(guest)
    return found


async def _delete_task(task: TaskRecord, bundle: Path, faults: list[str]) -> None:
    # What the runtime made becomes ours when it ends, and is reaped here.
    syscalls.set_child_subreaper(True)
    reaper = Reaper()
    reaper.open()
    folders = tuple(Path(folder) for folder in task.cgroups)
    # First, for a runtime waits for what it kills, which a freezer may hold.
    cgroups.kill(folders)
    try:
        await runtimes.drive(task, reaper).delete(task.id, force=True)
    except errors.AtollError as error:
        faults.append(str(error))
    finally:
        reaper.close()
    cgroups.kill(folders)
    for folder in folders:
        _attempt(faults, cgroups.remove, folder)


def _delete_pod(bundle: Path, faults: list[str]) -> None:
    pod = records.last(bundle / records.SANDBOX, SandboxRecord)
    if pod is None:
        kill_holders(bundle)
        return
    if pod.holder is not None:
        processes.send_signal(pod.holder, signal.SIGKILL)
    _attempt(faults, functools.partial(pod_links.remove, bundle), Path(pod.files))
    _attempt(faults, pod_files.remove, Path(pod.files))
    if pod.has_rootfs:
        _attempt(faults, unmount_root, bundle / "rootfs")
    if pod.cgroup:
        cgroup = PodCgroup(pod.cgroup, exclusive=False)
        try:
            cgroup.remove_now()
        except (errors.AtollError, OSError) as error:
            faults.append(str(error))


def _attempt(faults: list[str], work: Callable[[Path], None], path: Path) -> None:
    try:
        work(path)
    except OSError as error:
        faults.append(f"{error.filename or path}: {error.strerror}")


async def info(name: str, stdin: bytes) -> bytes:
    """A RuntimeInfo: our version, the options given, the features of the OCI runtime they name."""
    options = AnyMessage.FromString(stdin)
    asked = runtimes.options(options)
    reaper = Reaper()
    reaper.open()
    try:
        features = await OCIRuntime(runtimes.find_binary(asked.binary_name), Path("/run"), reaper).features()
    finally:
        reaper.close()
    answer = types_pb2.RuntimeInfo(name=name, version=types_pb2.RuntimeVersion(version=atoll.__version__))
    if stdin:
        answer.options.CopyFrom(options)
    if features.document:
        answer.features.CopyFrom(AnyMessage(type_url=FEATURES_URL, value=features.document))
    return answer.SerializeToString()
