"""The sandboxes of foreign callers: a containerd that has this daemon as its sandboxer, any client of the sandbox API.

What their controllers need and containerd does not give is here: a durable record, so that everything works after a
restart; entries in the ledger before anything is acquired; a watch on the end of each, whoever waits; and an end for
those whose caller is never heard of again, because their start failed, was given up, or never came.

create  record and ledger in one commit; then the controller
start   the controller beside a commit; then what it answered, in another
end     seen by the controller's wait; on disk, then told to whoever waits, then published
freed   the ledger's walk and the end of the record, in one commit
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from datetime import UTC, datetime

from atoll import errors, faults
from atoll.concurrency import SingleFlight, run_to_completion, wait_all
from atoll.database import Plan
from atoll.engine import hosts, hung
from atoll.engine.expiry import Expiry
from atoll.engine.hosted import Hosted, HostedRecord, HostedState, NoEnd, Phase, key_of
from atoll.engine.hosting import Wanted, is_cri_pod, prepare_files, wanted
from atoll.engine.parts import Parts
from atoll.engine.paths import NAMESPACE
from atoll.identifiers import require_identifier
from atoll.ledger.kind import Entry
from atoll.sandbox.controller import (
    UNKNOWN_EXIT_STATUS,
    CleanupFailed,
    Controller,
    ControllerInstance,
    CreateOptions,
    ExitStatus,
    Platform,
    Runtime,
    Sandbox,
)
from atoll.sandbox.store import merge, require_labels, require_path

log = logging.getLogger(__name__)

TEARDOWN_TIMEOUT_S = 60.0
COMMIT_TIMEOUT_S = 10.0
SETTLE_TIMEOUT_S = 5.0
"""How long a stop waits for the word of the end that it has brought about."""
FIRST_ASK_AGAIN_S, LAST_ASK_AGAIN_S = 0.1, 10.0
"""Pauses between questions to a controller that does not answer."""
Key = tuple[str, str]


class Sandboxes:
    """Every hosted sandbox, by namespace and ID."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self.store = parts.hosted
        self._hosted: dict[Key, Hosted] = {}
        self._ends: SingleFlight[tuple[str, str], None] = SingleFlight(parts.owner)
        self._unfinished: dict[str, HostedRecord] = {}
        self.expiry = Expiry(parts, self._free)

    # --- questions ---

    def find(self, namespace: str, sandbox_id: str) -> Hosted:
        """Raises `NotFound`."""
        hosted = self._hosted.get((namespace, sandbox_id))
        if hosted is None or self._is_paid(hosted):
            raise errors.NotFound(f"sandbox {sandbox_id[:80]!r}: there is no such sandbox in namespace {namespace}")
        return hosted

    def _is_paid(self, hosted: Hosted) -> bool:
        """Whether nothing is left of one that could not be freed at first; then it is forgotten."""
        if hosted.is_gone and not self._parts.ledger.entries(hosted.key):
            self._forget(hosted)
            return True
        return False

    def list(self) -> tuple[Hosted, ...]:
        return tuple(self._hosted.values())

    def adopt(self, record: HostedRecord) -> Hosted:
        """Take in what an earlier daemon recorded."""
        hosted = Hosted(record=record, inner_id=self._inner_id(record))
        if record.state.ended is not None:
            hosted.end.set(record.state.ended)
        self._hosted[record.namespace, record.id] = hosted
        return hosted

    def leave_unfinished(self, record: HostedRecord) -> None:
        """Keep the books of one whose creation or start was cut short, until `free_unfinished`."""
        self._unfinished[record.key] = record

    def unfinished(self) -> tuple[str, ...]:
        """The keys of those that `leave_unfinished` was told of and that are not freed yet."""
        return tuple(sorted(self._unfinished))

    def owners(self) -> frozenset[str]:
        """Whose ledger entries are in order."""
        return frozenset(hosted.key for hosted in self._hosted.values()) | frozenset(self._unfinished)

    def is_busy(self, owner: str) -> bool:
        """Whether an operation of the sandbox with this key is under way."""
        return owner in self._unfinished or any(
            hosted.lock.locked() for hosted in self._hosted.values() if hosted.key == owner
        )

    def is_live(self) -> bool:
        """Whether one runs, or may be about to."""
        return any(hosted.state.ended is None and not hosted.is_gone for hosted in self._hosted.values())

    def names(self) -> frozenset[str]:
        """Sandboxers by which there are sandboxes, configured or not."""
        return frozenset(hosted.record.sandbox.sandboxer for hosted in self._hosted.values())

    def controller(self, hosted: Hosted) -> Controller:
        """Who runs it; raises `FailedPrecondition` where that is not configured any more."""
        return self._parts.hosts.controller(hosted.state.controller, hosted.record.namespace)

    def inner(self, hosted: Hosted) -> Sandbox:
        """The record as its controller is to see it."""
        return self._inner(hosted.record, hosted.inner_id)

    @staticmethod
    def _inner(record: HostedRecord, inner_id: str) -> Sandbox:
        return dataclasses.replace(record.sandbox, id=inner_id, runtime=record.state.runtime)

    def _inner_id(self, record: HostedRecord) -> str:
        handler = self._parts.config.runtimes.get(record.state.controller)
        is_remote = handler is not None and handler.sandboxer == hosts.REMOTE
        return record.id if is_remote else record.key

    # --- create ---

    async def create(self, namespace: str, sandboxer: str, sandbox: Sandbox, options: CreateOptions) -> None:
        """Record a sandbox and have its controller prepare it; started within the configured time, or freed.

        Raises `InvalidArgument`, `AlreadyExists`, and what its controller does; then nothing is left. So it is where
        the caller is cancelled.
        """
        require_identifier(sandbox.id, "sandbox id")
        require_labels(sandbox.labels)
        parts = self._parts
        host = hosts.choose(parts.config, parts.hosts, sandboxer, sandbox.runtime)
        self._require_free(namespace, sandbox.id)
        asked = wanted(parts, host, key_of(namespace, sandbox.id), namespace, sandbox, options)
        now = datetime.now(UTC)
        if sandbox.created_at.year == 1:  # Go's zero, of a record that its client has not stored yet
            sandbox = dataclasses.replace(sandbox, created_at=now, updated_at=now)
        record = HostedRecord(
            namespace=namespace,
            key=asked.key,
            sandbox=dataclasses.replace(sandbox, sandboxer=sandboxer),
            state=HostedState(controller=host.name, runtime=host.runtime, phase=Phase.CREATING, made_at=now),
        )
        controller = parts.hosts.controller(host.name, namespace)
        # What is not ours by now must not be freed where we fail.
        entered = parts.ledger.plan_enter(*asked.intents)
        hosted = self.adopt(record)
        with hosted.named():
            await self._created(hosted, controller, asked, entered)

    async def _created(self, hosted: Hosted, controller: Controller, asked: Wanted, entered: Plan[list[Entry]]) -> None:
        async with hosted.lock:
            try:
                await self._create(hosted, controller, asked, entered)
            except BaseException as error:
                await self._undone(hosted, error)
                raise
            self.expiry.begin(hosted)
            self._parts.topics.created(hosted.record.namespace, hosted.record.id)

    def _require_free(self, namespace: str, sandbox_id: str) -> None:
        with contextlib.suppress(errors.NotFound):
            self.find(namespace, sandbox_id)
            raise errors.AlreadyExists(f"sandbox {sandbox_id}: is there already")
        if namespace == NAMESPACE and self._parts.sandboxes.is_pod(sandbox_id):
            raise errors.AlreadyExists(f"sandbox {sandbox_id}: is a pod of this daemon")

    async def _create(self, hosted: Hosted, controller: Controller, asked: Wanted, entered: Plan[list[Entry]]) -> None:
        parts = self._parts
        # A commit goes on where its caller is cancelled, and what it enters must be known before it is freed.
        with faults.step("hosted create/record"):
            await run_to_completion(
                parts.db.commit(self.store.plan_create(hosted.record), entered), within=COMMIT_TIMEOUT_S
            )
        with faults.step("hosted create/files"):
            await parts.blocking.run(prepare_files, asked)
        with faults.step("hosted create/sandbox"):
            await controller.create(self.inner(hosted), asked.options)
        with faults.step("hosted create/commit"):
            await self._become(hosted, phase=Phase.CREATED)

    async def _become(self, hosted: Hosted, **changes: object) -> None:
        """Change the state, on disk before in memory."""
        changed = hosted.changed(**changes)
        await self._parts.db.commit(self.store.plan_state(changed))
        hosted.record = dataclasses.replace(hosted.record, state=changed.state)

    # --- start ---

    async def start(self, namespace: str, sandbox_id: str) -> ControllerInstance:
        """Start a created sandbox. On an error, and where the caller is cancelled, everything of it is freed.

        What cannot be freed now is owed: `CleanupFailed`, and the ledger tries again for ever.
        """
        hosted = self.find(namespace, sandbox_id)
        with hosted.named():
            return await self._started(hosted)

    async def _started(self, hosted: Hosted) -> ControllerInstance:
        async with hosted.lock:
            self._require_startable(hosted)
            try:
                instance = await self._start(hosted)
            except BaseException as error:
                await self._undone(hosted, error)
                raise
            self.watch(hosted)
            self._parts.topics.started(hosted.record.namespace, hosted.record.id)
            return instance

    @staticmethod
    def _require_startable(hosted: Hosted) -> None:
        sandbox_id = hosted.record.id
        if hosted.is_gone:
            if hosted.reason:
                raise errors.FailedPrecondition(f"sandbox {sandbox_id}: {hosted.reason}; shut it down")
            raise errors.NotFound(f"sandbox {sandbox_id}: there is no such sandbox")
        if hosted.state.ended is not None:
            raise errors.FailedPrecondition(f"sandbox {sandbox_id}: has ended; create another one")
        if hosted.state.phase is not Phase.CREATED:
            raise errors.FailedPrecondition(f"sandbox {sandbox_id}: is started already")

    async def _start(self, hosted: Hosted) -> ControllerInstance:
        controller = self.controller(hosted)
        self.expiry.end(hosted)
        with faults.step("hosted start/sandbox"):
            noted = self._become(hosted, phase=Phase.STARTING)
            instance, _ = await wait_all([controller.start(hosted.inner_id), noted])
        assert isinstance(instance, ControllerInstance)
        instance = dataclasses.replace(
            instance,
            sandbox_id=hosted.record.id,
            labels={**hosted.record.sandbox.labels, **instance.labels},
        )
        platform = await self._platform(controller, hosted)
        is_heard_of = not is_cri_pod(hosted.record.namespace, hosted.record.sandbox)
        with faults.step("hosted start/commit"):
            await self._become(
                hosted, phase=Phase.STARTED, instance=instance, platform=platform, is_heard_of=is_heard_of
            )
        if not is_heard_of:
            self.expiry.begin(hosted)
        return instance

    async def _platform(self, controller: Controller, hosted: Hosted) -> Platform | None:
        """Asked once, for it is asked for again and again; None where there is no answer now."""
        try:
            return await controller.platform(hosted.inner_id)
        except errors.AtollError as error:
            log.debug("%s: has no platform yet: %s", hosted, error)
            return None

    async def platform(self, hosted: Hosted) -> Platform:
        """From memory, once it was asked for."""
        known = hosted.state.platform
        if known is None:
            known = await self.controller(hosted).platform(hosted.inner_id)
            state = dataclasses.replace(hosted.state, platform=known)
            hosted.record = dataclasses.replace(hosted.record, state=state)
        return known

    # --- failures ---

    async def _undone(self, hosted: Hosted, cause: BaseException) -> None:
        """Free everything of a creation or start that failed; raises `CleanupFailed` where something is left."""
        log.info("%s: failed, it is undone: %s", hosted, str(cause) or type(cause).__name__)
        async with hung.watched_hosted(self._parts, hosted, self.controller(hosted)):
            left = await run_to_completion(self._free(hosted), within=2 * TEARDOWN_TIMEOUT_S)
        if isinstance(cause, CleanupFailed):
            if not left:
                raise cause.cause from cause  # what its controller could not undo the walk has
            cause = cause.cause
        if left and isinstance(cause, errors.AtollError):
            raise CleanupFailed(cause, tuple(left)) from cause

    async def _free(self, hosted: Hosted) -> list[str]:
        """Walk the ledger in reverse; the record goes. What is left, in words, of a sandbox that is then UNKNOWN."""
        self.expiry.end(hosted)
        try:
            with faults.step("hosted free/release"):
                debts = await self._parts.ledger.release_all(
                    hosted.key, within=TEARDOWN_TIMEOUT_S, also=(self.store.plan_delete(hosted.record),)
                )
            left = [str(debt) for debt in debts]
        except errors.AtollError as error:
            left = [str(error)]
        hosted.is_gone = True
        hosted.reason = f"could not be freed yet: {'; '.join(left)}" if left else ""
        hosted.end.set(NoEnd.GONE)
        if hosted.watch is not None:
            hosted.watch.cancel()
        if not left:
            self._forget(hosted)
        return left

    def _forget(self, hosted: Hosted) -> None:
        key = hosted.record.namespace, hosted.record.id
        if self._hosted.get(key) is hosted:
            del self._hosted[key]

    # --- the end of a sandbox ---

    def watch(self, hosted: Hosted) -> None:
        """See to the end of a started sandbox; one watch each."""
        if hosted.watch is None:
            hosted.watch = self._parts.owner.spawn(self._await_end(hosted), name=f"sandbox/{hosted.key}/wait")

    async def _await_end(self, hosted: Hosted) -> None:
        pause = FIRST_ASK_AGAIN_S
        while True:
            try:
                end = await self.controller(hosted).wait(hosted.inner_id)
                break
            except errors.NotFound:
                end = unknown_end()
                break
            except errors.AtollError as error:
                log.warning("%s: cannot be watched now: %s", hosted, error)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LAST_ASK_AGAIN_S)
        await self.settle(hosted, end)

    async def settle(self, hosted: Hosted, end: ExitStatus, *, late: bool = False) -> None:
        """Tell how the sandbox ended: on disk, then to whoever waits, then as an event. Once. `late`: see `Topics`."""
        if hosted.state.ended is not None or hosted.end.is_set:
            return
        try:
            with faults.step("hosted end/record"):
                await self._become(hosted, ended=end)
        except errors.AtollError as error:
            # Its controller knows it too, and tells the next daemon.
            log.error("%s: its end is not on disk: %s", hosted, error)
            hosted.record = dataclasses.replace(hosted.record, state=dataclasses.replace(hosted.state, ended=end))
        hosted.reason = ""
        if hosted.end.set(end):
            log.info("%s: ended with status %d", hosted, end.exit_status)
            self._parts.topics.exited(hosted.record.namespace, hosted.record.id, end, late=late)

    # --- stop and shutdown ---

    async def stop(self, namespace: str, sandbox_id: str, timeout_s: float | None) -> None:
        """End the sandbox's processes. Idempotent; unknown is done. Goes on where the caller is cancelled."""
        try:
            hosted = self.find(namespace, sandbox_id)
        except errors.NotFound:
            return
        key = "stop" if timeout_s is None else f"stop within {timeout_s:g} s"
        await self._ends.run(
            (key, hosted.key), lambda: self._stop(hosted, timeout_s), name=f"sandbox/{hosted.key}/stop"
        )

    async def _stop(self, hosted: Hosted, timeout_s: float | None) -> None:
        async with hosted.lock:
            pass  # behind a creation or a start, beside another stop
        if hosted.is_gone or hosted.state.ended is not None:
            return
        controller = self.controller(hosted)
        async with hung.watched_hosted(self._parts, hosted, controller):
            with hosted.named(), faults.step("hosted stop/sandbox"):
                await controller.stop(hosted.inner_id, timeout_s)
        if hosted.state.phase is not Phase.STARTED:
            await self.settle(hosted, ExitStatus(exit_status=0, exited_at=datetime.now(UTC)))
            return
        self.watch(hosted)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(hosted.end.wait(), SETTLE_TIMEOUT_S)

    async def shutdown(self, namespace: str, sandbox_id: str) -> None:
        """Free everything of the sandbox; unknown is done. Goes on where the caller is cancelled.

        Raises `Unavailable` naming what is left; that is retried for ever, and a second call tries at once.
        """
        try:
            hosted = self.find(namespace, sandbox_id)
        except errors.NotFound:
            return
        name = f"sandbox/{hosted.key}/shutdown"
        await self._ends.run(("shutdown", hosted.key), lambda: self._shutdown(hosted), name=name)

    async def _shutdown(self, hosted: Hosted) -> None:
        async with hosted.lock, hung.watched_hosted(self._parts, hosted, self.controller(hosted)):
            if hosted.is_ready:
                # So that its real exit status is told; the walk stops it again, with debts where that fails.
                try:
                    with faults.step("hosted shutdown/stop"):
                        await self.controller(hosted).stop(hosted.inner_id)
                    self.watch(hosted)
                    await asyncio.wait_for(hosted.end.wait(), SETTLE_TIMEOUT_S)
                except (errors.AtollError, TimeoutError) as error:
                    log.warning("%s: its end is not known: %s", hosted, error)
            if not hosted.end.is_set and hosted.state.phase is Phase.STARTED:
                await self.settle(hosted, unknown_end())
            left = await self._free(hosted)
        if left:
            raise errors.Unavailable(f"sandbox {hosted.record.id}: not freed yet, will be retried: {'; '.join(left)}")

    # --- changes ---

    async def update(self, hosted: Hosted, sandbox: Sandbox, fields: tuple[str, ...]) -> None:
        """Bring sandbox and record in line with the named fields; all of it or nothing."""
        async with hosted.lock:
            self.require_there(hosted)
            if hosted.state.ended is not None:
                raise errors.FailedPrecondition(f"sandbox {hosted.record.id}: has ended")
            kept = tuple(field for field in fields if field.partition(".")[0] != "annotations")
            for field in kept:
                require_path(field)
            require_labels(sandbox.labels)
            old = hosted.record.sandbox
            merged = merge(old, sandbox, kept) if kept or not fields else old
            merged = dataclasses.replace(merged, updated_at=datetime.now(UTC))
            if "runtime" in fields and sandbox.runtime.name != old.runtime.name:
                raise errors.InvalidArgument(f"sandbox {old.id}: its runtime {old.runtime.name!r} cannot be another")
            runtime = hosted.state.runtime
            if hosted.state.controller not in self._parts.config.runtimes:  # a kind honours what the record names
                runtime = Runtime(name=runtime.name, options=merged.runtime.options)
            told = dataclasses.replace(sandbox, id=hosted.inner_id, runtime=runtime)
            with hosted.named(), faults.step("hosted update/sandbox"):
                await self.controller(hosted).update(hosted.inner_id, told, fields)
            changed = dataclasses.replace(hosted.record, sandbox=merged)
            try:
                with faults.step("hosted update/record"):
                    await self._parts.db.commit(self.store.plan_sandbox(changed))
            except errors.AtollError:
                before = dataclasses.replace(old, id=hosted.inner_id, runtime=hosted.state.runtime)
                await run_to_completion(self._put_back(hosted, before, fields), within=TEARDOWN_TIMEOUT_S)
                raise
            hosted.record = changed

    async def _put_back(self, hosted: Hosted, before: Sandbox, fields: tuple[str, ...]) -> None:
        """Undo an update that the disk refused."""
        try:
            await self.controller(hosted).update(hosted.inner_id, before, fields)
        except errors.AtollError as error:
            log.error("%s: has an update that is not in its record: %s", hosted, error)

    @staticmethod
    def require_there(hosted: Hosted) -> None:
        """Raise `NotFound`, or `Unavailable` for one of which only debts are left."""
        if hosted.is_gone and hosted.reason:
            raise errors.Unavailable(f"sandbox {hosted.record.id}: {hosted.reason}")
        if hosted.is_gone:
            raise errors.NotFound(f"sandbox {hosted.record.id}: there is no such sandbox")

    # --- after a restart ---

    async def free_unfinished(self) -> None:
        """Free what a crash cut short: nobody was told of a creation or start that did not come to its end."""

        async def free(record: HostedRecord) -> None:
            log.warning("sandbox %s: its creation or start was cut short, it is undone", record.key[:13])
            try:
                debts = await self._parts.ledger.release_all(
                    record.key, within=TEARDOWN_TIMEOUT_S, also=(self.store.plan_delete(record),)
                )
            except errors.AtollError as error:
                log.error("sandbox %s: not undone yet: %s", record.key[:13], error)
                return
            for debt in debts:
                log.error("sandbox %s: not undone yet, will be retried: %s", record.key[:13], debt)
            del self._unfinished[record.key]

        await wait_all([free(record) for record in list(self._unfinished.values())])

    def release_waiters(self) -> None:
        """Tell whoever waits to ask again, for the daemon ends; the sandboxes live on."""
        for hosted in self._hosted.values():
            hosted.end.set(NoEnd.CLOSING)

    def aclose(self) -> None:
        """Forget the timers; the sandboxes live on."""
        for hosted in self._hosted.values():
            self.expiry.end(hosted)


def unknown_end() -> ExitStatus:
    """The end of what nobody saw end."""
    return ExitStatus(exit_status=UNKNOWN_EXIT_STATUS, exited_at=datetime.now(UTC))
