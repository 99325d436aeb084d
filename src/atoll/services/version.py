"""containerd.services.version.v1.Version."""

from __future__ import annotations

from google.protobuf.empty_pb2 import Empty

import atoll
from atoll.api import containerd_services_version_v1_pb2 as pb


class VersionService:
    async def Version(self, request: Empty, context: object) -> pb.VersionResponse:
        """Ours, not containerd's, and the revision says whose."""
        return pb.VersionResponse(version=atoll.__version__, revision="atoll")
