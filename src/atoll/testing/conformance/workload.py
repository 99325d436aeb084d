"""A container in a running sandbox, by the Task API at its address: what a kubelet's containers are to it.

The container is busybox that sleeps, in the namespaces and below the cgroup of the sandbox's process. It goes with the
sandbox; nobody deletes it.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

from atoll import errors
from atoll.runtime.bootstrap import Bootstrap
from atoll.runtime.bundle import Bundle
from atoll.runtime.shim import Shim
from atoll.runtime.task import StdioPaths
from atoll.sandbox.controller import ControllerInstance

SHARED = {"ipc": "ipc", "network": "net", "pid": "pid", "uts": "uts"}
"""The namespaces that the containers of a pod share: the runtime spec's name, the kernel's."""


MOUNTS: tuple[dict[str, object], ...] = (
    {"destination": "/proc", "type": "proc", "source": "proc"},
    {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
    {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "ptmxmode=0666"]},
)


def find_busybox() -> Path | None:
    """A busybox that stands alone, for a root file system of one file."""
    found = shutil.which("busybox", path="/bin:/usr/bin:/usr/local/bin")
    return None if found is None else Path(found)


async def ask_tasks(instance: ControllerInstance, namespace: str) -> int:
    """The pid of who serves the Task API at a sandbox's address; errors are its own."""
    shim = await _connect(instance, namespace)
    try:
        return (await shim.tasks.connect(instance.sandbox_id))[0]
    finally:
        await shim.aclose()


def runs_busybox(folder: Path, namespace: str) -> Callable[[ControllerInstance], Coroutine[Any, Any, None]] | None:
    """What runs one more process in a sandbox; `folder` gets its bundles. None where there is no busybox.

    A sandbox without a Task API stays as it is.
    """
    busybox = find_busybox()
    if busybox is None:
        return None
    numbers = itertools.count(1)

    async def populate(instance: ControllerInstance) -> None:
        if not instance.address or instance.address.startswith("grpc"):
            return
        name = f"{instance.sandbox_id}-w{next(numbers)}"
        bundle = Bundle(id=name, namespace=namespace, path=folder / name)
        bundle.create(sleeping(instance.pid, name))
        fill(bundle.rootfs, busybox)
        shim = await _connect(instance, namespace)
        try:
            await shim.tasks.create(name, bundle=str(bundle.path), rootfs=(), stdio=StdioPaths())
            await shim.tasks.start(name)
        finally:
            await shim.aclose()

    return populate


async def _connect(instance: ControllerInstance, namespace: str) -> Shim:
    bootstrap = Bootstrap.from_endpoint(instance.address, instance.version)
    if bootstrap.protocol != "ttrpc":
        raise errors.Unimplemented(f"{instance.address}: this kit calls tasks by ttrpc only")
    return await Shim.connect(id=instance.sandbox_id, namespace=namespace, bootstrap=bootstrap)


def fill(rootfs: Path, busybox: Path) -> None:
    """A root file system: busybox with some of its names, and the folders that mounts need."""
    for name in ("bin", "dev", "proc", "sys", "tmp"):
        (rootfs / name).mkdir(exist_ok=True)
    shutil.copy(busybox, rootfs / "bin" / "busybox")
    for applet in ("sh", "sleep", "cat", "echo", "stty", "true"):
        (rootfs / "bin" / applet).symlink_to("busybox")


def sleeping(pid: int, name: str) -> bytes:
    """The spec of a container beside the process `pid`, which sleeps."""
    shared = [{"type": kind, "path": f"/proc/{pid}/ns/{file}"} for kind, file in SHARED.items()]
    return spec(("/bin/sleep", "1000000"), cgroup=f"{_cgroup(pid)}/{name}", namespaces=[*shared, {"type": "mount"}])


def _cgroup(pid: int) -> str:
    """Where the process is in the hierarchies that have controllers; empty for the root."""
    paths: dict[str, str] = {}
    for line in Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8").splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            paths[controller] = path
    return paths.get("pids", paths.get("", "/")).rstrip("/")


def spec(
    arguments: tuple[str, ...],
    *,
    cgroup: str,
    namespaces: list[dict[str, str]],
    terminal: bool = False,
    annotations: Mapping[str, str] | None = None,
) -> bytes:
    """The JSON of an OCI runtime spec for busybox."""
    return json.dumps(
        {
            "ociVersion": "1.0.2",
            "process": process(arguments, terminal=terminal),
            "root": {"path": "rootfs"},
            "mounts": list(MOUNTS),
            "annotations": dict(annotations or {}),
            "linux": {"cgroupsPath": cgroup, "namespaces": namespaces},
        }
    ).encode()


def process(arguments: tuple[str, ...], *, terminal: bool = False) -> dict[str, object]:
    """An OCI Process: root without capabilities."""
    return {
        "terminal": terminal,
        "user": {"uid": 0, "gid": 0},
        "args": list(arguments),
        "env": ["PATH=/bin", "TERM=xterm"],
        "cwd": "/",
        "noNewPrivileges": True,
    }
