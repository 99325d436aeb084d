"""The store: imports, built-in images, names, removal and collection, restarts."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import subprocess
import tarfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from atoll import errors
from atoll.concurrency import wait_all
from atoll.database import quarantined
from atoll.image.builtin import BUSYBOX, PAUSE
from atoll.image.model import Image
from tests.integration.conftest import Roots
from tests.integration.images import (
    OCI,
    Stack,
    descriptor,
    digest,
    folder,
    gzipped,
    image,
    layer,
    member,
    mounted,
    stack,
    symlink,
    write_docker_archive,
    write_index,
    write_layout,
)
from tests.integration.leaks import wait_until
from tests.integration.registry import run

BASE = layer(member("base", b"1"))
TOP = layer(member("top", b"2"))
NAME = "example.org/team/app:v1"


@pytest.fixture
async def store(roots: Roots) -> AsyncIterator[Stack]:
    async with stack(roots.root) as one:
        yield one


async def imported(store: Stack, path: Path, name: str | None = None) -> Image:
    """The one image of an archive."""
    (one,) = await store.images.import_archive(path, name)
    return one.image


@pytest.fixture
def layout(roots: Roots) -> Path:
    return write_layout(roots.base / "layout", (image([BASE, TOP]), NAME))


async def test_import_of_an_oci_layout(store: Stack, layout: Path) -> None:
    one = await imported(store, layout)
    assert (one.repo_tags, one.id) == ((NAME,), image([BASE, TOP]).id)
    assert one.repo_digests == (f"example.org/team/app@{one.manifest_digest}",)
    assert one.created == "2024-01-02T03:04:05Z"
    base, top = (store.snapshots.fs(name) for name in one.chain_ids)
    assert ((base / "base").read_text(), (top / "top").read_text()) == ("1", "2")


@pytest.mark.parametrize("packed", [False, True], ids=["tar", "tar.gz"])
async def test_import_of_an_oci_archive(store: Stack, layout: Path, roots: Roots, packed: bool) -> None:
    run("tar", "-C", str(layout), "-cf", str(roots.base / "a.tar"), ".")
    if packed:
        run("gzip", str(roots.base / "a.tar"))
    one = await imported(store, roots.base / ("a.tar.gz" if packed else "a.tar"))
    assert one.repo_tags == (NAME,)
    assert store.ingests() == []


async def test_import_of_skopeos_archives(store: Stack, layout: Path, roots: Roots) -> None:
    for kind, name in (("oci-archive", "docker.io/library/one:v1"), ("docker-archive", "docker.io/library/two:v1")):
        target = f"{kind}:{roots.base}/{kind}.tar:{name}"
        run("skopeo", "--insecure-policy", "copy", "--quiet", f"oci:{layout}:{NAME}", target)
        one = await imported(store, roots.base / f"{kind}.tar")
        assert name in one.repo_tags
        assert (store.snapshots.fs(one.chain_ids[-1]) / "top").read_text() == "2"
    assert len(store.snapshot_folders()) == 2, "the layers are the same and were unpacked once"


async def test_import_of_a_docker_archive_with_linked_layers(store: Stack, roots: Roots) -> None:
    files = write_docker_archive(roots.base / "d.tar", [BASE, TOP, BASE], ["team/app:v1", "team/app:v2"])
    one = await imported(store, roots.base / "d.tar")
    assert one.id == files.id
    assert one.repo_tags == ("docker.io/team/app:v1", "docker.io/team/app:v2")
    assert len(one.chain_ids) == 3
    manifest = json.loads((store.root / "content/blobs/sha256" / one.manifest_digest[7:]).read_bytes())
    assert [entry["digest"] for entry in manifest["layers"]] == [digest(BASE), digest(TOP), digest(BASE)]


async def test_import_of_several_images(store: Stack, roots: Roots) -> None:
    layout = write_layout(
        roots.base / "many", (image([BASE]), "example.org/a:1"), (image([BASE, TOP]), "example.org/b:1")
    )
    assert [one.image.repo_tags for one in await store.images.import_archive(layout)] == [
        ("example.org/a:1",),
        ("example.org/b:1",),
    ]
    with pytest.raises(errors.InvalidArgument, match="2 images"):
        await store.images.import_archive(layout, "example.org/c:1")


async def test_import_tells_the_names_that_it_brought_and_no_others(store: Stack, roots: Roots) -> None:
    def archive(folder: str, name: str) -> Path:
        return write_layout(roots.base / folder, (image([BASE]), name))

    (first,) = await store.images.import_archive(archive("one", "example.org/a:1"))
    assert first.names == ("example.org/a:1",)
    (second,) = await store.images.import_archive(archive("two", "example.org/b:1"))
    assert second.names == ("example.org/b:1",)
    assert second.image.repo_tags == ("example.org/a:1", "example.org/b:1")
    (third,) = await store.images.import_archive(archive("three", "example.org/c:1"), "team/d")
    assert third.names == ("docker.io/team/d:latest",)


async def test_import_gives_the_name_asked_for(store: Stack, roots: Roots) -> None:
    layout = write_layout(roots.base / "bare", (image([BASE]), "v1"))
    one = await imported(store, layout)
    assert one.repo_tags == ()
    one = await imported(store, layout, "team/app")
    assert one.repo_tags == ("docker.io/team/app:latest",)


async def test_a_pipe_is_no_archive_and_holds_nobody_up(store: Stack, roots: Roots) -> None:
    os.mkfifo(roots.base / "pipe")
    for path in (roots.base / "pipe", Path("/dev/tty")):
        with pytest.raises(errors.InvalidArgument, match=f"{path}: is neither a file nor a folder"):
            await store.images.import_archive(path)


async def test_layout_of_an_index_gives_this_machines_image(store: Stack, roots: Roots) -> None:
    ours, other = image([BASE]), image([TOP], architecture="s390x")
    layout = write_layout(roots.base / "multi", (ours, ""), (other, ""))
    platforms = [
        descriptor(one.manifest, f"{OCI}.manifest.v1+json", platform={"os": "linux", "architecture": arch})
        for one, arch in ((other, "s390x"), (ours, "amd64"))
    ]
    index = json.dumps({"schemaVersion": 2, "manifests": platforms}).encode()
    (layout / "blobs/sha256" / digest(index)[7:]).write_bytes(index)
    write_index(layout, [descriptor(index, f"{OCI}.index.v1+json")])
    one = await imported(store, layout, NAME)
    assert one.id == ours.id
    assert one.repo_digests == (f"example.org/team/app@{digest(index)}",)


def docker_archive(listing: str, *more: tuple[tarfile.TarInfo, bytes], config: bytes = b"") -> bytes:
    config = config or image([BASE]).config
    return layer(*more, member("config.json", config), member("manifest.json", listing.encode()))


def index_of(*entries: object) -> bytes:
    return layer(member("index.json", json.dumps({"schemaVersion": 2, "manifests": entries}).encode()))


HOSTILE = {
    "nothing": layer(member("readme", b"hello")),
    "no json": layer(member("index.json", b"{")),
    "wrong type": index_of({"digest": 5, "size": 1}),
    "no digest": index_of({"digest": "sha256:../x", "size": 1}),
    "missing blob": index_of(descriptor(b"x", "")),
    "a link to the host": layer(symlink("index.json", "/etc/passwd")),
    "layers on the host": docker_archive('[{"Config": "config.json", "Layers": ["/etc/passwd"]}]'),
    "layers above": docker_archive('[{"Config": "config.json", "Layers": ["../../x"]}]'),
    "layers through a link": docker_archive(
        '[{"Config": "config.json", "Layers": ["l/passwd"]}]', symlink("l", "/etc")
    ),
    "a pipe": layer(member("index.json", type=tarfile.FIFOTYPE)),
    "bad tag": docker_archive(
        '[{"Config": "config.json", "Layers": [], "RepoTags": ["A B"]}]', config=image([]).config
    ),
    "layer count": docker_archive('[{"Config": "config.json", "Layers": []}]'),
}


async def test_bad_archives_are_refused_and_leave_nothing(store: Stack, roots: Roots, layout: Path) -> None:
    for name, data in HOSTILE.items():
        path = roots.base / f"{name}.tar"
        path.write_bytes(data)
        with pytest.raises(errors.InvalidArgument):
            await store.images.import_archive(path)
        assert store.is_empty(), name


async def test_import_with_a_wrong_digest_leaves_nothing(store: Stack, layout: Path) -> None:
    blob = layout / "blobs/sha256" / digest(gzipped(TOP))[7:]
    blob.write_bytes(gzipped(BASE))
    with pytest.raises(errors.DataLoss, match=digest(gzipped(TOP))):
        await store.images.import_archive(layout)
    assert store.is_empty()


async def test_missing_archive_is_not_found(store: Stack, roots: Roots) -> None:
    with pytest.raises(errors.NotFound, match="none"):
        await store.images.import_archive(roots.base / "none")


async def test_builtin_images_are_quick_and_reproducible(store: Stack) -> None:
    start = time.monotonic()
    busybox, pause = await store.images.install_builtins()
    assert time.monotonic() - start < 1
    assert (busybox.repo_tags, busybox.config.cmd) == ((BUSYBOX,), ("sh",))
    assert (pause.repo_tags, pause.pinned) == ((PAUSE,), True)
    assert busybox.chain_ids == pause.chain_ids
    assert await store.images.install_builtins() == (busybox, pause)
    assert await store.images.pull("atoll/busybox") == busybox, "it is not asked for at any registry"
    await store.images.remove("atoll/busybox")
    assert store.images.find("atoll/busybox") is None
    again = await wait_all([store.images.pull("atoll/busybox") for _ in range(3)])
    assert [one.id for one in again] == [busybox.id] * 3, "a pull brings it back"
    with pytest.raises(errors.NotFound, match="built-in images are never fetched"):
        await store.images.pull("atoll/else")


async def test_builtin_busybox_works(store: Stack, roots: Roots) -> None:
    busybox, _ = await store.images.install_builtins()
    with mounted(await store.snapshots.prepare("box", busybox.chain_ids[-1]), roots.base / "mnt") as root:
        command = [
            "chroot",
            str(root),
            "sh",
            "-c",
            "id -un && ls -ld /tmp && echo hello | tr a-z A-Z > /x && which httpd",
        ]
        environment = dict(variable.split("=", 1) for variable in busybox.config.env)
        said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        assert said.startswith("root\ndrwxrwxrwt")
        assert said.endswith("/usr/sbin/httpd\n")
        assert (root / "x").read_text() == "HELLO\n"


async def test_builtin_pause_reaps_and_ends_when_told(store: Stack, roots: Roots) -> None:
    """As PID 1 of a PID namespace it collects what is orphaned, and SIGTERM ends it at once."""
    _, pause = await store.images.install_builtins()
    mounts = await store.snapshots.prepare("pause", pause.chain_ids[-1])
    with mounted(mounts, roots.base / "mnt") as root:
        os.mknod(root / "dev/null", 0o20666, os.makedev(1, 3))
        command = ["unshare", "--pid", "--fork", "--kill-child", "--root", str(root), *pause.config.entrypoint]
        process = await asyncio.to_thread(subprocess.Popen, command, env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})
        try:
            init = await asyncio.to_thread(_child_of, process.pid)
            await asyncio.to_thread(_child_of, init)
            orphan = ["nsenter", "--target", str(init), "--pid", "sh", "-c", "(sleep 0.2 &) ; exit 0"]
            await asyncio.to_thread(subprocess.run, orphan, check=True)
            await asyncio.sleep(0.6)
            (sleep,) = _children(init)
            assert _state(sleep) == "S", "only its own sleep is left, and no zombie"
            os.kill(sleep, signal.SIGKILL)
            assert await asyncio.to_thread(wait_until, lambda: _children(init) not in ([], [sleep])), "it sleeps anew"
            os.kill(init, signal.SIGTERM)
            assert await asyncio.to_thread(process.wait, 5) == 0
        finally:
            process.kill()
            process.wait()


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _child_of(pid: int) -> int:
    deadline = time.monotonic() + 5
    while not (found := _children(pid)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.05)
    return found[0]


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


async def test_image_is_found_by_every_form_of_its_name(store: Stack, roots: Roots) -> None:
    layout = write_layout(roots.base / "l", (image([BASE]), "docker.io/library/app:v1"))
    one = await imported(store, layout)
    digits = one.id.removeprefix("sha256:")
    forms = (
        *("app:v1", "library/app:v1", "docker.io/app:v1", "index.docker.io/library/app:v1"),
        *(one.id, digits, digits[:8], one.id[:20], one.manifest_digest),
        *(f"app@{one.manifest_digest}", f"app:other@{one.manifest_digest}"),
    )
    for form in forms:
        assert store.images.get(form) is one, form
    for form in ("app", "app:v2", "other:v1", digits[:3], "0" * 64, f"app@sha256:{'0' * 64}"):
        assert store.images.find(form) is None, form
        with pytest.raises(errors.NotFound):
            store.images.get(form)
    for form in ("App:v1", "", "a b", "../x"):
        with pytest.raises(errors.InvalidArgument):
            store.images.get(form)


async def test_tags_move_and_are_durable(roots: Roots, layout: Path) -> None:
    async with stack(roots.root) as store:
        one = await imported(store, layout)
        await store.images.tag(NAME, "team/other:v2")
        two = await imported(store, write_layout(roots.base / "two", (image([TOP]), "")))
        await store.images.tag(two.id, NAME)
        await store.images.pin(two.id)
    async with stack(roots.root) as store:
        assert store.images.get(NAME).id == two.id
        assert store.images.get(NAME).pinned
        assert store.images.get("team/other:v2").id == one.id
        with pytest.raises(errors.InvalidArgument, match="digest"):
            await store.images.tag(one.id, f"x@{one.manifest_digest}")


async def test_remove_by_tag_and_by_id(store: Stack, layout: Path) -> None:
    one = await imported(store, layout)
    await store.images.tag(NAME, "team/other:v2")
    assert await store.images.remove(NAME) is None
    assert store.images.get(one.id).repo_tags == ("docker.io/team/other:v2",)
    assert store.images.get(one.id).repo_digests == ()
    assert await store.images.remove(one.id) == one.id
    assert await store.images.remove(one.id) is None, "it is idempotent"
    assert await store.images.remove("team/other:v2") is None
    await store.images.import_archive(layout)
    assert await store.images.remove(NAME) == one.id, "with its last tag the image goes"


async def test_collect_frees_everything_of_a_removed_image(store: Stack, layout: Path, roots: Roots) -> None:
    one = await imported(store, layout)
    kept = await imported(store, write_layout(roots.base / "kept", (image([BASE]), "x:v1")))
    assert (await store.images.collect()).bytes == 0
    await store.images.remove(one.id)
    collected = await store.images.collect()
    assert collected.snapshots == (one.chain_ids[1],)
    assert set(collected.blobs) == {one.id, one.manifest_digest, digest(gzipped(TOP))}
    assert store.snapshots.has(kept.chain_ids[0])
    await store.images.remove(kept.id)
    await store.images.collect()
    assert store.is_empty()


async def test_collect_never_removes_what_is_in_use(store: Stack, layout: Path, roots: Roots) -> None:
    one = await imported(store, layout)
    mounts = await store.snapshots.prepare("container", one.chain_ids[-1])
    await store.images.remove(one.id)
    with mounted(mounts, roots.base / "mnt") as root:
        assert (await store.images.collect()).snapshots == ()
        assert (root / "base").read_text() == "1"
    await store.snapshots.remove("container")
    assert (await store.images.collect({one.chain_ids[-1]})).snapshots == ()
    assert set((await store.images.collect()).snapshots) == set(one.chain_ids)


async def test_collect_beside_imports_and_containers(store: Stack, layout: Path) -> None:
    """Whatever is imported, prepared or removed meanwhile: what was promised stays usable."""

    async def use(number: int) -> None:
        for turn in range(6):
            one = await imported(store, layout)
            key = f"c{number}-{turn}"
            await store.snapshots.prepare(key, one.chain_ids[-1])
            assert (store.snapshots.fs(one.chain_ids[0]) / "base").read_text() == "1"
            await store.snapshots.remove(key)

    async def sweep() -> None:
        while True:
            await store.images.collect()
            await asyncio.sleep(0.003)

    async with asyncio.TaskGroup() as group:
        sweeper = group.create_task(sweep())
        async with asyncio.TaskGroup() as users:
            for number in range(3):
                users.create_task(use(number))
        sweeper.cancel()
    (one,) = store.images.list()
    sizes = [(store.root / "content/blobs/sha256" / name).stat().st_size for name in store.blobs()]
    assert store.images.usage().blobs.bytes == sum(sizes)
    assert store.snapshots.has(one.chain_ids[-1])


async def test_usage_tells_what_the_disk_holds(store: Stack, layout: Path) -> None:
    one = await imported(store, layout)
    usage = store.images.usage()
    assert usage.blobs.bytes == one.size
    assert (usage.snapshots.inodes, usage.snapshots.bytes) == (4, 2 * 4096)


async def test_import_and_list_do_not_read_the_disk_again(store: Stack, layout: Path, roots: Roots) -> None:
    one = await imported(store, layout)
    os.rename(roots.root / "content", roots.root / "away")
    try:
        assert store.images.list() == (one,)
        assert store.images.get(NAME) is one
    finally:
        os.rename(roots.root / "away", roots.root / "content")


async def test_image_whose_snapshot_is_lost_is_reported_and_pulled_again(roots: Roots, layout: Path) -> None:
    async with stack(roots.root) as store:
        one = await imported(store, layout)
        lost = store.snapshots.fs(one.chain_ids[0]).parent
        run("rm", "-r", str(lost))
    async with stack(roots.root) as store:
        assert store.images.list() == ()
        with pytest.raises(errors.DataLoss, match="pull its image again"):
            await store.snapshots.prepare("c", one.chain_ids[-1])
        again = await imported(store, layout)
        assert again == one
        with mounted(await store.snapshots.prepare("c", one.chain_ids[-1]), roots.base / "mnt") as root:
            assert sorted(os.listdir(root)) == ["base", "top"]
    async with stack(roots.root) as store:
        assert store.images.list() == (one,)


async def test_folders_of_a_killed_import_are_swept(roots: Roots, layout: Path) -> None:
    """What a SIGKILL leaves: a staged folder and an ingest without records."""
    async with stack(roots.root) as store:
        one = await imported(store, layout)
        staged = await store.snapshots.stage()
        (staged.fs / "half").mkdir(mode=0)
        (roots.root / "content/ingest/blob-0").write_bytes(b"half")
    async with stack(roots.root) as store:
        assert len(store.snapshot_folders()) == 2
        assert store.ingests() == []
        assert store.images.list() == (one,)


async def test_private_folders_are_private(store: Stack, layout: Path) -> None:
    await store.images.import_archive(layout)
    for path in ("content/blobs/sha256", "content/ingest"):
        assert stat.S_IMODE((store.root / path).stat().st_mode) == 0o700


async def test_root_mode_of_the_image_is_that_of_the_container(store: Stack, roots: Roots) -> None:
    tar = layer(folder("./", 0o711, uid=9, gid=10))
    one = await imported(store, write_layout(roots.base / "m", (image([tar]), "m:v1")))
    with mounted(await store.snapshots.prepare("c", one.chain_ids[-1]), roots.base / "mnt") as root:
        info = root.stat()
        assert (stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid) == (0o711, 9, 10)


async def test_image_without_layers_is_an_empty_container(store: Stack, roots: Roots) -> None:
    one = await imported(store, write_layout(roots.base / "scratch", (image([]), "scratch:v1")))
    assert one.top is None
    with mounted(await store.snapshots.prepare("c", one.top), roots.base / "mnt") as root:
        assert os.listdir(root) == []


async def test_unreadable_record_goes_to_quarantine_and_the_rest_is_served(roots: Roots, layout: Path) -> None:
    async with stack(roots.root) as store:
        one = await imported(store, layout)
        two = await imported(store, write_layout(roots.base / "two", (image([TOP]), "two:v1")))
        await store.db.write(lambda c: c.execute("UPDATE images SET document = '{' WHERE id = ?", (one.id,)).rowcount)
    async with stack(roots.root) as store:
        assert store.images.list() == (two,)
        (kept,) = await store.db.read(lambda connection: quarantined(connection, "images"))
        assert kept.key == one.id
        assert await imported(store, layout) == one


async def test_overlay_mounts_of_an_image_share_its_files(store: Stack, layout: Path, roots: Roots) -> None:
    one = await imported(store, layout)
    with (
        mounted(await store.snapshots.prepare("a", one.top), roots.base / "a") as a,
        mounted(await store.snapshots.prepare("b", one.top), roots.base / "b") as b,
    ):
        (a / "base").write_text("a's")
        assert ((b / "base").read_text(), (b / "top").read_text()) == ("1", "2")


async def test_a_blob_that_no_record_names_is_not_believed_at_the_next_start(roots: Roots, layout: Path) -> None:
    files = image([BASE, TOP])
    async with stack(roots.root) as store:
        whole = (await imported(store, layout)).manifest_digest
        half = store.root / "content/blobs/sha256" / digest(files.blobs[0])[7:]
        size = half.stat().st_size
        await store.images.remove(NAME)
    half.chmod(0o600)
    half.write_bytes(bytes(size))  # as a loss of power leaves it: the size is there, the bytes are not
    async with stack(roots.root) as store:
        assert store.blobs() == []
        assert (await imported(store, layout)).manifest_digest == whole
