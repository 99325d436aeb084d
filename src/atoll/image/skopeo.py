"""skopeo as the client of registries: manifests by `inspect --raw`, blobs by its image proxy.

`skopeo experimental-image-proxy` (skopeo 1.5 and later; docs/experimental-image-proxy in its tree, used
by bootc) speaks JSON over a SOCK_SEQPACKET socket and hands over a pipe for each blob, so that bytes
are counted as they come, nothing is written twice, and blobs that are there are not fetched. It ends
when its socket closes, hence with the daemon. Credentials and settings reach skopeo through files in a
private folder.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import select
import socket
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import msgspec

from atoll import errors
from atoll.image.config import Auth, ImageSettings, RegistryConfig
from atoll.image.content import Content
from atoll.image.endpoint import speaks_tls
from atoll.image.model import Descriptor
from atoll.image.process import Program, running
from atoll.image.reference import DEFAULT_DOMAIN, Reference
from atoll.image.registry_errors import complaint, translate
from atoll.image.workers import Workers
from atoll.linux import leftover
from atoll.unreadable import UNREADABLE

_CHUNK = 1 << 20
_MAX_REPLY_BYTES = 32 << 10
_PASSED_ON = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "SSL_CERT_DIR", "PATH")
_DOCKER_HUB = ("index.docker.io", "registry-1.docker.io")
_POLICY = Path("/etc/containers/policy.json")
_REPORT_S = 0.1


class _Reply(msgspec.Struct, frozen=True, kw_only=True):
    success: bool
    error: str = ""
    pipeid: int = 0
    value: object = None


class Skopeo:
    """One registry and its mirrors as seen with one set of credentials; `folder` is private and holds the settings."""

    def __init__(
        self,
        folder: Path,
        mirrors: Sequence[str],
        reference: Reference,
        auth: Auth | None,
        settings: ImageSettings,
    ) -> None:
        self._folder = folder
        self._settings = settings
        self._reference = reference
        self.has_auth = auth is not None
        self.is_lax = False
        """Whether skopeo may skip the check of the registry's certificate, or speak http; known once prepared."""
        self._auth = auth
        self._mirrors = mirrors
        hosts = (reference.domain, *(host_of(mirror) for mirror in self._mirrors))
        self._known = {host: settings.registry(host) for host in hosts}

    async def prepare(self, pool: Workers) -> None:
        """Find out what each registry speaks where that matters, and write the files that skopeo reads."""
        lax = {host for host, config in self._known.items() if await _may_be_lax(host, config)}
        self.is_lax = self._reference.domain in lax
        await pool.run(self._write_settings, lax)

    def _write_settings(self, lax: set[str]) -> None:
        """Blocks. `lax` are the hosts for which skopeo may skip the certificate's check or speak http."""
        domain, known = self._reference.domain, self._known
        auths = _read_auths(self._settings.auth_file) if self._settings.auth_file is not None else {}
        auths |= {host: _auth_entry(config.auth) for host, config in known.items() if config.auth is not None}
        if self._auth is not None:
            # An entry for a part of the registry would win over this one.
            auths = {place: entry for place, entry in auths.items() if host_of(place) != domain}
            auths[domain] = _auth_entry(self._auth)
        self.has_auth = any(host_of(place) == domain for place in auths)
        _private(self._folder / "auth.json", json.dumps({"auths": auths}))
        _private(self._folder / "registries.conf", _registries_conf(domain, self._mirrors, lax))
        certificates = self._folder / "certs"
        certificates.mkdir(mode=0o700)
        for host, config in known.items():
            if config.ca_file is not None:
                try:
                    text = config.ca_file.read_text()
                except OSError as error:
                    raise errors.FailedPrecondition(
                        f"{config.ca_file}: cannot be read: {error.strerror}; it is the ca_file of registry {host}"
                    ) from error
                _private(certificates / f"{host.replace(':', '_')}.crt", text)

    async def manifest(self, pool: Workers, reference: Reference) -> bytes:
        """The bytes of a manifest or an index, as the registry has them."""
        arguments = [*self.command(), "inspect", "--raw", "--no-tags", *self._options(), _url(reference)]
        async with running(pool, arguments, self.environment()) as program:
            try:
                async with asyncio.timeout(self._settings.limits.stall_timeout_s):
                    code = await program.wait()
            except TimeoutError as error:
                raise errors.DeadlineExceeded(
                    f"{reference}: {reference.domain} did not answer within {self._settings.limits.stall_timeout_s:g} s"
                ) from error
            if code != 0:
                raise translate(complaint(program.complaints()), reference, has_auth=self.has_auth)
            return program.output()

    @asynccontextmanager
    async def blobs(self, pool: Workers, reference: Reference) -> AsyncGenerator[BlobSource]:
        """The blobs of the image `reference`; leaving the block ends skopeo."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ExitStack() as sockets:
            sockets.callback(ours.close)
            with theirs:
                number = theirs.fileno()
                arguments = [*self.command(), "experimental-image-proxy", "--sockfd", str(number), *self._options()]
                starting = running(pool, arguments, self.environment(), pass_fds=(number,))
                program = await starting.__aenter__()
            try:
                source = BlobSource(ours, program, pool, reference, self._settings, has_auth=self.has_auth)
                await source.open()
                yield source
            finally:
                await starting.__aexit__(None, None, None)

    def command(self) -> list[str]:
        """The words that every call of skopeo begins with."""
        command = [self._settings.skopeo, "--registries-conf", str(self._folder / "registries.conf")]
        return command if _POLICY.exists() else [*command, "--insecure-policy"]

    def _options(self) -> list[str]:
        return ["--authfile", str(self._folder / "auth.json"), "--cert-dir", str(self._folder / "certs")]

    def environment(self) -> dict[str, str]:
        """What skopeo gets of our environment, and private folders for what it writes."""
        passed = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        private = {name: str(self._folder) for name in ("HOME", "TMPDIR", "XDG_RUNTIME_DIR")}
        return {**passed, **private, **leftover.marked_by(self._folder)}


class BlobSource:
    """An open image of the proxy; fetches one blob at a time.

    The proxy closes a blob's pipe only while it answers FinishPipe, and answers nothing else before the
    blob is through. So FinishPipe is sent first and the pipe read beside it, and its answer tells what
    went wrong where the pipe ends early.
    """

    def __init__(
        self,
        connection: socket.socket,
        program: Program,
        pool: Workers,
        reference: Reference,
        settings: ImageSettings,
        *,
        has_auth: bool,
    ) -> None:
        self._connection = connection
        self._program = program
        self._pool = pool
        self._reference = reference
        self._stall_s = settings.limits.stall_timeout_s
        self._image = 0
        self._has_auth = has_auth
        connection.setblocking(False)

    async def open(self) -> None:
        await self._request("Initialize")
        reply, _ = await self._request("OpenImage", _url(self._reference))
        self._image = int(str(reply.value))

    async def fetch(self, blob: Descriptor, content: Content, on_bytes: Callable[[int], None]) -> None:
        """Fetch `blob` into `content`, checked against its digest and size; `on_bytes` is told the bytes so far."""
        reply, pipe = await self._request("GetBlob", self._image, blob.digest, blob.size)
        if pipe is None:
            raise errors.Internal(f"skopeo: no pipe for {blob.digest}")
        receive = partial(_receive, pipe, blob, content, self._stall_s, _throttled(on_bytes))
        async with asyncio.TaskGroup() as group:
            received = group.create_task(self._received(receive), name=f"image/{blob.digest}/receive")
            await self._request("FinishPipe", reply.pipeid, within=None)
        if (failure := received.result()) is not None:
            raise failure

    async def _received(self, receive: Callable[[], None]) -> errors.DataLoss | None:
        """A blob that is not what it should be is skopeo's to explain first."""
        try:
            await self._pool.finish(receive, stop=self._program.kill)
        except errors.DataLoss as error:
            return error
        return None

    async def _request(self, method: str, *arguments: object, within: float | None = -1) -> tuple[_Reply, int | None]:
        """Ask the proxy; the answer must come within `within` seconds: the stall time, or None for no bound."""
        bound = self._stall_s if within == -1 else within
        try:
            async with asyncio.timeout(bound):
                self._connection.send(json.dumps({"method": method, "args": arguments}).encode())
                await _readable(self._connection)
            data, descriptors, _, _ = socket.recv_fds(self._connection, _MAX_REPLY_BYTES, 1)
        except TimeoutError as error:
            raise errors.DeadlineExceeded(
                f"{self._reference}: {self._reference.domain} did not answer within {bound:g} s"
            ) from error
        except OSError as error:
            raise self._gone() from error
        pipe = descriptors[0] if descriptors else None
        try:
            reply = msgspec.json.decode(data, type=_Reply)
        except UNREADABLE as error:
            raise self._gone() from error
        if not reply.success:
            if pipe is not None:
                os.close(pipe)
            raise translate(reply.error, self._reference, has_auth=self._has_auth)
        return reply, pipe

    def _gone(self) -> errors.Unavailable:
        said = complaint(self._program.complaints())
        return errors.Unavailable(f"{self._reference}: skopeo went away: {said or 'without a word'}")


async def _readable(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(connection, lambda: ready.done() or ready.set_result(None))
    try:
        await ready
    finally:
        loop.remove_reader(connection)


def _receive(pipe: int, blob: Descriptor, content: Content, stall_s: float, report: Callable[[int], None]) -> None:
    """Copy a blob from its pipe, in a thread; ends when skopeo does, because the pipe ends then."""
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    received = 0

    def next_chunk() -> bytes:
        nonlocal received
        if not poll.poll(stall_s * 1000):
            raise errors.DeadlineExceeded(f"blob {blob.digest}: nothing came for {stall_s:g} s")
        chunk = os.read(pipe, _CHUNK)
        received += len(chunk)
        report(received)
        return chunk

    try:
        content.write(next_chunk, blob.digest, blob.size)
    finally:
        os.close(pipe)


def _throttled(on_bytes: Callable[[int], None]) -> Callable[[int], None]:
    """`on_bytes` on the loop of the caller, called from a thread and not more often than people can see."""
    loop = asyncio.get_running_loop()
    last = 0.0

    def report(received: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _REPORT_S:
            last = now
            loop.call_soon_threadsafe(on_bytes, received)

    return report


def _url(reference: Reference) -> str:
    """skopeo takes a tag or a digest; with both the digest is what counts."""
    if reference.digest is not None:
        reference = reference.with_digest(reference.digest)
    return f"docker://{reference}"


def _auth_entry(auth: Auth) -> dict[str, str]:
    if auth.identity_token:
        return {"identitytoken": auth.identity_token}
    return {"auth": base64.b64encode(f"{auth.username}:{auth.password}".encode()).decode()}


async def _may_be_lax(host: str, config: RegistryConfig) -> bool:
    """Whether skopeo's one switch, `insecure`, leads to nothing but what the operator allowed for this registry."""
    if config.plain_http == config.skip_verify:
        return config.plain_http
    tls = await speaks_tls(host)
    return tls is True if config.skip_verify else tls is False


def host_of(place: str) -> str:
    """The `host[:port]` of a mirror, or of a key of an auth file, which may be a URL."""
    host = place.removeprefix("https://").removeprefix("http://").partition("/")[0]
    return DEFAULT_DOMAIN if host in _DOCKER_HUB else host


class _AuthFile(msgspec.Struct, frozen=True, kw_only=True):
    auths: dict[str, dict[str, msgspec.Raw]] = {}


def _read_auths(path: Path) -> dict[str, dict[str, object]]:
    """The entries of a file such as `skopeo login --authfile` writes; credential helpers are not asked."""
    try:
        decoded = msgspec.json.decode(path.read_bytes(), type=_AuthFile)
        return {
            place: {key: msgspec.json.decode(raw) for key, raw in entry.items()}
            for place, entry in decoded.auths.items()
        }
    except OSError as error:
        raise errors.FailedPrecondition(f"{path}: cannot be read: {error.strerror}; it is the auth_file") from error
    except UNREADABLE:  # without its text, which may quote the file
        raise errors.FailedPrecondition(f"{path}: is no auth file, which is JSON with auths") from None


def _registries_conf(domain: str, mirrors: Sequence[str], lax: set[str]) -> str:
    """containers-registries.conf(5); a JSON string is a TOML basic string."""
    lines = ["unqualified-search-registries = []", "[[registry]]", f"location = {json.dumps(domain)}"]
    lines.append(f"insecure = {json.dumps(domain in lax)}")
    for mirror in mirrors:
        lines += ["[[registry.mirror]]", f"location = {json.dumps(mirror)}"]
        lines.append(f"insecure = {json.dumps(host_of(mirror) in lax)}")
    return "\n".join(lines) + "\n"


def _private(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "w") as file:
        file.write(text)
