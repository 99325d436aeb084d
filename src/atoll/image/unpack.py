"""The confined process that unpacks one layer: `python -m atoll.image.unpack TARGET PARENT LIMITS`.

Standard input is the blob, standard output gets one line of JSON: `{"diff_id", "bytes", "inodes",
"implied"}` or `{"kind", "message"}`, kind being a class of `atoll.errors`. The parent reads the progress
from the offset of the descriptor that the two share. The process dies with its parent.

Imports happen before confinement: there is no file to import from afterwards.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import zlib
from collections.abc import Callable

from atoll import errors
from atoll.image.confine import confine, die_with_parent
from atoll.image.layer import LayerWriter
from atoll.image.tar import Stream, TarReader

_READ = 256 << 10
_CHUNK = 1 << 20
MAX_ZSTD_WINDOW_BYTES = 128 << 20
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_OTHERS = {b"BZh": "bzip2", b"\xfd7zXZ": "xz"}
MAX_MEMORY_BYTES = 2 << 30
MAX_IMPLIED = 100_000


class Limits:
    """What a layer may grow to: `max_bytes` of tar, `max_ratio` times the blob beyond `free_bytes`, `max_entries`.

    `plain` refuses all but files, folders, and links: for an archive that is not a layer.
    """

    __slots__ = ("free_bytes", "max_bytes", "max_entries", "max_ratio", "plain")

    def __init__(self, *, max_bytes: int, max_ratio: int, free_bytes: int, max_entries: int, plain: bool) -> None:
        self.plain = plain
        self.max_bytes = max_bytes
        self.max_ratio = max_ratio
        self.free_bytes = free_bytes
        self.max_entries = max_entries


class Tar:
    """The tar inside a blob: decompressed, hashed, and stopped at the limits."""

    def __init__(self, decompressed: Callable[[], bytes], limits: Limits, blob_bytes: int) -> None:
        self._decompressed = decompressed
        self._limits = limits
        self._blob_bytes = blob_bytes
        self._most = min(limits.max_bytes, max(limits.free_bytes, limits.max_ratio * blob_bytes))
        self._hash = hashlib.sha256()
        self._bytes = 0

    def next_chunk(self) -> bytes:
        chunk = self._decompressed()
        self._bytes += len(chunk)
        if self._bytes > self._most:
            if self._most == self._limits.max_bytes:
                raise errors.InvalidArgument(f"grows beyond {self._most} bytes; raise max_layer_bytes to allow it")
            raise errors.InvalidArgument(
                f"{self._blob_bytes} bytes grow to more than {self._limits.max_ratio} times as many; "
                "that is a decompression bomb, and never unpacked; make the layer anew"
            )
        self._hash.update(chunk)
        return chunk

    @property
    def diff_id(self) -> str:
        return "sha256:" + self._hash.hexdigest()


def decompressor(blob: int) -> Callable[[], bytes]:
    """What gives the next decompressed part of the blob, by its first bytes: gzip, zstd or a plain tar."""
    magic = os.pread(blob, 6, 0)
    if magic.startswith(_GZIP):
        return _gunzip(blob)
    if magic.startswith(_ZSTD):
        return _unzstd(blob)
    for prefix, name in _OTHERS.items():
        if magic.startswith(prefix):
            raise errors.InvalidArgument(f"is compressed with {name}; images have gzip, zstd or plain tar layers")
    return lambda: os.read(blob, _CHUNK)


def _gunzip(blob: int) -> Callable[[], bytes]:
    state = zlib.decompressobj(wbits=31)
    pending = b""

    def next_part() -> bytes:
        nonlocal state, pending
        while True:
            if state.eof:  # the next member, or zeros that pad the file
                pending = state.unused_data.lstrip(b"\0") or os.read(blob, _READ).lstrip(b"\0")
                if not pending:
                    return b""
                state = zlib.decompressobj(wbits=31)
            elif not pending:
                pending = os.read(blob, _READ)
                if not pending:
                    raise errors.InvalidArgument("the gzip stream ends in the middle")
            try:
                part = state.decompress(pending, _CHUNK)
            except zlib.error as error:
                raise errors.InvalidArgument(f"the gzip stream is damaged: {error}") from error
            pending = state.unconsumed_tail
            if part:
                return part

    return next_part


def _unzstd(blob: int) -> Callable[[], bytes]:
    import zstandard  # noqa: PLC0415 - only for those layers: it takes as long to import as all the rest

    stream = open(blob, "rb", buffering=0, closefd=False)  # noqa: SIM115 - lives as long as the process
    decoder = zstandard.ZstdDecompressor(max_window_size=MAX_ZSTD_WINDOW_BYTES)
    reader = decoder.stream_reader(stream, read_size=_READ, read_across_frames=True)

    def next_part() -> bytes:
        try:
            return reader.read(_CHUNK)
        except zstandard.ZstdError as error:
            raise errors.InvalidArgument(f"the zstd stream is damaged: {error}") from error

    return next_part


def unpack(blob: int, decompressed: Callable[[], bytes], limits: Limits) -> dict[str, object]:
    """Unpack the layer into the current folder; what to print."""
    tar = Tar(decompressed, limits, os.fstat(blob).st_size)
    stream = Stream(tar.next_chunk)
    archive = TarReader(stream)
    writer = LayerWriter(max_entries=limits.max_entries, plain=limits.plain)
    for entry in archive:
        writer.write(entry, archive)
    implied = writer.finish()
    stream.drain()
    if len(implied) > MAX_IMPLIED:
        raise errors.InvalidArgument(f"more than {MAX_IMPLIED} folders without an entry")
    return {"diff_id": tar.diff_id, "bytes": writer.bytes, "inodes": writer.inodes, "implied": implied}


def main(arguments: list[str]) -> int:
    target, parent, limits = arguments[0], int(arguments[1]), Limits(**json.loads(arguments[2]))
    answer: dict[str, object]
    try:
        die_with_parent(parent)
        decompressed = decompressor(0)
        confine(target, max_file_bytes=limits.max_bytes, max_memory_bytes=MAX_MEMORY_BYTES)
        answer = unpack(0, decompressed, limits)
    except errors.AtollError as error:
        answer = {"kind": type(error).__name__, "message": str(error)}
    except MemoryError:
        answer = {"kind": "InvalidArgument", "message": f"needs more than {MAX_MEMORY_BYTES} bytes of memory to unpack"}
    except OSError as error:
        answer = {"kind": "Internal", "message": f"cannot be read: {error}"}
    with contextlib.suppress(BrokenPipeError):
        os.write(1, json.dumps(answer).encode() + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
