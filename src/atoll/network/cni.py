"""The CNI verbs on a config list, by executing plugins (CNI specification 0.3.0 to 1.1.0).

An attachment is recorded before its first plugin runs and forgotten after its DEL has succeeded, so a
DEL is never missed after a crash and never runs twice. Each plugin's time is bounded; clean-up after a
failed or cancelled ADD runs on a bound of its own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from atoll import errors
from atoll.concurrency import run_to_completion
from atoll.linux.userns import IDMap
from atoll.network import plugin as program
from atoll.network import result as results
from atoll.network import teardown
from atoll.network.cache import AttachmentCache, AttachmentKey, Entry
from atoll.network.config import VERSIONS, NetworkConfigList, PluginConfig
from atoll.network.model import JSON, PluginTiming, Result
from atoll.unreadable import UNREADABLE

PLUGIN_TIMEOUT_S = 60.0
"""Longest time one plugin may take for one verb."""
ROLLBACK_TIMEOUT_S = 30.0
"""Longest time for the DEL of a chain whose ADD failed or was cancelled."""
MESSAGE_LIMIT = 400
DROPPED_ENV = ("NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "WATCHDOG_PID", "WATCHDOG_USEC")
"""The service manager's variables, which belong to the daemon alone."""
TRY_AGAIN_LATER = (11, 50, 51)
"""Error codes of the specification that ask for patience: try again later, and the two of STATUS."""
WRONG_CONFIG = (1, 2, 7)
"""Error codes that only another configuration helps against."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attach:
    """What one ADD is told beside the configuration; `netns_path` is where the namespace is pinned.

    `users` are the ids of the user namespace that is to own it, where it is still to be made.
    """

    container_id: str
    netns_path: str
    ifname: str = "eth0"
    users: IDMap | None = None
    cni_args: tuple[tuple[str, str], ...] = ()
    capability_args: dict[str, JSON] = field(default_factory=dict[str, JSON])


@dataclass(frozen=True, slots=True, kw_only=True)
class Added:
    """What ADD has made and how long each plugin took."""

    result: Result
    timings: tuple[PluginTiming, ...]


class CNI:
    """Executes the plugins found in `bin_dirs` and keeps `cache` in step with what they did."""

    def __init__(
        self, *, bin_dirs: tuple[Path, ...], cache: AttachmentCache, timeout_s: float = PLUGIN_TIMEOUT_S, nice: int = 0
    ) -> None:
        """`nice` is added to the plugins' scheduling niceness; `timeout_s` bounds each plugin's run."""
        self.cache = cache
        self.bin_dirs = bin_dirs
        self._timeout_s = timeout_s
        self._nice = nice
        self._versions: dict[tuple[str, int], tuple[str, ...]] = {}

    def niced(self, nice: int) -> CNI:
        """The same with plugins run at niceness `nice`, for work nobody waits for."""
        return CNI(bin_dirs=self.bin_dirs, cache=self.cache, timeout_s=self._timeout_s, nice=nice)

    async def add(self, network: NetworkConfigList, attach: Attach) -> Added:
        """Join the pod to `network`; when it fails or is cancelled, DEL has been run for the chain.

        Raises `FailedPrecondition` for a plugin that is missing or refuses its configuration,
        `Unavailable` where it says to try again later, `DeadlineExceeded`, else `Unknown`, each naming
        the network, the plugin and the verb.
        """
        key = AttachmentKey(network=network.name, container_id=attach.container_id, ifname=attach.ifname)
        network = await self.negotiate(network)
        self.find_plugins(network, attach.capability_args)
        await self.delete(key, fallback=network)  # an earlier ADD of the same key must not be doubled (spec, ADD)
        entry = Entry(
            key=key,
            network=network,
            netns_path=attach.netns_path,
            cni_args=attach.cni_args,
            capability_args=attach.capability_args,
        )
        self.cache.store(entry)
        timings: list[PluginTiming] = []
        try:
            entry = await self._add_chain(entry, timings)
            self.cache.store(entry)
            return Added(result=self._parsed(entry), timings=tuple(timings))
        except BaseException as error:
            await self._roll_back(entry, error)
            raise

    async def _add_chain(self, entry: Entry, timings: list[PluginTiming]) -> Entry:
        for plugin in entry.network.plugins:
            if teardown.is_idle(plugin, entry.capability_args):
                continue
            said = await self._verb("ADD", entry, plugin, timings)
            if said is None:
                raise errors.Unknown(f"{_where(entry, plugin.type, 'ADD')}: succeeded but printed no result")
            said.setdefault("cniVersion", entry.network.cni_version)
            entry = replace(entry, result=said)
        return entry

    async def _roll_back(self, entry: Entry, cause: BaseException) -> None:
        try:
            await run_to_completion(self._delete(entry, drop=False, timings=[]), within=ROLLBACK_TIMEOUT_S)
        except errors.AtollError as error:
            cause.add_note(f"and the DEL that followed failed, so it is still due: {error}")

    async def delete(
        self,
        key: AttachmentKey,
        *,
        netns_path: str | None = None,
        drop: bool = False,
        fallback: NetworkConfigList | None = None,
        force: bool = False,
    ) -> tuple[PluginTiming, ...]:
        """Undo the ADD of `key` with the configuration it was made with; idempotent.

        `netns_path` replaces the recorded one ("" where the namespace is gone). With `drop` the caller
        has dropped the namespace, or does at once, and what dies with it is left to the kernel (see
        `teardown`). Every plugin gets its turn even if one fails; then the first failure is raised and
        the attachment stays recorded. Nothing recorded: nothing to do. `fallback` is the configuration for
        a record that cannot be read (`DataLoss` without it), and with `force` for one that is missing.
        """
        timings: list[PluginTiming] = []
        entry = self.entry(key, fallback)
        if entry is None and force and fallback is not None:
            entry = Entry(key=key, network=fallback, netns_path="")
        if entry is None:
            return ()
        if netns_path is not None:
            entry = replace(entry, netns_path=netns_path)
        await self._delete(entry, drop=drop, timings=timings)
        return tuple(timings)

    def entry(self, key: AttachmentKey, fallback: NetworkConfigList | None = None) -> Entry | None:
        """What is recorded of `key`; an unreadable record counts as made with `fallback` where that is given."""
        try:
            return self.cache.load(key)
        except errors.DataLoss:
            if fallback is None:
                raise
            return Entry(key=key, network=fallback, netns_path="")

    async def _delete(self, entry: Entry, *, drop: bool, timings: list[PluginTiming]) -> None:
        dropped = drop and teardown.is_droppable(entry.network, entry.capability_args)
        if drop:
            entry = replace(entry, netns_path="")
        failure: errors.AtollError | None = None
        for plugin in reversed(entry.network.plugins):
            if teardown.is_idle(plugin, entry.capability_args):
                continue
            executed = teardown.executed_for_del(plugin, dropped=dropped)
            if not executed:
                continue
            try:
                await self._verb("DEL", entry, plugin, timings, executed=executed)
            except errors.AtollError as error:
                failure = failure or error
        if failure is not None:
            raise failure
        self.cache.remove(entry.key)

    async def check(self, key: AttachmentKey) -> bool:
        """Ask every plugin whether the attachment still stands; an error of theirs is raised.

        False, and nothing is asked, where the list forbids CHECK or is older than spec 0.4.0.
        `NotFound` where `key` was never added.
        """
        entry = self.cache.load(key)
        if entry is None or entry.result is None:
            raise errors.NotFound(f"network {key.network}: no attachment of {key.container_id} on {key.ifname}")
        if entry.network.disable_check or not entry.network.speaks("0.4.0"):
            return False
        for plugin in entry.network.plugins:
            if not teardown.is_idle(plugin, entry.capability_args):
                await self._verb("CHECK", entry, plugin, [])
        return True

    async def gc(self, network: NetworkConfigList, valid: Collection[tuple[str, str]]) -> tuple[AttachmentKey, ...]:
        """Delete every attachment of `network` that is not in `valid` (container ID, ifname pairs).

        Recorded ones get a DEL; then plugins of spec 1.1 lists are told with GC what is valid. The
        deleted ones are returned. All are tried, then the first failure is raised.
        """
        failure: errors.AtollError | None = None
        deleted: list[AttachmentKey] = []
        for key in self.cache.recorded():
            if key.network == network.name and (key.container_id, key.ifname) not in valid:
                try:
                    await self.delete(key, fallback=network)
                    deleted.append(key)
                except errors.AtollError as error:
                    failure = failure or error
        network = await self.negotiate(network)
        if network.speaks("1.1.0") and not network.disable_gc:
            named: JSON = [{"containerID": container, "ifname": ifname} for container, ifname in sorted(valid)]
            for plugin in network.plugins:
                try:
                    await self._ask(
                        "GC", network, plugin, {"cni.dev/valid-attachments": named, "cni.dev/attachments": named}
                    )
                except errors.AtollError as error:
                    failure = failure or error
        if failure is not None:
            raise failure
        return tuple(deleted)

    async def status(self, network: NetworkConfigList) -> None:
        """Raise what keeps `network` from taking an ADD: a missing plugin, or what STATUS says (spec 1.1)."""
        self.find_plugins(network, {})
        network = await self.negotiate(network)
        if network.speaks("1.1.0"):
            for plugin in network.plugins:
                await self._ask("STATUS", network, plugin, {})

    async def version(self, plugin_type: str) -> tuple[str, ...]:
        """The spec versions that the plugin supports; asked once for each content of its file."""
        path = self.find(plugin_type)
        stamp = (str(path), path.stat().st_mtime_ns)
        if stamp not in self._versions:
            said = await self._execute(
                path,
                {"CNI_COMMAND": "VERSION"},
                {"cniVersion": VERSIONS[-1]},
                where=f"cni plugin {plugin_type}: VERSION",
            )
            listed = said.get("supportedVersions") if said else None
            try:
                self._versions[stamp] = tuple(msgspec.convert(listed, type=list[str]))
            except msgspec.ValidationError as error:
                raise errors.Unknown(f"cni plugin {plugin_type}: VERSION printed no list of versions") from error
        return self._versions[stamp]

    async def negotiate(self, network: NetworkConfigList) -> NetworkConfigList:
        """`network` at the highest of its versions that all its plugins support.

        Plugins are asked only where the list offers a choice (`cniVersions`).
        """
        if len(network.cni_versions) <= 1:
            return network
        common = set(network.cni_versions)
        for plugin in network.plugins:
            common &= set(await self.version(plugin.type))
        if not common:
            raise errors.FailedPrecondition(
                f"network {network.name}: its plugins share none of CNI {', '.join(network.cni_versions)}; "
                f"see {network.source}"
            )
        return network.at_version(max(common, key=VERSIONS.index))

    def find_plugins(self, network: NetworkConfigList, capability_args: Mapping[str, JSON]) -> None:
        """Raise `FailedPrecondition` for the first plugin that ADD would execute and that is not there."""
        for plugin in network.plugins:
            if not teardown.is_idle(plugin, capability_args):
                self.find(plugin.type, network)
                if plugin.ipam_type:
                    self.find(plugin.ipam_type, network)

    async def _verb(
        self, verb: str, entry: Entry, plugin: PluginConfig, timings: list[PluginTiming], *, executed: str = ""
    ) -> dict[str, JSON] | None:
        executed = executed or plugin.type
        extra: dict[str, JSON] = {}
        given = {name: value for name, value in entry.capability_args.items() if name in plugin.capabilities}
        if given:
            extra["runtimeConfig"] = given
        if entry.result is not None and (verb != "DEL" or entry.network.speaks("0.4.0")):
            extra["prevResult"] = entry.result
        env = {
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": entry.key.container_id,
            "CNI_NETNS": entry.netns_path,
            "CNI_IFNAME": entry.key.ifname,
            "CNI_ARGS": ";".join(f"{name}={value}" for name, value in entry.cni_args),
        }
        started = time.perf_counter()
        try:
            return await self._execute(
                self.find(executed, entry.network),
                env,
                _configuration(entry.network, plugin, extra),
                where=_where(entry, executed, verb),
            )
        finally:
            elapsed = time.perf_counter() - started
            timings.append(PluginTiming(network=entry.network.name, plugin=executed, verb=verb, duration_s=elapsed))

    async def _ask(
        self, verb: str, network: NetworkConfigList, plugin: PluginConfig, extra: dict[str, JSON]
    ) -> dict[str, JSON] | None:
        return await self._execute(
            self.find(plugin.type, network),
            {"CNI_COMMAND": verb},
            _configuration(network, plugin, extra),
            where=f"network {network.name}: cni plugin {plugin.type} {verb}",
        )

    async def _execute(
        self, path: Path, env: Mapping[str, str], configuration: dict[str, JSON], *, where: str
    ) -> dict[str, JSON] | None:
        own = {name: value for name, value in os.environ.items() if name not in DROPPED_ENV and name[:4] != "CNI_"}
        try:
            done = await program.run(
                path,
                env={**own, **env, "CNI_PATH": ":".join(map(str, self.bin_dirs))},
                stdin=msgspec.json.encode(configuration),
                timeout_s=self._timeout_s,
                nice=self._nice,
            )
        except errors.DeadlineExceeded as error:
            raise errors.DeadlineExceeded(f"{where}: {error}") from error
        return _answer(done, where)

    def find(self, plugin_type: str, network: NetworkConfigList | None = None) -> Path:
        """The plugin's file; `FailedPrecondition` naming the folders searched where there is none."""
        for folder in self.bin_dirs:
            path = folder / plugin_type
            if path.is_file() and os.access(path, os.X_OK):
                return path
        where = f"network {network.name} ({network.source}): " if network else ""
        raise errors.FailedPrecondition(
            f"{where}cni plugin {plugin_type} is not in {', '.join(map(str, self.bin_dirs)) or 'any folder'}; "
            "install it (Debian package containernetworking-plugins) or correct bin_dirs in [network]"
        )

    def _parsed(self, entry: Entry) -> Result:
        try:
            return results.parse(entry.result or {})
        except errors.InvalidArgument as error:
            raise errors.Unknown(f"{_where(entry, entry.network.plugins[-1].type, 'ADD')}: {error}") from error


def _configuration(network: NetworkConfigList, plugin: PluginConfig, extra: dict[str, JSON]) -> dict[str, JSON]:
    return {**plugin.raw, "name": network.name, "cniVersion": network.cni_version, **extra}


def _where(entry: Entry, plugin_type: str, verb: str) -> str:
    return f"network {entry.network.name}: cni plugin {plugin_type} {verb} for {entry.key.container_id}"


def _answer(done: program.PluginRun, where: str) -> dict[str, JSON] | None:
    """The JSON object that a plugin printed; its error, in one line, where it failed."""
    if done.overflowed:
        raise errors.Unknown(f"{where}: printed more than {program.OUTPUT_LIMIT_BYTES} bytes and was killed")
    try:
        said = msgspec.json.decode(done.stdout, type=dict[str, JSON]) if done.stdout.strip() else None
    except UNREADABLE as error:
        if done.returncode == 0:
            raise errors.Unknown(f"{where}: printed what is not JSON: {_line(done.stdout)}") from error
        said = None
    if done.returncode == 0:
        return said
    code = said.get("code") if said else None
    if said and isinstance(said.get("msg"), str):
        text = _line(f"{said['msg']}; {said['details']}" if said.get("details") else str(said["msg"]))
    else:
        text = _line(done.stderr or done.stdout) or "and said nothing"
    how = (
        f"killed by signal {-done.returncode}" if done.returncode < 0 else f"failed with code {code or done.returncode}"
    )
    kind: type[errors.AtollError] = errors.Unknown
    if code in TRY_AGAIN_LATER:
        kind = errors.Unavailable
    elif code in WRONG_CONFIG:
        kind = errors.FailedPrecondition
    raise kind(f"{where}: {how}: {text}")


def _line(text: bytes | str) -> str:
    """`text` as one printable, bounded line."""
    decoded = text[: 4 * MESSAGE_LIMIT].decode(errors="replace") if isinstance(text, bytes) else text
    clean = " ".join("".join(c if c.isprintable() else " " for c in decoded).split())
    return clean if len(clean) <= MESSAGE_LIMIT else clean[:MESSAGE_LIMIT] + "..."
