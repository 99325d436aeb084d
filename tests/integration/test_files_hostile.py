"""Files of containers that fight back: links swapped under the hand, an agent that hangs, users of their own."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

import atoll
from atoll import errors
from atoll.api import cri_runtime_v1_pb2 as pb
from tests.integration.conftest import Daemon
from tests.integration.cri_client import CRI
from tests.integration.leaks import command, pids, wait_until

pytestmark = pytest.mark.shared_daemon

IMAGE = "atoll/busybox"
BOUND_S = 60.0
FIRST, COUNT = 100_000, 65_536


async def test_links_that_are_swapped_all_the_time_lead_nowhere(client: atoll.Client, tmp_path: Path) -> None:
    """A name is a folder of the container, then a link to a folder of the host, a few thousand times a second."""
    away = tmp_path / "away"
    away.mkdir()
    (away / "file").write_text("of the host")
    script = f"mkdir -p /a/real; echo mine > /a/real/file; ln -s {away} /a/link; cp -r /a/real /a/now; cd /a; "
    script += f"while :; do mv now was; ln -s ../../../../..{away} now; rm now; mv was now; done"
    async with await client.run_pod(network="none") as pod, asyncio.timeout(BOUND_S):
        box = await pod.run(IMAGE, ["sh", "-c", script])
        while not await box.files.exists("/a/now/file"):
            pass
        (tmp_path / "up").mkdir()
        (tmp_path / "up" / "new").write_text("new")
        for number in range(15):
            for call in (
                box.files.read("/a/now/file"),
                box.files.write("/a/now/file", "mine\n"),
                box.files.upload(tmp_path / "up", "/a/now"),
                box.files.download("/a/now", tmp_path / "down" / str(number)),
            ):
                try:
                    found = await call
                except (errors.NotFound, errors.FailedPrecondition, errors.Aborted, errors.InvalidArgument):
                    continue
                assert found != b"of the host"
    assert sorted(os.listdir(away)) == ["file"]
    assert (away / "file").read_text() == "of the host"
    assert "of the host" not in {one.read_text() for one in (tmp_path / "down").rglob("*") if one.is_file()}


async def test_an_agent_that_hangs_holds_up_nobody_and_is_killed(client: atoll.Client, daemon: Daemon) -> None:
    async with await client.run_pod(network="none") as pod, asyncio.timeout(BOUND_S):
        box = await pod.run(IMAGE, ["sh", "-c", "while :; do date > /tmp/now; sleep 0.05; done"])
        before = set(_agents(daemon))
        changes = box.files.watch("/tmp")
        await anext(changes)
        (hung,) = set(_agents(daemon)) - before
        os.kill(hung, signal.SIGSTOP)
        assert await box.files.exists("/tmp/now")
        begun = time.monotonic()
        await changes.aclose()
        assert time.monotonic() - begun < BOUND_S / 2
        assert await asyncio.to_thread(wait_until, lambda: hung not in pids())


def _agents(daemon: Daemon) -> list[int]:
    """Agents of this daemon, and the process that forks them."""
    mark = daemon.roots.prefix.encode()
    found: list[int] = []
    for pid in pids():
        if "atoll.files.agent" in command(pid):
            try:
                if mark in Path(f"/proc/{pid}/environ").read_bytes():
                    found.append(pid)
            except OSError:
                continue
    return found


async def test_a_pod_with_users_of_its_own_has_files_of_these(client: atoll.Client, cri: CRI, tmp_path: Path) -> None:
    """Running or not, a file is whose it is inside, and on the disk nobody's of the host."""
    ids = [pb.IDMapping(host_id=FIRST, container_id=0, length=COUNT)]
    users = pb.UserNamespace(mode=pb.POD, uids=ids, gids=ids)
    namespaces = pb.NamespaceOption(pid=pb.CONTAINER, userns_options=users)
    answer = cri.runtime.call("Status", pb.StatusRequest(), pb.StatusResponse)
    if not any(handler.features.user_namespaces for handler in answer.runtime_handlers):
        pytest.skip("needs ID-mapped mounts of this file system")
    pod = cri.run_pod(cri.pod_config(namespaces=namespaces))
    config = cri.container_config("/bin/sleep", "1000")
    config.linux.security_context.namespace_options.CopyFrom(namespaces)
    made = cri.create(pod, config)
    box = await client.container(made)
    await box.files.write("/before", "one", owner="5:6")
    before = await box.files.stat("/before")
    cri.start(made)
    await box.files.write("/after", "two", owner="7:8")
    (tmp_path / "file").write_text("three")
    await box.files.upload(tmp_path / "file", "/root-owned")
    owners = cri.sh(made, "stat -c '%u:%g' /before /after /root-owned").split()
    assert owners == ["5:6", "7:8", "0:0"]
    seen = [await box.files.stat(name) for name in ("/before", "/after", "/bin/busybox")]
    assert [(one.uid, one.gid) for one in (before, *seen)] == [(5, 6), (5, 6), (7, 8), (0, 0)]
    with pytest.raises(errors.AtollError):
        await box.files.write("/never", "x", owner="70000:70000")
    cri.stop(made)
    assert (await box.files.stat("/after")).uid == 7
