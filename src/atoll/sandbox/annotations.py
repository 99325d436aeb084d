"""Annotations by which the daemon tells our shim where a pod's things are, and users ask for more than CRI has."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import structs

from atoll.sandbox.config import PodConfig

FILES = "io.atoll.sandbox.files"
"""In CreateSandbox: the folder of hostname, hosts, resolv.conf and shm."""

CGROUP = "io.atoll.sandbox.cgroup"
"""In CreateSandbox: the parent of the pod's cgroups, where its config names none."""

NO_NETWORK = "io.atoll.network/none"
"""On a pod; `true` gives a network namespace with nothing but loopback."""


def with_asked(config: PodConfig, given: Mapping[str, str]) -> PodConfig:
    """A pod's config with the annotations that its creation named besides; the daemon's own are none of the pod's."""
    asked = {key: value for key, value in given.items() if key not in (FILES, CGROUP)}
    return structs.replace(config, annotations={**config.annotations, **asked}) if asked else config
