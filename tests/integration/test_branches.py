"""Branches of files on real containers: snapshots while they run, forks, rollback, diff, commit, a daemon that dies."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import atoll
from atoll import errors
from atoll.concurrency import wait_all
from atoll.engine.branch_base import BASE
from atoll.engine.branches import MARK
from tests.integration.conftest import Daemon

pytestmark = pytest.mark.shared_daemon

IMAGE = "atoll/busybox"
SLEEP = ["sleep", "1000"]


@pytest.fixture
async def client(client: atoll.Client) -> AsyncIterator[atoll.Client]:
    yield client
    for pod in await client.pods():
        await client.pod_by_id(pod.id).remove()
    while snapshots := await client.snapshots():
        for one in snapshots:
            if not one.in_use:
                await (await client.snapshot(one.id)).remove()


@pytest.fixture
async def pod(client: atoll.Client) -> atoll.Pod:
    return await client.run_pod(network="none")


async def sh(container: atoll.Container, script: str) -> str:
    result = await container.exec(["sh", "-c", script], timeout=30)
    assert result.exit_code == 0, result.error_text
    return result.text


async def test_a_running_container_is_kept_forked_and_goes_on(client: atoll.Client, pod: atoll.Pod) -> None:
    container = await pod.run(IMAGE, SLEEP, name="web", env={"KEPT": "yes"})
    await sh(
        container,
        "mkdir /d && echo one >/d/a && ln /d/a /d/b && ln -s a /d/l && mkfifo /d/p && chmod 4755 /d/a; rm /etc/passwd",
    )
    snapshot = await container.snapshot("clean")
    assert snapshot.cost is not None
    assert snapshot.cost.copied_bytes + snapshot.cost.shared_bytes >= 4
    await sh(container, "echo two >>/d/a; rm /d/l")
    forks = await snapshot.fork(3)
    assert len({one.id for one in forks}) == 3
    for number, fork in enumerate(forks):
        assert await sh(fork, "cat /d/b; readlink /d/l; stat -c '%a %h' /d/a; test -p /d/p; echo $KEPT") == (
            "one\na\n4755 2\nyes\n"
        )
        assert (await fork.exec(["test", "-e", "/etc/passwd"])).exit_code == 1
        await sh(fork, f"echo {number} >/d/own")
    assert [await sh(fork, "cat /d/own") for fork in forks] == ["0\n", "1\n", "2\n"]
    assert await sh(container, "cat /d/a") == "one\ntwo\n"
    assert (await snapshot.status()).in_use
    with pytest.raises(errors.FailedPrecondition, match="rest on it"):
        await snapshot.remove()
    with pytest.raises(errors.AlreadyExists, match="clean"):
        await container.snapshot("clean")
    for fork in forks:
        await fork.remove()
    await snapshot.remove()
    await snapshot.remove()
    assert await client.snapshots() == ()


async def test_rollback_puts_a_container_with_the_old_files_in_its_place(client: atoll.Client, pod: atoll.Pod) -> None:
    container = await pod.run(IMAGE, SLEEP, name="app")
    await sh(container, "echo good >/state")
    snapshot = await container.snapshot()
    await sh(container, "echo bad >/state; touch /junk")
    back = await container.rollback(snapshot)
    assert (back.name, back.pod_id) == ("app", pod.id)
    assert back.id != container.id
    assert await sh(back, "cat /state; ls /junk 2>&1 || true") == "good\nls: /junk: No such file or directory\n"
    assert [one.id for one in await pod.containers()] == [back.id]
    again = await back.snapshot("second")
    twice = await back.rollback(again.name)
    assert await sh(twice, "cat /state") == "good\n"
    with pytest.raises(errors.NotFound, match="there is none"):
        await twice.rollback("nonesuch")
    assert await sh(twice, "echo still here") == "still here\n"


async def test_an_ended_container_is_kept_without_a_copy(client: atoll.Client, pod: atoll.Pod) -> None:
    container = await pod.run(IMAGE, ["sh", "-c", "head -c 1000000 /dev/urandom >/big; sha256sum /big >/sum"])
    assert (await container.wait(timeout=30)).code == 0
    before = await container.diff()
    snapshot = await container.snapshot("ended")
    assert snapshot.cost is not None
    assert (snapshot.cost.copied_bytes, snapshot.cost.paused_s) == (0, 0)
    assert await container.diff() == before
    assert await container.diff(snapshot) == ()
    (fork,) = await snapshot.fork(start=False)
    assert {one.path for one in await fork.diff()} == {"/big", "/sum"}


async def test_diff_as_a_list_and_as_a_layer(pod: atoll.Pod) -> None:
    container = await pod.run(IMAGE, SLEEP)
    assert await container.diff() == ()
    await sh(container, "mkdir /new && echo x >/new/file && echo y >>/etc/group && rm /etc/passwd")
    found = {(one.kind.value, one.path) for one in await container.diff()}
    assert found == {
        ("added", "/new"),
        ("added", "/new/file"),
        ("changed", "/etc"),
        ("changed", "/etc/group"),
        ("deleted", "/etc/passwd"),
    }
    snapshot = await container.snapshot("first")
    (fork,) = await snapshot.fork()
    await sh(fork, "rm -r /new && mkdir /new && echo z >/new/other; rm /etc/group")
    assert {(one.kind.value, one.path) for one in await fork.diff(snapshot)} == {
        ("changed", "/new"),
        ("deleted", "/new/file"),
        ("added", "/new/other"),
        ("changed", "/etc"),
        ("deleted", "/etc/group"),
    }
    assert {(one.kind.value, one.path) for one in await fork.diff()} == {
        ("added", "/new"),
        ("added", "/new/other"),
        ("changed", "/etc"),
        ("deleted", "/etc/group"),
        ("deleted", "/etc/passwd"),
    }
    with tarfile.open(fileobj=io.BytesIO(b"".join([data async for data in fork.diff_tar()]))) as layer:
        assert set(layer.getnames()) == {"new", "new/other", "etc", "etc/.wh.group", "etc/.wh.passwd"}
    with tarfile.open(fileobj=io.BytesIO(b"".join([data async for data in fork.diff_tar("first")]))) as layer:
        assert set(layer.getnames()) == {"new", "new/.wh.file", "new/other", "etc", "etc/.wh.group"}
    assert await container.diff(snapshot) == ()
    await sh(container, "echo more >>/new/file; rm /etc/group; echo back >/etc/passwd")
    assert {(one.kind.value, one.path) for one in await container.diff("first")} == {
        ("changed", "/new"),
        ("changed", "/new/file"),
        ("changed", "/etc"),
        ("deleted", "/etc/group"),
        ("added", "/etc/passwd"),
    }


async def test_commit_makes_an_image_that_runs(client: atoll.Client, pod: atoll.Pod) -> None:
    container = await pod.run(IMAGE, SLEEP)
    await sh(container, "echo made >/made; rm /etc/group")
    reference = "localhost/branches:v1"
    changes = ['CMD ["cat", "/made"]', "ENV A='b c' D=e", "WORKDIR /etc", 'LABEL who="me"', "EXPOSE 80"]
    image_id = await container.commit(reference, changes=changes, author="me", message="why")
    try:
        assert (await client.image(reference)).id == image_id
        ran = await pod.run(reference)
        assert (await ran.wait(timeout=20)).code == 0
        assert [line.text async for line in ran.logs()] == ["made"]
        other = await pod.run(reference, SLEEP)
        assert await sh(other, 'echo "$A $D"; pwd; test ! -e /etc/group') == "b c e\n/etc\n"
        (await client.image(reference)).id  # noqa: B018 - it is still there
        with pytest.raises(errors.InvalidArgument, match="no instruction"):
            await container.commit("localhost/bad:v1", changes=["RUN true"])
        with pytest.raises(errors.InvalidArgument):
            await container.commit("Not A Name")
        assert await sh(container, "cat /made") == "made\n"
    finally:
        for one in await pod.containers():
            await client.container_by_id(one).remove()
        await client.remove_image(image_id)


@pytest.mark.may_block(30)
async def test_snapshots_outlive_a_killed_daemon_and_who_stood_still_for_one_goes_on(daemon: Daemon) -> None:
    async with atoll.connect(daemon.roots.socket, start=False) as client:
        pod = await client.run_pod("frozen", network="none")
        container = await pod.run(IMAGE, SLEEP)
        await sh(container, "echo one >/a")
        await container.snapshot("lasting")
        await sh(container, "head -c 60000000 /dev/zero | tr '\\0' x >/big")
        taking = asyncio.ensure_future(container.snapshot())  # noqa: TID251 - the daemon is killed beside it
        mark = Path(daemon.roots.root, "containers", container.id, MARK)
        async with asyncio.timeout(20):
            while not mark.exists() and not taking.done():  # noqa: ASYNC110 - the daemon makes it
                await asyncio.sleep(0.001)
        os.kill(daemon.pid, signal.SIGKILL)
        with pytest.raises(errors.AtollError):
            await taking
    daemon.kill()
    daemon.start()
    async with atoll.connect(daemon.roots.socket, start=False) as client:
        assert await sh(await client.container(container.id), "echo awake") == "awake\n"
        assert [one.name for one in await client.snapshots()] == ["lasting"]
        assert (await client.fsck()).findings == ()
        (fork,) = await (await client.snapshot("lasting")).fork()
        assert await sh(fork, "cat /a; ls /big 2>&1 || true") == "one\nls: /big: No such file or directory\n"
        await client.pod_by_id(pod.id).remove()
        await (await client.snapshot("lasting")).remove()


async def test_a_container_rests_on_no_snapshot_that_is_not_its_images(client: atoll.Client, pod: atoll.Pod) -> None:
    container = await pod.run(IMAGE, SLEEP)
    await container.exec(["touch", "/x"])
    image = await container.commit("localhost/other:v1")
    snapshot = await container.snapshot("busybox")
    other = await pod.run("localhost/other:v1", SLEEP)
    try:
        with pytest.raises(errors.InvalidArgument, match="another image"):
            await other.rollback(snapshot)
        assert await sh(other, "ls /x") == "/x\n"
        top = (await client.image(IMAGE)).id
        for key in ("", "nonesuch", top, "../..", f"branch.{snapshot.id}x"):
            options = atoll.ContainerOptions(image=IMAGE, command=SLEEP, annotations={BASE: key})
            with pytest.raises(errors.NotFound, match="is no snapshot"):
                await pod.create(options, pull="never")
        for name in ("-x", "a/b", "x" * 65, "a b"):
            with pytest.raises(errors.InvalidArgument, match="snapshot name"):
                await container.snapshot(name)
    finally:
        await other.remove()
        await client.remove_image(image)


async def test_many_at_once_stand_still_one_after_another(pod: atoll.Pod) -> None:
    container = await pod.run(IMAGE, ["sh", "-c", "i=0; while :; do echo $i >/a; echo $i >/b; i=$((i+1)); done"])
    tars = await wait_all([_whole(container) for _ in range(4)])
    for data in tars:
        with tarfile.open(fileobj=io.BytesIO(data)) as layer:
            a, b = (int((layer.extractfile(name) or io.BytesIO()).read() or b"-1") for name in ("a", "b"))
        assert b in (a, a - 1) or -1 in (a, b)  # between two writes, or within one


async def _whole(container: atoll.Container) -> bytes:
    return b"".join([data async for data in container.diff_tar()])


def test_the_sync_face_has_branches(daemon: Daemon) -> None:
    with atoll.connect_sync(daemon.roots.socket, start=False) as client, client.run_pod(network="none") as pod:
        container = pod.run(IMAGE, SLEEP)
        container.exec(["touch", "/x"])
        snapshot = container.snapshot("sync")
        (fork,) = snapshot.fork()
        assert [one.path for one in fork.diff()] == ["/x"]
        assert b"".join(fork.diff_tar())
        back = container.rollback(snapshot)
        assert back.exec(["test", "-e", "/x"]).exit_code == 0
        fork.remove()
        back.remove()
        client.snapshot("sync").remove()
