"""The tar reader: agrees with Python's own writer, and takes nothing on trust."""

from __future__ import annotations

import io
import random
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll import errors
from atoll.image.layer import clean
from atoll.image.tar import MAX_HEADER_BYTES, Entry, Stream, TarReader

FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)


def written(*members: tuple[tarfile.TarInfo, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
        for info, data in members:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def reader(data: bytes, chunk: int = 1 << 16) -> TarReader:
    parts = iter([data[at : at + chunk] for at in range(0, len(data), chunk)])
    return TarReader(Stream(lambda: next(parts, b"")))


def contents(archive: TarReader) -> list[tuple[Entry, bytes]]:
    found: list[tuple[Entry, bytes]] = []
    for entry in archive:
        data = b""
        while part := archive.data(100):
            data += bytes(part)
        found.append((entry, data))
    return found


names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=300).filter(
    lambda name: not name.endswith("/")
)


@given(
    st.lists(
        st.tuples(
            names, st.binary(max_size=1500), st.integers(0, 0o7777), st.integers(0, 1 << 40), st.integers(0, 1 << 33)
        ),
        max_size=4,
    ),
    st.sampled_from(FORMATS[1:]),
    st.sampled_from([1, 7, 511, 512, 513, 4096]),
)
def test_reads_what_python_writes(members: list[tuple[str, bytes, int, int, int]], format: int, chunk: int) -> None:
    infos: list[tuple[tarfile.TarInfo, bytes]] = []
    for name, data, mode, uid, mtime in members:
        info = tarfile.TarInfo(name)
        info.mode, info.uid, info.mtime = mode, uid, mtime
        infos.append((info, data))
    read = contents(reader(written(*infos, format=format), chunk))
    assert [(entry.name, data, entry.mode, entry.uid, entry.mtime_ns) for entry, data in read] == [
        (name, data, mode, uid, mtime * 1_000_000_000) for name, data, mode, uid, mtime in members
    ]


def test_ustar_prefix_makes_long_names() -> None:
    name = "/".join(["d" * 50] * 4)
    ((entry, _),) = contents(reader(written((tarfile.TarInfo(name), b""), format=tarfile.USTAR_FORMAT)))
    assert entry.name == name


def test_times_before_1970_and_between_seconds() -> None:
    info = tarfile.TarInfo("a")
    info.mtime = -1.5
    ((entry, _),) = contents(reader(written((info, b""))))
    assert entry.mtime_ns == -1_500_000_000


@given(st.binary(max_size=3000))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        contents(reader(data))
    except errors.InvalidArgument:
        pass


@given(st.integers(0, 1 << 30), st.sampled_from(FORMATS))
@settings(max_examples=200)
def test_a_damaged_archive_is_read_or_refused(seed: int, format: int) -> None:
    dice = random.Random(seed)
    info = tarfile.TarInfo("n" * 99)
    info.linkname = "l" * 90
    data = bytearray(written((info, b"x" * 600), (tarfile.TarInfo("second"), b"y"), format=format))
    for _ in range(dice.randrange(1, 6)):
        data[dice.randrange(2048)] = dice.randrange(256)
    _fix_checksum(data)
    try:
        contents(reader(bytes(data[: dice.randrange(512, len(data))])))
    except errors.InvalidArgument:
        pass


def _fix_checksum(data: bytearray) -> None:
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])


def _header(kind: bytes, size: int, name: bytes = b"x") -> bytes:
    block = bytearray(tarfile.TarInfo("x").tobuf(tarfile.USTAR_FORMAT))
    block[: len(name)], block[124:136], block[156:157] = name, b"%011o\0" % size, kind
    _fix_checksum(block)
    return bytes(block)


def pax(text: bytes) -> bytes:
    return _header(b"x", len(text)) + text.ljust(-(-len(text) // 512) * 512, b"\0") + _header(b"0", 0) + bytes(1024)


@pytest.mark.parametrize(
    "text",
    [
        b"nonsense",
        b"5 a=",
        b"99 path=a\n",
        b"0 path=a\n",
        b"-3 a=b\n",
        b"10 path=a",
        b"9 path=a\0",
        b"6 path\n",
        b"13 mtime=nan\n\n",
    ],
)
def test_damaged_pax_records_are_refused(text: bytes) -> None:
    with pytest.raises(errors.InvalidArgument):
        contents(reader(pax(text)))


@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K"])
def test_huge_headers_are_refused_unread(kind: bytes) -> None:
    with pytest.raises(errors.InvalidArgument, match="extended header"):
        contents(reader(_header(kind, MAX_HEADER_BYTES + 1)))


@pytest.mark.parametrize(
    ("records", "data"),
    [
        (b"GNU.sparse.map=0,5,3,5", 10),
        (b"GNU.sparse.map=0,5,9", 5),
        (b"GNU.sparse.map=0,5", 4),
        (b"GNU.sparse.map=90,20", 20),
        (b"GNU.sparse.map=a,b", 0),
    ],
)
def test_sparse_maps_must_add_up(records: bytes, data: int) -> None:
    both = b"".join(b"%d %s\n" % (len(one) + 4, one) for one in (b"GNU.sparse.size=100", records))
    archive = pax(both)[:1024] + _header(b"0", data) + bytes(512)
    with pytest.raises(errors.InvalidArgument):
        contents(reader(archive))


CLEAN = {
    "a": "a",
    "./a": "a",
    "/a": "a",
    "a/": "a",
    "a//b": "a/b",
    "a/./b": "a/b",
    "././/a": "a",
    "a/.": "a",
    ".": "",
    "./": "",
    "/": "",
    ".a": ".a",
    "..a": "..a",
    "a/...": "a/...",
}


@pytest.mark.parametrize(("name", "path"), CLEAN.items())
def test_clean_names(name: str, path: str) -> None:
    assert clean(name) == path


@pytest.mark.parametrize("name", ["..", "../a", "a/..", "a/../b", "/..", "./..", "a/b/../../.."])
def test_names_that_climb_are_refused(name: str) -> None:
    with pytest.raises(errors.InvalidArgument):
        clean(name)


@given(st.lists(st.sampled_from(["a", "b", ".", "..", "", "/", "c.", "..."]), max_size=8).map("/".join))
def test_a_clean_name_is_plain_and_stays_so(name: str) -> None:
    try:
        path = clean(name)
    except errors.InvalidArgument:
        assert ".." in name.split("/")
        return
    assert not {"", ".", ".."} & set(path.split("/")) or path == ""
    assert clean(path) == path
