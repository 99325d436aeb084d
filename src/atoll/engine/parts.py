"""What the engine works with; made by the daemon, passed in, never looked up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from atoll.concurrency import Blocking, TaskOwner
from atoll.config import Config
from atoll.config.changes import Live
from atoll.container.store import ContainerStore
from atoll.database import Database
from atoll.engine.drivers import Drivers
from atoll.engine.events import EventBus
from atoll.engine.hosted import HostedStore
from atoll.engine.hosts import Hosts
from atoll.engine.lease_store import LeaseStore
from atoll.engine.orphans import Orphans
from atoll.engine.paths import Paths
from atoll.engine.phases import Stories
from atoll.engine.rest import Rest
from atoll.engine.topics import Topics
from atoll.engine.uses import Uses
from atoll.image.store import ImageStore
from atoll.ledger.ledger import Ledger
from atoll.linux.cgroup import expedite_attach
from atoll.linux.host import HostFacts
from atoll.network.service import Network
from atoll.oci.features import RuntimeFeatures
from atoll.sandbox.controller import Controller, TypedAny
from atoll.sandbox.store import SandboxStore
from atoll.snapshot.snapshotter import Snapshotter

if TYPE_CHECKING:  # it looks at pods, which are made of parts
    from atoll.engine.nri import Nri


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    live: Live
    paths: Paths
    db: Database
    ledger: Ledger
    sandboxes: SandboxStore
    hosted: HostedStore
    containers: ContainerStore
    leases: LeaseStore
    images: ImageStore
    snapshotter: Snapshotter
    network: Network
    controllers: Mapping[str, Controller]
    """Of the pods of CRI, by the names of their runtime handlers."""
    hosts: Hosts
    """The same and more, for any containerd namespace."""
    features: Mapping[str, RuntimeFeatures]
    """What the OCI runtime of each runtime handler can do."""
    problems: Mapping[str, str]
    """Why a runtime handler cannot run anything here, where it cannot."""
    shim_options: Mapping[str, TypedAny]
    """What the shims of a runtime handler are told, where they have to be told anything."""
    drivers: Drivers
    orphans: Orphans
    nri: Nri
    host: HostFacts
    blocking: Blocking
    owner: TaskOwner
    events: EventBus = field(default_factory=EventBus)
    topics: Topics = field(default_factory=Topics)
    at_rest: Rest = field(default_factory=Rest)
    stories: Stories = field(default_factory=Stories)
    uses: Uses = field(default_factory=Uses)

    def expedite(self) -> None:
        """Pay, beside an OCI runtime that starts, for the grace period that its move into a cgroup would wait for."""
        self.owner.spawn(self.blocking.run(expedite_attach, self.host.hierarchies), name="expedite")

    @property
    def config(self) -> Config:
        """The configuration in force: ask each time, for a reload replaces it."""
        return self.live.config

    @property
    def cgroup_parent(self) -> str:
        """The cgroup of this daemon's pods, where they bring none."""
        return f"{self.config.cgroup_parent}/{self.paths.instance}"
