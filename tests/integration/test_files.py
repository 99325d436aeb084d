"""The files of containers by the SDK: running and not, hostile and not."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import atoll
from atoll import errors
from atoll.client.files import FileChange, FileChangeKind, FileKind, TransferProgress

pytestmark = pytest.mark.shared_daemon

IMAGE = "atoll/busybox"
BOUND_S = 30.0


@pytest.fixture
async def container(pod: atoll.Pod) -> atoll.Container:
    return await pod.run(IMAGE, ["sleep", "1000"])


async def test_one_file_is_written_read_and_removed(container: atoll.Container) -> None:
    files = container.files
    await files.mkdir("/data/deep", parents=True)
    await files.write("/data/deep/a.txt", "hello", mode=0o640, owner="1000:1001")
    assert await files.read("/data/deep/a.txt") == b"hello"
    found = await files.stat("data/deep/a.txt")
    assert (found.kind, found.mode, found.size, found.uid, found.gid) == (FileKind.FILE, 0o640, 5, 1000, 1001)
    await files.write("/data/deep/a.txt", b" world", append=True)
    assert (await container.exec(["cat", "/data/deep/a.txt"])).text == "hello world"
    assert [one.name for one in await files.list("/data")] == ["deep"]
    with pytest.raises(errors.FailedPrecondition, match="not empty"):
        await files.remove("/data")
    await files.remove("/data", recursive=True)
    assert not await files.exists("/data")
    with pytest.raises(errors.NotFound, match="/data"):
        await files.read("/data/deep/a.txt")
    await files.remove("/data", missing_ok=True)


async def test_a_tree_goes_in_and_comes_out_as_it_was(container: atoll.Container, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "sub" / "empty").mkdir(parents=True)
    (source / "small").write_bytes(b"x" * 1000)
    (source / "sub" / "big").write_bytes(os.urandom(3 << 20))
    (source / "sub" / "script").write_text("#!/bin/sh\n")
    (source / "sub" / "script").chmod(0o755)
    (source / "link").symlink_to("/etc/shadow")
    (source / os.fsdecode(b"b\xff")).write_bytes(b"odd")
    os.mkfifo(source / "fifo")
    os.utime(source / "small", (1, 1_000_000))
    told: list[TransferProgress] = []
    done = await container.files.upload(source, "/opt/tree", on_progress=told.append)
    assert (done.files, done.size, done.skipped) == (5, 1000 + (3 << 20) + 10 + 3, ("fifo",))
    assert told
    assert (told[-1].size, told[-1].total_files) == (done.size, 6)
    assert (await container.exec(["stat", "-c", "%a %Y %u", "/opt/tree/small"])).text == "644 1000000 0\n"
    back = tmp_path / "back"
    assert (await container.files.download("/opt/tree", back)).files == 5
    assert sorted(str(one.relative_to(back)) for one in back.rglob("*")) == sorted(
        str(one.relative_to(source)) for one in source.rglob("*") if one.name != "fifo"
    )
    assert (back / "sub" / "big").read_bytes() == (source / "sub" / "big").read_bytes()
    assert os.readlink(back / "link") == "/etc/shadow"
    assert (back / "sub" / "script").stat().st_mode & 0o777 == 0o755
    assert (back / "small").stat().st_mtime == 1_000_000


async def test_one_file_goes_to_a_name_or_into_a_folder(container: atoll.Container, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    files = container.files
    await files.upload(tmp_path / "a", "/x/y")
    await files.upload(tmp_path / "a", "/x/")
    await files.upload(tmp_path / "a", "/tmp")
    assert [await files.read(name) for name in ("/x/y", "/x/a", "/tmp/a")] == [b"1"] * 3
    await files.download("/x/y", tmp_path / "new" / "name")
    await files.download("/x/y", f"{tmp_path}/into/")
    assert ((tmp_path / "new" / "name").read_bytes(), (tmp_path / "into" / "y").read_bytes()) == (b"1", b"1")
    with pytest.raises(errors.NotFound, match="on this host"):
        await files.upload(tmp_path / "none", "/x")
    with pytest.raises(errors.NotFound, match="/none"):
        await files.download("/none", tmp_path / "z")


async def test_no_link_leads_out_of_the_container(container: atoll.Container, tmp_path: Path) -> None:
    """What is followed is followed inside: to the container's own files of the same name, or nowhere."""
    mark = tmp_path / "mark"
    mark.write_text("host")
    script = f"ln -s {tmp_path} /away; ln -s /proc/1/root /magic; ln -s /proc/self/root{mark} /self"
    assert (await container.exec(["sh", "-c", script])).ok
    files = container.files
    for name in ("/away/mark", "/magic/etc/passwd", "/self", f"/../../../..{mark}"):
        with pytest.raises((errors.NotFound, errors.InvalidArgument, errors.FailedPrecondition)):
            await files.read(name)
    with pytest.raises((errors.NotFound, errors.InvalidArgument)):
        await files.write("/away/mark", b"owned")
    assert mark.read_text() == "host"
    back = tmp_path / "back"
    script = f"mkdir /out; ln -s {tmp_path} /out/a; mkdir /out/b; echo evil > /out/b/mark"
    assert (await container.exec(["sh", "-c", script])).ok
    await files.download("/out", back)
    assert mark.read_text() == "host"
    with pytest.raises(errors.FailedPrecondition, match="procfs"):
        await files.read("/proc/uptime")


async def test_fifos_and_devices_are_refused_at_once(container: atoll.Container, tmp_path: Path) -> None:
    assert (await container.exec(["sh", "-c", "mkfifo /fifo; mknod /watchdog c 10 130; mkdir /w; mkfifo /w/f"])).ok
    files = container.files
    async with asyncio.timeout(BOUND_S):
        for name in ("/fifo", "/watchdog", "/dev/zero"):
            with pytest.raises(errors.FailedPrecondition, match="no regular file"):
                await files.read(name)
            with pytest.raises(errors.FailedPrecondition, match="no regular file"):
                await files.write(name, b"x")
        assert (await files.stat("/fifo")).kind is FileKind.OTHER
        assert (await files.download("/w", tmp_path / "w")).skipped == ("f",)
        await files.upload(__file__, "/fifo")
    assert (await files.stat("/fifo")).kind is FileKind.FILE


async def test_the_files_of_a_container_that_does_not_run(pod: atoll.Pod, tmp_path: Path) -> None:
    container = await pod.create(atoll.ContainerOptions(image=IMAGE, command=["cat", "/before"]))
    await container.files.write("/before", "written before its start\n")
    assert (await container.files.stat("/bin/busybox")).size > 0
    await container.start()
    assert (await container.wait(BOUND_S)).code == 0
    assert [line.text async for line in container.logs()] == ["written before its start"]
    await container.files.download("/before", tmp_path / "after")
    assert (tmp_path / "after").read_text() == "written before its start\n"


async def _next(changes: AsyncIterator[FileChange]) -> FileChange:
    return await anext(changes)


async def _last(changes: AsyncIterator[FileChange]) -> None:
    async for _ in changes:
        pass


async def test_changes_are_told(container: atoll.Container) -> None:
    changes = container.files.watch("/tmp", recursive=True)
    async with asyncio.timeout(BOUND_S):
        async with asyncio.TaskGroup() as group:
            coming = group.create_task(_next(changes))
            while not coming.done():
                await container.exec(["sh", "-c", "rm -rf /tmp/d; mkdir /tmp/d; echo 1 > /tmp/d/f"])
        seen = {(coming.result().kind, coming.result().path)}
        while not seen >= {(FileChangeKind.CREATED, "d/f"), (FileChangeKind.CREATED, "d")}:
            one = await anext(changes)
            seen.add((one.kind, one.path))
    await changes.aclose()


async def test_a_start_ends_who_works_on_the_files(pod: atoll.Pod) -> None:
    container = await pod.create(atoll.ContainerOptions(image=IMAGE, command=["sleep", "1000"]))
    changes = container.files.watch("/")

    async with asyncio.timeout(BOUND_S), asyncio.TaskGroup() as group:
        coming = group.create_task(_next(changes))
        while not coming.done():  # the first change tells that it watches
            await container.files.write("/a", b"1")
        await container.start()
        with pytest.raises(errors.Aborted, match="started"):
            await _last(changes)
