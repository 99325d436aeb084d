"""The daemon's side of unpacking: one confined process a layer, watched and ended with its caller."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

import atoll
from atoll import errors
from atoll.concurrency import Blocking
from atoll.image.config import ImageLimits
from atoll.image.layer import clean
from atoll.image.process import Program, running
from atoll.image.reference import is_digest
from atoll.snapshot.records import Usage
from atoll.unreadable import UNREADABLE

POLL_S = 0.2
_KINDS: dict[str, type[errors.AtollError]] = {kind.__name__: kind for kind in errors.KINDS.values()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpacked:
    """A layer on the disk; `implied` are its folders without an entry, parents first, "" for the root."""

    diff_id: str
    usage: Usage
    implied: tuple[str, ...]


class _Answer(msgspec.Struct, frozen=True, kw_only=True):
    kind: str = ""
    message: str = ""
    diff_id: str = ""
    bytes: int = 0
    inodes: int = 0
    implied: tuple[str, ...] = ()


class Unpacker:
    """Unpacks blobs, at most `limits.unpacks` at a time."""

    def __init__(self, limits: ImageLimits, pool: Blocking) -> None:
        self.limits = limits
        self._pool = pool
        self._slots = asyncio.Semaphore(limits.unpacks)

    async def unpack(
        self, blob: Path, target: Path, what: str, on_bytes: Callable[[int], None], *, plain: bool = False
    ) -> Unpacked:
        """Unpack the tar in `blob` into the empty folder `target`; the caller deletes it where this fails.

        `on_bytes` is told how much of the blob is read. Cancelling ends the process. Raises what the layer
        is refused for, naming `what`; `Internal` where the process died; `DeadlineExceeded` without progress.
        """
        async with self._slots:
            descriptor = os.open(blob, os.O_RDONLY | os.O_CLOEXEC)
            try:
                arguments = self._command(target, plain)
                async with running(self._pool, arguments, _environment(), stdin=descriptor) as program:
                    code = await self._watch(program, descriptor, what, on_bytes)
                    return _parse(program, code, what)
            finally:
                os.close(descriptor)

    def _command(self, target: Path, plain: bool) -> list[str]:
        limits = {
            "max_bytes": self.limits.max_layer_bytes,
            "max_ratio": self.limits.max_layer_ratio,
            "free_bytes": self.limits.layer_free_bytes,
            "max_entries": self.limits.max_layer_entries,
            "plain": plain,
        }
        module = ["-P", "-X", "utf8", "-m", "atoll.image.unpack"]
        return [sys.executable, *module, str(target), str(os.getpid()), msgspec.json.encode(limits).decode()]

    async def _watch(self, program: Program, descriptor: int, what: str, on_bytes: Callable[[int], None]) -> int:
        """Wait for the end, telling how far the process has read: it shares the offset of `descriptor`."""
        clock = asyncio.get_running_loop().time
        position, since = 0, clock()
        while True:
            try:
                async with asyncio.timeout(POLL_S):
                    return await program.wait()
            except TimeoutError:
                now = os.lseek(descriptor, 0, os.SEEK_CUR)
                if now != position:
                    position, since = now, clock()
                    on_bytes(now)
                elif clock() - since > self.limits.stall_timeout_s:
                    raise errors.DeadlineExceeded(
                        f"{what}: the unpack process read nothing for {self.limits.stall_timeout_s:g} s"
                    ) from None


def _environment() -> dict[str, str]:
    return {"PYTHONPATH": str(Path(atoll.__file__).parent.parent), "LC_ALL": "C.UTF-8"}


def _parse(program: Program, code: int, what: str) -> Unpacked:
    try:
        answer = msgspec.json.decode(program.output(), type=_Answer)
    except UNREADABLE as error:
        raise errors.Internal(
            f"{what}: the unpack process ended with {code}: {program.complaints().strip()[-500:]}"
        ) from error
    if answer.kind:
        raise _KINDS.get(answer.kind, errors.Unknown)(f"{what}: {answer.message}")
    if code != 0 or not is_digest(answer.diff_id) or any(clean(path) != path for path in answer.implied):
        raise errors.Internal(f"{what}: the unpack process ended with {code} and an answer that makes no sense")
    return Unpacked(
        diff_id=answer.diff_id, usage=Usage(bytes=answer.bytes, inodes=answer.inodes), implied=answer.implied
    )
