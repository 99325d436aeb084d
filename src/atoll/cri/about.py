"""What the runtime is and whether it can run pods: Version, Status, RuntimeConfig."""

from __future__ import annotations

import msgspec

import atoll
from atoll.api import cri_runtime_v1_pb2 as pb
from atoll.engine.engine import Engine

API_VERSION = "0.1.0"
"""Of the kubelet's runtime API; the value every CRI runtime answers."""


class About:
    """RPCs about the runtime itself."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def Version(self, request: pb.VersionRequest, context: object) -> pb.VersionResponse:
        return pb.VersionResponse(
            version=API_VERSION,
            runtime_name="atoll",
            runtime_version=atoll.__version__,
            runtime_api_version="v1",
        )

    async def Status(self, request: pb.StatusRequest, context: object) -> pb.StatusResponse:
        parts = self._engine.parts
        network = await parts.network.status(probe=request.verbose)
        answer = pb.StatusResponse()
        problem = parts.problems.get(parts.config.default_runtime, "")
        answer.status.conditions.add(
            type="RuntimeReady", status=not problem, reason="OCIRuntimeNotReady" if problem else "", message=problem
        )
        answer.status.conditions.add(
            type="NetworkReady", status=network.ready, reason=network.reason, message=network.message
        )
        answer.features.supplemental_groups_policy = True
        config = parts.config
        for name in ("", *sorted(config.runtimes)):
            features = parts.features[name or config.default_runtime]
            answer.runtime_handlers.add(
                name=name,
                features=pb.RuntimeHandlerFeatures(
                    recursive_read_only_mounts=features.recursive_read_only, user_namespaces=not features.no_users
                ),
            )
        if request.verbose:
            answer.info["config"] = msgspec.json.encode(config).decode()
        return answer

    async def UpdateRuntimeConfig(
        self, request: pb.UpdateRuntimeConfigRequest, context: object
    ) -> pb.UpdateRuntimeConfigResponse:
        told = request.runtime_config.network_config.pod_cidr
        if told:
            await self._engine.parts.network.tell_pod_ranges(told)
        return pb.UpdateRuntimeConfigResponse()

    async def RuntimeConfig(self, request: pb.RuntimeConfigRequest, context: object) -> pb.RuntimeConfigResponse:
        config = self._engine.parts.config
        systemd = config.runtimes[config.default_runtime].systemd_cgroup
        return pb.RuntimeConfigResponse(
            linux=pb.LinuxRuntimeConfiguration(cgroup_driver=pb.SYSTEMD if systemd else pb.CGROUPFS)
        )
