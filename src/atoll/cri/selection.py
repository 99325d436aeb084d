"""Pods and containers by the IDs, prefixes and filters of requests."""

from __future__ import annotations

from atoll import errors
from atoll.container.store import Container
from atoll.engine.engine import Engine
from atoll.engine.pod import Pod


def find(engine: Engine, container_id: str) -> tuple[Pod, Container]:
    """A container by its ID or a unique prefix, and its pod. Raises `NotFound` where either is not there."""
    container = engine.containers.get(container_id)
    return engine.pods.get(container.sandbox_id), container


def selected(engine: Engine, container_id: str, pod_id: str) -> tuple[Container, ...]:
    """By IDs or unique prefixes; what names nothing selects nothing."""
    try:
        pod = engine.pods.get(pod_id).id if pod_id else None
        if not container_id:
            return engine.containers.list(pod)
        container = engine.containers.get(container_id)
    except (errors.NotFound, errors.InvalidArgument):
        return ()
    return (container,) if pod in (None, container.sandbox_id) else ()
