"""The connection to a daemon, and everything that is asked of the daemon as a whole."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from atoll import errors
from atoll.api import atoll_v1_pb2 as own
from atoll.api import cri_runtime_v1_pb2 as cri
from atoll.client import branches as branching
from atoll.client import control, foreign, private, request, wire
from atoll.client import leases as leasing
from atoll.client import pools as pooling
from atoll.client.branches import Snapshot, SnapshotStatus
from atoll.client.container import CALL_TIMEOUT_S, Container
from atoll.client.control import Event, PodUsage
from atoll.client.images import Images, OnProgress
from atoll.client.leases import LeaseStatus
from atoll.client.making import made_or_undone
from atoll.client.model import (
    ContainerStatus,
    DaemonInfo,
    Finding,
    FsckReport,
    Image,
    LoadedImage,
    PodState,
    PodStatus,
    Reloaded,
)
from atoll.client.places import config_path, socket_path
from atoll.client.pod import Pod, Pull
from atoll.client.pools import Pool, PooledPod, PoolStatus
from atoll.client.registries import Registries
from atoll.client.why import Why, explain

if TYPE_CHECKING:
    from atoll.client import manifest_run
    from atoll.client.manifest import Manifest

RUN_TIMEOUT_S = 240.0
FSCK_TIMEOUT_S = 600.0

S = TypeVar("S", PodStatus, ContainerStatus)


@asynccontextmanager
async def connect(
    socket: str | Path | None = None, *, start: bool = True, config: str | Path | None = None
) -> AsyncGenerator[Client]:
    """A connection to the daemon at `socket`, for `async with`.

    Where no daemon answers and `start` is true, a private one is started, with the file `config` if given (or
    ATOLL_CONFIG); it ends by itself when it has had no pod and no client for a minute. None is started at a
    socket that is the place of a daemon with another root, state or config file. Raises `Unavailable` where there is
    no daemon, with what to do; `PermissionDenied` for a user who may not ask or start one.

    `unix:///run/containerd/containerd.sock` and the like name the socket of any CRI runtime, where none is started:
    what CRI covers works there (`atoll.client.foreign`), all else raises `Unimplemented`.
    """
    foreign_path = foreign.path_of(socket)
    path = foreign_path or socket_path(socket, config)
    if start and foreign_path is None:
        await private.ensure_daemon(path, config_path(config))
    elif not private.answers(path):
        raise wire.gone(path, broke=False)
    connection = wire.Wire(path)
    try:
        await connection.ready()
        if foreign_path is not None:
            connection.peer = await foreign.name_of(connection)
        yield Client(connection)
    finally:
        await connection.aclose()


class Client:
    """One connection. Every call is bounded or can be cancelled; when the daemon goes each raises `Unavailable`."""

    def __init__(self, connection: wire.Wire) -> None:
        self._wire = connection
        self._images = Images(connection)
        self._registries = Registries(connection)

    @property
    def socket(self) -> Path:
        return self._wire.socket

    @property
    def registries(self) -> Registries:
        """What is asked about registries and archives."""
        return self._registries

    async def info(self) -> DaemonInfo:
        """What the daemon is."""
        return DaemonInfo.read(await self._wire.call(wire.INFO, own.InfoRequest(), timeout_s=CALL_TIMEOUT_S))

    async def run_pod(  # noqa: PLR0913 - one keyword an option
        self,
        name: str = "",
        *,
        network: request.Network = "default",
        ports: request.Ports = (),
        labels: Mapping[str, str] | None = None,
        annotations: Mapping[str, str] | None = None,
        hostname: str = "",
        share_pid: bool = False,
        cgroup_parent: str = "",
        sysctls: Mapping[str, str] | None = None,
        runtime: str = "",
        ttl: float | None = None,
        idle: float | None = None,
    ) -> Pod:
        """Run a pod: its namespaces, cgroup and network; it is ready when this returns.

        `ports` maps ports of the host to ports of the pod, or lists `Publish` values. `share_pid` gives its
        containers one PID namespace. `runtime` is a runtime handler of the config. Raises `AlreadyExists`
        for a name in use, `InvalidArgument` for what cannot be; nothing is left behind then, nor where the caller
        is cancelled.

        With `ttl`, seconds from now on, or `idle`, seconds without use, the pod has a lease: the daemon removes it when
        one of them is over (`Pod.lease`).
        """
        pod_config = request.pod_config(
            request.PodOptions(
                name=name,
                network=network,
                ports=ports,
                labels=labels or {},
                annotations={**(annotations or {}), **leasing.asking(ttl, idle)},
                hostname=hostname,
                share_pid=share_pid,
                cgroup_parent=cgroup_parent,
                sysctls=sysctls or {},
            )
        )
        if self._wire.peer:
            foreign.prepare_pod(self._wire, pod_config, network=network, leased=bool(ttl or idle))
        asked = cri.RunPodSandboxRequest(config=pod_config, runtime_handler=runtime)

        async def make() -> Pod:
            answer = await self._wire.call(wire.RUN_POD, asked, timeout_s=RUN_TIMEOUT_S)
            return Pod(self._wire, answer.pod_sandbox_id, pod_config.metadata.name, pod_config)

        return await made_or_undone(make(), Pod.remove, within=RUN_TIMEOUT_S + 5)

    async def run(
        self,
        spec: request.ContainerOptions,
        *,
        pod: request.PodOptions | None = None,
        runtime: str = "",
        ttl: float | None = None,
        idle: float | None = None,
        pull: Pull = "missing",
        ready: Sequence[str] = (),
        ready_within: float = pooling.READY_WITHIN_S,
    ) -> PooledPod:
        """Run a pod with one container of `spec` in one call: `run_pod` and `Pod.run` by fewer messages.

        The container, which runs when this returns, is `container` of the answer, and `start` says what the start
        took. With a command `ready` it returns once that has ended with 0 in the container, `DeadlineExceeded` where it
        has not `ready_within` seconds later. Raises what those raise; where anything fails, or the caller is
        cancelled, nothing is left.
        """
        wanted = pod or request.PodOptions()
        pod_config = request.pod_config(
            dataclasses.replace(wanted, annotations={**wanted.annotations, **leasing.asking(ttl, idle)})
        )
        whole = pooling.whole_spec(pod_config, request.container_config(spec), runtime)
        pooling.Ready(command=ready, within_s=ready_within).write(whole)
        return await pooling.start(self._wire, whole, pull)

    async def leases(self) -> tuple[LeaseStatus, ...]:
        """Every lease of a pod, those that ran out last too."""
        return await leasing.leases(self._wire)

    async def run_manifest(
        self, manifest: Manifest, *, pull: manifest_run.Pull | None = None, tell: manifest_run.Told | None = None
    ) -> Pod:
        """Run the pod of a Kubernetes manifest, as `parse_manifest` reads it; its containers run when this returns.

        `pull` takes the place of a plain pull, `tell` is told of init containers. Where anything fails nothing is left.
        """
        from atoll.client import manifest_run  # noqa: PLC0415 - most programs have no manifests

        return await manifest_run.run(self._wire, manifest, pull=pull, tell=tell)

    # --- what is there ---

    async def pods(
        self, *, state: PodState | None = None, labels: Mapping[str, str] | None = None
    ) -> tuple[PodStatus, ...]:
        """Every pod, the newest first, without addresses."""
        wanted = cri.PodSandboxFilter(label_selector=dict(labels or {}))
        if state is not None:
            wanted.state.state = cri.SANDBOX_READY if state is PodState.READY else cri.SANDBOX_NOTREADY
        answer = await self._wire.call(
            wire.LIST_PODS, cri.ListPodSandboxRequest(filter=wanted), timeout_s=CALL_TIMEOUT_S
        )
        ordered = sorted(answer.items, key=lambda item: -item.created_at)
        return tuple(PodStatus.listed(item) for item in ordered)

    async def containers(self, *, labels: Mapping[str, str] | None = None) -> tuple[ContainerStatus, ...]:
        """Every container of every pod, the newest first; without what only `Container.status` tells."""
        wanted = cri.ContainerFilter(label_selector=dict(labels or {}))
        answer = await self._wire.call(
            wire.LIST_CONTAINERS, cri.ListContainersRequest(filter=wanted), timeout_s=CALL_TIMEOUT_S
        )
        ordered = sorted(answer.containers, key=lambda item: -item.created_at)
        return tuple(ContainerStatus.listed(item) for item in ordered)

    # --- snapshots ---

    async def snapshots(self) -> tuple[SnapshotStatus, ...]:
        """Every snapshot of a container's files, the oldest first."""
        return await branching.every(self._wire)

    async def snapshot(self, name: str) -> Snapshot:
        """The snapshot of that name, ID or unique beginning of an ID; raises `NotFound`."""
        return await branching.find(self._wire, name)

    # --- pools ---

    async def pool(
        self,
        name: str,
        spec: request.ContainerOptions | None = None,
        *,
        size: int | None = None,
        pod: request.PodOptions | None = None,
        runtime: str = "",
        pull: Pull = "missing",
        ready: Sequence[str] = (),
        ready_within: float = pooling.READY_WITHIN_S,
    ) -> Pool:
        """The pool of that name, in which the daemon keeps `size` pods ready, each with a container of `spec` running.

        With a spec it is made, or changed: members of the new spec take the place of the others. Without one it is the
        pool that is there, `NotFound` where none is, and a `size` changes its size. `pod` says what its pods are.

        With a command `ready` nothing is handed out before that has ended with 0 in the container, where it is run
        until then; what is not ready within `ready_within` seconds is removed, and `PoolStatus.error` says why.
        """
        if spec is not None:
            made = pod or request.PodOptions()
            is_ready = pooling.Ready(command=ready, within_s=ready_within)
            return await pooling.put(
                self._wire, name, spec, size=size, pod=made, runtime=runtime, pull=pull, ready=is_ready
            )
        found = Pool(self._wire, name)
        await (found.status() if size is None else found.resize(size))
        return found

    async def pools(self) -> tuple[PoolStatus, ...]:
        """Every pool, by name."""
        return await pooling.every(self._wire)

    async def pod(self, name: str) -> Pod:
        """The pod of that ID, name or unique ID prefix; raises `NotFound`, or `InvalidArgument` for several."""
        found = pick(name, "pod", await self.pods())
        return Pod(self._wire, found.id, found.name, None)

    def pod_by_id(self, pod_id: str, name: str = "") -> Pod:
        """A pod whose full ID is known; asks nobody."""
        return Pod(self._wire, pod_id, name or pod_id, None)

    def container_by_id(self, status: ContainerStatus) -> Container:
        """The container of a status; asks nobody."""
        return Container(self._wire, status.id, status.name, status.pod_id)

    async def container(self, name: str) -> Container:
        """The container of that ID, name, `pod/name` or unique ID prefix, or the only one of the pod so named.

        Raises `NotFound`, or `InvalidArgument` where several fit.
        """
        pods, containers = await self.pods(), await self.containers()
        pod_name, slash, own_name = name.partition("/")
        if slash:
            pod = pick(pod_name, "pod", pods)
            found = pick(own_name, "container", [one for one in containers if one.pod_id == pod.id])
        else:
            found = self._alone(name, pods, containers) or pick(name, "container", containers)
        return Container(self._wire, found.id, found.name, found.pod_id)

    @staticmethod
    def _alone(name: str, pods: Iterable[PodStatus], containers: tuple[ContainerStatus, ...]) -> ContainerStatus | None:
        """The only container of the pod that `name` names, where no container has that name or ID itself.

        Raises `InvalidArgument` where the pod has several.
        """
        if any(name in (one.id, one.name) for one in containers):
            return None
        inside = [[one for one in containers if one.pod_id == pod.id] for pod in pods if name in (pod.id, pod.name)]
        if len(inside) != 1:
            return None
        if len(inside[0]) > 1:
            names = ", ".join(f"{name}/{one.name}" for one in inside[0][:4])
            raise errors.InvalidArgument(f"pod {name!r}: has {len(inside[0])} containers; name one of them, as {names}")
        return inside[0][0] if inside[0] else None

    async def stats(self, pod_ids: Sequence[str] = ()) -> tuple[PodUsage, ...]:
        """What pods and their containers use now, all of them or those of these IDs."""
        return await control.stats(self._wire, pod_ids)

    async def stats_stream(
        self, pod_ids: Sequence[str] = (), *, interval: float = 1.0
    ) -> AsyncGenerator[tuple[PodUsage, ...]]:
        """The same at once, and then every `interval` seconds until it is closed."""
        if not interval > 0:
            raise errors.InvalidArgument(f"interval {interval:g}: must be more than 0 seconds")
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            yield await control.stats(self._wire, pod_ids)
            due = max(due + interval, loop.time())
            await asyncio.sleep(due - loop.time())

    async def events(
        self, *, since: datetime | None = None, after: str = "", follow: bool = True
    ) -> AsyncGenerator[Event]:
        """What happens to pods and containers from now on; with `since` what is remembered from then on first.

        With `after`, an event's `cursor`, what is behind that event first: nothing is missed or told twice. Where the
        daemon does not remember all of it, as it was started again or 4,096 events have come since, the first one is of
        type `lost`. Without `follow` it ends with what is remembered.
        """
        if self._wire.peer and (since is not None or after or not follow):
            raise foreign.lacks(self._wire, "events of the past")
        if since is not None and after:
            raise errors.InvalidArgument("events: name a time or a cursor, not both")
        events = control.events(self._wire, since=since, after=after, follow=follow)
        async with contextlib.aclosing(foreign.events(self._wire) if self._wire.peer else events) as told:
            async for event in told:
                yield event

    # --- images ---

    async def images(self) -> tuple[Image, ...]:
        return await self._images.list()

    async def image(self, reference: str) -> Image:
        """The image of that name or ID; raises `NotFound`."""
        found = await self._images.get(reference)
        if found is None:
            raise errors.NotFound(f"image {reference!r}: is not here; `atoll pull {reference}` fetches it")
        return found

    async def pull(
        self, reference: str, on_progress: OnProgress | None = None, *, username: str = "", password: str = ""
    ) -> str:
        """Fetch an image from its registry; its ID. Cancelling stops the pull."""
        return await self._images.pull(reference, on_progress, username=username, password=password)

    async def load(self, path: str | Path, reference: str = "") -> tuple[LoadedImage, ...]:
        """Import the images of an archive or OCI layout; `reference` names one that has no name in it."""
        return await self._images.load(path, reference)

    async def remove_image(self, reference: str) -> None:
        """Take an image away. Idempotent."""
        await self._images.remove(reference)

    # --- the daemon's books ---

    async def why(self, pod: str) -> Why:
        """What the pod of that ID, beginning of an ID or name does and waits on now; one that is gone has its story."""
        return await explain(self._wire, pod)

    async def reload(self) -> Reloaded:
        """Have the daemon read its configuration file again; raises `InvalidArgument` where it refuses the file."""
        answer = await self._wire.call(wire.RELOAD, own.ReloadRequest(), timeout_s=CALL_TIMEOUT_S)
        return Reloaded(file=answer.file, applied=tuple(answer.applied), waiting=tuple(answer.waiting))

    async def fsck(self, *, repair: bool = False) -> FsckReport:
        """Compare the daemon's books with the kernel, the network state and the disk; put right what differs."""
        answer = await self._wire.call(wire.FSCK, own.FsckRequest(repair=repair), timeout_s=FSCK_TIMEOUT_S)
        findings = tuple(
            Finding(
                kind=one.kind,
                key=one.key,
                owner=one.owner,
                problem=one.problem,
                remedy=one.remedy,
                repaired=one.repaired,
                error=one.error,
            )
            for one in answer.findings
        )
        return FsckReport(findings=findings, checked=answer.checked)

    async def abandon(self, sandbox_id: str) -> tuple[str, ...]:
        """Give up a sandbox whose remote sandboxer is gone for good; what of the rest is still owed, in words.

        Raises `NotFound`, and `FailedPrecondition` where it can be removed as usual.
        """
        asked = own.AbandonRequest(sandbox_id=sandbox_id)
        return tuple((await self._wire.call(wire.ABANDON, asked, timeout_s=FSCK_TIMEOUT_S)).owed)


def pick(name: str, what: str, among: Iterable[S]) -> S:
    """The one that `name` means: by ID, by name, by unique ID prefix, in this order."""
    candidates = tuple(among)
    if not name:
        raise errors.InvalidArgument(f"{what}: its name is empty; `atoll ps -a` shows what there is")
    exact = [one for one in candidates if one.id == name] or [one for one in candidates if one.name == name]
    found = exact or [one for one in candidates if one.id.startswith(name)]
    if not found:
        raise errors.NotFound(f"{what} {name!r}: there is none; `atoll ps -a` shows what there is")
    if len(found) > 1:
        ids = ", ".join(one.id[:13] for one in found[:4])
        raise errors.InvalidArgument(f"{what} {name!r}: {len(found)} fit ({ids}); use more of the ID, or pod/container")
    return found[0]
