"""Branches of a container's files: snapshots while it runs, what is made upon them, and what has changed.

snapshot   of a running container: it stands still while its own layer is copied (blocks are shared where the file
           system can); of one that has ended: its layer becomes the snapshot, nothing is copied
fork       containers upon a snapshot, each with a new layer of its own: no data is copied
rollback   a new container of the same name upon a snapshot, in the place of the old one
diff       the container's own layers against its image, or against a snapshot that it rests on
commit     the same as one more layer of an image

A container that is to stand still is marked in its folder first, so that a new daemon has it go on where an
earlier one died. A snapshot is one commit: the snapshotter's record and the ledger's entry.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from weakref import WeakValueDictionary

import msgspec

from atoll import errors
from atoll.concurrency import SingleFlight, run_to_completion, wait_all
from atoll.container.config import ContainerConfig, ContainerMetadata
from atoll.container.status import State
from atoll.container.store import Container
from atoll.database import Plan
from atoll.engine import branch_base as base
from atoll.engine.containers import Containers
from atoll.engine.kinds import SNAPSHOT
from atoll.engine.lines import tasks_of
from atoll.engine.parts import Parts
from atoll.engine.phases import operation
from atoll.engine.pod import Pod
from atoll.engine.pods import Pods
from atoll.image.committing import Commit
from atoll.image.model import Image
from atoll.ledger.kind import Intent
from atoll.oci import spec as oci
from atoll.runtime.task import TaskStatus
from atoll.snapshot import changes
from atoll.snapshot.copying import Copied
from atoll.snapshot.records import Snapshot
from atoll.snapshot.tree import measure
from atoll.unreadable import UNREADABLE

log = logging.getLogger(__name__)

RESUME_TIMEOUT_S = 30.0
REMOVE_TIMEOUT_S = 120.0
MARK = "standing-still"
"""A file in a container's folder: whoever finds it has the container go on."""
MAX_FORKS = 256
_NAME = re.compile(r"[a-zA-Z0-9](?:[a-zA-Z0-9_.-]{0,61}[a-zA-Z0-9])?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """A new snapshot, and what it cost: how long the container stood still, and what was copied or shared."""

    snapshot: Snapshot
    paused_s: float
    copied: Copied


class Branches:
    """The snapshots of an engine."""

    def __init__(self, parts: Parts, pods: Pods, containers: Containers) -> None:
        self._parts = parts
        self._pods = pods
        self._containers = containers
        self._takes: SingleFlight[str, Taken] = SingleFlight(parts.owner)
        self._still: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    # --- what there is ---

    def list(self) -> tuple[Snapshot, ...]:
        """Every snapshot of a container's files, the oldest first."""
        return tuple(base.taken(self._parts.snapshotter))

    def get(self, name: str) -> Snapshot:
        """By name, key or unique prefix of a key; raises `NotFound` or `InvalidArgument`."""
        every = self.list()
        found = [one for one in every if name in (one.labels.get(base.NAME), one.name)]
        found = found or [one for one in every if name and one.name.removeprefix(base.PREFIX).startswith(name)]
        if not found:
            raise errors.NotFound(f"snapshot {name[:80]!r}: there is none; `atoll snapshot ls` shows what there is")
        if len(found) > 1:
            raise errors.InvalidArgument(f"snapshot {name!r}: {len(found)} fit; use more of the ID")
        return found[0]

    def is_used(self, snapshot: Snapshot) -> bool:
        """Whether something rests on it: a container or another snapshot."""
        return self._parts.snapshotter.has_children(snapshot.name)

    async def remove(self, name: str) -> None:
        """Give its space back; raises `FailedPrecondition` while something rests on it, `NotFound`."""
        snapshot = self.get(name)
        if self.is_used(snapshot):
            raise errors.FailedPrecondition(
                f"snapshot {snapshot.labels.get(base.NAME)}: containers or snapshots rest on it; remove them first"
            )
        for debt in await self._parts.ledger.release_all(snapshot.name, within=REMOVE_TIMEOUT_S):
            raise errors.Unavailable(f"snapshot {name}: not removed yet, will be retried: {debt}")

    async def recover(self) -> None:
        """Have go on what stood still for a daemon that died."""
        for name in await self._parts.blocking.run(_marked, self._parts.paths.containers):
            if not self._parts.containers.has(name):
                continue  # its folder goes with it
            container = self._containers.get(name)
            log.warning("container %s: stood still for a snapshot that was cut short, it goes on", name[:13])
            pod = self._pods.find(container.sandbox_id)
            if pod is not None and container.status.get().state is not State.EXITED:
                try:
                    await self._resume(pod, container)
                except errors.AtollError as error:
                    log.error("container %s: still stands still: %s", name[:13], error)
                    continue
            await self._parts.blocking.run(_unlink, self._mark(container))

    # --- snapshots ---

    async def snapshot(self, container_id: str, name: str = "") -> Taken:
        """Keep a container's files as they are now under `name`; durable when it returns.

        Raises `AlreadyExists` for a name in use, `FailedPrecondition` for a pod with users of its own.
        """
        pod, container = self._find(container_id)
        chosen = name or f"{_name_of(container)}-{secrets.token_hex(3)}"
        if not _NAME.fullmatch(chosen):
            raise errors.InvalidArgument(f"snapshot name {name[:80]!r}: must be letters, digits, '-', '_' and '.'")
        if any(one.labels.get(base.NAME) == chosen for one in self.list()):
            raise errors.AlreadyExists(f"snapshot {chosen}: is there; remove it first, or take another name")
        if self._takes.running(container.id) is not None:
            raise errors.FailedPrecondition(f"container {container.id[:13]}: a snapshot of it is being taken")
        return await self._takes.run(
            container.id, lambda: self._take(pod, container, chosen), name=f"pod/{pod.id}/snapshot/{container.id}"
        )

    @operation
    async def _take(self, pod: Pod, container: Container, name: str) -> Taken:
        parts, key = self._parts, f"{base.PREFIX}{secrets.token_hex(8)}"
        labels = self._labels(pod, container, name)
        entered = parts.ledger.plan_enter(Intent(owner=key, kind=SNAPSHOT, key=key))
        story = parts.stories.begin(pod.id, "snapshot", container.id)
        layer = container.record.snapshot_key
        if container.status.get().state is State.EXITED:
            await parts.at_rest.end(container.id, "a snapshot of it was taken")
            with story.step("freeze", "disk"):
                taken = await parts.snapshotter.freeze(layer, key, labels, entered)
            return Taken(snapshot=taken, paused_s=0.0, copied=Copied())
        staged = await parts.snapshotter.stage()
        try:
            begun = time.monotonic()
            with story.step("copy", "the container stands still"):
                async with self._standing(pod, container):
                    copied = await parts.snapshotter.copy(layer, staged)
            paused_s = time.monotonic() - begun
            with story.step("sync", "disk"):
                await parts.snapshotter.sync()
            usage = await parts.blocking.run(measure, staged.fs)
            parent = parts.snapshotter.stat(layer).parent
            planned = replace(parts.snapshotter.plan_staged(staged, key, parent, usage), labels=labels)
            with story.step("commit", "disk"):
                await parts.db.commit(self._recorded(planned), entered)
        except BaseException:
            if not parts.snapshotter.has_folder(key):
                await parts.images.debts.undone(parts.snapshotter.discard([staged]), within=REMOVE_TIMEOUT_S)
            raise
        return Taken(snapshot=planned, paused_s=paused_s, copied=copied)

    def _recorded(self, planned: Snapshot) -> Plan[None]:
        snapshotter = self._parts.snapshotter
        return Plan(
            lambda connection: snapshotter.record_staged(connection, [planned]),
            lambda _: snapshotter.settle_staged([planned]),
        )

    def _labels(self, pod: Pod, container: Container, name: str) -> dict[str, str]:
        return {
            base.NAME: name,
            base.CONTAINER: container.id,
            base.CONTAINER_NAME: _name_of(container),
            base.POD: pod.id,
            base.IMAGE: container.record.image,
            base.IMAGE_ID: container.metadata.image_ref,
            base.CONFIG: msgspec.json.encode(_config(container)).decode(),
        }

    @contextlib.asynccontextmanager
    async def _standing(self, pod: Pod, container: Container) -> AsyncGenerator[None]:
        """A running container stands still inside, for one at a time; one that is paused already stays so.

        Raises `FailedPrecondition` at the end where somebody had it go on meanwhile; one that was killed is fine.
        """
        if container.status.get().state is not State.RUNNING:
            yield
            return
        async with self._still.setdefault(container.id, asyncio.Lock()):
            tasks = await tasks_of(pod)
            was_paused = (await tasks.state(container.id)).status is TaskStatus.PAUSED
            mark = self._mark(container)
            try:
                if not was_paused:
                    await self._parts.blocking.run(_touch, mark)
                    await tasks.pause(container.id)
                yield
                if (await tasks.state(container.id)).status is TaskStatus.RUNNING:
                    raise errors.FailedPrecondition(
                        f"container {container.id[:13]}: was resumed while its files were read; try again"
                    )
            finally:
                if not was_paused:
                    await run_to_completion(self._go_on(pod, container, mark), within=RESUME_TIMEOUT_S)

    async def _go_on(self, pod: Pod, container: Container, mark: Path) -> None:
        await self._resume(pod, container)
        await self._parts.blocking.run(_unlink, mark)

    async def _resume(self, pod: Pod, container: Container) -> None:
        with contextlib.suppress(errors.NotFound, errors.FailedPrecondition):  # it does not stand, or was killed
            await (await tasks_of(pod)).resume(container.id)

    def _mark(self, container: Container) -> Path:
        return self._parts.paths.containers / container.id / MARK

    # --- containers upon them ---

    async def fork(self, name: str, *, pod_id: str = "", count: int = 1, start: bool = True) -> list[Container]:
        """Containers like the one that the snapshot is of, upon its files, in the same pod unless another is named.

        All or none. Raises `NotFound` where the pod or the image is gone.
        """
        snapshot = self.get(name)
        if not 1 <= count <= MAX_FORKS:
            raise errors.InvalidArgument(f"forks: {count} are not 1 to {MAX_FORKS}")
        pod = self._pods.get(pod_id or snapshot.labels.get(base.POD, ""))
        _require_own_files(pod)
        made: list[Container] = []

        async def one() -> None:
            label = f"{snapshot.labels.get(base.CONTAINER_NAME, 'fork')[:50]}-{secrets.token_hex(4)}"
            config = _renamed(_stored(snapshot), ContainerMetadata(name=label), snapshot.name)
            container = await self._containers.create(pod, config)
            made.append(container)
            if start:
                await self._containers.start(pod, container.id)

        try:
            await wait_all([one() for _ in range(count)])
        except BaseException:
            await run_to_completion(self._drop(pod, made), within=REMOVE_TIMEOUT_S)
            raise
        return made

    async def _drop(self, pod: Pod, made: Sequence[Container]) -> None:
        await wait_all([self._containers.remove(pod, container.id) for container in made])

    async def rollback(self, container_id: str, name: str, timeout_s: float = 0.0) -> Container:
        """A new container of the same name and configuration upon a snapshot, in the place of this one.

        Processes cannot be rolled back: the old ones end, within `timeout_s` after the stop signal, the command begins
        anew where it ran. The old container is there until the new one runs. Raises `InvalidArgument` for a
        snapshot of another image.
        """
        pod, old = self._find(container_id)
        snapshot = self.get(name)
        before = _config(old)
        attempt = before.metadata.attempt + 1 if before.metadata is not None else 1
        metadata = ContainerMetadata(name=_name_of(old), attempt=attempt)
        was_started = old.status.get().state is not State.CREATED
        new = await self._containers.create(pod, _renamed(before, metadata, snapshot.name))
        try:
            await self._containers.stop(pod, old.id, timeout_s)
            if was_started:
                await self._containers.start(pod, new.id)
        except BaseException:
            await run_to_completion(self._containers.remove(pod, new.id), within=REMOVE_TIMEOUT_S)
            raise
        await self._containers.remove(pod, old.id)
        return new

    # --- what has changed ---

    async def diff(self, container_id: str, since: str = "") -> list[changes.Changed]:
        """What the container has that its image, or the snapshot `since` of it or below it, has not.

        Of a container that runs it is told as it goes on.
        """
        _, container = self._find(container_id)
        return await self._parts.blocking.run(_listed, self._roots(container, since))

    async def export(self, container_id: str, since: str = "", *, pause: bool = True) -> int:
        """The same as a layer of an image: a descriptor of a file without a name, which the caller closes."""
        pod, container = self._find(container_id)
        scratch = await self._parts.images.scratch()
        try:
            await self._write_layer(pod, container, since, scratch / "layer", pause=pause)
            return os.open(scratch / "layer", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            await run_to_completion(self._parts.blocking.run(_clear, scratch), within=REMOVE_TIMEOUT_S)

    async def _write_layer(self, pod: Pod, container: Container, since: str, target: Path, *, pause: bool) -> None:
        roots = self._roots(container, since)
        async with self._standing(pod, container) if pause else contextlib.nullcontext():
            await self._parts.blocking.run(_written, roots, target)

    async def commit(self, container_id: str, reference: str, commit: Commit, *, pause: bool = True) -> Image:
        """An image of the container's own and one more layer, with what it has changed; durable when it returns.

        Raises `InvalidArgument` for a reference or a change that is none, `NotFound` where its image is gone.
        """
        pod, container = self._find(container_id)
        image = self._parts.images.get(container.metadata.image_ref)
        scratch = await self._parts.images.scratch()
        config = _config(container)
        whole = replace(
            commit,
            created=datetime.now(UTC).isoformat(),
            created_by=" ".join((*config.command, *config.args)),
        )
        try:
            await self._write_layer(pod, container, "", scratch / "layer", pause=pause)
            return await self._parts.images.commit(image, scratch / "layer", reference, whole)
        finally:
            await run_to_completion(self._parts.blocking.run(_clear, scratch), within=REMOVE_TIMEOUT_S)

    # --- looking up ---

    def _find(self, container_id: str) -> tuple[Pod, Container]:
        container = self._containers.get(container_id)
        pod = self._pods.get(container.sandbox_id)
        _require_own_files(pod)
        return pod, container

    def _roots(self, container: Container, since: str) -> changes.Roots:
        """The container's files and what they are compared with: a snapshot or the image."""
        parts = self._parts
        image = parts.images.get(container.metadata.image_ref)
        uppers, lowers = base.layers(parts, container.record.snapshot_key, image)
        mounts = [mount.destination for mount in oci.decode(container.record.spec).mounts]
        if not since:
            return changes.Roots((*uppers, *lowers), lowers, mounts)
        snapshot = self.get(since)
        if snapshot.labels.get(base.IMAGE_ID) != image.id:
            raise errors.FailedPrecondition(f"container {container.id[:13]}: snapshot {since} is of another image")
        kept, _ = base.layers(parts, snapshot.name, image)
        return changes.Roots((*uppers, *lowers), (*kept, *lowers), mounts, is_copied=kept[0] not in uppers)


def _require_own_files(pod: Pod) -> None:
    if pod.config.users is not None:
        raise errors.FailedPrecondition(
            f"pod {pod.id[:13]}: has users of its own, its files cannot be below another container's"
        )


def _config(container: Container) -> ContainerConfig:
    config = container.metadata.config
    if config is None:
        raise errors.DataLoss(f"container {container.id[:13]}: its configuration is lost")
    return config


def _name_of(container: Container) -> str:
    metadata = _config(container).metadata
    return metadata.name if metadata is not None else container.id[:13]


def _stored(snapshot: Snapshot) -> ContainerConfig:
    try:
        return msgspec.json.decode(snapshot.labels[base.CONFIG], type=ContainerConfig)
    except (KeyError, *UNREADABLE) as error:
        raise errors.DataLoss(f"snapshot {snapshot.name}: the configuration of its container is lost") from error


def _renamed(config: ContainerConfig, metadata: ContainerMetadata, key: str) -> ContainerConfig:
    return msgspec.structs.replace(
        config,
        metadata=metadata,
        log_path=f"{metadata.name}-{metadata.attempt}.log" if config.log_path else "",
        annotations={**config.annotations, base.BASE: key},
    )


def _listed(roots: changes.Roots) -> list[changes.Changed]:
    try:
        return list(changes.changes(roots))
    except FileNotFoundError as error:
        raise errors.Unavailable(f"{error.filename}: went while it was looked at; try again") from error
    except OSError as error:
        raise errors.FailedPrecondition(f"{error.filename}: cannot be read: {error.strerror}") from error


def _written(roots: changes.Roots, target: Path) -> None:
    try:
        changes.write_layer(roots, target)
    except OSError as error:
        raise errors.FailedPrecondition(f"{error.filename or target}: cannot be archived: {error.strerror}") from error


def _clear(scratch: Path) -> None:
    _unlink(scratch / "layer")
    scratch.rmdir()


def _marked(folder: Path) -> list[str]:
    return sorted(path.parent.name for path in folder.glob(f"*/{MARK}"))


def _touch(path: Path) -> None:
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise errors.ResourceExhausted(f"{path}: cannot be made: {error.strerror}") from error


def _unlink(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
