"""The decoders that see foreign bytes. A target takes any bytes and raises nothing: it catches what is documented.

Adding a decoder: write a function that feeds it, and a line in `TARGETS` with inputs that it takes.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import json
import os
import tarfile
import tempfile
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import msgspec
import zstandard
from google.protobuf.message import DecodeError
from wsproto.connection import Connection, ConnectionType

from atoll import errors
from atoll.api import nri_v1alpha1_pb2 as nri
from atoll.api import ttrpc_pb2
from atoll.config import loading
from atoll.container import metadata as container_metadata
from atoll.container.status import Status, decode_status, encode_status
from atoll.files import wire as files_wire
from atoll.image import model, registry_errors, skopeo, unpack
from atoll.image.reference import Reference
from atoll.image.tar import Stream, TarReader
from atoll.linux import mounts
from atoll.linux.host import read_host_facts
from atoll.network import bandwidth, cni, config, redirects, result
from atoll.network.cache import AttachmentCache, AttachmentKey
from atoll.network.plugin import PluginRun
from atoll.nri.adjust import Place, apply
from atoll.nri.mux import Demultiplexer
from atoll.oci import cdi, failures, features, spec, user
from atoll.oci import runtime as oci_runtime
from atoll.runtime.bootstrap import Bootstrap
from atoll.sandbox import codec as sandbox_codec
from atoll.sandbox import filters
from atoll.sandbox import metadata as sandbox_metadata
from atoll.sandbox.address import Address
from atoll.sandbox.controller import TypedAny
from atoll.shim import bootstrap as shim_bootstrap
from atoll.shim import records
from atoll.streaming import spdy_codec
from atoll.streaming.channels import Channels
from atoll.streaming.flow import Chunk, Gone
from atoll.streaming.handshake import HeadReader, Refused, spdy_protocol, websocket_protocol
from atoll.streaming.spdy import Session
from atoll.streaming.tokens import Tokens
from atoll.streaming.websocket import Socket
from atoll.streaming.wire import Wire
from atoll.ttrpc import codec as ttrpc_codec
from atoll.ttrpc import connection

Decode = Callable[[bytes], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A decoder. `seeds` are inputs that it takes, or nearly."""

    name: str
    decode: Decode
    seeds: tuple[bytes, ...]


def _documented(decode: Callable[[bytes], object], *allowed: type[Exception]) -> Decode:
    """`decode` where `AtollError` and `allowed` are answers, and anything else is a fault."""

    def target(data: bytes) -> None:
        with contextlib.suppress(errors.AtollError, *allowed):
            decode(data)

    return target


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


# --- ttrpc, NRI ---


def _frame(kind: int, flags: int, payload: bytes, stream: int = 1) -> bytes:
    return ttrpc_codec.encode_frame(stream, kind, flags, payload)


_REQUEST = ttrpc_pb2.Request(service="s", method="m", payload=b"\x0a\x01x").SerializeToString()


def _ttrpc(data: bytes) -> None:
    """Both ends, fed whole and in two parts: the same events."""
    for make in (connection.ServerConnection, connection.ClientConnection):
        whole, parts = make(), make()
        if isinstance(whole, connection.ClientConnection) and isinstance(parts, connection.ClientConnection):
            whole.open(b"", server_streaming=True)
            parts.open(b"", server_streaming=True)
        cut = len(data) // 2
        in_parts = [*parts.receive_data(data[:cut]), *parts.receive_data(data[cut:])]
        assert list(map(repr, in_parts)) == list(map(repr, seen := whole.receive_data(data))), seen


def _nri_mux(data: bytes) -> None:
    mux = Demultiplexer()
    for piece in mux.receive_data(memoryview(data)):
        assert len(piece.data) <= len(data)


_SPEC = spec.Spec(
    process=spec.Process(args=("a",), env=("A=1",)), linux=spec.Linux(resources=spec.Resources()), mounts=()
)


def _nri_adjustment(data: bytes) -> None:
    asked = nri.ContainerAdjustment.FromString(data)
    features_now = features.from_version("crun", "crun version 1.8.1")
    apply(_SPEC, asked, Place(host=read_host_facts(), runtime=features_now))


# --- streaming ---


class _Kept:
    """A carrier and a wire that keep nothing."""

    def send(self, *parts: Chunk) -> None: ...

    def answer(self, data: bytes) -> None: ...

    async def room(self) -> None:
        raise Gone

    def hold(self, reason: str) -> None: ...

    def resume(self, reason: str) -> None: ...

    def close(self) -> None: ...

    def start(self, receiver: Callable[[Chunk], Iterable[None]], first: Chunk = b"") -> None:
        self.receiver = receiver

    def on_lost(self, callback: Callable[[], None]) -> None: ...


def _spdy_events(data: bytes) -> None:
    for _ in spdy_codec.Decoder().feed(data):
        pass


def _spdy_session(data: bytes) -> None:
    async def run() -> None:
        session = Session(_Kept(), lambda stream: None)
        for _ in session.receive(data):
            pass
        session.close()

    asyncio.run(run())


def _websocket(data: bytes) -> None:
    wire = cast(Wire, _Kept())
    for is_base64 in (False, True):
        socket = Socket(wire, Connection(ConnectionType.SERVER))
        for _ in Channels(socket, readable=(0, 4), is_base64=is_base64, has_close=True).receive(data):
            pass


def _handshake(data: bytes) -> None:
    async def run() -> None:
        wire = _Kept()
        reading = HeadReader(cast(Wire, wire))
        head = asyncio.ensure_future(reading.read())  # noqa: TID251 - a loop of its own
        await asyncio.sleep(0)
        for _ in wire.receiver(data):
            pass
        await asyncio.sleep(0)
        if not head.done():
            head.cancel()
            return
        with contextlib.suppress(Refused):
            found = await head
            (websocket_protocol if found.upgrade == "websocket" else spdy_protocol)(found, ("v4.channel.k8s.io",))

    asyncio.run(run())


def _token(data: bytes) -> None:
    tokens: Tokens[str] = Tokens(limit=2)
    issued = tokens.issue("request")
    guess = data.decode("latin-1")
    assert tokens.redeem(guess) is None or guess == issued
    assert tokens.redeem(issued) == ("request" if guess != issued else None)


# --- records, answers of programs ---


def _checkpoint(data: bytes) -> None:
    status = decode_status(data)
    assert decode_status(encode_status(status)) == status


def _sandbox_record(data: bytes) -> None:
    for decode in (sandbox_codec.decode_runtime, sandbox_codec.decode_spec, sandbox_codec.decode_labels,
                   sandbox_codec.decode_extensions):  # fmt: skip
        with contextlib.suppress(errors.AtollError):
            decode(data)
    sandbox_metadata.decode_metadata(TypedAny(type_url=sandbox_metadata.TYPE_URL, value=data))


@contextlib.contextmanager
def _file(data: bytes, name: str = "input.json") -> Generator[Path]:
    with tempfile.TemporaryDirectory(prefix="atoll-fuzz-", dir="/dev/shm") as folder:
        path = Path(folder, name)
        path.write_bytes(data)
        yield path


def _shim_record(data: bytes) -> None:
    with _file(data) as path:
        for kind in (records.BootstrapRecord, records.ShimRecord, records.TaskRecord, records.ExitRecord,
                     records.SandboxRecord, records.GuestRecord):  # fmt: skip
            with contextlib.suppress(errors.AtollError):
                records.read(path, kind)


def _cni_answer(data: bytes) -> None:
    for code in (0, 1):
        done = PluginRun(returncode=code, stdout=data, stderr=data[:100], overflowed=False, duration_s=0.1)
        with contextlib.suppress(errors.AtollError):
            answer = cni._answer(done, "the plugin")
            if answer is not None:
                result.parse(answer)


def _cni_record(data: bytes) -> None:
    key = AttachmentKey(network="n", container_id="c", ifname="eth0")
    with tempfile.TemporaryDirectory(prefix="atoll-fuzz-", dir="/dev/shm") as folder:
        cache = AttachmentCache(Path(folder))
        path = cache._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        cache.load(key)


def _oci_answers(data: bytes) -> None:
    for decoder in (oci_runtime._state_decoder, oci_runtime._pids_decoder):
        with contextlib.suppress(errors.AtollError):
            oci_runtime._decoded(cast("msgspec.json.Decoder[Any]", decoder), data, "runtime")
    features.from_document("crun", "crun version 1.8", data)


def _oci_log(data: bytes) -> None:
    failures.last_error(data)
    failures.translate("crun", "create", "c", 1, data)


def _shim_start(data: bytes) -> None:
    with contextlib.suppress(errors.AtollError):
        Bootstrap.parse(data)
    flags = shim_bootstrap.parse_flags(["-namespace", "n", "-id", "i", "-address", "/a", "start"])
    shim_bootstrap.read(flags, data, {})


def _cdi(data: bytes) -> None:
    with _file(data) as path:
        cdi.inject(_SPEC, ("vendor.com/class=dev",), [path.parent])


def _auth_file(data: bytes) -> None:
    with _file(data) as path:
        skopeo._read_auths(path)


# --- images ---

_LIMITS = unpack.Limits(max_bytes=1 << 20, max_ratio=100, free_bytes=1 << 20, max_entries=1000, plain=False)


def _manifest(data: bytes) -> None:
    what = "input"
    if model.is_index(data, what):
        model.choose(model.decode(data, model.Index, what), what, architecture="amd64", variant="")
    manifest = model.parse_manifest(data, what, max_layers=100, max_layer=1 << 30, max_config=1 << 20)
    assert all(layer.size <= 1 << 30 for layer in manifest.layers)


def _image_config(data: bytes) -> None:
    config_of = model.Descriptor(media_type="", digest="sha256:" + "0" * 64, size=1)
    manifest = model.Manifest(schema_version=2, config=config_of, layers=[config_of])
    model.parse_config(data, manifest).parsed()


def _layer(data: bytes) -> None:
    """Decompressed and read to the end as the unpack process does, short of making files."""
    fd = os.memfd_create("atoll-fuzz")
    try:
        os.write(fd, data)
        os.lseek(fd, 0, os.SEEK_SET)
        stream = Stream(unpack.Tar(unpack.decompressor(fd), _LIMITS, len(data)).next_chunk)
        archive = TarReader(stream)
        for number, entry in enumerate(archive):
            assert isinstance(entry.name, str)
            while archive.data(1 << 16):
                pass
            if number > 1000:
                break
        stream.drain()
    finally:
        os.close(fd)


def _tar(format: int) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=format) as archive:
        for name, kind in (("f" * 120, tarfile.REGTYPE), ("d", tarfile.DIRTYPE), ("l" * 110, tarfile.SYMTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.size, info.linkname = kind, 5 if kind == tarfile.REGTYPE else 0, "t" * 110
            info.pax_headers = {"SCHILY.xattr.user.k": "v", "GNU.sparse.major": "1"} if kind == tarfile.DIRTYPE else {}
            archive.addfile(info, io.BytesIO(b"12345"))
    return made.getvalue()


def _reference(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    found = Reference.parse(text)
    assert Reference.parse(str(found)) == found


def _skopeo_complaint(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    registry_errors.translate(registry_errors.complaint(text), Reference.parse("a/b"), has_auth=True)


# --- text ---


def _text(decode: Callable[[str], object]) -> Decode:
    return _documented(lambda data: decode(data.decode("utf-8", "surrogateescape")))


def _toml(data: bytes) -> None:
    """Through a file, as the daemon reads it."""
    with _file(data, "config.toml") as path:
        loading.load(path)


def _bandwidth(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    bandwidth.from_annotations({"kubernetes.io/ingress-bandwidth": text, "kubernetes.io/egress-bandwidth": text})


def _accounts(data: bytes) -> None:
    for account in user.parse_passwd(data):
        assert account.uid >= 0
    for group in user.parse_group(data):
        assert group.gid >= 0


_DIGEST = "sha256:" + "a" * 64
_DESCRIPTOR = {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": _DIGEST, "size": 3}
_MANIFEST = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": _DESCRIPTOR,
             "layers": [_DESCRIPTOR]}  # fmt: skip
_INDEX = {"schemaVersion": 2, "manifests": [{**_DESCRIPTOR, "platform": {"architecture": "amd64", "os": "linux"}}]}
_CONFIG = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [_DIGEST]},
           "config": {"Env": ["A=1"], "Cmd": ["/bin/sh"], "User": "1:2", "Volumes": {"/v": {}}}}  # fmt: skip
_CNI = {"cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "sandbox": "/run/netns/x", "mac": "00:11:22:33:44:55"}],
        "ips": [{"interface": 0, "address": "10.0.0.2/24", "gateway": "10.0.0.1"}], "dns": {"nameservers": ["1.1.1.1"]},
        "routes": [{"dst": "0.0.0.0/0"}]}  # fmt: skip
_CNI_CONFIG = {
    "cniVersion": "1.0.0",
    "name": "n",
    "plugins": [{"type": "bridge", "capabilities": {"portMappings": True}}],
}
_CNI_RECORD = {"kind": "atoll.network.v1", "config": _CNI_CONFIG, "source": "s", "netns": "/n",
               "cni_args": [["a", "b"]],
               "capability_args": {}, "result": _CNI}  # fmt: skip
_CDI = {"cdiVersion": "0.6.0", "kind": "vendor.com/class", "devices": [{"name": "dev", "containerEdits": {
        "env": ["A=1"],
        "deviceNodes": [{"path": "/dev/null"}], "mounts": [{"hostPath": "/a", "containerPath": "/b"}]}}]}  # fmt: skip
_UPGRADE = (
    b"GET /exec/abc HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: v4.channel.k8s.io\r\n\r\n"
)
_SPDY_UPGRADE = (
    b"POST /exec/abc HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n"
    b"X-Stream-Protocol-Version: v4.channel.k8s.io\r\nContent-Length: 0\r\n\r\n"
)
_ENCODER = spdy_codec.Encoder()
_SPDY = (
    _ENCODER.syn_stream(1, {"streamtype": "stdin"}) + spdy_codec.data_head(1, 3) + b"abc" + spdy_codec.ping(1)
    + spdy_codec.settings({4: 100}) + spdy_codec.rst_stream(1, 5) + spdy_codec.goaway(1)
)  # fmt: skip
_MASK = bytes(4)
_WEBSOCKET = (
    b"\x82\x84" + _MASK + b"\x00abc" + b"\x81\x85" + _MASK + b"0YWJj" + b"\x89\x80" + _MASK + b"\x88\x82" + _MASK
)
_STATUS = encode_status(Status(pid=1, created_at=2, started_at=3, reason="r"))
_MOUNTS = b"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n"
_RULES = b"""-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A CNI-HOSTPORT-DNAT -p tcp -m comment --comment "dnat name: \\"n\\" id: \\"c\\"" -m multiport --dports 80 -j CNI-DN-1
-A CNI-DN-1 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.2:80
"""
_TASK_RECORD = {"id": "c", "pid": 1, "exit_status": 3, "exited_at": 5}

TARGETS = (
    Target(name="ttrpc", decode=_ttrpc, seeds=(
        _frame(1, 0, _REQUEST), _frame(1, 2, _REQUEST) + _frame(3, 1, b"x"), _frame(2, 0, b"\x12\x01x"),
    )),
    Target(name="nri-mux", decode=_documented(_nri_mux), seeds=(b"\x00\x00\x00\x01\x00\x00\x00\x02ab",)),
    Target(name="nri-adjustment", decode=_documented(_nri_adjustment, DecodeError), seeds=(
        nri.ContainerAdjustment(
            annotations={"a": "b", "-c": ""}, env=[nri.KeyValue(key="A", value="2")],
            mounts=[nri.Mount(destination="/d", source="/s", type="bind", options=["ro", "rbind"])],
        ).SerializeToString(),
    )),
    Target(name="spdy", decode=_documented(_spdy_events, spdy_codec.SpdyError), seeds=(_SPDY,)),
    Target(name="spdy-session", decode=_spdy_session, seeds=(_SPDY,)),
    Target(name="websocket", decode=_websocket, seeds=(_WEBSOCKET,)),
    Target(name="handshake", decode=_handshake, seeds=(_UPGRADE, _SPDY_UPGRADE)),
    Target(name="token", decode=_token, seeds=(b"abcdefgh", b"\xff" * 40)),
    Target(name="checkpoint", decode=_documented(_checkpoint), seeds=(_STATUS,)),
    Target(name="container-metadata", decode=_documented(container_metadata.decode_metadata), seeds=(
        _json({"Version": "v1", "Metadata": {"ID": "c", "Config": {"command": ["a"], "linux": {"resources": {}}}}}),
    )),
    Target(name="sandbox-record", decode=_documented(_sandbox_record), seeds=(
        _json({"Version": "v1", "Metadata": {"ID": "s"}}), _json({"a": "b"}), _json({"name": "r", "options": None}),
    )),
    Target(name="shim-record", decode=_shim_record, seeds=(_json(_TASK_RECORD), _json({"id": "p", "files": "/f"}))),
    Target(name="shim-start", decode=_documented(_shim_start), seeds=(
        b"unix:///run/s", _json({"version": 3, "address": "unix:///s", "protocol": "ttrpc"}),
        b"\x08\x03\x12\x01a\x1a\x05ttrpc",
    )),
    Target(name="cni-answer", decode=_cni_answer, seeds=(
        _json(_CNI), _json({"cniVersion": "1.0.0", "code": 7, "msg": "no", "details": "d"}),
    )),
    Target(
        name="cni-config", decode=_documented(lambda data: config.parse(data, source="s")),
        seeds=(_json(_CNI_CONFIG),),
    ),
    Target(name="cni-record", decode=_documented(_cni_record), seeds=(_json(_CNI_RECORD),)),
    Target(name="firewall", decode=_text(lambda text: list(redirects.parse(text.split("\n")))), seeds=(_RULES,)),
    Target(name="bandwidth", decode=_documented(_bandwidth), seeds=(b"10M", b"1e3", b"5Gi")),
    Target(name="oci-answers", decode=_documented(_oci_answers), seeds=(
        _json({"id": "c", "status": "running", "pid": 4}), b"[1,2]", _json({"ociVersionMin": "1.0.0", "hooks": ["a"],
        "linux": {"seccomp": {"enabled": True}, "cgroup": {"systemd": False}}}),
    )),
    Target(name="oci-log", decode=_documented(_oci_log), seeds=(
        _json({"level": "error", "msg": "exec: \"x\": not found"}) + b"\nplain\n",
        b"crun: open `/x`: No such file or directory\n",
    )),
    Target(name="manifest", decode=_documented(_manifest), seeds=(_json(_MANIFEST), _json(_INDEX))),
    Target(name="image-config", decode=_documented(_image_config), seeds=(_json(_CONFIG),)),
    Target(name="layer", decode=_documented(_layer), seeds=(
        _tar(tarfile.PAX_FORMAT), _tar(tarfile.GNU_FORMAT), gzip.compress(_tar(tarfile.GNU_FORMAT), mtime=0),
        zstandard.compress(_tar(tarfile.PAX_FORMAT)),
    )),
    Target(name="reference", decode=_documented(_reference), seeds=(
        b"example.org:5000/a/b:tag@" + _DIGEST.encode(), b"busybox",
    )),
    Target(name="registry-error", decode=_documented(_skopeo_complaint), seeds=(
        b'time="t" level=fatal msg="unauthorized: x"',
    )),
    Target(name="auth-file", decode=_documented(_auth_file), seeds=(_json({"auths": {"h": {"auth": "YTpi"}}}),)),
    Target(name="configuration", decode=_documented(_toml), seeds=(
        b'log_level = "info"\n[runtimes.a]\noci_runtime = "crun"\n[network]\npool_size = 3\n',
        b'[images.registries."*"]\nmirrors = ["m"]\n',
    )),
    Target(name="cdi", decode=_documented(_cdi), seeds=(_json(_CDI),)),
    Target(name="files", decode=_documented(files_wire.decode), seeds=(
        b"\x93\xa4stat\xa1a\x01", b"\x82\xa1a\x01\xa1b\xc0",
    )),
    Target(name="filter", decode=_text(lambda text: filters.compile_filters([text])), seeds=(
        b'labels."a.b"==c,id~=^x(y|z)*$', b"sandboxer!=shim",
    )),
    Target(name="address", decode=_text(Address.parse), seeds=(b"ttrpc+unix:///a", b"grpc+vsock://3:1024")),
    Target(name="mountinfo", decode=_documented(
        lambda data: mounts.parse_mountinfo(data.decode("utf-8", "surrogateescape")), ValueError), seeds=(_MOUNTS,)),
    Target(name="accounts", decode=_documented(_accounts), seeds=(b"root:x:0:0:root:/root:/bin/sh\nwheel:x:10:a,b\n",)),
)  # fmt: skip
"""Every decoder that sees foreign bytes."""
