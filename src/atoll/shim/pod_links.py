"""How a containerd finds the files of a pod that its own `sandboxer = "shim"` has us make.

Its CRI plugin gives containers the files of a pod where its other sandboxer has them, and leaves out in silence what is
not there. So links lead from there to ours; where that is the bundle tells:

    <state>/io.containerd.sandbox.controller.v1.shim/k8s.io/<id>          the bundle; work -> the same below <root>
    <root>/io.containerd.grpc.v1.cri/sandboxes/<id>   -> the pod's files  hostname, hosts, resolv.conf
    <state>/io.containerd.grpc.v1.cri/sandboxes/<id>  -> the pod's files  shm
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

CONTROLLER = "io.containerd.sandbox.controller.v1.shim"
CRI = "io.containerd.grpc.v1.cri"
NAMESPACE = "k8s.io"
WORK = "work"


def links(bundle: Path) -> tuple[Path, ...]:
    """Where they are to be; nowhere for any other bundle."""
    try:
        work = Path(os.readlink(bundle / WORK))
    except OSError:
        return ()
    if any(path.parts[-3:] != (CONTROLLER, NAMESPACE, bundle.name) for path in (bundle, work)):
        return ()
    return tuple(path.parents[2] / CRI / "sandboxes" / bundle.name for path in (work, bundle))


def make(bundle: Path, files: Path) -> None:
    """Make them, in folders that containerd makes too when it needs them. Idempotent; raises `OSError`."""
    for link in links(bundle):
        link.parent.mkdir(0o711, parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            link.symlink_to(files)


def remove(bundle: Path, files: Path) -> None:
    """Remove those that lead to `files`. Idempotent; raises `OSError`."""
    for link in links(bundle):
        with contextlib.suppress(FileNotFoundError):
            if link.is_symlink() and link.readlink() == files:
                link.unlink()
