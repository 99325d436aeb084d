"""The processes that hold the namespaces of pods: none outlives a start that no record tells of."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from atoll import errors
from atoll.concurrency import TaskOwner
from atoll.linux import netns, process, syscalls
from atoll.linux.userns import IDMap, IDRange, are_same, maps_of, owner
from atoll.shim import pod_holder
from atoll.shim.pod_holder import Holders
from atoll.shim.pod_namespaces import PodNamespaces
from atoll.shim.reaper import Reaper
from tests.integration.conftest import Roots

TIMEOUT_S = 10.0
WITH_PID = PodNamespaces(netns="", uts=True, ipc=True, pid=True)
WITHOUT_PID = PodNamespaces(netns="", uts=True, ipc=True, pid=False)
SPACES = pytest.mark.parametrize("spaces", [WITH_PID, WITHOUT_PID], ids=["pid", "no-pid"])

STARTER = """
import asyncio, sys
from atoll.shim.pod_holder import Holders
from atoll.shim.pod_namespaces import PodNamespaces
from atoll.shim.reaper import Reaper

async def main():
    reaper = Reaper()
    reaper.open()
    spaces = PodNamespaces(netns="", uts=True, ipc=True, pid=sys.argv[1] == "True")
    holder = await Holders(reaper).start(spaces, hostname="", sysctls={})
    if sys.argv[2] == "keep":
        holder.keep()
    print(holder.pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.fixture
async def holders() -> AsyncIterator[Holders]:
    reaper = Reaper()
    reaper.open()
    holders = Holders(reaper)
    await holders.prepare()
    yield holders
    holders.close()
    reaper.close()


def has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


async def no_child_is_left() -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while has_children():  # noqa: ASYNC110 - the kernel sets no event of ours
            await asyncio.sleep(0.01)


@SPACES
async def test_a_holder_lives_on_once_it_is_kept(holders: Holders, spaces: PodNamespaces) -> None:
    holder = await holders.start(spaces, hostname="pod", sysctls={})
    holder.keep()
    done, _ = await asyncio.wait({holder.ended}, timeout=0.2)
    assert not done
    assert os.listdir(f"/proc/{holder.pid}/fd") == []
    assert process.stat(holder.pid).command == "pause"  # type: ignore[union-attr]
    holder.kill()
    holder.kill()
    assert (await asyncio.wait_for(holder.ended, TIMEOUT_S)).code == -signal.SIGKILL


@SPACES
async def test_a_holder_that_nobody_keeps_ends_by_itself(holders: Holders, spaces: PodNamespaces) -> None:
    holder = await holders.start(spaces, hostname="", sysctls={})
    done, _ = await asyncio.wait({holder.ended}, timeout=0.2)
    assert not done, "it waits for the record"
    holder.leash.close()
    assert (await asyncio.wait_for(holder.ended, TIMEOUT_S)).code == 1


@SPACES
async def test_a_start_that_is_cancelled_at_any_moment_leaves_nobody(holders: Holders, spaces: PodNamespaces) -> None:
    async with TaskOwner("test") as tasks:
        for delay_us in range(0, 3000, 200):
            start = tasks.spawn(holders.start(spaces, hostname="", sysctls={}), name="start")
            await asyncio.sleep(0)
            time.sleep(delay_us / 1e6)  # the holder runs on, its reports are not read
            if start.cancel():
                with pytest.raises(asyncio.CancelledError):
                    await start
            else:  # it was faster
                (await start).kill()
            await no_child_is_left()


async def test_a_start_that_takes_too_long_leaves_nobody(holders: Holders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pod_holder, "START_TIMEOUT_S", 0.0)
    with pytest.raises(pod_holder.errors.Internal, match="not ready"):
        # One that asks for its users is waited for, however quick it is.
        await holders.start(replace(WITH_PID, users=USERS), hostname="", sysctls={})
    await no_child_is_left()


@pytest.mark.parametrize(("pid", "kept", "lives"), [(True, "no", False), (False, "no", False), (True, "keep", True)])
def test_a_holder_ends_with_the_process_that_did_not_keep_it(pid: bool, kept: str, lives: bool) -> None:
    before = syscalls.is_child_subreaper()
    syscalls.set_child_subreaper(True)
    try:
        argv = [sys.executable, "-c", STARTER, str(pid), kept]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as starter:
            assert starter.stdout is not None
            holder = int(starter.stdout.readline())
            pidfd = os.pidfd_open(holder)
            starter.kill()
        if lives:
            time.sleep(0.2)
            assert os.waitpid(holder, os.WNOHANG) == (0, 0)
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)
        deadline = time.monotonic() + TIMEOUT_S
        while os.waitpid(holder, os.WNOHANG) == (0, 0):
            assert time.monotonic() < deadline, "the holder lives on"
            time.sleep(0.01)
    finally:
        syscalls.set_child_subreaper(before)


USERS = IDMap(
    uids=(IDRange(container_id=0, host_id=100_000, length=65_536),),
    gids=(IDRange(container_id=0, host_id=200_000, length=65_536),),
)


@pytest.mark.parametrize("pid", [True, False], ids=["pid", "no-pid"])
@pytest.mark.parametrize("network", [True, False], ids=["pod", "host"])
async def test_the_namespaces_of_a_pod_with_users_of_its_own_are_theirs(
    holders: Holders, roots: Roots, network: bool, pid: bool
) -> None:
    path = roots.state / "netns" / roots.prefix
    if network:
        netns.create(path, USERS)
    try:
        spaces = PodNamespaces(netns=str(path) if network else "", uts=network, ipc=True, pid=pid, users=USERS)
        sysctls = {
            "kernel.msgmax": "9999",
            **({"kernel.domainname": "d.test", "net.ipv4.ip_unprivileged_port_start": "7"} if network else {}),
        }
        holder = await holders.start(spaces, hostname="mapped" if network else "", sysctls=sysctls)
        try:
            status = Path(f"/proc/{holder.pid}/status").read_text()
            assert "Uid:\t165535\t165535\t165535\t165535\n" in status
            assert "Gid:\t265535\t265535\t265535\t265535\n" in status
            assert "CapEff:\t0000000000000000\n" in status
            assert are_same(maps_of(holder.pid), USERS)
            assert os.listdir(f"/proc/{holder.pid}/root/") == []
            users = os.stat(f"/proc/{holder.pid}/ns/user").st_ino
            for kind in ("ipc", "mnt", *(("uts", "net") if network else ()), *(("pid",) if pid else ())):
                fd = os.open(f"/proc/{holder.pid}/ns/{kind}", os.O_RDONLY)
                of = owner(fd)
                os.close(fd)
                assert of is not None, kind
                assert os.fstat(of).st_ino == users, kind
                os.close(of)
            inside = ["nsenter", "-t", str(holder.pid), "-i", *(["-n", "-u"] if network else []), "cat"]
            for name, value in sysctls.items():
                file = "/proc/sys/" + name.replace(".", "/")
                assert subprocess.check_output([*inside, file]).decode().split() == value.split()
        finally:
            holder.kill()
            await holder.ended
    finally:
        netns.remove_folder(path.parent)


async def test_a_network_of_the_hosts_users_is_refused_for_a_pod_with_its_own(holders: Holders, roots: Roots) -> None:
    path = roots.state / "netns" / roots.prefix
    other = IDMap(uids=USERS.uids, gids=USERS.uids)
    try:
        for users in (None, other):
            netns.create(path, users)
            spaces = PodNamespaces(netns=str(path), uts=True, ipc=True, pid=False, users=USERS)
            with pytest.raises(errors.InvalidArgument, match=r"belongs to the host|other ids"):
                await holders.start(spaces, hostname="", sysctls={})
            netns.remove(path)
    finally:
        netns.remove_folder(path.parent)
