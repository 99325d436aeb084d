"""The record of a container whose file cannot be read, as far as the container's other files tell.

A shim writes its records whole or not at all, so that one that is damaged was so by a hand, a disk or a fault of ours.
The container must go all the same: its cgroup is in its runtime spec, and its OCI runtime has books of its own.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec

from atoll import errors
from atoll.engine.paths import NAMESPACE
from atoll.linux.plain import read_small
from atoll.oci.runtime import ENVIRONMENT
from atoll.runtime.binary import BINARY_FILE
from atoll.shim import cgroups, records
from atoll.unreadable import UNREADABLE

log = logging.getLogger(__name__)

SPEC = "config.json"
SPEC_LIMIT_BYTES = 16 << 20
CRUN_RECORD, RUNC_RECORD = "status", "state.json"
"""What crun and runc write of a container, in a folder of its name."""


class _Linux(msgspec.Struct):
    cgroups_path: str = msgspec.field(name="cgroupsPath", default="")


class _Spec(msgspec.Struct):
    linux: _Linux = msgspec.field(default_factory=_Linux)


class _Crun(msgspec.Struct):
    pid: int = 0


class _Runc(msgspec.Struct):
    init_process_pid: int = 0


def task(bundle: Path, state: Path) -> records.TaskRecord | None:
    """The record of a bundle's container; where that cannot be read, what the rest says of it. Blocks.

    `state` is the daemon's folder that has the OCI runtimes' books. None where nothing was made.
    """
    try:
        return records.read(bundle / records.TASK, records.TaskRecord)
    except errors.DataLoss as error:
        log.warning("container %s: is known by its other files: %s", bundle.name[:13], error)
    folders = _folders(bundle)
    if (bundle / BINARY_FILE).exists():
        return _record(bundle.name, binary="", root="", pid=0, folders=folders)
    for root, name, kind in _books(state, bundle.name):
        pid = _pid(root / bundle.name / name, kind)
        program = "crun" if kind is _Crun else "runc"
        binary = shutil.which(program, path=ENVIRONMENT["PATH"]) or program
        return _record(bundle.name, binary=binary, root=str(root), pid=pid, folders=folders)
    return _record(bundle.name, binary="crun", root=str(state / "oci"), pid=0, folders=folders)


def ended(bundle: Path) -> records.ExitRecord | None:
    """The record of the end of a bundle's container; None where there is none that can be read. Blocks."""
    try:
        return records.read(bundle / records.EXIT, records.ExitRecord)
    except errors.DataLoss as error:
        log.warning("container %s: how it ended is lost: %s", bundle.name[:13], error)
    return None


def _record(name: str, *, binary: str, root: str, pid: int, folders: tuple[str, ...]) -> records.TaskRecord:
    return records.TaskRecord(
        id=name, namespace=NAMESPACE, binary=binary, root=root, systemd_cgroup=False, pid=pid, cgroups=folders
    )


def _folders(bundle: Path) -> tuple[str, ...]:
    """The cgroups that the runtime spec names; none where that is damaged too, or names a slice of systemd's."""
    try:
        path = msgspec.json.decode(read_small(bundle / SPEC, SPEC_LIMIT_BYTES), type=_Spec).linux.cgroups_path
    except (OSError, *UNREADABLE):
        return ()
    return tuple(map(str, cgroups.of_path(path)))


def _books(state: Path, name: str) -> Iterator[tuple[Path, str, type[_Crun | _Runc]]]:
    others: list[str] = []
    with contextlib.suppress(FileNotFoundError):
        others = os.listdir(state / "oci.d")
    for root in (state / "oci", *(state / "oci.d" / other for other in others)):
        for file, kind in ((CRUN_RECORD, _Crun), (RUNC_RECORD, _Runc)):
            if (root / name / file).exists():
                yield root, file, kind


def _pid(path: Path, kind: type[_Crun | _Runc]) -> int:
    try:
        found = msgspec.json.decode(read_small(path, SPEC_LIMIT_BYTES), type=kind)
    except (OSError, *UNREADABLE):
        return 0
    return found.pid if isinstance(found, _Crun) else found.init_process_pid
