"""A pod as an object."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Literal, Self

from atoll import errors
from atoll.api import atoll_v1_pb2 as own
from atoll.api import cri_runtime_v1_pb2 as cri
from atoll.client import foreign, request, wire
from atoll.client.container import CALL_TIMEOUT_S, Container
from atoll.client.forwarding import Forward, Listener, OnError
from atoll.client.images import Images
from atoll.client.leases import Lease
from atoll.client.making import made_or_undone
from atoll.client.model import ContainerStatus, Phase, PodStatus
from atoll.concurrency import run_to_completion

Pull = Literal["missing", "always", "never"]

STOP_TIMEOUT_S = 180.0
CREATE_TIMEOUT_S = 240.0
REMOVE_WITHIN_S = 240.0


class Pod:
    """A pod, by its ID; an async context manager that removes the pod at its end.

    It holds no state of its own; each question asks the daemon.
    """

    def __init__(self, connection: wire.Wire, pod_id: str, name: str, config: cri.PodSandboxConfig | None) -> None:
        self._wire = connection
        self._config = config
        self.id = pod_id
        self.name = name

    def __repr__(self) -> str:
        return f"<Pod {self.name} {self.id[:13]}>"

    @property
    def lease(self) -> Lease:
        """How long it may live: renew it, or look at what is left."""
        return Lease(self._wire, self.id)

    async def status(self, *, verbose: bool = False) -> PodStatus:
        """What is known now, its addresses too; `verbose` adds the runtime's own `info` texts. Raises `NotFound`."""
        return PodStatus.read(await self._status(verbose))

    async def _status(self, verbose: bool) -> cri.PodSandboxStatusResponse:
        asked = cri.PodSandboxStatusRequest(pod_sandbox_id=self.id, verbose=verbose)
        return await self._wire.call(wire.POD_STATUS, asked, timeout_s=CALL_TIMEOUT_S)

    async def run(  # noqa: PLR0913 - one keyword an option
        self,
        image: str,
        command: Sequence[str] = (),
        *,
        name: str = "",
        entrypoint: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        user: str = "",
        mounts: Sequence[request.Mount] = (),
        cpus: float | None = None,
        memory: int | str | None = None,
        pids: int | None = None,
        tty: bool = False,
        stdin: bool = False,
        read_only: bool = False,
        labels: Mapping[str, str] | None = None,
        pull: Pull = "missing",
    ) -> Container:
        """Make a container in this pod and start it; it runs when this returns.

        `command` takes the place of the image's own, `entrypoint` that of its entrypoint. `cpus` is in CPUs,
        `memory` a number of bytes or a text like `64MiB`, `pids` a number of processes and threads. Where anything
        fails nothing is left behind. Raises `CommandFailed` where the command cannot be executed, `NotFound` for an
        image that is nowhere.
        """
        options = request.ContainerOptions(
            image=image,
            command=command,
            entrypoint=entrypoint,
            name=name,
            env=env or {},
            cwd=cwd,
            user=user,
            mounts=mounts,
            cpus=cpus,
            memory=memory,
            pids=pids,
            tty=tty,
            stdin=stdin,
            read_only=read_only,
            labels=labels or {},
        )
        container = await self.create(options, pull=pull)
        try:
            await container.start()
        except BaseException:
            await run_to_completion(container.remove(), within=REMOVE_WITHIN_S)
            raise
        return container

    async def create(self, options: request.ContainerOptions, *, pull: Pull = "missing") -> Container:
        """Make a container without starting it; see `run`."""
        if pull not in ("missing", "always", "never"):
            raise errors.InvalidArgument(f"pull {pull!r}: must be missing, always or never")
        config = request.container_config(options)
        config.linux.security_context.namespace_options.CopyFrom(await self._namespaces())
        images = Images(self._wire)
        if pull == "always":
            await images.pull(options.image)
        try:
            return await self._create(config)
        except errors.NotFound:
            # NOT_FOUND is also what a pod that is gone gives, and a pull would not help that.
            if pull != "missing" or await images.has(options.image):
                raise
            await images.pull(options.image)
            return await self._create(config)

    async def _create(self, config: cri.ContainerConfig) -> Container:
        asked = cri.CreateContainerRequest(pod_sandbox_id=self.id, config=config, sandbox_config=self._config)

        async def make() -> Container:
            answer = await self._wire.call(wire.CREATE_CONTAINER, asked, timeout_s=CREATE_TIMEOUT_S)
            return Container(self._wire, answer.container_id, config.metadata.name, self.id)

        return await made_or_undone(make(), Container.remove, within=CREATE_TIMEOUT_S + 5)

    async def _namespaces(self) -> cri.NamespaceOption:
        if self._config is not None:
            return self._config.linux.security_context.namespace_options
        return (await self._status(verbose=False)).status.linux.namespaces.options

    async def containers(self) -> tuple[ContainerStatus, ...]:
        """The pod's containers, the oldest first."""
        asked = cri.ListContainersRequest(filter=cri.ContainerFilter(pod_sandbox_id=self.id))
        answer = await self._wire.call(wire.LIST_CONTAINERS, asked, timeout_s=CALL_TIMEOUT_S)
        ordered = sorted(answer.containers, key=lambda item: item.created_at)
        return tuple(ContainerStatus.listed(item) for item in ordered)

    async def details(self, *, verbose: bool = False) -> tuple[PodStatus, tuple[ContainerStatus, ...]]:
        """The pod and the full status of each of its containers, the oldest first; `verbose` adds `info` texts."""
        answer = await self._status(verbose)
        inside: list[ContainerStatus] = []
        if answer.containers_statuses and not verbose:
            told = sorted(answer.containers_statuses, key=lambda status: status.created_at)
            inside = [ContainerStatus.read(cri.ContainerStatusResponse(status=one), self.id) for one in told]
        else:
            for one in await self.containers():
                with contextlib.suppress(errors.NotFound):
                    container = Container(self._wire, one.id, one.name, self.id)
                    inside.append(await container.status(verbose=verbose))
        return PodStatus.read(answer), tuple(inside)

    def forward(self, port: int) -> Forward:
        """A connection to a port on the pod's localhost: `async with pod.forward(80) as (reader, writer)`."""
        return Forward(self._wire, self.id, port)

    def listen(
        self, port: int, *, host: str = "127.0.0.1", local_port: int = 0, on_error: OnError | None = None
    ) -> Listener:
        """A port of this host that leads to the pod's: `async with pod.listen(80) as listener`, then `listener.port`.

        One is made up where `local_port` is 0. `on_error` is told why a connection failed; the others go on.
        """
        return Listener(self._wire, self.id, port, host, local_port, on_error)

    async def phases(self) -> tuple[Phase, ...]:
        """Every step of the operations on this pod and its containers: how long, and what it waited on."""
        answer = await self._wire.call(wire.PHASES, own.PhasesRequest(pod_id=self.id), timeout_s=CALL_TIMEOUT_S)
        return tuple(Phase.read(phase) for phase in answer.phases)

    async def stop(self) -> None:
        """End all its containers at once and free its network; its logs stay. Idempotent."""
        asked = cri.StopPodSandboxRequest(pod_sandbox_id=self.id)
        await self._wire.call(wire.STOP_POD, asked, timeout_s=STOP_TIMEOUT_S)

    async def remove(self) -> None:
        """Stop it and take it away with its containers and logs. Idempotent."""
        await self.stop()
        asked = cri.RemovePodSandboxRequest(pod_sandbox_id=self.id)
        await self._wire.call(wire.REMOVE_POD, asked, timeout_s=STOP_TIMEOUT_S)
        if self._wire.peer:
            foreign.forget_pod(self._config)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await run_to_completion(self.remove(), within=REMOVE_WITHIN_S)
