"""Podman's service on a socket of its own, and as much of a client of its Docker API as the comparison needs.

The client is the standard library's HTTP over a unix socket, which costs less than docker-py does. Everything of the
service is in private folders: storage by overlay, cgroups by cgroupfs, crun, no network, locks in files.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlencode

from atoll.image import builtin
from bench import host
from bench.daemons import STOPPED_WITHIN_S, kill
from bench.places import PATH, Places, wait_until

IMAGE = "localhost/bench/busybox:latest"
API = "/v1.41"
TIMEOUT_S = 600.0
READY_WITHIN_S = 30.0
CHUNK_BYTES = 1 << 20
LIMITS = [{"Name": name, "Soft": 4096, "Hard": 4096} for name in ("nofile", "nproc")]
"""Podman would ask for more than a machine may allow."""


def program(folder: Path | None, name: str = "podman") -> str | None:
    """Where a program is: in `folder`, such as an unpacked package's usr/bin, or on the path."""
    return shutil.which(name, path=f"{folder}:{PATH}" if folder is not None else PATH)


def _libraries(folder: Path | None) -> dict[str, str]:
    """An unpacked package's libraries are beside its programs."""
    return {"LD_LIBRARY_PATH": f"{folder.parent}/lib/x86_64-linux-gnu"} if folder is not None else {}


def version(folder: Path | None) -> str:
    found = program(folder)
    assert found is not None
    environment = {"PATH": PATH, "HOME": "/", **_libraries(folder)}
    told = subprocess.run([found, "--version"], capture_output=True, text=True, check=True, env=environment)
    return told.stdout.split()[-1]


class Unix(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("podman", timeout=TIMEOUT_S)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(TIMEOUT_S)
        self.sock.connect(self._path)


class Podman:
    """`podman system service`, there for the time of a context."""

    def __init__(self, places: Places, *, folder: Path | None = None) -> None:
        self.places = places
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._connection = Unix(places.socket)

    def __enter__(self) -> Self:
        self.places.base.mkdir(parents=True)
        self.places.state.mkdir(parents=True)
        try:
            self._start()
            self._import()
        except BaseException:
            self._end()
            raise
        return self

    def _start(self) -> None:
        places = self.places
        found = program(self._folder)
        assert found is not None
        config = places.base / "containers.conf"
        conmon = program(self._folder, "conmon")
        config.write_text(
            f"""[engine]
cgroup_manager = "cgroupfs"
runtime = "crun"
events_logger = "file"
lock_type = "file"
conmon_path = ["{conmon}"]
static_dir = "{places.base}/libpod"
tmp_dir = "{places.state}/libpod"
volume_path = "{places.base}/volumes"
[network]
network_config_dir = "{places.conf_dir}"
"""
        )
        storage = ["--root", f"{places.root}", "--runroot", f"{places.state}/storage", "--storage-driver", "overlay"]
        service = ["system", "service", "--time", "0", f"unix://{places.socket}"]
        with places.log.open("ab") as log:
            self._process = subprocess.Popen(
                [found, "--log-level", "error", *storage, *service],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", start_new_session=True,
                env={
                    "PATH": PATH, "HOME": str(places.base), "TMPDIR": str(places.base), "CONTAINERS_CONF": str(config),
                    host.MARKER: places.mark, **_libraries(self._folder),
                },
            )  # fmt: skip
        if not wait_until(self._answers, within=READY_WITHIN_S, every=0.05):
            raise RuntimeError(f"podman: does not become ready; its log ends:\n{places.log.read_text()[-2000:]}")

    def _answers(self) -> bool:
        with contextlib.suppress(OSError):
            return self.call("GET", "/_ping") == b"OK"
        self._connection.close()
        return False

    def _import(self) -> None:
        busybox = next(one for one in builtin.build(builtin.find_busybox()) if one.name == builtin.BUSYBOX)
        repository, _, tag = IMAGE.rpartition(":")
        self.call("POST", "/images/create", {"fromSrc": "-", "repo": repository, "tag": tag}, body=busybox.layer)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for one in json.loads(self.call("GET", "/containers/json", {"all": "1"})):
                self.remove(one["Id"])
        finally:
            self._end()

    def _end(self) -> None:
        self._connection.close()
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(STOPPED_WITHIN_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        own = lambda: host.processes_of(0, self.places.mark)  # noqa: E731
        wait_until(lambda: not own().marked, within=2.0, every=0.05)
        for pid in (*own().marked, *own().below):
            kill(pid)
        below = (str(self.places.base), str(self.places.state))
        wait_until(self._remove_cgroups, within=STOPPED_WITHIN_S, every=0.1)
        points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        for point in sorted((one for one in points if one.startswith(below)), reverse=True):
            subprocess.run(["umount", "--lazy", point], check=False, capture_output=True)

    def _remove_cgroups(self) -> bool:
        """Those of containers, and of conmons, which outlive their execs by minutes; whether none of ours is left."""
        own = [f"{root}{self.places.cgroup}" for root in host.hierarchies()]
        for folder in (*own, *(f"{root}/libpod_parent" for root in host.hierarchies())):
            for below, _, _ in os.walk(folder, topdown=False):
                if folder in own:
                    for pid in Path(below, "cgroup.procs").read_text().split():
                        kill(int(pid))
                with contextlib.suppress(OSError):  # in use still, or another podman's
                    os.rmdir(below)
        return not any(map(os.path.exists, own))

    # --- the API ---

    def call(
        self,
        method: str,
        path: str,
        query: dict[str, str] | None = None,
        *,
        body: bytes | Iterable[bytes] | None = None,
    ) -> bytes:
        """One request on the connection that is kept; raises `RuntimeError` for a refusal."""
        with self._answer(self._connection, method, path, query, body) as answer:
            return answer.read()

    def post(self, path: str, document: dict[str, Any]) -> dict[str, Any]:
        return json.loads(self.call("POST", path, body=json.dumps(document).encode()) or b"{}")

    @contextlib.contextmanager
    def _answer(
        self,
        connection: Unix,
        method: str,
        path: str,
        query: dict[str, str] | None,
        body: bytes | Iterable[bytes] | None,
    ) -> Iterator[http.client.HTTPResponse]:
        target = f"{API}{path}" + (f"?{urlencode(query)}" if query else "")
        is_document = body is not None and not path.endswith(("/archive", "/images/create"))
        headers = {"Content-Type": "application/json" if is_document else "application/x-tar"}
        connection.request(method, target, body=body, headers=headers)
        with connection.getresponse() as answer:
            if answer.status >= 400:
                raise RuntimeError(f"podman: {method} {path}: {answer.status} {answer.read()[:500]!r}")
            yield answer

    def run(self, command: list[str]) -> str:
        """A container of the image, running when it returns, as `containers.run(detach=True)` makes it."""
        host_config = {"NetworkMode": "none", "CgroupParent": self.places.cgroup, "Ulimits": LIMITS}
        made = self.post("/containers/create", {"Image": IMAGE, "Cmd": command, "HostConfig": host_config})
        self.call("POST", f"/containers/{made['Id']}/start")
        return made["Id"]

    def remove(self, container: str) -> None:
        self.call("DELETE", f"/containers/{container}", {"force": "1", "t": "0"})

    def exec(self, container: str, command: list[str]) -> tuple[int, bytes]:
        """As `exec_run` does it: made, run with its output, asked for its exit code."""
        made = self.post(f"/containers/{container}/exec", {"Cmd": command, "AttachStdout": True, "AttachStderr": True})
        connection = Unix(self.places.socket)  # the stream takes its connection with it
        start = json.dumps({"Detach": False, "Tty": False}).encode()
        with (
            contextlib.closing(connection),
            self._answer(connection, "POST", f"/exec/{made['Id']}/start", None, start) as answer,
        ):
            output = b"".join(_frames(answer))
        return json.loads(self.call("GET", f"/exec/{made['Id']}/json"))["ExitCode"], output

    def upload(self, container: str, folder: Path, target: str) -> None:
        """The folder's content, as a tar that is made while it is sent."""
        reading, writing = os.pipe()
        with subprocess.Popen(["tar", "-C", str(folder), "-cf", "-", "."], stdout=writing) as tar:
            os.close(writing)
            with os.fdopen(reading, "rb") as archive:
                chunks = iter(lambda: archive.read(CHUNK_BYTES), b"")
                self.call("PUT", f"/containers/{container}/archive", {"path": target}, body=chunks)
        if tar.returncode != 0:
            raise RuntimeError(f"tar ended with status {tar.returncode}")

    def follow(self, container: str) -> Iterator[bytes]:
        """What it writes, to its end."""
        connection = Unix(self.places.socket)
        query = {"follow": "1", "stdout": "1", "stderr": "1"}
        with (
            contextlib.closing(connection),
            self._answer(connection, "GET", f"/containers/{container}/logs", query, None) as answer,
        ):
            yield from _frames(answer)


def _frames(stream: http.client.HTTPResponse) -> Iterator[bytes]:
    """The payloads of Docker's multiplexed stream: a byte for which, three of nothing, four of length, then it."""
    while len(head := stream.read(8)) == 8:
        yield stream.read(int.from_bytes(head[4:], "big"))
