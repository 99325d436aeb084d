"""A streaming reader of tar archives: ustar, GNU (long names, sparse) and POSIX pax.

It does no I/O of its own: `Stream` gives it chunks. Everything it reads is hostile until proven
otherwise; whatever is malformed, truncated or absurd raises `InvalidArgument`. Formats: POSIX.1-2008
pax "ustar Interchange Format", GNU tar manual "Basic Tar Format" and "Storing Sparse Files".

Only the confined unpack process and archive imports read tar, so this module imports little.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

from atoll import errors

BLOCK = 512
MAX_HEADER_BYTES = 1 << 20
"""Most bytes of one pax header or GNU long name."""
MAX_SPARSE_PARTS = 100_000

REGULAR, HARD_LINK, SYMLINK, CHARACTER, BLOCK_DEVICE, FOLDER, FIFO = "0", "1", "2", "3", "4", "5", "6"
_HEADER = struct.Struct("100s8s8s8s12s12s8s1s100s8s32s32s8s8s155s12x")
_ZERO_BLOCK = bytes(BLOCK)
_TYPES = {"\0": REGULAR, "7": REGULAR, "D": FOLDER}
_KNOWN = frozenset("0123456")


class Stream:
    """Bytes in order, from `next_chunk`, which gives empty bytes at the end."""

    __slots__ = ("_buffer", "_next_chunk", "_position")

    def __init__(self, next_chunk: Callable[[], bytes]) -> None:
        self._next_chunk = next_chunk
        self._buffer = memoryview(b"")
        self._position = 0

    def take(self, limit: int) -> memoryview:
        """At least one byte and at most `limit`, valid until the next call; empty at the end."""
        if self._position == len(self._buffer):
            self._buffer = memoryview(self._next_chunk())
            self._position = 0
        part = self._buffer[self._position : self._position + limit]
        self._position += len(part)
        return part

    def read(self, size: int) -> bytes:
        """Exactly `size` bytes, or fewer where the stream ends."""
        end = self._position + size
        if end <= len(self._buffer):
            part = bytes(self._buffer[self._position : end])
            self._position = end
            return part
        parts: list[bytes] = []
        while size and (part := self.take(size)):
            parts.append(bytes(part))
            size -= len(part)
        return b"".join(parts)

    def drain(self) -> None:
        """Read to the end."""
        while self.take(1 << 30):
            pass


class Entry:
    """One member; `size` is of the data that follows it, `real_size` of the file.

    `sparse` lists (offset, size) of the parts that have data; None where the file has no holes.
    """

    __slots__ = (
        "gid",
        "link",
        "major",
        "minor",
        "mode",
        "mtime_ns",
        "name",
        "real_size",
        "size",
        "sparse",
        "type",
        "uid",
        "xattrs",
    )

    def __init__(self) -> None:
        self.name = self.link = ""
        self.type = REGULAR
        self.mode = self.uid = self.gid = self.size = self.real_size = self.mtime_ns = self.major = self.minor = 0
        self.xattrs: dict[str, bytes] = {}
        self.sparse: list[tuple[int, int]] | None = None


class TarReader:
    """Iterates over the entries of `stream`; the data of one is read, or skipped, before the next."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._left = 0  # bytes of the current entry's data not yet read
        self._padding = 0
        self._globals: dict[str, bytes] = {}

    def __iter__(self) -> Iterator[Entry]:
        pax: dict[str, bytes] = {}
        sparse_parts: list[tuple[int, int]] = []
        long_name = long_link = None
        while (header := self._header()) is not None:
            kind = header[7].decode("latin-1")
            size = _number(header[4], "size")
            if kind in "xg":
                records, parts = _pax_records(self._meta(size))
                if kind == "g":
                    self._globals.update(records)
                else:
                    pax, sparse_parts = records, parts
            elif kind == "L":
                long_name = self._meta(size).rstrip(b"\0")
            elif kind == "K":
                long_link = self._meta(size).rstrip(b"\0")
            else:
                entry = _entry(header, kind, size)
                if long_name is not None:
                    entry.name = _text(long_name)
                if long_link is not None:
                    entry.link = _text(long_link)
                if self._globals or pax:
                    _apply_pax(entry, {**self._globals, **pax})
                self._begin(entry)
                self._map_sparse(entry, kind, header, pax, sparse_parts)
                yield entry
                self._skip()
                pax, sparse_parts, long_name, long_link = {}, [], None, None

    def data(self, limit: int) -> memoryview:
        """Some of the current entry's data, at most `limit` bytes; empty when all is read."""
        if not self._left:
            return memoryview(b"")
        part = self._stream.take(min(limit, self._left))
        if not part:
            raise _truncated()
        self._left -= len(part)
        return part

    def _header(self) -> tuple[bytes, ...] | None:
        block = self._stream.read(BLOCK)
        if not block or block == _ZERO_BLOCK:
            return None
        if len(block) < BLOCK:
            raise _truncated()
        fields = _HEADER.unpack(block)
        try:
            stored = _number(fields[6], "checksum")
        except errors.InvalidArgument:
            stored = -1
        if stored != sum(block[:148]) + 256 + sum(block[156:]) and stored != _signed_sum(block):
            raise errors.InvalidArgument("tar: a header has a wrong checksum: it is damaged, or no tar archive")
        return fields

    def _meta(self, size: int) -> bytes:
        if size > MAX_HEADER_BYTES:
            raise errors.InvalidArgument(f"tar: an extended header of {size} bytes; the most is {MAX_HEADER_BYTES}")
        data = self._stream.read(size)
        padding = -size % BLOCK
        if len(data) < size or len(self._stream.read(padding)) < padding:
            raise _truncated()
        return data

    def _begin(self, entry: Entry) -> None:
        if entry.type != REGULAR:
            entry.size = 0  # as Go and GNU tar: these have no data, whatever the header says
        entry.real_size = entry.size
        self._left = entry.size
        self._padding = -entry.size % BLOCK

    def _skip(self) -> None:
        while self._left:
            self.data(1 << 30)
        if self._padding and len(self._stream.read(self._padding)) < self._padding:
            raise _truncated()
        self._padding = 0

    def _map_sparse(
        self,
        entry: Entry,
        kind: str,
        header: tuple[bytes, ...],
        pax: dict[str, bytes],
        pairs: list[tuple[int, int]],
    ) -> None:
        if kind == "S":
            parts, entry.real_size = self._gnu_sparse(header)
        elif pax.get("GNU.sparse.major") == b"1" and pax.get("GNU.sparse.minor") == b"0":
            parts = self._pax_sparse_map()
            entry.size = self._left
            entry.real_size = _decimal(pax.get("GNU.sparse.realsize", b""), "GNU.sparse.realsize")
        elif "GNU.sparse.size" in pax:
            parts = _split_map(pax["GNU.sparse.map"]) if "GNU.sparse.map" in pax else pairs
            entry.real_size = _decimal(pax["GNU.sparse.size"], "GNU.sparse.size")
        else:
            return
        entry.sparse = _checked_map(parts, entry)

    def _gnu_sparse(self, header: tuple[bytes, ...]) -> tuple[list[tuple[int, int]], int]:
        # The old GNU header keeps the map where ustar has the prefix (from byte 345): 4 pairs from byte 386, a flag at
        # 482, the real size at 483; further blocks hold 21 pairs and a flag at 504.
        area = header[14]
        parts, more = _old_map(area[41:137], 4), area[137]
        real_size = _number(area[138:150], "real size")
        while more:
            block = self._stream.read(BLOCK)
            if len(block) < BLOCK:
                raise _truncated()
            parts += _old_map(block, 21)
            more = block[504]
            if len(parts) > MAX_SPARSE_PARTS:
                raise errors.InvalidArgument(f"tar: a sparse file of more than {MAX_SPARSE_PARTS} parts")
        return parts, real_size

    def _pax_sparse_map(self) -> list[tuple[int, int]]:
        """The map of sparse format 1.0: decimal lines before the data, padded to a block."""
        text = b""
        wanted: int | None = None
        while wanted is None or text.count(b"\n") < wanted:
            if len(text) > MAX_HEADER_BYTES:
                raise errors.InvalidArgument(f"tar: a sparse map of more than {MAX_HEADER_BYTES} bytes")
            if self._left < BLOCK:
                raise errors.InvalidArgument("tar: a sparse map that does not end")
            block = self._stream.read(BLOCK)
            if len(block) < BLOCK:
                raise _truncated()
            self._left -= BLOCK
            text += block
            if wanted is None and b"\n" in text:
                wanted = 1 + 2 * _decimal(text[: text.index(b"\n")], "sparse map")
        numbers = [_decimal(line, "sparse map") for line in text.split(b"\n")[1:wanted]]
        return list(zip(numbers[::2], numbers[1::2], strict=True))


def _entry(header: tuple[bytes, ...], kind: str, size: int) -> Entry:
    entry = Entry()
    entry.type = REGULAR if kind == "S" else _TYPES.get(kind, kind)
    if entry.type not in _KNOWN:
        raise errors.InvalidArgument(f"tar: an entry of the unknown type {kind!r}")
    name = header[0].split(b"\0", 1)[0]
    if header[9][:6] == b"ustar\0" and (prefix := header[14].split(b"\0", 1)[0]):
        name = prefix + b"/" + name
    entry.name = _text(name)
    if entry.type == REGULAR and name.endswith(b"/"):
        entry.type = FOLDER  # as tar wrote folders before 1988
    entry.link = _text(header[8].split(b"\0", 1)[0])
    entry.mode = _number(header[1], "mode") & 0o7777
    entry.uid, entry.gid = _number(header[2], "uid"), _number(header[3], "gid")
    entry.size = size
    entry.mtime_ns = _number(header[5], "mtime", signed=True) * 1_000_000_000
    if entry.type in (CHARACTER, BLOCK_DEVICE):
        entry.major, entry.minor = _number(header[12], "device"), _number(header[13], "device")
    return entry


def _apply_pax(entry: Entry, pax: dict[str, bytes]) -> None:
    for key, value in pax.items():
        if key == "path":
            entry.name = _text(value)
            if entry.type == REGULAR and value.endswith(b"/"):
                entry.type = FOLDER
        elif key == "linkpath":
            entry.link = _text(value)
        elif key == "size":
            entry.size = _decimal(value, key)
        elif key == "uid":
            entry.uid = _decimal(value, key)
        elif key == "gid":
            entry.gid = _decimal(value, key)
        elif key == "mtime":
            entry.mtime_ns = _time_ns(value)
        elif key.startswith("SCHILY.xattr."):
            entry.xattrs[key[13:]] = value
    if "GNU.sparse.name" in pax:
        entry.name = _text(pax["GNU.sparse.name"])


def _pax_records(data: bytes) -> tuple[dict[str, bytes], list[tuple[int, int]]]:
    """The records `length key=value\\n`, and the pairs of sparse format 0.0, whose keys repeat."""
    records: dict[str, bytes] = {}
    pairs: list[tuple[int, int]] = []
    offset: int | None = None
    position = 0
    while position < len(data):
        space = data.find(b" ", position, position + 20)
        if space < 0:
            raise errors.InvalidArgument("tar: a pax record without a length")
        end = position + _decimal(data[position:space], "pax record length")
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if end > len(data) or end <= space + 1 or data[end - 1 : end] != b"\n" or not equals:
            raise errors.InvalidArgument("tar: a pax record is damaged")
        position = end
        if key == b"GNU.sparse.offset":
            offset = _decimal(value, "sparse offset")
        elif key == b"GNU.sparse.numbytes" and offset is not None:
            pairs.append((offset, _decimal(value, "sparse size")))
            offset = None
        else:
            records[key.decode("utf-8", "surrogateescape")] = value
    return records, pairs


def _checked_map(parts: list[tuple[int, int]], entry: Entry) -> list[tuple[int, int]]:
    end = 0
    if len(parts) > MAX_SPARSE_PARTS:
        raise errors.InvalidArgument(f"tar: {entry.name}: a sparse file of more than {MAX_SPARSE_PARTS} parts")
    for offset, size in parts:
        if offset < end or size < 0:
            raise errors.InvalidArgument(f"tar: {entry.name}: the parts of the sparse file overlap")
        end = offset + size
    if end > entry.real_size or sum(size for _, size in parts) != entry.size:
        raise errors.InvalidArgument(f"tar: {entry.name}: the parts of the sparse file do not add up")
    return parts


def _split_map(value: bytes) -> list[tuple[int, int]]:
    numbers = [_decimal(part, "sparse map") for part in value.split(b",")]
    if len(numbers) % 2:
        raise errors.InvalidArgument("tar: a sparse map has an odd count of numbers")
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def _old_map(area: bytes, pairs: int) -> list[tuple[int, int]]:
    parts: list[tuple[int, int]] = []
    for start in range(0, pairs * 24, 24):
        if not area[start : start + 24].strip(b"\0 "):
            break
        parts.append((_number(area[start : start + 12], "sparse"), _number(area[start + 12 : start + 24], "sparse")))
    return parts


def _number(field: bytes, what: str, *, signed: bool = False) -> int:
    """A header number: octal text, or base 256 where the first bit is set (GNU)."""
    if field[0] & 0x80:
        value = int.from_bytes(bytes((field[0] & 0x7F,)) + field[1:], "big")
        bits = len(field) * 8 - 1
        if value >> (bits - 1):
            value -= 1 << bits
        if (value < 0 and not signed) or abs(value) >> 63:
            raise errors.InvalidArgument(f"tar: a header has an absurd {what}")
        return value
    text = field.strip(b"\0 ")
    if not text:
        return 0
    try:
        value = int(text.split(b"\0", 1)[0], 8)
    except ValueError as error:
        raise errors.InvalidArgument(f"tar: a header has no number as its {what}") from error
    if value < 0 and not signed:
        raise errors.InvalidArgument(f"tar: a header has a negative {what}")
    return value


def _decimal(text: bytes, what: str) -> int:
    if not text.isdigit() or len(text) > 19 or (value := int(text)) >> 63:
        raise errors.InvalidArgument(f"tar: {what} is not a number that makes sense")
    return value


def _time_ns(text: bytes) -> int:
    sign, digits = (-1, text[1:]) if text.startswith(b"-") else (1, text)
    whole, _, fraction = digits.partition(b".")
    if fraction and not fraction.isdigit():
        raise errors.InvalidArgument("tar: mtime is not a time")
    return sign * (_decimal(whole, "mtime") * 1_000_000_000 + int((fraction[:9] or b"0").ljust(9, b"0")))


def _text(name: bytes) -> str:
    if b"\0" in name:
        raise errors.InvalidArgument("tar: a name with a NUL in it")
    return name.decode("utf-8", "surrogateescape")


def _signed_sum(block: bytes) -> int:
    return sum(byte - 256 if byte > 127 else byte for byte in block[:148] + block[156:]) + 256


def _truncated() -> errors.InvalidArgument:
    return errors.InvalidArgument("tar: the archive ends in the middle of an entry")
