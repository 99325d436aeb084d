"""A real registry for tests: Debian's docker-registry on loopback with a storage folder of its own.

    with running_registry(folder) as registry:          # plain HTTP
    with running_registry(folder, tls=True) as ...      # registry.ca_file vouches for it
    with running_registry(folder, auth=True) as ...     # USER with PASSWORD

`Throttle` stands between a client and the registry, and passes answers on slowly or not at all. `ConnectProxy` is
an HTTP proxy that leads every CONNECT to one place.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pytest

USER, PASSWORD = "ada", "a pass:word"
_PASSWORD_BCRYPT = "$2b$04$bAfLkKs.cQfNezK53Y4FJ.0f4BLInmrhqh6hN2mvxrWjCsvoz8fMS"
READY_WITHIN_S = 15.0
SETTLE_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Registry:
    """A running registry; `address` is `127.0.0.1:<port>`, `ca_file` is None without TLS."""

    address: str
    folder: Path
    ca_file: Path | None
    auth: bool

    def push(self, source: str, name: str, *options: str) -> str:
        """Push what skopeo calls `source` as `name` (`repository:tag`); the reference that names it."""
        target = f"{self.address}/{name}"
        flags = ["--dest-tls-verify=false", *options]
        if self.auth:
            flags.append(f"--dest-creds={USER}:{PASSWORD}")
        run("skopeo", "--insecure-policy", "copy", "--quiet", *flags, source, f"docker://{target}")
        return target

    def blob_file(self, digest: str) -> Path:
        """Where the registry keeps the blob, for tests that damage it."""
        digits = digest.removeprefix("sha256:")
        return self.folder / "storage/docker/registry/v2/blobs/sha256" / digits[:2] / digits / "data"


@contextmanager
def running_registry(folder: Path, *, tls: bool = False, auth: bool = False) -> Iterator[Registry]:
    """Start a registry whose files are below `folder`; it has ended when the block is left."""
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("needs docker-registry: apt-get install docker-registry")
    folder.mkdir(mode=0o700)
    ca_file = make_certificate(folder) if tls else None
    config = folder / "config.json"  # YAML reads JSON
    config.write_text(json.dumps(_configuration(folder, tls=tls, auth=auth)))
    log = folder / "registry.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [program, "serve", str(config)], stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        port = _wait_for_port(process, log)
        yield Registry(address=f"127.0.0.1:{port}", folder=folder, ca_file=ca_file, auth=auth)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def _configuration(folder: Path, *, tls: bool, auth: bool) -> dict[str, object]:
    http: dict[str, object] = {"addr": "127.0.0.1:0", "secret": "for tests"}
    if tls:
        http["tls"] = {"certificate": str(folder / "server.crt"), "key": str(folder / "server.key")}
    configuration: dict[str, object] = {
        "version": 0.1,
        "log": {"level": "info", "fields": {"service": "registry"}},
        "storage": {"filesystem": {"rootdirectory": str(folder / "storage")}, "delete": {"enabled": True}},
        "http": http,
    }
    if auth:
        (folder / "htpasswd").write_text(f"{USER}:{_PASSWORD_BCRYPT}\n")
        configuration["auth"] = {"htpasswd": {"realm": "atoll tests", "path": str(folder / "htpasswd")}}
    return configuration


def _wait_for_port(process: subprocess.Popen[bytes], log: Path) -> int:
    deadline = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < deadline and process.poll() is None:
        if found := re.search(r"listening on 127\.0\.0\.1:(\d+)", log.read_text()):
            return int(found[1])
        time.sleep(0.02)
    pytest.fail(f"docker-registry did not start:\n{log.read_text()[-2000:]}")


def make_certificate(folder: Path) -> Path:
    """A certificate authority, and a certificate by it for 127.0.0.1; the authority's own certificate."""
    extension = folder / "san.cnf"
    extension.write_text("subjectAltName=IP:127.0.0.1\n")
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    authority = ("-keyout", str(folder / "ca.key"), "-out", str(folder / "ca.crt"))
    run("openssl", "req", "-x509", *key, "-days", "2", "-subj", "/CN=Atoll test CA", *authority)
    request = ("-keyout", str(folder / "server.key"), "-out", str(folder / "server.csr"))
    run("openssl", "req", *key, "-subj", "/CN=127.0.0.1", *request)
    signed = ("-in", str(folder / "server.csr"), "-out", str(folder / "server.crt"), "-extfile", str(extension))
    signer = ("-CA", str(folder / "ca.crt"), "-CAkey", str(folder / "ca.key"), "-CAcreateserial")
    run("openssl", "x509", "-req", "-days", "2", *signed, *signer)
    return folder / "ca.crt"


def run(*arguments: str) -> str:
    """Run a program that must succeed; what it printed."""
    finished = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=SETTLE_S)
    assert finished.returncode == 0, f"{arguments[0]} failed:\n{finished.stderr}"
    return finished.stdout


class Throttle:
    """A TCP relay to `target` that passes on at most `bytes_per_s` of the answers; 0 passes none after `free` bytes."""

    def __init__(self, target: str, *, bytes_per_s: int, free: int = 64 << 10) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._rate = bytes_per_s
        self._free = free
        self._server: asyncio.Server | None = None
        self._relays: set[asyncio.Task[None]] = set()
        self.connections = 0
        self.passed = 0

    @property
    def address(self) -> str:
        assert self._server is not None
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for relay in list(self._relays):
            relay.cancel()
        if self._relays:
            await asyncio.wait(self._relays)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._relays.add(task)
        self.connections += 1
        there, back = await asyncio.open_connection(*self._target)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._copy(reader, back, slow=False))
                group.create_task(self._copy(there, writer, slow=True))
        except* (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            for end in (writer, back):
                end.close()
                with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                    await end.wait_closed()
            self._relays.discard(task)

    async def _copy(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, *, slow: bool) -> None:
        while data := await source.read(16 << 10):
            if slow and self.passed > self._free:
                if not self._rate:
                    await asyncio.Event().wait()
                await asyncio.sleep(len(data) / self._rate)
            target.write(data)
            await target.drain()
            self.passed += len(data) if slow else 0
        target.close()


class ConnectProxy:
    """An HTTP proxy on loopback: a CONNECT that it is `asked` leads to `leads_to`; with none there it is refused."""

    def __init__(self) -> None:
        self._server: asyncio.Server | None = None
        self.leads_to = ""
        self.asked: list[str] = []

    @property
    def address(self) -> str:
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        method, place, _ = (await reader.readuntil(b"\r\n\r\n")).decode().split(" ", 2)
        assert method == "CONNECT"
        if not self.leads_to:
            writer.write(b"HTTP/1.1 403 Forbidden\r\n\r\n")
            writer.close()
            return
        self.asked.append(place)
        host, _, port = self.leads_to.rpartition(":")
        there, back = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._copy(reader, back))
                group.create_task(self._copy(there, writer))
        except* ConnectionError:
            pass
        for end in (writer, back):
            end.close()

    @staticmethod
    async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(16 << 10):
            target.write(data)
            await target.drain()
        target.close()
