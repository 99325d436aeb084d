"""Who runs the sandboxes that a name stands for.

A `sandboxer` of the sandbox API is the name of a runtime handler, which then says what a sandbox is made of whatever
the caller's record names; or a kind of sandboxer, `shim` or `podsandbox`, which honours the record's runtime.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from atoll import errors
from atoll.config import Config
from atoll.engine.drivers import ATOLL_SHIM
from atoll.engine.paths import NAMESPACE
from atoll.sandbox.controller import Controller, Runtime, TypedAny

KINDS = ("shim", "podsandbox")
REMOTE = "remote"


class Hosts(Protocol):
    """The controllers of this daemon: one for each name and containerd namespace, made when first asked for."""

    def controller(self, name: str, namespace: str = NAMESPACE) -> Controller:
        """Raises `FailedPrecondition` for a name that is not configured any more."""
        ...

    def problem(self, name: str) -> str:
        """Why the handler of that name cannot run anything here; empty where it can."""
        ...

    def shim_options(self, name: str) -> TypedAny | None:
        """What the shims of a handler have to be told."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """`name` is a runtime handler's or a kind's, `kind` what its controller is, `runtime` what that is told."""

    name: str
    kind: str
    runtime: Runtime

    @property
    def is_remote(self) -> bool:
        """Whether all of its sandboxes is kept by somebody else."""
        return self.kind == REMOTE


def known(config: Config) -> tuple[str, ...]:
    """The names that a caller may use, handlers first."""
    return (*config.runtimes, *(kind for kind in KINDS if kind not in config.runtimes))


def choose(config: Config, hosts: Hosts, sandboxer: str, asked: Runtime) -> Host:
    """Who runs a sandbox of `sandboxer`; raises `NotFound`, and `FailedPrecondition` for one that cannot run here."""
    handler = config.runtimes.get(sandboxer)
    if handler is None and sandboxer not in KINDS:
        raise unknown(config, sandboxer)
    if problem := hosts.problem(sandboxer):
        raise errors.FailedPrecondition(f"sandboxer {sandboxer!r}: {problem}")
    if handler is None:
        return Host(
            name=sandboxer, kind=sandboxer, runtime=Runtime(name=asked.name or ATOLL_SHIM, options=asked.options)
        )
    if handler.sandboxer == REMOTE:
        runtime = Runtime(name=asked.name or handler.shim, options=asked.options)
        return Host(name=sandboxer, kind=REMOTE, runtime=runtime)
    runtime = Runtime(name=handler.shim, options=hosts.shim_options(sandboxer))
    return Host(name=sandboxer, kind=handler.sandboxer, runtime=runtime)


def unknown(config: Config, sandboxer: str) -> errors.NotFound:
    """The error for a name that stands for nobody."""
    return errors.NotFound(f"sandboxer {sandboxer[:80]!r}: is not known; known are {', '.join(known(config))}")
