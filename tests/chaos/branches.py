"""Lives of what is made beside pods: branches of a container's files, and pools of ready pods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import grpc

from atoll.api import atoll_branches_v1_pb2 as branches
from atoll.api import atoll_pools_v1_pb2 as pools
from atoll.api import cri_runtime_v1_pb2 as pb
from atoll.engine.pools import LABEL
from tests.chaos.life import SCRIPT, STOP_WITHIN_S, WITHIN_S, PodLife
from tests.integration.cri_client import Service
from tests.integration.leaks import wait_until

CODE = grpc.StatusCode
KEPT = "/kept"


@dataclass(slots=True)
class BranchLife(PodLife):
    """A snapshot while the container runs, a fork of it, the way back to it, and a snapshot of what has ended."""

    ABOUT: ClassVar[str] = (
        "snapshots of a container that runs and of one that ended, a fork, a rollback, a diff, an image"
    )
    CAUSES: ClassVar[tuple[str, ...]] = ()

    def config(self) -> pb.PodSandboxConfig:
        return self.cri.pod_config(self.name)

    @property
    def _service(self) -> Service:
        return Service(self.cri.runtime.channel, branches.DESCRIPTOR.services_by_name["Branches"])

    def use(self) -> None:
        self.tried(self._write)
        self.tried(lambda: self._take("first", self.require_container))
        self.tried(self._exec)  # which a container that stands still does not answer
        self.tried(self._fork)
        self.tried(self._diff)
        self.tried(self._commit)
        self.tried(self._roll_back)
        self.tried(self._begin)
        self.tried(lambda: self._require_kept(self.container))

    def _write(self) -> None:
        self.require_container()
        self.cri.sh(self.container, f"echo kept >{KEPT}")

    def _require_kept(self, container: str) -> None:
        self.require_pod()
        outcome = self.cri.exec(container, "/bin/cat", KEPT)
        if outcome.stdout != b"kept\n":
            self.require_container()  # its shim may have been killed under the command
        assert (outcome.code, outcome.stdout) == (0, b"kept\n"), outcome

    def _taken(self) -> list[str]:
        """The names of this life's snapshots, the newest first."""
        found = self._service.call("List", branches.ListRequest(), branches.ListResponse).snapshots
        return [one.name for one in reversed(found) if one.name.startswith(f"{self.name}-")]

    def _take(self, what: str, require: object = None) -> None:
        if callable(require):
            require()
        name = f"{self.name}-{what}"
        if name not in self._taken():
            request = branches.TakeRequest(container_id=self.container, name=name)
            self._service.call("Take", request, branches.TakeResponse)

    def _others(self) -> list[pb.Container]:
        return [one for one in self.cri.list(pod_sandbox_id=self.pod) if one.id != self.container]

    def _fork(self) -> None:
        self.require_container()
        for left in self._others():  # of a fork that was not answered
            self.cri.remove(left.id)
        request = branches.ForkRequest(snapshot=f"{self.name}-first", count=1)
        [made] = self._service.call("Fork", request, branches.ForkResponse).containers
        self._require_kept(made.id)
        self.cri.remove(made.id)

    def _diff(self) -> None:
        self.require_container()
        request = branches.DiffRequest(container_id=self.container)
        found = [change.path for answer in self._service.stream("Diff", request) for change in answer.changes]
        assert KEPT.encode() in found, f"the diff has {found}"

    def _commit(self) -> None:
        self.require_container()
        if not self._is_committed():  # another would leave the first one without a name
            request = branches.CommitRequest(container_id=self.container, reference=self._reference)
            self._service.call("Commit", request, branches.CommitResponse)
            assert self._is_committed()

    def _is_committed(self) -> bool:
        return self._reference in [name for image in self.cri.list_images() for name in image.repo_tags]

    @property
    def _reference(self) -> str:
        return f"docker.io/chaos/{self.name}:1"

    def _roll_back(self) -> None:
        """The old container is there until the new one runs, so what was not answered is told by what there is."""
        self.require_pod()
        for other in self._others():
            if other.state == pb.CONTAINER_RUNNING and self._has_gone():
                self.container = other.id
                return
            self.cri.remove(other.id)
        self.require_container()
        request = branches.RollbackRequest(
            container_id=self.container, snapshot=f"{self.name}-first", timeout_s=STOP_WITHIN_S
        )
        self.container = self._service.call("Rollback", request, branches.Container).id

    def _has_gone(self) -> bool:
        return not any(one.state == pb.CONTAINER_RUNNING for one in self.cri.list(id=self.container))

    def _remove_container(self) -> None:
        if self.cri.list(id=self.container):
            self._take("last")
        PodLife._remove_container(self)

    def remove(self) -> None:
        PodLife.remove(self)
        self.tried(self._remove_snapshots)
        image = pb.RemoveImageRequest(image=pb.ImageSpec(image=self._reference))
        self.tried(lambda: self.cri.images.call("RemoveImage", image, pb.RemoveImageResponse))

    def _remove_snapshots(self) -> None:
        for name in self._taken():
            self._service.call("Remove", branches.RemoveRequest(snapshot=name), branches.RemoveResponse)


@dataclass(slots=True)
class PoolLife(PodLife):
    """A pod that a pool has kept ready; what was handed out and not answered is found by its label."""

    ABOUT: ClassVar[str] = "a pod that a pool has kept ready"
    CAUSES: ClassVar[tuple[str, ...]] = ()

    def lead_once(self) -> None:
        self.tried(self._put)
        self.tried(self._is_ready)
        self.tried(self._acquire)
        self.tried(lambda: self._service.call("Delete", pools.DeleteRequest(name=self.name), pools.DeleteResponse))
        self.use()
        self.tried(self._stop)
        self.remove()

    @property
    def _service(self) -> Service:
        return Service(self.cri.runtime.channel, pools.DESCRIPTOR.services_by_name["Pools"])

    def _put(self) -> None:
        spec = pools.Spec(
            pod=self.cri.pod_config(self.name),
            container=self.cri.container_config(
                "/bin/sh", "-c", SCRIPT.replace("echo", "touch /ready; echo"), name="main"
            ),
            ready=["/bin/sh", "-c", "test -e /ready"],
        )
        self._service.call("Put", pools.PutRequest(name=self.name, spec=spec, size=1), pools.Pool)

    def _is_ready(self) -> None:
        def ready() -> bool:
            return self._service.call("Get", pools.GetRequest(name=self.name), pools.Pool).ready > 0

        assert wait_until(ready, within=WITHIN_S), f"{self.name}: no member of the pool is ready"

    def _acquire(self) -> None:
        answer = self._service.call("Acquire", pools.AcquireRequest(name=self.name), pools.AcquireResponse)
        self.pod, self.container = answer.pod_id, answer.container_id

    def remove(self) -> None:
        self.tried(lambda: self._service.call("Delete", pools.DeleteRequest(name=self.name), pools.DeleteResponse))
        for pod in self.tried(lambda: self.cri.list_pods(label_selector={LABEL: self.name})):
            self.tried(lambda found=pod.id: self.cri.remove_pod(found))
        assert not self.tried(lambda: self.cri.list_pods(label_selector={LABEL: self.name}))
