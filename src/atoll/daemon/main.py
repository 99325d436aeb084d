"""`atoll serve`: one daemon, from its lock to its last answer.

Order of start: the lock of the state folder (one daemon a state), the parts, the socket, then recovery behind
the open door. Order of end: no new calls, running ones finished or cancelled, the parts in reverse. No container
notices either.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import resource
import shutil
import signal
import socket
import stat
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path

import grpc.aio
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection

from atoll import errors
from atoll.api import atoll_v1_pb2, cri_runtime_v1_pb2
from atoll.concurrency import TaskOwner
from atoll.config import Config
from atoll.cri.images import ImageService
from atoll.cri.runtime import RuntimeService
from atoll.daemon import rpc
from atoll.daemon.compose import compose
from atoll.daemon.idle import Idle
from atoll.engine.engine import Engine
from atoll.services.runtime import RuntimeService as AtollService

log = logging.getLogger(__name__)

GRACE_S = 2.0
UNGATED = frozenset({"Version", "Status", "RuntimeConfig", "Info", "Check"})
"""Methods that do not wait for the recovery of an earlier daemon's pods."""
MAX_MESSAGE_BYTES = 16 * 1024 * 1024
FileId = tuple[int, int]
"""Device and inode."""
FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def serve(config: Config) -> int:
    """Run a daemon until SIGTERM, SIGINT or idleness; the exit code.

    Raises `FailedPrecondition` where another daemon has the root, the state folder or the socket.
    """
    logging.basicConfig(level=config.log_level.upper(), format=FORMAT, stream=sys.stderr)
    with _lock(Path(config.root), "root", 0o700), _lock(Path(config.state), "state", 0o711):
        asyncio.run(_serve(config))
    return 0


@contextlib.contextmanager
def _lock(folder: Path, what: str, mode: int) -> Generator[None]:
    """One daemon a folder, which is made where it is missing: the lock ends with its process."""
    try:
        folder.mkdir(mode=mode, parents=True, exist_ok=True)
        fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise errors.FailedPrecondition(f"{folder}: cannot be the {what} folder: {error.strerror}") from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise errors.FailedPrecondition(
                f"{folder}: another atoll daemon uses this {what} folder; stop it, or give this one its own --{what}"
            ) from None
        yield
    finally:
        os.close(fd)


async def _serve(config: Config) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with compose(config) as engine, TaskOwner("serve") as tasks:
        idle = Idle(stop, config.idle_exit_s, engine)
        _raise_descriptor_limit()
        server, bound = await _listen(config, engine, idle)
        try:
            log.info("atoll listens on %s", config.socket_path)
            tasks.spawn(_recover(engine), name="recover")
            idle.end()
            await stop.wait()
        finally:
            log.info("atoll stops; pods go on")
            await server.stop(GRACE_S)
            _unlink_own(config.socket_path, bound)


def _raise_descriptor_limit() -> None:
    """As many descriptors as the kernel lets us have: each pod costs a few.

    After the zygote has begun, whose containers keep the limit that the daemon was started with.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _unlink_own(path: Path, bound: FileId) -> None:
    """Remove our socket, and not the one of a daemon that has the path by now."""
    with contextlib.suppress(FileNotFoundError):
        if _file_id(path) == bound:
            path.unlink()


def _file_id(path: Path) -> FileId:
    found = path.lstat()
    return found.st_dev, found.st_ino


async def _recover(engine: Engine) -> None:
    await engine.recover()


async def _listen(config: Config, engine: Engine, idle: Idle) -> tuple[grpc.aio.Server, FileId]:
    path = config.socket_path
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _claim(path)
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.so_reuseport", 0),
        ]
    )
    cri = cri_runtime_v1_pb2.DESCRIPTOR.services_by_name
    own = atoll_v1_pb2.DESCRIPTOR.services_by_name
    served: dict[ServiceDescriptor, object] = {
        cri["RuntimeService"]: RuntimeService(engine),
        cri["ImageService"]: ImageService(engine),
        own["Runtime"]: AtollService(engine),
    }
    names = [service.full_name for service in served]
    health = health_pb2.DESCRIPTOR.services_by_name["Health"]
    served[health] = Health(names)  # pyright: ignore[reportArgumentType]  its stubs name the C class
    server.add_generic_rpc_handlers(
        [rpc.handlers(service, work, idle, gate=engine.ready, ungated=UNGATED) for service, work in served.items()]
    )
    reflection.enable_server_reflection((*names, "grpc.health.v1.Health", reflection.SERVICE_NAME), server)
    bound = _bind(server, path)
    await server.start()
    return server, bound


def _bind(server: grpc.aio.Server, path: Path) -> FileId:
    """Listen on a socket that was never open to others, and tell which file it is.

    gRPC makes it with the rights that the umask leaves, so it is made in a folder of root's alone, then moved. The
    folder is named by its descriptor, so that no path is too long for the moment.
    """
    folder = Path(tempfile.mkdtemp(prefix=".atoll-", dir=path.parent))
    fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        server.add_insecure_port(f"unix:/proc/self/fd/{fd}/{folder.name}")
        os.chmod(folder / folder.name, 0o600)
        bound = _file_id(folder / folder.name)
        os.rename(folder / folder.name, path)
    except (RuntimeError, OSError) as error:
        raise errors.FailedPrecondition(f"socket {path}: cannot be listened on: {error}") from error
    finally:
        os.close(fd)
        shutil.rmtree(folder, ignore_errors=True)
    return bound


class Health:
    """grpc.health.v1.Health: what is served is healthy for as long as the socket answers."""

    def __init__(self, names: list[str]) -> None:
        self._names = {"", *names}

    async def Check(  # noqa: N802  the name of its .proto file
        self, request: health_pb2.HealthCheckRequest, context: object
    ) -> health_pb2.HealthCheckResponse:
        if request.service not in self._names:
            raise errors.NotFound(f"service {request.service!r}: is not served here")
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)


def _claim(path: Path) -> None:
    """Make way for our socket: a dead one is removed, a live one is another daemon's."""
    if not _is_socket(path):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(str(path))  # answered by the kernel, at once
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            pass  # somebody listens, and has a full queue
    raise errors.FailedPrecondition(f"socket {path}: another daemon listens on it; choose another --socket")


def _is_socket(path: Path) -> bool:
    """Whether a socket is there; what is there and none is not ours to remove."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return False
    if not stat.S_ISSOCK(mode):
        raise errors.FailedPrecondition(f"socket {path}: there is a file which is no socket; remove it")
    return True
