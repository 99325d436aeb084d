"""User namespaces: which ids of the host stand for which inside, and making one.

Source: user_namespaces(7), ioctl_ns(2).
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import signal
import socket
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

from atoll import errors
from atoll.linux import steps, syscalls
from atoll.linux.steps import Step

RANGES_LIMIT = 340
"""The most lines of a map, which is less than a page of text besides (user_namespaces(7))."""
ID_LIMIT = (1 << 32) - 1
MAKE_TIMEOUT_S = 10.0
_NS_GET_USERNS = 0xB701


@dataclass(frozen=True, slots=True, kw_only=True)
class IDRange:
    """`length` ids from `container_id` inside are those from `host_id` of the host."""

    container_id: int
    host_id: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class IDMap:
    """The ids of one user namespace. `checked` has looked at it."""

    uids: tuple[IDRange, ...]
    gids: tuple[IDRange, ...]

    @property
    def root(self) -> tuple[int, int]:
        """The host's uid and gid of root inside."""
        return self.on_host(0, 0)

    def on_host(self, uid: int, gid: int) -> tuple[int, int]:
        """The host's ids for those inside; root's for one that is not mapped."""
        return _on_host(self.uids, uid), _on_host(self.gids, gid)

    @property
    def nobody(self) -> tuple[int, int]:
        """A uid and a gid inside, as far from root's as there are."""
        return _last(self.uids), _last(self.gids)


def checked(users: IDMap, field: str, *, root: bool = True) -> IDMap:
    """`users`, where the kernel takes it and, if so asked, root is mapped; else `InvalidArgument` naming `field`."""
    for name, ranges in (("uids", users.uids), ("gids", users.gids)):
        if not 1 <= len(ranges) <= RANGES_LIMIT:
            raise errors.InvalidArgument(f"{field}.{name}: needs 1 to {RANGES_LIMIT} ranges, has {len(ranges)}")
        if len(_text(ranges)) >= os.sysconf("SC_PAGE_SIZE"):
            raise errors.InvalidArgument(
                f"{field}.{name}: {len(ranges)} ranges are {len(_text(ranges))} bytes for the kernel, which takes less "
                f"than a page of {os.sysconf('SC_PAGE_SIZE')}; join ranges"
            )
        for one in ranges:
            ends = (one.container_id + one.length, one.host_id + one.length)
            if one.length < 1 or min(one.container_id, one.host_id) < 0 or max(ends) > ID_LIMIT:
                raise errors.InvalidArgument(f"{field}.{name}: needs lengths of at least 1 and ids below {ID_LIMIT}")
        if _overlap((one.container_id, one.length) for one in ranges) or _overlap(
            (one.host_id, one.length) for one in ranges
        ):
            raise errors.InvalidArgument(f"{field}.{name}: ranges overlap")
        if root and not any(one.container_id == 0 for one in ranges):
            raise errors.InvalidArgument(f"{field}.{name}: 0 is not mapped, so there would be no root inside")
    return users


def _overlap(ranges: Generator[tuple[int, int]]) -> bool:
    ordered = sorted(ranges)
    return any(begin + length > after for (begin, length), (after, _) in itertools.pairwise(ordered))


def _on_host(ranges: tuple[IDRange, ...], inside: int) -> int:
    for one in ranges:
        if one.container_id <= inside < one.container_id + one.length:
            return one.host_id + inside - one.container_id
    return _on_host(ranges, 0)


def _last(ranges: tuple[IDRange, ...]) -> int:
    return max(one.container_id + one.length - 1 for one in ranges)


def _text(ranges: tuple[IDRange, ...]) -> bytes:
    """A map as the kernel takes it."""
    return "".join(f"{one.container_id} {one.host_id} {one.length}\n" for one in ranges).encode()


def write_maps(pid: int, users: IDMap) -> None:
    """Give the new user namespace of `pid` its ids, once; raises `OSError`."""
    for name, ranges in (("uid_map", users.uids), ("gid_map", users.gids)):
        path = f"/proc/{pid}/{name}"
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, _text(ranges))  # the kernel takes it in one write only
        except OSError as error:
            raise OSError(error.errno, error.strerror, path) from None
        finally:
            os.close(fd)


def maps_of(pid: int) -> IDMap:
    """The ids of the user namespace of `pid`, as ids of our own; raises `OSError`."""
    found: list[tuple[IDRange, ...]] = []
    for name in ("uid_map", "gid_map"):
        rows = [line.split() for line in Path(f"/proc/{pid}/{name}").read_text(encoding="ascii").splitlines()]
        ranges = [IDRange(container_id=int(row[0]), host_id=int(row[1]), length=int(row[2])) for row in rows]
        found.append(tuple(ranges))
    return IDMap(uids=found[0], gids=found[1])


def are_same(one: IDMap, other: IDMap) -> bool:
    """Whether both mean the same, in whatever order."""

    def sorted_ranges(users: IDMap) -> tuple[list[tuple[int, int, int]], ...]:
        return tuple(
            sorted((each.container_id, each.host_id, each.length) for each in ranges)
            for ranges in (users.uids, users.gids)
        )

    return sorted_ranges(one) == sorted_ranges(other)


def owner(namespace: int) -> int | None:
    """A descriptor of the user namespace that owns another namespace; None where it is our own."""
    fd = fcntl.ioctl(namespace, _NS_GET_USERNS)
    if os.path.samestat(os.fstat(fd), os.stat("/proc/self/ns/user")):
        os.close(fd)
        return None
    return fd


def ask_for_maps(leash: int) -> tuple[Step, ...]:
    """Make a user namespace, say so on `leash` with `ASKING`, and wait for a packet: the maps are written."""
    what = "its user namespace"
    return (
        Step(what, steps.UNSHARE, (syscalls.CLONE_NEWUSER,)),
        Step(what, steps.WRITE, (leash, steps.ASKING, len(steps.ASKING))),
        Step(what, steps.RECVFROM, (leash, 0, 0, socket.MSG_TRUNC)),
    )


@contextlib.contextmanager
def made(users: IDMap, *, network: bool) -> Generator[int]:
    """A process in a user namespace of its own, with `network` in a network namespace which that owns too: its pid.

    It ends with the block; blocks for some milliseconds, so not for a loop. Raises `OSError`.
    """
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        ours.settimeout(MAKE_TIMEOUT_S)
        with its:
            leash = its.fileno()
            network_too = (Step("its network namespace", steps.UNSHARE, (syscalls.CLONE_NEWNET,)),) if network else ()
            ready = Step("its leash", steps.WRITE, (leash, steps.READY, len(steps.READY)))
            todo = (*ask_for_maps(leash), *network_too, ready)
            pid = steps.spawn(steps.program(todo, leash), (leash,))
        try:
            _expect(ours, todo, steps.ASKING)
            write_maps(pid, users)
            ours.send(b"m")
            _expect(ours, todo, steps.READY)
            yield pid
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _expect(leash: socket.socket, todo: tuple[Step, ...], wanted: bytes) -> None:
    report = leash.recv(steps.REPORT.size)
    if report != wanted:
        address, result = steps.REPORT.unpack(report) if report else (0, 0)
        what = steps.step_at(todo, address).what if result < 0 else "it was killed"
        raise OSError(-result, os.strerror(-result), what)
