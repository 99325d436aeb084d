"""A running container written to one archive, from which it could be continued: CheckpointContainer of the CRI.

The archive is the one that a kubelet asks for and that checkpointctl reads:

    checkpoint/         what CRIU dumped          config.dump, spec.dump, status.dump   JSON: what the container is
    dump.log            what CRIU said            status            its checkpoint file, as Atoll keeps it
    stats-dump          what it counted           rootfs-diff.tar   its writable layer, as a layer of an image
    container.log       its log

The container stands still meanwhile, and goes on whatever happens.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import tarfile
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from atoll import errors, faults
from atoll.api import containerd_runc_v1_pb2 as runc
from atoll.concurrency import SingleFlight, run_to_completion
from atoll.container.status import State, encode_status
from atoll.container.store import Container
from atoll.engine.drivers import is_foreign
from atoll.engine.lines import tasks_of
from atoll.engine.parts import Parts
from atoll.engine.pod import Pod
from atoll.engine.request import names_in_log_folder
from atoll.linux.files import replacing
from atoll.linux.plain import open_below
from atoll.runtime.task import TaskClient
from atoll.sandbox.controller import TypedAny
from atoll.snapshot import archive

log = logging.getLogger(__name__)

RESUME_TIMEOUT_S = 30.0
RESUME_PAUSES_S = (0.1, 0.5, 2.0)
"""Between questions to a shim that does not let a container go on."""
OPTIONS_URL = "containerd.runc.v1.CheckpointOptions"
IMAGE, WORK = "checkpoint", "work"
WORK_FILES = ("dump.log", "stats-dump")
"""Of what CRIU leaves in its work folder, what goes into the archive."""


class _Config(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """`config.dump`, in the words of checkpointctl."""

    id: str
    name: str
    rootfs_image: str
    rootfs_image_ref: str
    rootfs_image_name: str
    runtime: str
    created_time: str
    checkpointed_time: str
    restored_time: str = "0001-01-01T00:00:00Z"
    restored: bool = False


class _Status(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """`status.dump`, in the words of checkpointctl."""

    created_at: int
    started_at: int
    finished_at: int
    exit_code: int
    pid: int
    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Files:
    """What goes into the archive beside what CRIU leaves in `folder`."""

    folder: Path
    log: str
    log_below: int
    texts: dict[str, bytes]


class Checkpoints:
    """Writes checkpoints of the containers of an engine."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._writes: SingleFlight[str, None] = SingleFlight(parts.owner)

    async def write(self, pod: Pod, container: Container, location: str, timeout_s: float = 0) -> None:
        """Checkpoint a running container to the file `location`, which is there whole or not at all.

        Raises `InvalidArgument` for a location that cannot be written, `Unimplemented` where the container's OCI
        runtime knows no checkpoints, `FailedPrecondition` where it does not run and where CRIU cannot dump it here,
        `DeadlineExceeded` where `timeout_s`, if not 0, runs out.
        """
        target = _target(location)
        self._require_criu(pod)
        if container.status.get().state is not State.RUNNING:
            raise errors.FailedPrecondition(f"container {container.id[:13]}: is not running, it cannot be checkpointed")
        if self._writes.asked(container.id, target) != target:
            raise errors.FailedPrecondition(f"container {container.id[:13]}: is being checkpointed to another file")
        await self._writes.run(
            container.id,
            lambda: self._write(pod, container, target, timeout_s),
            name=f"pod/{pod.id}/checkpoint/{container.id}",
            asked=target,
        )

    def _require_criu(self, pod: Pod) -> None:
        features = self._parts.features.get(pod.handler_name)
        if not is_foreign(pod.handler.shim) and features is not None and not features.checkpoint:
            raise errors.Unimplemented(
                f"runtime handler {pod.handler_name!r}: its OCI runtime knows no checkpoints; use runc with criu"
            )
        if shutil.which("criu") is None:
            raise errors.FailedPrecondition("criu: is not installed, and without it no container can be checkpointed")

    async def _write(self, pod: Pod, container: Container, target: Path, timeout_s: float) -> None:
        parts = self._parts
        folder = Path(await parts.blocking.run(_make_folder, parts.paths.containers / container.id))
        try:
            async with asyncio.timeout(timeout_s or None):
                await self._write_in(pod, container, folder, target)
        except TimeoutError:
            raise errors.DeadlineExceeded(
                f"container {container.id[:13]}: its checkpoint was not written within {timeout_s:g} s"
            ) from None
        finally:
            await run_to_completion(parts.blocking.run(shutil.rmtree, folder, True), within=RESUME_TIMEOUT_S)

    async def _write_in(self, pod: Pod, container: Container, folder: Path, target: Path) -> None:
        parts = self._parts
        tasks = await tasks_of(pod)
        options = runc.CheckpointOptions(image_path=str(folder / IMAGE), work_path=str(folder / WORK))
        asked = TypedAny(type_url=OPTIONS_URL, value=options.SerializeToString())
        try:
            with faults.step("checkpoint/pause"):
                await tasks.pause(container.id)
            try:
                with faults.step("checkpoint/dump"):
                    await tasks.checkpoint(container.id, str(folder / IMAGE), asked)
            except (errors.Unknown, errors.Internal) as error:
                said = await parts.blocking.run(_last_error, folder / WORK / "dump.log")
                raise errors.FailedPrecondition(
                    f"container {container.id[:13]}: cannot be checkpointed here: {said or error}"
                ) from error
            layer = parts.snapshotter.fs(container.record.snapshot_key)
            with faults.step("checkpoint/layer"):
                await parts.blocking.run(archive.write, layer, folder / "rootfs-diff.tar")
        finally:
            await run_to_completion(_resume(tasks, container.id), within=RESUME_TIMEOUT_S)
        files = _Files(
            folder=folder,
            log=container.metadata.log_path,
            log_below=names_in_log_folder(container),
            texts=self._texts(pod, container),
        )
        with faults.step("checkpoint/pack"):
            await parts.blocking.run(_pack, files, target)

    def _texts(self, pod: Pod, container: Container) -> dict[str, bytes]:
        status = container.status.get()
        image = self._parts.images.find(container.metadata.image_ref)
        config = _Config(
            id=container.id,
            name=container.metadata.name,
            rootfs_image=container.record.image,
            rootfs_image_ref=container.metadata.image_ref,
            rootfs_image_name=image.repo_tags[0] if image is not None and image.repo_tags else container.record.image,
            runtime=pod.handler.shim,
            created_time=datetime.fromtimestamp(container.record.created_at / 1e9, UTC).isoformat(),
            checkpointed_time=datetime.now(UTC).isoformat(),
        )
        shown = _Status(
            created_at=status.created_at,
            started_at=status.started_at,
            finished_at=status.finished_at,
            exit_code=status.exit_code,
            pid=status.pid,
            reason=status.reason,
            message=status.message,
        )
        return {
            "config.dump": msgspec.json.encode(config),
            "spec.dump": container.record.spec,
            "status.dump": msgspec.json.encode(shown),
            "status": encode_status(status),
        }


def _target(location: str) -> Path:
    """Where the archive goes: an absolute path in a folder that is there, and what may be replaced is a file."""
    target = Path(location)
    if not location.startswith("/") or "\0" in location or ".." in target.parts:
        raise errors.InvalidArgument(f"location {location[:200]!r}: must be an absolute path without ..")
    try:
        if not target.parent.is_dir():
            raise errors.InvalidArgument(
                f"location {location[:200]!r}: there is no folder {str(target.parent)[:200]!r}"
            )
        if target.exists() and not target.is_file():
            raise errors.InvalidArgument(f"location {location[:200]!r}: is there and is no file")
    except OSError as error:
        raise errors.InvalidArgument(f"location {location[:200]!r}: {error.strerror}") from error
    return target


async def _resume(tasks: TaskClient, container_id: str) -> None:
    """Let the container go on; asked again where that fails, for nobody else would. What has ended is let be."""
    for pause in (*RESUME_PAUSES_S, None):
        try:
            with faults.step("checkpoint/resume"):
                await tasks.resume(container_id)
        except (errors.NotFound, errors.FailedPrecondition):
            return
        except errors.AtollError as error:
            if pause is None:
                raise
            log.warning("container %s: does not go on yet, is asked again: %s", container_id[:13], error)
            await asyncio.sleep(pause)
        else:
            return


def _make_folder(parent: Path) -> str:
    try:
        folder = tempfile.mkdtemp(prefix="criu-", dir=parent)
        for name in (IMAGE, WORK):
            os.mkdir(Path(folder, name), 0o700)
    except OSError as error:
        raise errors.Unavailable(f"{error.filename}: {error.strerror}") from error
    return folder


def _last_error(path: Path) -> str:
    """The last error in CRIU's log, which says why nothing was dumped; empty where it tells none."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition("Error ")[2][:300] for line in reversed(lines) if "Error " in line), "")


def _pack(files: _Files, target: Path) -> None:
    """Write the archive beside `target`, then have it take that name."""
    try:
        with (
            replacing(target) as file,
            tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as packed,
        ):
            _add_all(packed, files)
    except OSError as error:
        raise errors.FailedPrecondition(f"{target}: cannot be written: {error.strerror}") from error


def _add_log(packed: tarfile.TarFile, path: Path, below: int) -> None:
    """As far as it is a plain file; one that is a link, or below one, is somebody else's."""
    try:
        fd = open_below(path, below)
    except OSError as error:
        log.warning("%s: is not in the checkpoint: %s", path, error.strerror)
        return
    with open(fd, "rb") as file:
        packed.addfile(packed.gettarinfo(arcname="container.log", fileobj=file), file)


def _add_all(packed: tarfile.TarFile, files: _Files) -> None:
    packed.add(files.folder / IMAGE, arcname=IMAGE)
    found = {name: files.folder / WORK / name for name in WORK_FILES}
    found["rootfs-diff.tar"] = files.folder / "rootfs-diff.tar"
    for name, path in found.items():
        if path.is_file():
            packed.add(path, arcname=name, recursive=False)
    if files.log:
        _add_log(packed, Path(files.log), files.log_below)
    for name, text in files.texts.items():
        path = files.folder / name
        path.write_bytes(text)
        packed.add(path, arcname=name)
