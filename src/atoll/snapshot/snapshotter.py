"""The snapshotter: which snapshots there are, what they rest on, and how each is mounted.

    stage -> (fill) -> plan_commit_staged -> committed -> remove
    prepare(parent) -> active -> remove | commit -> committed
    view(parent)    -> view   -> remove

A record is what makes a folder a snapshot. A folder is made before its record and deleted after it,
so that a crash leaves at worst a folder without a record, which `recover` sweeps. A record without
a folder (a disk that lost it) is reported, and using it is an error.

A loss of power: the files of a committed snapshot are on the disk before its record is. An active one's are not (that
is what `volatile` means), and its folder need not be either: it is then reported as lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import logging
import os
import threading
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from atoll import errors, faults
from atoll.concurrency import Blocking, TaskOwner, run_to_completion
from atoll.database import Connection, Database, Plan
from atoll.linux import idmap
from atoll.linux.userns import IDMap
from atoll.snapshot import records
from atoll.snapshot.copying import Copied, copy_tree
from atoll.snapshot.disk import Disk, sync
from atoll.snapshot.mount import Mount
from atoll.snapshot.records import Kind, Snapshot, Usage
from atoll.snapshot.tree import measure

log = logging.getLogger(__name__)

SETTLE_TIMEOUT_S = 30.0
COPY_TIMEOUT_S = 3600.0
"""For what reads or writes all of a layer."""
MAX_LAYERS = 500
"""The most lower folders that overlayfs stacks (OVL_MAX_STACK)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """What `recover` found: folders that no record names (now in the trash), records without their folder."""

    swept: tuple[int, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Staged:
    """A folder to be filled, which no record names yet."""

    number: int
    fs: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """A snapshot whose folders exist; call `record` in exactly one transaction."""

    snapshot: Snapshot
    mounts: tuple[Mount, ...]
    recorded: threading.Event

    def record(self, connection: Connection) -> None:
        """The change for `Database.write`; raises `AlreadyExists` or `NotFound` (the parent)."""
        records.insert(connection, self.snapshot)
        self.recorded.set()


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """A snapshot about to go; call `record` in exactly one transaction."""

    key: str
    recorded: threading.Event

    def record(self, connection: Connection) -> None:
        """The change for `Database.write`; raises `FailedPrecondition` while there are children."""
        records.delete(connection, self.key)
        self.recorded.set()


class Snapshotter:
    """Overlay snapshots below `root`/snapshots, recorded in `db`.

    Call `recover` before anything else. Lookups answer from memory. Safe for concurrent use from one
    event loop; the transaction decides who wins.
    """

    def __init__(self, root: Path, db: Database, blocking: Blocking) -> None:
        if any(character in str(root) for character in ":,\\\n"):
            raise errors.InvalidArgument(f"{root}: overlay cannot mount from a path that has `:`, `,` or `\\` in it")
        self._disk = Disk(root.absolute())
        self._db = db
        self._blocking = blocking
        self._owner = TaskOwner("snapshotter")
        self._index: dict[str, Snapshot] = {}
        self._children: dict[str, set[str]] = {}
        self._missing: set[str] = set()
        self._unrecorded: set[int] = set()
        """Folders that no record names yet, or no more, and that an operation sees to."""
        self._numbers = itertools.count(1)
        self._options = _kernel_options()
        self._has_trash = self._is_sweeping = False
        self._discarded: list[int] = []
        self.no_users = ""
        """Why snapshots cannot be mounted with the ids of a user namespace here, where they cannot; from `recover`."""
        self._is_damaged = False
        """Records could not be read: any folder may be one of theirs, so none is lost."""

    async def recover(self) -> Recovery:
        """Read the records, compare them with the disk in both directions, sweep folders without a record."""
        loaded = await self._db.write(records.load)
        found, self._is_damaged = loaded.snapshots, loaded.is_damaged
        present = await self._blocking.run(self._folders)
        self.no_users = await self._blocking.run(idmap.problem, self._disk.folder)
        self._index = {snapshot.name: snapshot for snapshot in found}
        self._children = {}
        for snapshot in found:
            self._link(snapshot)
        known = {snapshot.number for snapshot in found}
        self._numbers = itertools.count(max(known | present, default=0) + 1)
        self._missing = {snapshot.name for snapshot in found if snapshot.number not in present}
        self._missing |= {one.parent for one in found if one.parent is not None and one.parent not in self._index}
        swept = () if self._is_damaged else tuple(sorted(present - known))
        for number in swept:
            await self._blocking.run(self._disk.discard, number)
        self._empty_trash()
        for name in sorted(self._missing):
            log.error("snapshot %s: its record is there, its folder is not; %s", name, self._remedy(name))
        return Recovery(swept=swept, missing=tuple(sorted(self._missing)))

    def _folders(self) -> set[int]:
        """The folders there are, durably so: what an earlier run deleted must not come back under a new snapshot."""
        self._disk.make()
        self._disk.settle()
        return self._disk.numbers()

    def _remedy(self, name: str) -> str:
        if name not in self._index:
            return "its record cannot be read: mend it in the database, where its copy is in the table `quarantine`"
        if self._index[name].kind == Kind.COMMITTED:
            return "pull its image again"
        return "what was written there is lost; remove its container"

    async def lost(self) -> tuple[int, ...]:
        """Folders on the disk that no record names and no operation sees to: a crash or a hand left them."""
        if self._is_damaged:
            return ()
        present = await self._blocking.run(self._disk.numbers)
        return tuple(sorted(present - {one.number for one in self._index.values()} - self._unrecorded))

    async def sweep(self, number: int) -> None:
        """Delete a folder that is `lost`; idempotent."""
        if number in await self.lost() and await self._blocking.run(self._disk.discard, number):
            self._empty_trash()

    async def close(self) -> None:
        """Stop deleting in the background; what is left is swept by the next `recover`."""
        await self._owner.aclose()

    # --- questions, answered from memory ---

    def stat(self, key: str) -> Snapshot:
        """The record of `key`; raises `NotFound`."""
        snapshot = self._index.get(key)
        if snapshot is None:
            raise errors.NotFound(f"snapshot {key}: is not there")
        return snapshot

    def walk(self, kind: Kind | None = None) -> tuple[Snapshot, ...]:
        """Every record, or those of one kind, oldest folder first."""
        return tuple(snapshot for snapshot in self._index.values() if kind is None or snapshot.kind == kind)

    def has(self, key: str) -> bool:
        """Whether `key` is there and everything that it rests on has its folder."""
        return key in self._index and not any(name in self._missing for name in self._chain(key))

    def has_folder(self, key: str) -> bool:
        """Whether `key` is there with its own folder, whatever has become of those that it rests on."""
        return key in self._index and key not in self._missing

    def has_children(self, key: str) -> bool:
        return bool(self._children.get(key))

    def fs(self, key: str) -> Path:
        """The folder of `key`'s own files; raises `NotFound`, or `DataLoss` where the folder is lost."""
        if key in self._missing:
            raise errors.DataLoss(f"snapshot {key}: its folder is lost; {self._remedy(key)}")
        return self._disk.fs(self.stat(key).number)

    async def usage(self, key: str) -> Usage:
        """What `key`'s own files take; of a committed snapshot from its record, otherwise counted now."""
        snapshot = self.stat(key)
        if snapshot.kind == Kind.COMMITTED:
            return snapshot.usage
        return await self._blocking.run(measure, self._disk.fs(snapshot.number))

    # --- active snapshots and views ---

    async def prepare(
        self, key: str, parent: str | None, labels: Mapping[str, str] | None = None, *, users: IDMap | None = None
    ) -> tuple[Mount, ...]:
        """Make the active snapshot `key` upon `parent`; its record is durable when it returns. `users` as `preparing`.

        Raises `AlreadyExists`, `NotFound` (the parent), `DataLoss` (the parent's folder is lost).
        """
        return await run_to_completion(self._prepare(key, parent, labels, Kind.ACTIVE, users), within=SETTLE_TIMEOUT_S)

    async def view(self, key: str, parent: str, labels: Mapping[str, str] | None = None) -> tuple[Mount, ...]:
        """Make the read-only snapshot `key` of `parent`; as `prepare` otherwise."""
        return await run_to_completion(self._prepare(key, parent, labels, Kind.VIEW), within=SETTLE_TIMEOUT_S)

    async def _prepare(
        self, key: str, parent: str | None, labels: Mapping[str, str] | None, kind: Kind, users: IDMap | None = None
    ) -> tuple[Mount, ...]:
        async with self.preparing(key, parent, labels, kind=kind, users=users) as plan:
            await self._db.write(plan.record)
        return plan.mounts

    @asynccontextmanager
    async def preparing(
        self,
        key: str,
        parent: str | None,
        labels: Mapping[str, str] | None = None,
        *,
        kind: Kind = Kind.ACTIVE,
        users: IDMap | None = None,
    ) -> AsyncGenerator[Preparation]:
        """`prepare` as a part of the caller's transaction. Its root is for the owner that it has among `users`.

            async with snapshotter.preparing(key, parent) as plan:
                await db.write(lambda connection: (plan.record(connection), ...))

        Leaving the block normally after `record` has run means that it was committed. Leaving it by an
        error or a cancellation asks the database, and keeps or drops the folders accordingly.
        """
        if key in self._index:
            raise errors.AlreadyExists(f"snapshot {key}: is there already; remove it first")
        if parent is not None:
            self._check_parent(parent)
        snapshot = records.new(key, next(self._numbers), kind, parent, labels or {}, records.NOTHING)
        like = self._index[parent].number if parent is not None else None
        work = kind == Kind.ACTIVE and parent is not None
        plan = Preparation(snapshot=snapshot, mounts=self._mounts(snapshot), recorded=threading.Event())
        self._unrecorded.add(snapshot.number)
        try:
            create = self._blocking.run(self._create, snapshot.number, like, work, users)
            await run_to_completion(create, within=SETTLE_TIMEOUT_S)
            yield plan
        except BaseException:
            await run_to_completion(self._settle(snapshot), within=SETTLE_TIMEOUT_S)
            raise
        if plan.recorded.is_set():
            self._enter(snapshot)
        else:
            await run_to_completion(self._settle(snapshot), within=SETTLE_TIMEOUT_S)

    def _create(self, number: int, like: int | None, work: bool, users: IDMap | None = None) -> None:
        try:
            self._disk.create(number, like=like, work=work, users=users)
        except FileNotFoundError as error:
            raise errors.NotFound(f"{error.filename}: the parent was removed meanwhile") from error
        except OSError as error:
            raise errors.ResourceExhausted(f"{error.filename}: cannot make the snapshot: {error.strerror}") from error

    async def _settle(self, snapshot: Snapshot) -> None:
        # Through the writer, so that it runs after a change that is still queued.
        if await self._db.write(lambda connection: records.has_folder(connection, snapshot.name, snapshot.number)):
            self._enter(snapshot)
        else:
            await self._blocking.run(self._disk.delete, snapshot.number)
            self._unrecorded.discard(snapshot.number)

    def _enter(self, snapshot: Snapshot) -> None:
        self._unrecorded.discard(snapshot.number)
        self._missing.discard(snapshot.name)
        self._index[snapshot.name] = snapshot
        self._link(snapshot)

    async def mounts(self, key: str) -> tuple[Mount, ...]:
        """How to mount `key`, also once more after an unmount; raises `FailedPrecondition` for a committed one."""
        snapshot = self.stat(key)
        if snapshot.kind == Kind.COMMITTED:
            raise errors.FailedPrecondition(f"snapshot {key}: is committed and not mounted itself; make a view of it")
        self._check(key)
        if snapshot.kind == Kind.ACTIVE:
            await self._blocking.run(self._disk.forget_volatile, snapshot.number)
        return self._mounts(snapshot)

    def _mounts(self, snapshot: Snapshot) -> tuple[Mount, ...]:
        own = str(self._disk.fs(snapshot.number))
        lowers = [str(self._disk.fs(self._index[name].number)) for name in self._chain(snapshot.parent)]
        if snapshot.kind == Kind.VIEW and len(lowers) == 1:
            return (Mount(type="bind", source=lowers[0], options=("ro", "rbind")),)
        if not lowers:
            return (Mount(type="bind", source=own, options=("rw", "rbind")),)
        options = [*self._options.base, "lowerdir=" + ":".join(lowers)]
        if snapshot.kind == Kind.VIEW:
            return (Mount(type="overlay", source="overlay", options=("ro", *options)),)
        upper = [f"upperdir={own}", f"workdir={self._disk.work(snapshot.number)}"]
        return (Mount(type="overlay", source="overlay", options=(*self._options.active, *options, *upper)),)

    # --- committed snapshots ---

    async def stage(self) -> Staged:
        """A new folder to fill, on the same file system; end it with `record_staged` or `discard`."""
        number = next(self._numbers)
        self._unrecorded.add(number)
        staged = Staged(number=number, fs=self._disk.fs(number))
        try:
            await run_to_completion(self._blocking.run(self._create, number, None, False), within=SETTLE_TIMEOUT_S)
        except asyncio.CancelledError:
            await run_to_completion(self.discard((staged,)), within=SETTLE_TIMEOUT_S)
            raise
        return staged

    async def discard(self, staged: Iterable[Staged]) -> None:
        """Delete staged folders that became no snapshot; idempotent. What cannot be deleted is `lost`."""
        doomed = tuple(staged)
        try:
            for one in doomed:
                faults.reached("image/undo")
                await self._blocking.run(self._disk.delete, one.number)
        finally:
            self._unrecorded.difference_update(one.number for one in doomed)

    async def sync(self) -> None:
        """Write everything staged to the disk, before the transaction that names it."""
        await self._blocking.run(sync, self._disk.folder)

    def plan_staged(self, staged: Staged, name: str, parent: str | None, usage: Usage) -> Snapshot:
        """The record that turns `staged` into the committed snapshot `name`."""
        return records.new(name, staged.number, Kind.COMMITTED, parent, {}, usage)

    def record_staged(self, connection: Connection, planned: Iterable[Snapshot]) -> None:
        """The change for `Database.write` that commits `planned`, parents first.

        The record of a snapshot whose folder was lost is pointed at the new folder.
        """
        for snapshot in planned:
            if snapshot.name in self._missing:
                records.replace(connection, snapshot)
            else:
                records.insert(connection, snapshot)

    def settle_staged(self, planned: Iterable[Snapshot]) -> None:
        """Believe `planned`, after the transaction has returned."""
        for snapshot in planned:
            self._enter(snapshot)

    async def commit(self, name: str, key: str) -> None:
        """Make the active snapshot `key`, unmounted, the committed snapshot `name`; durable when it returns.

        Raises `NotFound`, `FailedPrecondition` (a view, or committed), `AlreadyExists` (`name`).
        """
        await run_to_completion(self._commit(name, key), within=SETTLE_TIMEOUT_S)

    async def _commit(self, name: str, key: str) -> None:
        snapshot = self.stat(key)
        if snapshot.kind != Kind.ACTIVE:
            raise errors.FailedPrecondition(f"snapshot {key}: is {snapshot.kind}; only an active one can be committed")
        self._check(key)
        usage = await self._blocking.run(measure, self._disk.fs(snapshot.number))
        await self.sync()  # `volatile` left that to us
        committed = replace(snapshot, name=name, kind=Kind.COMMITTED, usage=usage)
        await self._db.write(lambda connection: records.commit(connection, key, committed))
        self._unlink(snapshot)
        self._enter(committed)
        await self._blocking.run(self._disk.drop_work, snapshot.number)

    async def freeze(self, key: str, name: str, labels: Mapping[str, str], *others: Plan[Any]) -> Snapshot:
        """Make what the active snapshot `key` holds the committed `name`, and `key` an empty one upon it.

        No data is copied. For one that nobody has mounted. `others` are committed with it. Raises as `commit`.
        """
        return await run_to_completion(self._freeze(key, name, labels, others), within=COPY_TIMEOUT_S)

    async def _freeze(self, key: str, name: str, labels: Mapping[str, str], others: tuple[Plan[Any], ...]) -> Snapshot:
        old = self.stat(key)
        if old.kind != Kind.ACTIVE:
            raise errors.FailedPrecondition(f"snapshot {key}: is {old.kind}; only an active one can be frozen")
        self._check(key)
        usage = await self._blocking.run(measure, self._disk.fs(old.number))
        await self.sync()
        committed = replace(old, name=name, kind=Kind.COMMITTED, usage=usage, labels=dict(labels))
        active = records.new(key, next(self._numbers), Kind.ACTIVE, name, old.labels, records.NOTHING)
        self._unrecorded.add(active.number)
        await self._blocking.run(self._create, active.number, old.number, True)

        def change(connection: Connection) -> None:
            records.commit(connection, key, committed)
            records.label(connection, committed)
            records.insert(connection, active)

        def follow(_: None) -> None:
            self._unlink(old)
            self._enter(committed)
            self._enter(active)

        try:
            await self._db.commit(Plan(change, follow), *others)
        except BaseException:
            if not await self._db.write(lambda connection: records.has_folder(connection, key, active.number)):
                await self._blocking.run(self._disk.delete, active.number)
                self._unrecorded.discard(active.number)
            raise
        await self._blocking.run(self._disk.drop_work, old.number)
        return committed

    async def copy(self, key: str, staged: Staged) -> Copied:
        """Fill `staged` with what `key` itself holds, overlay's marks included; nobody writes there meanwhile.

        Raises `ResourceExhausted` where the disk is full, `FailedPrecondition` for what cannot be copied.
        """
        try:
            return await self._blocking.run(copy_tree, self.fs(key), staged.fs)
        except OSError as error:
            is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            kind = errors.ResourceExhausted if is_full else errors.FailedPrecondition
            raise kind(f"{error.filename or key}: cannot be copied: {error.strerror}") from error

    # --- removal ---

    def plan_remove(self, key: str) -> Plan[None]:
        """`remove` as a part of a transaction; a key that is not there changes nothing.

        The folder is moved aside behind the commit; where that is cut short, `recover` sweeps it.
        """
        snapshot = self._index.get(key)
        if snapshot is None:
            return Plan(lambda _: None)
        return Plan(lambda connection: records.delete(connection, key), lambda _: self._removed(snapshot))

    def _removed(self, snapshot: Snapshot) -> None:
        self._unrecorded.add(snapshot.number)
        self._unlink(snapshot)
        self._discarded.append(snapshot.number)
        self._empty_trash()

    async def remove(self, key: str) -> None:
        """Remove the snapshot `key`; idempotent; its files are deleted in the background.

        Raises `FailedPrecondition` while it has children.
        """
        await run_to_completion(self._remove(key), within=SETTLE_TIMEOUT_S)

    async def _remove(self, key: str) -> None:
        async with self.removing(key) as plan:
            if key in self._index:
                await self._db.write(plan.record)

    @asynccontextmanager
    async def removing(self, key: str) -> AsyncGenerator[Removal]:
        """`remove` as a part of the caller's transaction, as `preparing`; a key that is not there changes nothing."""
        if self.has_children(key):
            raise errors.FailedPrecondition(f"snapshot {key}: {len(self._children[key])} snapshots rest on it")
        snapshot = self._index.get(key)
        plan = Removal(key=key, recorded=threading.Event())
        try:
            yield plan
        except BaseException:
            if snapshot is not None:
                await run_to_completion(self._settle_removal(snapshot, ask=True), within=SETTLE_TIMEOUT_S)
            raise
        if snapshot is not None:
            ask = not plan.recorded.is_set()
            await run_to_completion(self._settle_removal(snapshot, ask=ask), within=SETTLE_TIMEOUT_S)

    async def _settle_removal(self, snapshot: Snapshot, *, ask: bool) -> None:
        name, number = snapshot.name, snapshot.number
        if ask and await self._db.write(lambda connection: records.has_folder(connection, name, number)):
            return
        self._unrecorded.add(number)
        self._unlink(snapshot)
        try:
            if await self._blocking.run(self._disk.discard, number):
                self._empty_trash()
        finally:
            self._unrecorded.discard(number)

    def _empty_trash(self) -> None:
        """In the background, one sweep at a time: it takes all that has come meanwhile."""
        self._has_trash = True
        if self._is_sweeping:
            return
        with contextlib.suppress(errors.Unavailable):  # closed: the next start sweeps
            self._owner.spawn(self._sweep(), name="snapshotter/empty-trash")
            self._is_sweeping = True

    async def _sweep(self) -> None:
        try:
            while self._has_trash:
                self._has_trash = False
                numbers, self._discarded = self._discarded, []
                try:
                    await self._blocking.run(self._disk.sweep, numbers)
                finally:
                    self._unrecorded.difference_update(numbers)
        finally:
            self._is_sweeping = False

    # --- the index ---

    def _chain(self, key: str | None) -> Iterable[str]:
        """`key` and what it rests on, top first."""
        while key is not None:
            yield key
            found = self._index.get(key)
            key = found.parent if found is not None else None

    def _check(self, key: str) -> None:
        for name in self._chain(self.stat(key).name):
            if name in self._missing:
                raise errors.DataLoss(f"snapshot {name}: its folder is lost; {self._remedy(name)}")

    def _check_parent(self, parent: str) -> None:
        snapshot = self._index.get(parent)
        if snapshot is None or snapshot.kind != Kind.COMMITTED:
            raise errors.NotFound(f"snapshot {parent}: not there as a committed snapshot, cannot be a parent")
        self._check(parent)
        if sum(1 for _ in self._chain(parent)) > MAX_LAYERS:
            raise errors.InvalidArgument(f"snapshot {parent}: overlay stacks at most {MAX_LAYERS} layers")

    def _link(self, snapshot: Snapshot) -> None:
        if snapshot.parent is not None:
            self._children.setdefault(snapshot.parent, set()).add(snapshot.name)

    def _unlink(self, snapshot: Snapshot) -> None:
        self._index.pop(snapshot.name, None)
        self._missing.discard(snapshot.name)
        if snapshot.parent is not None and (siblings := self._children.get(snapshot.parent)) is not None:
            siblings.discard(snapshot.name)
            if not siblings:
                del self._children[snapshot.parent]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Options:
    base: tuple[str, ...]
    active: tuple[str, ...]


def _kernel_options() -> _Options:
    """The options that this kernel knows.

    `index=off`: two containers may use the lower folders of one image at once, and an upper folder is
    mounted again with other lowers after an image was pulled anew, which the index forbids.
    `volatile` (Linux 5.10): a container's writable layer does not outlive a crash of the machine, so its
    syncs need not reach the disk.
    """
    release = os.uname().release.split(".")
    version = (int(release[0]), int("".join(itertools.takewhile(str.isdigit, release[1]))))
    base = ("index=off",) if os.path.exists("/sys/module/overlay/parameters/index") else ()
    return _Options(base=base, active=("volatile",) if version >= (5, 10) else ())
