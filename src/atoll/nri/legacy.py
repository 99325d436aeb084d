"""Plugins of version 0.1: a program executed for each create and delete of a sandbox, JSON in, JSON out.

    {"version": "0.1", "plugins": [{"type": "konfine", "conf": {...}}]}       the configuration, read each time

`<folder>/<type> invoke` gets a request on its standard input and answers on its standard output; each plugin is shown
the answers of those before it. Source: the types of NRI 0.1.0, and the pod-sandbox controller that calls them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from atoll import errors
from atoll.concurrency import Blocking
from atoll.network import plugin
from atoll.oci import spec
from atoll.unreadable import UNREADABLE

log = logging.getLogger(__name__)

VERSION = "0.1"
MAX_CONFIG_BYTES = 1 << 20
NOTHING = msgspec.Raw(b"null")


class _Plugin(msgspec.Struct, frozen=True):
    type: str
    conf: msgspec.Raw = NOTHING


class _Config(msgspec.Struct, frozen=True):
    version: str = VERSION
    plugins: tuple[_Plugin, ...] = ()


class _Spec(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    resources: spec.Resources | None = msgspec.field(default_factory=spec.Resources)
    namespaces: dict[str, str] = {}
    cgroups_path: str = ""
    annotations: dict[str, str] = {}


class _Result(msgspec.Struct, frozen=True, omit_defaults=True):
    plugin: str = ""
    version: str = ""
    error: str = ""
    metadata: dict[str, str] | None = None


class _Request(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    version: str
    state: str
    id: str
    pid: int = 0
    spec: _Spec | None = None
    sandbox: str = msgspec.field(default="", name="sandboxID")
    labels: dict[str, str] = {}
    conf: msgspec.Raw | None = None
    results: list[_Result] = []


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxTask:
    """The pause container of a sandbox, and what plugins are told of it; `spec` is its config.json."""

    id: str
    pid: int
    spec: bytes
    labels: Mapping[str, str]


class LegacyPlugins:
    """Those that a configuration file names; without the file there are none."""

    def __init__(self, config: Path, folder: Path, *, timeout_s: float, blocking: Blocking) -> None:
        self._config = config
        self._folder = folder
        self._timeout_s = timeout_s
        self._blocking = blocking

    async def invoke(self, state: Literal["create", "delete"], task: SandboxTask) -> None:
        """Call every plugin in order.

        Raises `FailedPrecondition` naming the plugin that fails, says that it failed, or answers with no answer;
        `DeadlineExceeded` for one that does not answer in time, which is killed; `InvalidArgument` for the file.
        """
        config = await self._blocking.run(_read, self._config)
        results: list[_Result] = []
        for one in config.plugins:
            request = _Request(
                version=config.version,
                state=state,
                id=task.id,
                pid=task.pid,
                spec=_spec(task.spec),
                sandbox=task.id,
                labels=dict(task.labels),
                conf=one.conf if bytes(one.conf) != b"null" else None,
                results=results,
            )
            results.append(await self._call(one.type, msgspec.json.encode(request)))

    async def _call(self, name: str, request: bytes) -> _Result:
        if "/" in name or name in ("", ".", ".."):
            raise errors.InvalidArgument(f"{self._config}: plugin type {name[:60]!r}: must be the name of a program")
        path = self._folder / name
        done = await plugin.run(
            path,
            env={"PATH": f"{os.environ.get('PATH', os.defpath)}:{self._folder}"},
            stdin=request,
            timeout_s=self._timeout_s,
            arguments=("invoke",),
        )
        if done.stderr:
            log.info("nri plugin %s: %s", name, done.stderr[:1000].decode(errors="replace").strip())
        try:
            result = msgspec.json.decode(done.stdout, type=_Result)
        except UNREADABLE as error:
            said = done.stdout[:200].decode(errors="replace").strip() or "nothing"
            raise errors.FailedPrecondition(
                f"nri plugin {name}: exit code {done.returncode}, answers with no result but {said!r}"
            ) from error
        if result.error:
            raise errors.FailedPrecondition(f"nri plugin {name}: {result.error}")
        return result


def _read(path: Path) -> _Config:
    try:
        with path.open("rb") as file:
            return msgspec.json.decode(file.read(MAX_CONFIG_BYTES), type=_Config)
    except FileNotFoundError:
        return _Config()
    except OSError as error:
        raise errors.InvalidArgument(f"{path}: cannot be read: {error.strerror}") from error
    except UNREADABLE as error:
        raise errors.InvalidArgument(f"{path}: {error}") from error


def _spec(document: bytes) -> _Spec:
    found = spec.decode(document)
    linux = found.linux or spec.Linux()
    return _Spec(
        resources=linux.resources or spec.Resources(),
        namespaces={one.type: one.path for one in linux.namespaces},
        cgroups_path=linux.cgroups_path,
        annotations=found.annotations,
    )
