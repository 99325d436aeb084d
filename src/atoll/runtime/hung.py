"""Shims that do not answer: named by their process, and given up, so that what they hold is freed without them.

A process that serves nobody else is killed. One that serves other pods may come to itself, so it is let be: the
socket of the one shim is put aside, and nobody reaches it at its old name; for whoever frees its pod the shim is
gone. What is left is the shim in the memory of its process. It is told to end once the process answers again.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from atoll import errors
from atoll.linux import process
from atoll.linux.process import ProcessId
from atoll.runtime import ending
from atoll.runtime.bootstrap import Bootstrap
from atoll.shim import records
from atoll.ttrpc.address import UNIX_SCHEME

ASIDE = ".aside"
"""The end of a socket's name that was put aside."""
STATES = {"T": "stopped by a signal", "t": "stopped by a debugger", "D": "in a system call that does not end"}


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenUp:
    """A shim that was given up; `aside` is where it still listens, None where its process was killed."""

    text: str
    identity: ProcessId | None
    aside: Path | None

    def data(self) -> Mapping[str, str]:
        """What a ledger entry for the socket put aside has to know."""
        if self.identity is None:
            return {}
        return {
            "pid": str(self.identity.pid),
            "start": str(self.identity.start_ticks),
            "boot": self.identity.boot_id,
            "aside": "yes",
        }


def record_of(bundle: Path) -> records.ShimRecord | None:
    """The record of the shim that serves a pod's folder, whichever of the two layouts it has."""
    for path in (bundle / records.SHIM, bundle / bundle.name / records.SHIM):
        try:
            record = records.read(path, records.ShimRecord)
        except errors.DataLoss:
            continue
        if record is not None:
            return record
    return None


def describe(bundle: Path) -> str:
    """Its shim in words, for an error: its process, and what the kernel says of it."""
    name = f"shim {bundle.name[:13]}"
    record = record_of(bundle)
    if record is None:
        return f"{name} (it left no record of its process)"
    return f"{name} (process {record.pid}{_condition(_identity(record))})"


def is_dead(bundle: Path) -> bool:
    """Whether its process, by its record, is provably no more: who takes connections then has inherited that."""
    record = record_of(bundle)
    return record is not None and not process.is_alive(_identity(record))


def _identity(record: records.ShimRecord) -> ProcessId:
    return ProcessId(pid=record.pid, start_ticks=record.start_ticks, boot_id=record.boot_id)


def _condition(identity: ProcessId) -> str:
    if not process.is_alive(identity):
        return ", which is gone"
    seen = process.stat(identity.pid)
    state = STATES.get(seen.state, "") if seen is not None else ""
    return f", {state}" if state else ""


def put_aside(socket: Path) -> Path:
    """Move a socket where nobody looks for it; its owner goes on listening. Idempotent."""
    aside = socket.with_name(socket.name + ASIDE)
    try:
        os.rename(socket, aside)
    except FileNotFoundError:
        pass
    return aside


async def give_up(bundle: Path, shims: Path) -> GivenUp:
    """Give up the shim that serves a pod's folder in `shims`; blocks for a moment.

    Raises `NotFound` where no record tells its process or its socket, `DeadlineExceeded` where a process that was
    killed does not end.
    """
    record, address = await asyncio.to_thread(lambda: (record_of(bundle), _address(bundle)))
    who = await asyncio.to_thread(describe, bundle)
    if record is None or address is None:
        raise errors.NotFound(f"{who}: nothing tells where it runs and answers")
    identity = _identity(record)
    if record.alone or not await asyncio.to_thread(_serves_others, identity, bundle, shims):
        await _kill(identity, bundle.name)
        return GivenUp(text=f"{who}: does not answer and was killed", identity=identity, aside=None)
    aside = put_aside(address)
    text = f"{who}: does not answer; its process serves other pods and is not killed, this shim ends once it answers"
    return GivenUp(text=text, identity=identity, aside=aside)


async def _kill(identity: ProcessId, shim_id: str) -> None:
    pidfd = process.open_pidfd(identity)
    if pidfd is None:
        return
    try:
        await ending.kill(pidfd, shim_id)
    finally:
        os.close(pidfd)


def bootstrap_of(bundle: Path) -> Bootstrap | None:
    """Where the shim of a pod's folder was told to answer; None where that cannot be read."""
    for folder in (bundle, bundle / bundle.name):
        try:
            return Bootstrap.load(folder)
        except (errors.NotFound, errors.DataLoss):
            continue
    return None


def _address(bundle: Path) -> Path | None:
    bootstrap = bootstrap_of(bundle)
    if bootstrap is None or not bootstrap.address.startswith(f"{UNIX_SCHEME}/"):
        return None
    return Path(bootstrap.address.removeprefix(UNIX_SCHEME))


def _serves_others(identity: ProcessId, bundle: Path, shims: Path) -> bool:
    """Whether the process is also the shim of a pod that was not given up."""
    return any(
        (record := record_of(other)) is not None
        and _identity(record) == identity
        and (address := _address(other)) is not None
        and address.exists()
        for other in _folders(shims)
        if other != bundle
    )


def _folders(shims: Path) -> Iterator[Path]:
    try:
        with os.scandir(shims) as entries:
            names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return iter(())
    return (shims / name for name in names)
