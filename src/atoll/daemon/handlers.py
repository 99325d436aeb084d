"""From each runtime handler of the configuration to the controller that runs its pods."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from atoll import errors
from atoll.api import containerd_runc_v1_pb2 as runc_pb2
from atoll.concurrency import Blocking
from atoll.config import Config, RuntimeHandler
from atoll.engine.drivers import is_foreign
from atoll.engine.paths import NAMESPACE, Paths
from atoll.image.store import ImageStore
from atoll.linux.host import HostFacts
from atoll.linux.process import Spawner
from atoll.oci.features import RuntimeFeatures
from atoll.runtime.binary import BinaryLauncher, program_of, resolve
from atoll.runtime.binary import Daemon as ShimDaemon
from atoll.runtime.forked import AtollLauncher
from atoll.runtime.shim import Launcher
from atoll.runtime.zygote import Zygote
from atoll.sandbox.controller import TypedAny
from atoll.sandboxers.pause import SpecFacts
from atoll.sandboxers.podsandbox import PodSandboxController
from atoll.sandboxers.roots import ImageRoots
from atoll.sandboxers.shim import ShimController
from atoll.shim.request import RuntimeChoice
from atoll.snapshot.snapshotter import Snapshotter

RUNC_SHIM = "containerd-shim-runc-v2"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """The OCI runtime of a handler; `problem` says in one line why there is none."""

    binary: str = ""
    features: RuntimeFeatures = field(default_factory=lambda: RuntimeFeatures(name="", version=""))
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Handlers:
    """What controllers are made of. Each handler has one of its own, for its shim and OCI runtime are its own."""

    config: Config
    paths: Paths
    zygote: Zygote
    runtimes: Mapping[str, Chosen]
    """By the name that a handler calls its OCI runtime."""
    images: ImageStore
    snapshotter: Snapshotter
    host: HostFacts
    spawner: Spawner
    blocking: Blocking

    def controllers(self) -> dict[str, ShimController | PodSandboxController]:
        """One for each handler, by its name; raises `InvalidArgument` for a sandboxer that is not known."""
        return {name: self._controller(name, handler) for name, handler in self.config.runtimes.items()}

    def _controller(self, name: str, handler: RuntimeHandler) -> ShimController | PodSandboxController:
        launcher = self._launcher(handler)
        match handler.sandboxer:
            case "shim":
                return ShimController(
                    launcher=launcher, bundles=self.paths.shims, namespace=NAMESPACE, blocking=self.blocking
                )
            case "podsandbox":
                features = self.runtimes[handler.oci_runtime].features
                return PodSandboxController(
                    launcher=launcher,
                    roots=ImageRoots(self.images, self.snapshotter, handler.pause_image),
                    folder=self.paths.shims,
                    facts=SpecFacts(host=self.host, features=features, namespace=NAMESPACE),
                    blocking=self.blocking,
                )
            case _:
                raise errors.InvalidArgument(
                    f"runtime handler {name!r}: sandboxer {handler.sandboxer!r} is not known; shim and podsandbox are"
                )

    def _launcher(self, handler: RuntimeHandler) -> Launcher:
        if not is_foreign(handler.shim):
            choice = RuntimeChoice(
                binary=self.runtimes[handler.oci_runtime].binary,
                root=str(self.paths.state / "oci"),
                systemd_cgroup=handler.systemd_cgroup,
            )
            return AtollLauncher(
                self.zygote, sockets=self.paths.sockets, runtime=choice, events_address="", blocking=self.blocking
            )
        return self.foreign_launcher()

    def foreign_launcher(self) -> BinaryLauncher:
        """Drives the shims of anybody else."""
        daemon = ShimDaemon(grpc_address=str(self.config.socket_path), events_address="", binary=sys.executable)
        return BinaryLauncher(daemon, self.spawner, self.blocking)

    def shim_options(self) -> dict[str, TypedAny]:
        """What the shims of a handler have to be told of its OCI runtime: containerd's own shim, and no other."""
        return {
            name: self._runc_options(handler)
            for name, handler in self.config.runtimes.items()
            if program_of(handler.shim) == RUNC_SHIM
        }

    def _runc_options(self, handler: RuntimeHandler) -> TypedAny:
        options = runc_pb2.Options(
            binary_name=self.runtimes[handler.oci_runtime].binary,
            root=str(self.paths.state / "runc"),
            systemd_cgroup=handler.systemd_cgroup,
        )
        return TypedAny(type_url=options.DESCRIPTOR.full_name, value=options.SerializeToString())

    def problems(self) -> dict[str, str]:
        """Why a handler cannot run anything here, by its name: no OCI runtime, or no such shim."""
        found: dict[str, str] = {}
        for name, handler in self.config.runtimes.items():
            problem = self.runtimes[handler.oci_runtime].problem
            if not problem and is_foreign(handler.shim):
                try:
                    resolve(handler.shim, Path(sys.executable).parent)
                except errors.AtollError as error:
                    problem = str(error)
            if problem:
                found[name] = problem
        return found
