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
import signal
import threading
from collections.abc import Generator
from pathlib import Path

import grpc.aio
from google.protobuf.descriptor import ServiceDescriptor

from atoll import errors, ownership, rpc
from atoll.api import atoll_branches_v1_pb2 as branches_pb2
from atoll.api import atoll_control_v1_pb2 as control_pb2
from atoll.api import atoll_files_v1_pb2 as files_pb2
from atoll.api import atoll_images_v1_pb2, atoll_leases_v1_pb2, atoll_v1_pb2, atoll_why_v1_pb2, cri_runtime_v1_pb2
from atoll.api import atoll_pools_v1_pb2 as pools_pb2
from atoll.api import atoll_processes_v1_pb2 as processes_pb2
from atoll.api import containerd_services_events_v1_pb2 as events_pb2
from atoll.api import containerd_services_sandbox_v1_pb2 as sandbox_pb2
from atoll.api import containerd_services_version_v1_pb2 as version_pb2
from atoll.concurrency import TaskOwner
from atoll.config import Config
from atoll.cri.images import ImageService
from atoll.cri.runtime import RuntimeService
from atoll.cri.streaming import Streaming
from atoll.daemon import activation, memory, telemetry_logs
from atoll.daemon.compose import compose
from atoll.daemon.idle import Idle
from atoll.daemon.reload import Read, Reloader
from atoll.daemon.telemetry import observed
from atoll.engine.engine import Engine
from atoll.ownership import Owner
from atoll.sandbox.service import ControllerService
from atoll.services.branches import BranchesService
from atoll.services.control import ControlService
from atoll.services.events import EventsService
from atoll.services.files import FilesService
from atoll.services.images import ImagesService
from atoll.services.leases import LeasesService
from atoll.services.pools import PoolsService
from atoll.services.processes import ProcessesService
from atoll.services.runtime import RuntimeService as AtollService
from atoll.services.sandbox_store import StoreService
from atoll.services.version import VersionService
from atoll.services.why import WhyService
from atoll.streaming.server import Server

log = logging.getLogger(__name__)

GRACE_S = 2.0
TAKE_OVER_S = 30.0
"""For the end of a private daemon that is asked to give way."""
SETTLE_S = 1.0
"""For a holder of the lock that cannot be told: it has just come or is just going."""
POLL_S = 0.02
UNGATED = frozenset(
    {
        "runtime.v1.RuntimeService.Version",
        "runtime.v1.RuntimeService.Status",
        "runtime.v1.RuntimeService.RuntimeConfig",
        "atoll.v1.Runtime.Info",
        "atoll.why.v1.Why.Explain",
        "containerd.services.version.v1.Version.Version",
        "containerd.services.events.v1.Events.Subscribe",
    }
)
"""Methods that do not wait for the recovery of an earlier daemon's pods."""


def serve(read: Read, *, config_file: str = "", private: bool = False) -> int:
    """Run a daemon until SIGTERM, SIGINT or idleness; the exit code.

    A private daemon was started by a client: it gives way to one that is not, with the same root. Raises
    `FailedPrecondition` where another daemon has the root, the state folder or the socket.
    """
    config = read()
    telemetry_logs.configure(config.log_level, config.log_format)
    memory.give_back_large_blocks()
    handed = activation.take(os.environ, config.socket_path)
    owner = ownership.owner_of(config, file=config_file, pid=os.getpid(), private=private, socket=config.socket_path)
    with _lock(Path(config.root), "root", 0o700, owner), _lock(Path(config.state), "state", 0o711, owner):
        asyncio.run(_serve(config, owner, handed, read))
    return 0


@contextlib.contextmanager
def _lock(folder: Path, what: str, mode: int, owner: Owner) -> Generator[None]:
    """One daemon a folder, which is made where it is missing: the lock ends with its process."""
    try:
        folder.mkdir(mode=mode, parents=True, exist_ok=True)
        fd = os.open(folder / ownership.LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise errors.FailedPrecondition(f"{folder}: cannot be the {what} folder: {error.strerror}") from error
    try:
        _acquire(fd, folder, what, owner)
        try:
            ownership.write_lock(fd, owner)
        except OSError as error:
            raise errors.FailedPrecondition(f"{folder}: cannot be written to: {error.strerror}") from error
        yield
    finally:
        os.close(fd)


def _acquire(fd: int, folder: Path, what: str, owner: Owner) -> None:
    """Take the lock, from a private daemon of the same root too, which is asked to end and waited for."""
    asked: set[int] = set()
    waited = 0.0
    pause = threading.Event()
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass
        else:
            return
        holder = ownership.holder_of(fd)
        gives_way = holder is not None and holder.private and not owner.private and holder.root == owner.root
        if (holder is not None and not gives_way) or waited >= (TAKE_OVER_S if asked else SETTLE_S):
            known = f" (pid {holder.pid}, socket {holder.socket})" if holder is not None else ""
            raise errors.FailedPrecondition(
                f"{folder}: another atoll daemon{known} uses this {what} folder; stop it, or give this one its own "
                f"--{what}"
            )
        if holder is not None and holder.pid not in asked:
            log.info("takes over from the private daemon %d", holder.pid)
            asked.add(holder.pid)
            ownership.ask_to_end(fd, holder)
        pause.wait(POLL_S)
        waited += POLL_S


async def _serve(config: Config, owner: Owner, handed: activation.Handed | None, read: Read) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    hung_up = asyncio.Event()
    loop.add_signal_handler(signal.SIGHUP, hung_up.set)
    async with compose(config) as engine, observed(engine), TaskOwner("serve") as tasks:
        reloader = Reloader(engine.parts.live, engine.parts.images, read, owner.config)
        loop.add_signal_handler(signal.SIGHUP, reloader.on_signal)
        if hung_up.is_set():
            reloader.on_signal()
        idle = Idle(stop, config.idle_exit_s, engine)
        _raise_descriptor_limit()
        controllers = ControllerService(engine.front.find)
        streaming = Server(config.streaming)
        if config.streaming.port:
            await streaming.start()
        server, bound = await _listen(engine, idle, controllers, streaming, reloader, handed)
        if handed is not None:
            handed.turn_away(tasks)
        try:
            ownership.own_socket(config.socket_path, owner)
            log.info("atoll listens on %s", config.socket_path)
            tasks.spawn(_recover(engine), name="recover")
            idle.end()
            await stop.wait()
        finally:
            log.info("atoll stops; pods go on")
            if handed is not None:
                handed.put_back(bound)
                await asyncio.sleep(activation.DRAIN_S)
            engine.release_waiters()
            await server.stop(GRACE_S)
            await streaming.aclose()
            await controllers.aclose()
            rpc.unlink_own(config.socket_path, bound)
            if owner.private and idle.ran_out:
                ownership.disown_socket(config.socket_path, owner)


def _raise_descriptor_limit() -> None:
    """As many descriptors as the kernel lets us have: each pod costs a few.

    After the zygote has begun, whose containers keep the limit that the daemon was started with.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _recover(engine: Engine) -> None:
    await engine.recover()


async def _listen(
    engine: Engine,
    idle: Idle,
    controllers: ControllerService,
    streaming: Server,
    reloader: Reloader,
    handed: activation.Handed | None,
) -> tuple[grpc.aio.Server, rpc.FileId]:
    server = rpc.make_server()
    cri = cri_runtime_v1_pb2.DESCRIPTOR.services_by_name
    own = atoll_v1_pb2.DESCRIPTOR.services_by_name
    services: dict[ServiceDescriptor, object] = {
        cri["RuntimeService"]: RuntimeService(engine, Streaming(engine, streaming)),
        cri["ImageService"]: ImageService(engine),
        own["Runtime"]: AtollService(engine, reloader.answer),
        processes_pb2.DESCRIPTOR.services_by_name["Processes"]: ProcessesService(engine),
        files_pb2.DESCRIPTOR.services_by_name["Files"]: FilesService(engine),
        atoll_images_v1_pb2.DESCRIPTOR.services_by_name["Images"]: ImagesService(engine),
        atoll_leases_v1_pb2.DESCRIPTOR.services_by_name["Leases"]: LeasesService(engine),
        branches_pb2.DESCRIPTOR.services_by_name["Branches"]: BranchesService(engine),
        pools_pb2.DESCRIPTOR.services_by_name["Pools"]: PoolsService(engine),
        **controllers.services(),
        sandbox_pb2.DESCRIPTOR.services_by_name["Store"]: StoreService(engine.parts.sandboxes),
        events_pb2.DESCRIPTOR.services_by_name["Events"]: EventsService(engine.parts.topics),
        version_pb2.DESCRIPTOR.services_by_name["Version"]: VersionService(),
        atoll_why_v1_pb2.DESCRIPTOR.services_by_name["Why"]: WhyService(engine),
        control_pb2.DESCRIPTOR.services_by_name["Control"]: ControlService(engine),
    }
    rpc.add_services(server, services, idle, gate=engine.ready, ungated=UNGATED, readiness=engine)
    if handed is not None:
        handed.put_aside()
    bound = rpc.bind(server, engine.parts.config.socket_path, over=handed is not None)
    await server.start()
    return server, bound
