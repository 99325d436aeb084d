"""runtime.v1.RuntimeService: its RPCs, each from the part that has it."""

from __future__ import annotations

from atoll.api import cri_runtime_v1_pb2 as pb
from atoll.cri.about import About
from atoll.cri.containers import Containers
from atoll.cri.events import Events
from atoll.cri.execs import Execs
from atoll.cri.lists import Lists
from atoll.cri.metrics import Metrics
from atoll.cri.pods import Pods
from atoll.cri.stats import Statistics
from atoll.engine.engine import Engine

METHODS = tuple(pb.DESCRIPTOR.services_by_name["RuntimeService"].methods_by_name)


class RuntimeService:
    """The service on the engine. What no part has is answered Unimplemented by gRPC.

    A part is any object with methods named as the RPCs. Raises `TypeError` where two parts have the same one.
    """

    def __init__(self, engine: Engine, *more: object) -> None:
        parts = (
            About(engine),
            Pods(engine),
            Containers(engine),
            Lists(engine),
            Execs(engine),
            Statistics(engine),
            Metrics(engine),
            Events(engine),
            *more,
        )
        for name in METHODS:
            found = [part for part in parts if hasattr(part, name)]
            if len(found) > 1:
                raise TypeError(f"{name}: both of {type(found[0]).__name__} and {type(found[1]).__name__}")
            if found:
                setattr(self, name, getattr(found[0], name))
