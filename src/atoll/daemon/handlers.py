"""From each runtime handler of the configuration to the controllers that run its sandboxes."""

from __future__ import annotations

import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from atoll import errors
from atoll.api import containerd_runc_v1_pb2 as runc_pb2
from atoll.concurrency import Blocking
from atoll.config import Config, RuntimeHandler
from atoll.daemon.launching import LauncherByRuntime
from atoll.engine.drivers import is_foreign
from atoll.engine.hosts import KINDS, REMOTE
from atoll.engine.paths import NAMESPACE, Paths
from atoll.image.store import ImageStore
from atoll.linux.host import HostFacts
from atoll.linux.process import Spawner
from atoll.nri.legacy import LegacyPlugins
from atoll.oci.features import RuntimeFeatures
from atoll.runtime.binary import BinaryLauncher, program_of, resolve
from atoll.runtime.binary import Daemon as ShimDaemon
from atoll.runtime.forked import AtollLauncher
from atoll.runtime.shim import Launcher
from atoll.runtime.zygote import Zygote
from atoll.sandbox.controller import Controller, TypedAny
from atoll.sandboxers.pause import SpecFacts
from atoll.sandboxers.podsandbox import PodSandboxController
from atoll.sandboxers.remote import RemoteController
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

    def make(self, name: str, namespace: str) -> Controller | None:
        """The controller of a runtime handler or, for clients of the sandbox API, of a kind; None for no such name.

        Raises `InvalidArgument` for an address of a remote one that is none.
        """
        handler = self.config.runtimes.get(name)
        if handler is None:
            return self._of_kind(name, namespace) if name in KINDS else None
        if handler.sandboxer == REMOTE:
            sandboxer = handler.remote_sandboxer or name
            return RemoteController(handler.address, sandboxer=sandboxer, namespace=namespace)
        return self._local(handler, self._launcher(handler, namespace), namespace)

    def _of_kind(self, kind: str, namespace: str) -> Controller:
        """As the default handler where that says more than the caller, whose shim it is."""
        handler = self._standing_in(kind)
        launcher = LauncherByRuntime(self._own_launcher(handler, namespace), self.foreign_launcher())
        return self._local(handler, launcher, namespace)

    def _standing_in(self, kind: str) -> RuntimeHandler:
        default = self.config.runtimes[self.config.default_runtime]
        return RuntimeHandler(
            sandboxer=kind,
            oci_runtime=default.oci_runtime,
            systemd_cgroup=default.systemd_cgroup,
            pause_image=default.pause_image,
        )

    def _local(self, handler: RuntimeHandler, launcher: Launcher, namespace: str) -> Controller:
        if handler.sandboxer == "shim":
            return ShimController(
                launcher=launcher, bundles=self.paths.shims, namespace=namespace, blocking=self.blocking
            )
        features = self.runtimes[handler.oci_runtime].features
        return PodSandboxController(
            launcher=launcher,
            roots=ImageRoots(self.images, self.snapshotter, handler.pause_image),
            folder=self.paths.shims,
            facts=SpecFacts(host=self.host, features=features, namespace=namespace),
            blocking=self.blocking,
            plugins=self._plugins(),
        )

    def _plugins(self) -> LegacyPlugins | None:
        section = self.config.nri
        if not section.enable:
            return None
        return LegacyPlugins(
            Path(section.legacy_config),
            Path(section.legacy_plugin_path),
            timeout_s=section.plugin_request_timeout_s,
            blocking=self.blocking,
        )

    def _launcher(self, handler: RuntimeHandler, namespace: str) -> Launcher:
        return self.foreign_launcher() if is_foreign(handler.shim) else self._own_launcher(handler, namespace)

    def _own_launcher(self, handler: RuntimeHandler, namespace: str) -> AtollLauncher:
        choice = RuntimeChoice(
            binary=self.runtimes[handler.oci_runtime].binary,
            root=str(self.paths.oci(namespace)),
            systemd_cgroup=handler.systemd_cgroup,
        )
        return AtollLauncher(
            self.zygote, sockets=self.paths.sockets, runtime=choice, events_address="", blocking=self.blocking
        )

    def foreign_launcher(self) -> BinaryLauncher:
        """Drives the shims of anybody else."""
        daemon = ShimDaemon(grpc_address=str(self.config.socket_path), events_address="", binary=sys.executable)
        return BinaryLauncher(daemon, self.spawner, self.blocking)

    def features(self) -> dict[str, RuntimeFeatures]:
        """What containers of each handler can have: what its OCI runtime can do, and what our own shim does for it."""
        found: dict[str, RuntimeFeatures] = {}
        for name, handler in self.config.runtimes.items():
            features = self.runtimes[handler.oci_runtime].features
            problem = self._no_users(handler)
            found[name] = replace(features, id_mapped_mounts=not problem or features.id_mapped_mounts, no_users=problem)
        return found

    def _no_users(self, handler: RuntimeHandler) -> str:
        """Why pods of a handler can have no user namespaces of their own; empty where they can."""
        if handler.sandboxer == REMOTE or is_foreign(handler.shim):
            return "its containers' root file systems need ID-mapped mounts, which Atoll's own shim makes"
        if not self.host.user_namespaces:
            return "this host allows no user namespaces (user.max_user_namespaces)"
        for folder in (self.paths.bundles, *self.paths.bundles.parents):
            if not folder.stat().st_mode & stat.S_IXOTH:  # an OCI runtime is a user of the pod's when it mounts a root
                return f"users of a pod cannot pass {folder}; chmod o+x it"
        return self.snapshotter.no_users

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
        handlers = {kind: self._standing_in(kind) for kind in KINDS} | self.config.runtimes
        for name, handler in handlers.items():
            if handler.sandboxer == REMOTE:
                continue  # what it can run is the other side's business
            problem = self.runtimes[handler.oci_runtime].problem
            if not problem and is_foreign(handler.shim):
                try:
                    resolve(handler.shim, Path(sys.executable).parent)
                except errors.AtollError as error:
                    problem = str(error)
            if problem:
                found[name] = problem
        return found


class Controllers:
    """The controllers that were asked for so far, each made once; implements `Hosts`. End it with `aclose`."""

    def __init__(self, handlers: Handlers) -> None:
        self._handlers = handlers
        self._problems = handlers.problems()
        self._options = handlers.shim_options()
        self._made: dict[tuple[str, str], Controller] = {}

    def of_handlers(self) -> dict[str, Controller]:
        """Those of every runtime handler for CRI's own namespace, by name."""
        return {name: self.controller(name) for name in self._handlers.config.runtimes}

    def controller(self, name: str, namespace: str = NAMESPACE) -> Controller:
        made = self._made.get((name, namespace))
        if made is None:
            made = self._handlers.make(name, namespace)
            if made is None:
                raise errors.FailedPrecondition(
                    f"runtime handler {name!r}: is not configured any more, and there are sandboxes of it; put it "
                    "back; those of a remote sandboxer can be given up with `atoll fsck --abandon ID`"
                )
            self._made[name, namespace] = made
        return made

    def problem(self, name: str) -> str:
        return self._problems.get(name, "")

    def shim_options(self, name: str) -> TypedAny | None:
        return self._options.get(name)

    async def aclose(self) -> None:
        """Let go of every connection; the sandboxes live on."""
        for controller in self._made.values():
            await controller.aclose()
