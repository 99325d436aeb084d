"""The confined unpack process: what a layer may be made of, and what is refused with nothing left behind."""

from __future__ import annotations

import asyncio
import os
import stat
import struct
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atoll import errors
from atoll.image.config import ImageLimits, ImageSettings
from atoll.image.model import Image
from tests.integration.conftest import Roots
from tests.integration.images import (
    Stack,
    digest,
    folder,
    gzipped,
    hard_link,
    image,
    layer,
    member,
    mounted,
    stack,
    symlink,
    write_layout,
    zstd,
)
from tests.integration.leaks import pids, read

Member = tuple[tarfile.TarInfo, bytes]
SMALL = ImageSettings(
    limits=ImageLimits(max_layer_bytes=64 << 20, layer_free_bytes=1 << 20, max_layer_ratio=50, max_layer_entries=2000)
)


@pytest.fixture
async def store(roots: Roots) -> AsyncIterator[Stack]:
    async with stack(roots.root, SMALL) as one:
        yield one


async def unpacked(store: Stack, *tars: bytes, blobs: list[bytes] | None = None) -> Image:
    """The image of these layers, imported from a layout."""
    layout = store.root / f"layout-{os.urandom(4).hex()}"
    write_layout(layout, (image(tars, blobs=blobs), "example.org/test:v1"))
    return (await store.images.import_archive(layout))[0].image


async def top(store: Stack, *tars: bytes, blobs: list[bytes] | None = None) -> Path:
    """The folder of the uppermost layer."""
    return store.snapshots.fs((await unpacked(store, *tars, blobs=blobs)).chain_ids[-1])


@asynccontextmanager
async def merged(store: Stack, *tars: bytes) -> AsyncIterator[Path]:
    """The image as a container sees it."""
    pulled = await unpacked(store, *tars)
    mounts = await store.snapshots.view("seen", pulled.chain_ids[-1])
    with mounted(mounts, store.root / "seen") as root:
        yield root


def tree(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


async def test_files_have_what_the_layer_says(store: Stack) -> None:
    fs = await top(
        store,
        layer(
            folder("./", 0o751),
            folder("d", 0o1777, uid=3, gid=4, mtime=1_600_000_000),
            member("d/set", b"x", mode=0o4755, uid=5, gid=6),
            member("plain", b"abc", mode=0o604, mtime=1_500_000_000),
            symlink("d/link", "/no/where"),
            hard_link("d/hard", "plain"),
            member("pipe", type=tarfile.FIFOTYPE, mode=0o620),
            member("null", type=tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666),
            member("disk", type=tarfile.BLKTYPE, devmajor=8, devminor=1, mode=0o660, gid=6),
        ),
    )
    assert stat.S_IMODE(fs.stat().st_mode) == 0o751
    d, setuid, plain = (fs / "d").stat(), (fs / "d/set").stat(), (fs / "plain").stat()
    assert (stat.S_IMODE(d.st_mode), d.st_uid, d.st_gid, d.st_mtime) == (0o1777, 3, 4, 1_600_000_000)
    assert (stat.S_IMODE(setuid.st_mode), setuid.st_uid, setuid.st_gid) == (0o4755, 5, 6)
    assert (stat.S_IMODE(plain.st_mode), plain.st_mtime, plain.st_nlink) == (0o604, 1_500_000_000, 2)
    assert (fs / "d/hard").stat().st_ino == plain.st_ino
    assert os.readlink(fs / "d/link") == "/no/where"
    assert stat.S_ISFIFO((fs / "pipe").stat().st_mode)
    null, disk = (fs / "null").stat(), (fs / "disk").stat()
    assert (stat.S_ISCHR(null.st_mode), null.st_rdev) == (True, os.makedev(1, 3))
    assert (stat.S_ISBLK(disk.st_mode), disk.st_rdev, disk.st_gid) == (True, os.makedev(8, 1), 6)


@pytest.mark.parametrize("pack", [gzipped, zstd, bytes], ids=["gzip", "zstd", "tar"])
async def test_compressions(store: Stack, pack: Callable[[bytes], bytes]) -> None:
    data = os.urandom(3 << 20)
    tar = layer(member("data", data))
    assert (await top(store, tar, blobs=[pack(tar)]) / "data").read_bytes() == data


async def test_streams_of_several_parts(store: Stack) -> None:
    """pigz, stargz and zstd:chunked write many members or frames, which are one stream."""
    tar = layer(member("data", b"part" * 5000))
    parts = [tar[at : at + 4096] for at in range(0, len(tar), 4096)]
    fs = await top(store, tar, blobs=[b"".join(map(gzipped, parts)) + bytes(512)])
    assert (fs / "data").read_bytes() == b"part" * 5000
    other = layer(member("other", b"frame" * 5000))
    frames = b"".join(zstd(other[at : at + 8192]) for at in range(0, len(other), 8192))
    assert (await top(store, other, blobs=[frames]) / "other").read_bytes() == b"frame" * 5000


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
async def test_long_names(store: Stack, format: int) -> None:
    deep = "/".join(["d" * 200] * 12)
    name = f"{deep}/{'ü' * 100}"
    fs = await top(store, layer(member(name, b"deep"), symlink("link", "t" * 1000), format=format))
    assert (fs / name).read_bytes() == b"deep"
    assert os.readlink(fs / "link") == "t" * 1000


async def test_names_that_are_no_utf8(store: Stack) -> None:
    name = os.fsdecode(b"caf\xe9")
    tar = layer(member(name, b"latin"), format=tarfile.GNU_FORMAT)
    assert os.listdir(os.fsencode(await top(store, tar))) == [b"caf\xe9"]


async def test_sparse_files_stay_sparse(store: Stack, roots: Roots) -> None:
    """As GNU tar writes them, in each of its formats."""
    source = roots.base / "sparse"
    source.mkdir()
    with (source / "hole").open("wb") as file:
        file.write(b"begin")
        file.seek(20 << 20)
        file.write(b"middle")
        file.truncate(40 << 20)
    want = (source / "hole").read_bytes()
    for option in ("gnu", "posix --sparse-version=0.0", "posix --sparse-version=0.1", "posix --sparse-version=1.0"):
        command = ["tar", "-C", str(source), "--sparse", *f"--format={option}".split(), "-c", "hole"]
        tar = subprocess.run(command, capture_output=True, check=True).stdout
        assert len(tar) < 1 << 20
        hole = await top(store, tar) / "hole"
        assert hole.read_bytes() == want
        assert hole.stat().st_blocks * 512 < 1 << 20


async def test_extended_attributes(store: Stack) -> None:
    capability = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)
    records = {
        "SCHILY.xattr.security.capability": capability.decode("latin-1"),
        "SCHILY.xattr.user.note": "kept",
        "SCHILY.xattr.trusted.overlay.redirect": "/etc",
        "SCHILY.xattr.trusted.overlay.opaque": "y",
        "SCHILY.xattr.user.overlay.opaque": "y",
        "SCHILY.xattr.trusted.other": "dropped",
    }
    fs = await top(store, layer(member("ping", b"", pax_headers=records), folder("d", pax_headers=records)))
    for path in (fs / "ping", fs / "d"):
        assert set(os.listxattr(path)) == {"security.capability", "user.note"} - (
            {"security.capability"} if path.name == "d" and "security.capability" not in os.listxattr(path) else set()
        )
    assert os.getxattr(fs / "ping", "security.capability") == capability


async def test_whiteouts_hide_what_is_below(store: Stack) -> None:
    base = layer(
        folder("etc"), member("etc/a", b"1"), member("etc/b", b"1"),
        folder("var"), member("var/x", b"1"), folder("var/y"), member("var/y/z", b"1"),
        folder("opt"), folder("opt/old"), member("opt/old/f", b"1"),
    )  # fmt: skip
    second = layer(
        folder("etc"), member("etc/.wh.a", b""),
        folder("var"), member("var/.wh..wh..opq", b""), member("var/new", b"2"),
        member("opt/.wh.old", b""),
        member(".wh..wh.plnk", b"aufs"),
    )  # fmt: skip
    async with merged(store, base, second) as root:
        assert tree(root) == ["etc", "etc/b", "opt", "var", "var/new"]


async def test_a_folder_hidden_and_made_anew_is_empty(store: Stack) -> None:
    base = layer(folder("d"), member("d/old", b"1"), folder("e"), member("e/old", b"1"))
    before = layer(member(".wh.d", b""), folder("d"), member("d/new", b"2"))
    after = layer(folder("e"), member("e/new", b"2"), member(".wh.e", b""))
    async with merged(store, base, before, after) as root:
        assert tree(root) == ["d", "d/new", "e", "e/new"]


async def test_implied_folders_keep_the_attributes_of_the_layers_below(store: Stack) -> None:
    base = layer(
        folder("./", 0o751), folder("home", 0o711), folder("home/ada", 0o700, uid=7, gid=8, mtime=1_600_000_000)
    )
    middle = layer(member("home/ada/.one", b"1"))
    upper = layer(member("home/ada/.two", b"2"))
    async with merged(store, base, middle, upper) as root:
        ada = (root / "home/ada").stat()
        assert (stat.S_IMODE(ada.st_mode), ada.st_uid, ada.st_gid, ada.st_mtime) == (0o700, 7, 8, 1_600_000_000)
        assert stat.S_IMODE((root / "home").stat().st_mode) == 0o711
        assert stat.S_IMODE(root.stat().st_mode) == 0o751
        assert tree(root) == ["home", "home/ada", "home/ada/.one", "home/ada/.two"]


async def test_implied_folders_follow_no_link_and_no_hidden_folder(store: Stack) -> None:
    base = layer(
        symlink("a", "/"), folder("b", 0o700), folder("b/c", 0o700), folder("opt", 0o700), folder("opt/x", 0o700)
    )
    middle = layer(member("opt/.wh..wh..opq", b""), member(".wh.b", b""))
    upper = layer(member("a/f", b""), member("b/c/f", b""), member("opt/x/f", b""))
    fs = await top(store, base, middle, upper)
    assert [stat.S_IMODE((fs / name).stat().st_mode) for name in ("a", "b", "b/c", "opt", "opt/x")] == [
        0o755, 0o755, 0o755, 0o700, 0o755,
    ]  # fmt: skip


async def test_through_a_link_only_to_a_folder_of_the_layer(store: Stack) -> None:
    """Layers of merged-/usr distributions do that."""
    fs = await top(store, layer(folder("usr"), folder("usr/lib"), symlink("lib", "/usr/lib"), member("lib/so", b"1")))
    assert (fs / "usr/lib/so").read_bytes() == b"1"
    assert (fs / "lib").is_symlink()


async def test_a_later_entry_replaces_an_earlier_one(store: Stack, roots: Roots) -> None:
    outside = roots.base / "outside"
    outside.write_text("untouched")
    fs = await top(store, layer(symlink("f", str(outside)), member("f", b"new"), member("g", b"1"), symlink("g", "f")))
    assert (fs / "f").read_bytes() == b"new"
    assert not (fs / "f").is_symlink()
    assert outside.read_text() == "untouched"


async def test_absolute_names_are_below_the_root_of_the_layer(store: Stack) -> None:
    fs = await top(store, layer(member("/etc/atoll-was-here", b"1"), member("//x//./y", b"2")))
    assert tree(fs) == ["etc", "etc/atoll-was-here", "x", "x/y"]
    assert not Path("/etc/atoll-was-here").exists()


def raw_header(name: bytes, *, size: int = 0, kind: bytes = b"0") -> bytes:
    info = tarfile.TarInfo("x")
    info.size = size
    block = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    block[: len(name)], block[156:157] = name, kind
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


OUTSIDE = "/tmp/atoll-outside"
HOSTILE: dict[str, bytes] = {
    "dot dot": layer(member("../escape", b"x")),
    "dot dot inside": layer(folder("a"), member("a/../../escape", b"x")),
    "dot dot alone": layer(folder("..")),
    "through a link to the outside": layer(symlink("a", OUTSIDE), member("a/f", b"x")),
    "through a link to the host's /etc": layer(symlink("a", "/etc"), member("a/passwd", b"x")),
    "through a link above the root": layer(folder("d"), symlink("a", "../../d"), member("a/f", b"x")),
    "through a link to itself": layer(symlink("a", "a"), member("a/f", b"x")),
    "through two links": layer(symlink("a", "b"), symlink("b", "/proc/self/root"), member("a/etc/f", b"x")),
    "whiteout through a link": layer(symlink("a", "/etc"), member("a/.wh.passwd", b"")),
    "whiteout of nothing": layer(member(".wh.", b"")),
    "whiteout of dot dot": layer(member(".wh...", b"")),
    "hard link to the host": layer(hard_link("a", "/etc/passwd")),
    "hard link above the root": layer(hard_link("a", "../../etc/passwd")),
    "hard link through a link": layer(symlink("l", "/etc"), hard_link("a", "l/passwd")),
    "hard link to nothing": layer(hard_link("a", "missing")),
    "hard link to itself": layer(hard_link("a", "a")),
    "hard link to a folder": layer(folder("d"), hard_link("a", "d")),
    "a file as a folder": layer(member("a", b""), member("a/b", b"")),
    "a device as a folder": layer(member("a", type=tarfile.BLKTYPE, devmajor=8, devminor=0), member("a/b", b"")),
    "a device that passes for a whiteout": layer(member("a", type=tarfile.CHRTYPE, devmajor=0, devminor=0)),
    "a device number out of range": layer(member("a", type=tarfile.CHRTYPE, devmajor=1 << 13, devminor=0)),
    "a root that is a link": layer(symlink("./", "/etc")),
    "a name too long for the file system": layer(member("n" * 300, b"")),
    "a path too long for the kernel": layer(member("/".join(["d" * 200] * 30), b"")),
    "a NUL in a name": layer(member("a", b"", pax_headers={"path": "a\0b"})),
    "a link to nothing": layer(member("a", type=tarfile.SYMTYPE, linkname="")),
    "an unknown type": raw_header(b"a", kind=b"Z") + bytes(1024),
    "a truncated file": raw_header(b"a", size=5000) + b"x" * 100,
    "a negative size": raw_header(b"a")[:124] + b"\xff" * 12 + raw_header(b"a")[136:] + bytes(1024),
    "a wrong checksum": raw_header(b"a")[:-1] + b"!" + bytes(1024),
    "no tar": b"this is no tar at all" * 100,
    "a bomb": layer(member("zeros", bytes(60 << 20))),
    "more bytes than allowed": layer(member("noise", os.urandom(1 << 20) * 65)),
    "more entries than allowed": layer(*(member(f"f{number}", b"") for number in range(2001))),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.may_block(5)
async def test_hostile_layer_is_refused_and_leaves_nothing(store: Stack, name: str) -> None:
    passwd = Path("/etc/passwd").stat()
    blob = gzipped(HOSTILE[name])
    good = layer(member("good", b"1"))
    with pytest.raises(errors.InvalidArgument, match=digest(blob)):
        await unpacked(store, good, HOSTILE[name], blobs=[gzipped(good), blob])
    assert store.is_empty()
    after = Path("/etc/passwd").stat()
    assert (after.st_mtime_ns, after.st_nlink) == (passwd.st_mtime_ns, passwd.st_nlink)
    assert not Path(OUTSIDE).exists()


async def test_a_bomb_is_told_without_a_key_that_no_file_has(store: Stack) -> None:
    with pytest.raises(errors.InvalidArgument, match="decompression bomb") as refused:
        await unpacked(store, HOSTILE["a bomb"])
    assert "max_layer_ratio" not in str(refused.value)


async def test_damaged_streams_are_refused(store: Stack) -> None:
    tar = layer(member("data", os.urandom(1 << 20)))
    for pack in (gzipped, zstd):
        whole = pack(tar)
        damaged = bytearray(whole)
        damaged[len(whole) // 2] ^= 0x55
        for blob in (whole[: len(whole) // 2], bytes(damaged), whole[:6]):
            with pytest.raises((errors.InvalidArgument, errors.DataLoss), match=digest(blob)):
                await unpacked(store, tar, blobs=[blob])
            assert store.is_empty()


async def test_other_compressions_are_named(store: Stack) -> None:
    import lzma  # noqa: PLC0415

    tar = layer(member("a", b""))
    with pytest.raises(errors.InvalidArgument, match="xz"):
        await unpacked(store, tar, blobs=[lzma.compress(tar)])


async def test_wrong_diff_id_is_refused(store: Stack) -> None:
    tar = layer(member("a", b""))
    layout = write_layout(store.root / "layout", (image([tar], diff_ids=["sha256:" + "1" * 64]), "x:v1"))
    with pytest.raises(errors.DataLoss, match="1111"):
        await store.images.import_archive(layout)
    assert store.is_empty()


NAME_PARTS = ("a", "b", "c", "/", ".", "..", ".wh.", "\\", "\n", "é")
names = st.lists(st.sampled_from(NAME_PARTS), min_size=1, max_size=6).map("".join)
members = st.one_of(
    st.builds(member, names, st.binary(max_size=20)),
    st.builds(folder, names),
    st.builds(symlink, names, names),
    st.builds(hard_link, names, names),
)


@given(st.lists(members, max_size=8))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.may_block(5)
def test_whatever_a_layer_says_it_stays_inside(roots: Roots, entries: list[Member]) -> None:
    """Any mix of names either unpacks into its folder alone or is refused; what is beside it never changes."""
    cage = roots.base / f"cage-{os.urandom(4).hex()}"
    (cage / "target").mkdir(parents=True)
    for name in "abc":
        (cage / name).write_text(name)
    limits = '{"max_bytes": 1000000, "max_ratio": 10, "free_bytes": 1000000, "max_entries": 100, "plain": false}'
    (cage / "blob").write_bytes(layer(*entries))
    with (cage / "blob").open("rb") as blob:
        finished = subprocess.run(
            [sys.executable, "-P", "-m", "atoll.image.unpack", str(cage / "target"), str(os.getpid()), limits],
            stdin=blob,
            capture_output=True,
            check=True,
            timeout=30,
        )
    assert finished.stderr == b""
    assert finished.stdout.startswith((b'{"diff_id"', b'{"kind": "InvalidArgument"')), finished.stdout
    assert sorted(os.listdir(cage)) == ["a", "b", "blob", "c", "target"]
    assert [(cage / name).read_text() for name in "abc"] == ["a", "b", "c"]


def large_layout(path: Path) -> Path:
    """A layout whose one layer takes a while."""
    tar = layer(*(member(f"f{number}", os.urandom(40_000)) for number in range(1500)))
    return write_layout(path, (image([tar], blobs=[tar]), "x:v1"))


async def test_interrupted_unpack_leaves_nothing(store: Stack, roots: Roots) -> None:
    """Cancelled in the middle of a large layer: no process, no folder, no blob."""
    layout = await asyncio.to_thread(large_layout, store.root / "layout")
    async with asyncio.TaskGroup() as group:
        work = group.create_task(store.images.import_archive(layout))
        async with asyncio.timeout(20):
            while not (found := unpackers(roots)):  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        await asyncio.sleep(0.08)
        work.cancel()
    assert work.cancelled()
    assert found
    assert not unpackers(roots)
    assert store.is_empty()


async def test_killed_unpacker_is_an_error_and_leaves_nothing(store: Stack, roots: Roots) -> None:
    layout = await asyncio.to_thread(large_layout, store.root / "layout")
    async with asyncio.TaskGroup() as group:
        work = group.create_task(_expect_internal(store, layout))
        async with asyncio.timeout(20):
            while not (found := unpackers(roots)):  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        os.kill(found[0], 9)
    assert "ended with -9" in work.result()
    assert store.is_empty()


async def _expect_internal(store: Stack, layout: Path) -> str:
    with pytest.raises(errors.Internal) as caught:
        await store.images.import_archive(layout)
    return str(caught.value)


def unpackers(roots: Roots) -> list[int]:
    """The unpack processes of this test."""
    lines = ((pid, read(pid, "cmdline")) for pid in pids())
    return [pid for pid, line in lines if b"atoll.image.unpack" in line and roots.prefix.encode() in line]


CONFINED = """
import ctypes, os, socket, sys
from atoll.image.confine import confine
confine(sys.argv[1], max_file_bytes=1 << 20, max_memory_bytes=1 << 30)
def refused(what):
    try:
        what()
    except OSError as error:
        return error.strerror
    return "allowed"
def write(path):
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT))
libc = ctypes.CDLL(None, use_errno=True)
def mount():
    if libc.mount(b"none", b"/", b"tmpfs", 0, None):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
def big():
    fd = os.open("/big", os.O_WRONLY | os.O_CREAT)
    os.ftruncate(fd, 2 << 20)
os.mknod("/null", 0o20666, os.makedev(1, 3))
answers = [
    refused(lambda: os.stat("/etc")), refused(lambda: write("/null")), refused(socket.socket), refused(os.fork),
    refused(mount), refused(lambda: os.chroot("/")), refused(lambda: os.execv("/x", ["x"])), refused(big),
    refused(lambda: write("/ok")),
]
os.write(1, repr(answers).encode())
"""


def test_confinement_holds(roots: Roots) -> None:
    target = roots.base / "target"
    target.mkdir()
    finished = subprocess.run(
        [sys.executable, "-P", "-c", CONFINED, str(target)], capture_output=True, text=True, check=True, timeout=30
    )
    no = "Operation not permitted"
    want = ["No such file or directory", "Permission denied", no, no, no, no, no, "File too large", "allowed"]
    assert finished.stdout == repr(want)
