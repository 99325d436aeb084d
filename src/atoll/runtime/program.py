"""One call of a shim's program: its stdin given, its output kept in memory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from atoll import errors
from atoll.linux import flood
from atoll.linux.process import Spawner

MAX_OUTPUT_BYTES = 1 << 20
TOLD_BYTES = 2000
"""How much of a failed program's output goes into its error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShimCall:
    """A call such as `start` or `delete`; `what` names it in errors."""

    argv: Sequence[str]
    what: str
    cwd: Path
    env: Mapping[str, str]
    timeout_s: float
    stdin: bytes = b""


async def run(spawner: Spawner, call: ShimCall) -> bytes:
    """What the program printed on stdout, at most `MAX_OUTPUT_BYTES`.

    Its output goes to memory files, so a child that keeps them open holds up nobody. Raises `NotFound` where it
    cannot be run, `Unknown` with its output where it fails, `DeadlineExceeded`, `ResourceExhausted` for a flood.
    """
    with _memory("stdin", call.stdin) as stdin, _memory("stdout") as stdout, _memory("stderr") as stderr:
        try:
            async with flood.bounded(stdout, stderr, limit_bytes=MAX_OUTPUT_BYTES, what=call.what):
                code = await spawner.run(
                    call.argv,
                    stdin=stdin,
                    stdout=stdout,
                    stderr=stderr,
                    cwd=call.cwd,
                    env=call.env,
                    timeout_s=call.timeout_s,
                )
        except errors.DeadlineExceeded as error:
            raise errors.DeadlineExceeded(f"{call.what}: {error}") from error
        except OSError as error:
            raise errors.NotFound(f"shim {call.argv[0]}: cannot be run: {error.strerror}") from error
        output = os.pread(stdout, MAX_OUTPUT_BYTES, 0)
        if code != 0:
            said = (output + os.pread(stderr, MAX_OUTPUT_BYTES, 0)).decode(errors="replace").strip()
            raise errors.Unknown(f"{call.what}: exit status {code}: {said[-TOLD_BYTES:]}")
        return output


@contextlib.contextmanager
def _memory(name: str, content: bytes = b"") -> Generator[int]:
    fd = os.memfd_create(f"atoll-shim-{name}", os.MFD_CLOEXEC)
    try:
        if content:
            with open(fd, "wb", closefd=False) as stream:
                stream.write(content)
            os.lseek(fd, 0, os.SEEK_SET)
        yield fd
    finally:
        os.close(fd)
