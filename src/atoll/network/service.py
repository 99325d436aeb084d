"""`Network`: what the engine asks for a pod's network.

Every operation is idempotent and takes its names from the caller: the CNI container ID is the sandbox ID, the
pin's path is the request's, unless a pooled namespace is handed out; then the returned attachment names both.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from atoll import errors
from atoll.concurrency import Blocking, TaskOwner
from atoll.linux import netns
from atoll.network import joining, pod_cidr, ports, teardown
from atoll.network.bandwidth import from_annotations
from atoll.network.cache import AttachmentCache, AttachmentKey
from atoll.network.cni import CNI, PLUGIN_TIMEOUT_S, Attach
from atoll.network.config import ConfigFolder, NetworkConfigList
from atoll.network.default import DEFAULT_SUBNET, PLUGINS, DefaultNetwork, bridge_name, can_masquerade, missing_on_host
from atoll.network.joining import Joiner
from atoll.network.leftover import end_plugins
from atoll.network.masquerade import Masquerade
from atoll.network.model import (
    CONTAINER_ID,
    JSON,
    UNLIMITED_BURST_BITS,
    Attachment,
    AttachRequest,
    Dns,
    NetworkStatus,
    PluginTiming,
)
from atoll.network.pool import NetnsPool, PoolStats
from atoll.network.ports import HostPorts

log = logging.getLogger(__name__)

NOT_READY = "NetworkPluginNotReady"
POOL_NICE = 10
"""Niceness of the plugins that fill the pool."""
MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSettings:
    """Where the network of one daemon lives; `root` is durable, `state` volatile.

    `default_network` is whether a bridge network is made where `conf_dir` has no configuration.
    `conf_template` is filled into `conf_dir` when the ranges of the pods are told (see `pod_cidr`).
    `masquerade_by_range` is whether Atoll masquerades for plugins with `ipMasq` (see `masquerade`).
    `pool_networks` names the networks marked fit for the pool; empty: the default network alone.
    """

    root: Path
    state: Path
    conf_dir: Path = Path("/etc/cni/net.d")
    conf_template: Path | None = None
    bin_dirs: tuple[Path, ...] = (Path("/opt/cni/bin"), Path("/usr/lib/cni"))
    max_conf_num: int = 1
    default_network: bool = True
    default_subnet: str = DEFAULT_SUBNET
    default_bridge: str = ""
    masquerade_by_range: bool = True
    pool_size: int = 0
    pool_networks: frozenset[str] = frozenset()
    plugin_timeout_s: float = PLUGIN_TIMEOUT_S
    ip_preference: str = "ipv4"


class Network:
    """Attaches pods to the networks of the configuration folder, or to the default network."""

    def __init__(self, settings: NetworkSettings, *, owner: TaskOwner, blocking: Blocking) -> None:
        """`owner` runs the pool's refilling; `blocking` the calls that can take a millisecond."""
        self.settings = settings
        self.netns_folder = settings.state / "netns"
        self.cni = CNI(
            bin_dirs=settings.bin_dirs,
            cache=AttachmentCache(settings.root / "network" / "attachments"),
            timeout_s=settings.plugin_timeout_s,
        )
        label = settings.default_bridge or bridge_name(settings.root)
        self._masquerade = Masquerade(label, settings.root)
        self.default = DefaultNetwork(
            root=settings.root,
            state=settings.state,
            masquerade=self._masquerade,
            subnet=settings.default_subnet,
            bridge=label,
        )
        self._configured = ConfigFolder(settings.conf_dir, limit=settings.max_conf_num)
        self._blocking = blocking
        self._ports = HostPorts()
        self._active: set[str] = set()
        self._collecting = asyncio.Lock()
        self._joiner = Joiner(cni=self.cni, blocking=blocking, ip_preference=settings.ip_preference)
        self._pool = NetnsPool(
            folder=settings.root / "network" / "pool",
            netns_folder=self.netns_folder,
            joiner=Joiner(cni=self.cni.niced(POOL_NICE), blocking=blocking, ip_preference=settings.ip_preference),
            networks=self._pooled_networks,
            size=settings.pool_size,
            owner=owner,
            blocking=blocking,
            collecting=self._collecting,
        )

    async def start(self, attachments: Iterable[Attachment], live: Collection[str]) -> None:
        """Take over what an earlier daemon left: the ports of its `attachments`, the pool's namespaces.

        Plugins that it was executing when it was killed are ended first, so that nothing is attached any more.

        `live` are the IDs of all sandboxes known; a pooled namespace taken by any other is released.
        """
        for pid in await self._blocking.run(end_plugins, self.netns_folder):
            log.warning("cni plugin process %d of an earlier daemon: killed", pid)
        await self._blocking.run(self.cni.cache.sweep)
        for attachment in attachments:
            self._ports.note(attachment.sandbox_id, attachment.ports)
        await self._pool.start(live)

    def netns_path(self, sandbox_id: str) -> Path:
        """Where a pod's namespace is pinned, unless it comes from the pool."""
        if not CONTAINER_ID.fullmatch(sandbox_id):
            raise errors.InvalidArgument(f"{sandbox_id!r} is not a sandbox ID")
        return self.netns_folder / sandbox_id

    async def networks(self) -> tuple[NetworkConfigList, ...]:
        """The networks that a pod joins now.

        Raises `FailedPrecondition` where there is none, or naming a broken file.
        """
        try:
            configured = self._configured.networks()
        except errors.InvalidArgument as error:  # the file's fault, not a request's
            raise errors.FailedPrecondition(error.message) from error
        if configured and self.settings.masquerade_by_range:
            return tuple([await self._masquerade.take_over(network) for network in configured])
        if configured:
            return configured
        if self.settings.default_network:
            return (await self.default.ensure(),)
        raise errors.FailedPrecondition(self._nothing_configured())

    def configured(self) -> tuple[NetworkConfigList, ...]:
        """Those of the configuration's folder as they are there, none where the default network stands in."""
        return self._configured.networks()

    async def tell_pod_ranges(self, told: str) -> None:
        """Make a configuration of the template for these ranges, where there is a template and no configuration yet.

        Raises `InvalidArgument` for what are no ranges, `FailedPrecondition` for a template that cannot be used.
        """
        ranges = pod_cidr.ranges(told)
        template = self.settings.conf_template
        if template is None or self._configured.networks():
            return
        written = await self._blocking.run(pod_cidr.write, self.settings.conf_dir, template, ranges)
        log.info("network: %s is written for the pods' ranges %s", written, told)

    async def attach(self, request: AttachRequest) -> Attachment:
        """Give the pod its network; a ready namespace from the pool where there is one and the request allows.

        Whoever has a namespace at the request's path, as after `isolate`, is attached in that one.

        Ports without a host port are no wish; bandwidth may be asked for by annotations. Makes the
        namespace at the request's path where it is missing. Equal requests one after another give the same
        pooled attachment; where ADD failed or the caller was cancelled, nothing is left.
        Raises `InvalidArgument` for a bad request, `AlreadyExists` or `FailedPrecondition` for a host
        port in use, else what `CNI.add` raises.
        """
        request = replace(
            request,
            ports=tuple(port for port in request.ports if port.host_port),
            bandwidth=request.bandwidth or from_annotations(request.annotations),
        )
        validate(request)
        networks = await self.networks()
        self._refuse_missing_capabilities(request, networks)
        if not request.needs_own_add:
            taken = self._pool.taken_by(request.sandbox_id) if self.settings.pool_size else None
            # One who stands in a namespace of his own already stays there.
            stands = taken is None and await self._blocking.run(netns.exists, Path(request.netns_path))
            if taken is None and not stands and self._is_pooled(networks):
                taken = self._pool.take(request.sandbox_id, networks)
            if taken is not None:
                return replace(taken, timings=())
        async with ports.publishing(request.ports):
            await self._ports.claim(request.sandbox_id, request.ports)
            try:
                async with self._collecting:
                    self._active.add(request.sandbox_id)
                attachment = await self._joiner.join(networks, _attach(request), sandbox_id=request.sandbox_id)
            except BaseException:
                self._active.discard(request.sandbox_id)
                self._ports.release(request.sandbox_id, request.ports)
                raise
        return replace(attachment, ports=request.ports)

    async def isolate(self, request: AttachRequest) -> Attachment:
        """Give the pod a namespace with nothing but `lo`; idempotent. No CNI plugin runs."""
        validate(request)
        path = Path(request.netns_path)
        if not await self._blocking.run(netns.exists, path):
            await self._blocking.run(joining.make_netns, path, request.users)
        return Attachment(sandbox_id=request.sandbox_id, container_id=request.sandbox_id, netns_path=str(path))

    async def detach(
        self, what: Attachment | AttachRequest, *, abandon: bool = False, force: bool = False
    ) -> tuple[PluginTiming, ...]:
        """Leave all networks, give the addresses and ports back and drop the namespace; idempotent.

        A request stands for an attachment that may be half made, as after a crash. Works where the
        namespace has vanished. When a plugin's DEL fails its error is raised and the rest stays for another
        try; with `abandon` the namespace is dropped all the same (and the error still raised). With `force` an
        attachment's DEL runs although nothing is recorded of it, with today's configuration: after a power cut.
        """
        attachment = what if isinstance(what, Attachment) else self._half_made(what)
        if isinstance(what, Attachment) and what.networks:
            keys = [
                AttachmentKey(network=joined.network, container_id=what.container_id, ifname=joined.ifname)
                for joined in what.networks
            ]
        else:
            keys = [key for key in self.cni.cache.recorded() if key.container_id == attachment.container_id]
        path = Path(attachment.netns_path)
        fallback = await self._by_name() if force else None
        try:
            timings = await self._joiner.leave(keys, path, abandon=abandon, fallback=fallback, force=force)
        except errors.DataLoss:
            timings = await self._joiner.leave(keys, path, abandon=abandon, fallback=await self._by_name())
        self._active.discard(attachment.container_id)
        self._ports.release(attachment.sandbox_id, attachment.ports)
        if attachment.pooled:
            self._pool.forget(attachment)
        return timings

    async def drop(self, attachment: Attachment) -> bool:
        """Drop the namespace at once where all but the address dies with it; then `detach` is still due.

        For a caller that answers first and lets `detach` give the address back behind it. False, and
        nothing has happened, where plugins keep something on the host that needs the namespace.
        """
        for joined in attachment.networks:
            key = AttachmentKey(network=joined.network, container_id=attachment.container_id, ifname=joined.ifname)
            entry = self.cni.entry(key)
            if entry is not None and not teardown.is_droppable(entry.network, entry.capability_args):
                return False
        await self._blocking.run(joining.remove_netns, Path(attachment.netns_path))
        return True

    async def check(self, attachment: Attachment) -> None:
        """Raise what is wrong with an attachment: its namespace gone, or what the plugins' CHECK says."""
        if not await self._blocking.run(netns.exists, Path(attachment.netns_path)):
            raise errors.FailedPrecondition(f"{attachment.netns_path}: the network namespace is gone")
        for joined in attachment.networks:
            key = AttachmentKey(network=joined.network, container_id=attachment.container_id, ifname=joined.ifname)
            await self.cni.check(key)

    async def gc(self, attachments: Iterable[Attachment]) -> tuple[AttachmentKey, ...]:
        """Delete what plugins hold for anybody but `attachments`; the deleted ones are returned.

        What this process has attached or is attaching, and what is the pool's, counts as well; attaching
        begins only after GC has ended (spec, GC).
        """
        networks = await self.networks()
        async with self._collecting:
            valid = {(known.container_id, joined.ifname) for known in attachments for joined in known.networks}
            ours = self._active | self._pool.pool_ids
            valid |= {(container_id, f"eth{at}") for container_id in ours for at in range(len(networks))}
            deleted: list[AttachmentKey] = []
            for network in networks:
                deleted += await self.cni.gc(network, valid)
        return tuple(deleted)

    async def status(self, *, probe: bool = False) -> NetworkStatus:
        """Whether a pod can get a network now, after a look at the folder; with `probe` plugins are asked STATUS."""
        try:
            networks = self._configured.networks()
            if not networks and not self.settings.default_network:
                return NetworkStatus(ready=False, reason=NOT_READY, message=self._nothing_configured())
            if not networks:
                self._check_default()
            for network in networks:
                self.cni.find_plugins(network, {})
                if probe:
                    await self.cni.status(network)
        except errors.AtollError as error:
            return NetworkStatus(ready=False, reason=NOT_READY, message=str(error))
        return NetworkStatus(ready=True)

    async def retire(self) -> bool:
        """Take away what serves no pod: the pool, the default network, the pins' folder; idempotent.

        False, and the network and the folder stay, while an attachment or a pin is left.
        """
        await self._pool.drain()
        pins = await self._blocking.run(netns.pins, self.netns_folder)
        if pins or self.cni.cache.recorded():
            return False
        await self.default.remove()
        await self._blocking.run(netns.remove_folder, self.netns_folder)
        return True

    async def unused_masquerades(self) -> tuple[str, ...]:
        """The nft tables of this root whose network is neither configured nor attached to any more."""
        attached = {key.network for key in await self._blocking.run(self.cni.cache.recorded)}
        names = {network.name for network in self.configured()} | {self.default.bridge}
        return await self._masquerade.of_others(names | attached)

    async def remove_masquerades(self, tables: Iterable[str]) -> None:
        """Delete tables that `unused_masquerades` told of."""
        await self._masquerade.remove(tables)

    async def _by_name(self) -> dict[str, NetworkConfigList]:
        return {network.name: network for network in await self.networks()}

    def _check_default(self) -> None:
        for plugin in PLUGINS:
            self.cni.find(plugin)
        if not can_masquerade():
            raise errors.FailedPrecondition(missing_on_host()[0])

    @property
    def pool_stats(self) -> PoolStats:
        return self._pool.stats

    async def drain_pool(self) -> None:
        """Release every namespace that stands ready."""
        await self._pool.drain()

    async def _pooled_networks(self) -> tuple[NetworkConfigList, ...]:
        if self.settings.pool_size == 0:
            return ()
        networks = await self.networks()
        return networks if self._is_pooled(networks) else ()

    def _is_pooled(self, networks: tuple[NetworkConfigList, ...]) -> bool:
        marked = self.settings.pool_networks or {self.default.bridge}
        return self.settings.pool_size > 0 and all(network.name in marked for network in networks)

    def _half_made(self, request: AttachRequest) -> Attachment:
        taken = self._pool.taken_by(request.sandbox_id)
        if taken is not None:
            return taken
        return Attachment(
            sandbox_id=request.sandbox_id,
            container_id=request.sandbox_id,
            netns_path=request.netns_path,
            ports=request.ports,
        )

    def _refuse_missing_capabilities(self, request: AttachRequest, networks: tuple[NetworkConfigList, ...]) -> None:
        """Nothing asked for is left out in silence; only an unknown plugin may publish ports without declaring it."""
        for capability, asked in (
            ("portMappings", request.ports),
            ("bandwidth", request.bandwidth),
            ("ips", request.ips),
            ("mac", request.mac),
        ):
            by_itself = capability in ("portMappings", "bandwidth") and not all(map(teardown.is_known, networks))
            if asked and not by_itself and not any(network.has_capability(capability) for network in networks):
                raise errors.FailedPrecondition(
                    f"no plugin of network {networks[0].name} ({networks[0].source}) has the capability {capability}, "
                    "which this pod asks for"
                )

    def _nothing_configured(self) -> str:
        return (
            f"cni config not initialized: {self.settings.conf_dir} has no .conf, .conflist or .json file; "
            "add one, or let atoll make its default network"
        )


def validate(request: AttachRequest) -> None:
    """Raise `InvalidArgument` for what no plugin should see: bad names, addresses, ports or a MAC that is none."""
    if not CONTAINER_ID.fullmatch(request.sandbox_id):
        raise errors.InvalidArgument(f"{request.sandbox_id!r} is not a sandbox ID")
    if not request.netns_path.startswith("/"):
        raise errors.InvalidArgument(f"netns path {request.netns_path!r} is not absolute")
    for what, value in (("name", request.name), ("namespace", request.namespace), ("uid", request.uid)):
        if any(char in ";=\0" or not char.isprintable() for char in value):
            raise errors.InvalidArgument(f"pod {what} {value!r}: cannot be told to a CNI plugin; avoid ; and =")
    ports.validate(request.ports)
    for address in request.ips:
        try:
            ipaddress.ip_interface(address)
        except ValueError as error:
            raise errors.InvalidArgument(f"ip {address!r}: {error}") from error
    if request.mac and not MAC.fullmatch(request.mac):
        raise errors.InvalidArgument(f"mac {request.mac!r}: not like 02:00:00:00:00:01")
    limits = request.bandwidth
    if limits is not None and min(limits.ingress_rate_bits, limits.egress_rate_bits) < 0:
        raise errors.InvalidArgument("bandwidth limits are bits a second, 0 for none")


def _attach(request: AttachRequest) -> Attach:
    return Attach(
        container_id=request.sandbox_id,
        netns_path=request.netns_path,
        users=request.users,
        cni_args=(
            ("IgnoreUnknown", "1"),
            ("K8S_POD_NAMESPACE", request.namespace),
            ("K8S_POD_NAME", request.name),
            ("K8S_POD_INFRA_CONTAINER_ID", request.sandbox_id),
            ("K8S_POD_UID", request.uid),
        ),
        capability_args=capability_args(request),
    )


def capability_args(request: AttachRequest) -> dict[str, JSON]:
    """The capability arguments of a request, by the names and members of the CNI conventions document."""
    said: dict[str, JSON] = {}
    if request.annotations:
        said["io.kubernetes.cri.pod-annotations"] = dict(request.annotations)
    if request.ports:
        said["portMappings"] = [
            {
                "hostPort": port.host_port,
                "containerPort": port.container_port,
                "protocol": port.protocol,
                **({"hostIP": port.host_ip} if port.host_ip else {}),
            }
            for port in request.ports
        ]
    if request.bandwidth is not None:
        limits = (("ingress", request.bandwidth.ingress_rate_bits), ("egress", request.bandwidth.egress_rate_bits))
        said["bandwidth"] = {
            key: value
            for name, rate in limits
            if rate
            for key, value in ((f"{name}Rate", rate), (f"{name}Burst", UNLIMITED_BURST_BITS))
        }
    if request.dns is not None:
        said["dns"] = _dns(request.dns)
    if request.ips:
        said["ips"] = list(request.ips)
    if request.mac:
        said["mac"] = request.mac
    if request.cgroup_parent:
        said["cgroupPath"] = request.cgroup_parent
    return said


def _dns(dns: Dns) -> JSON:
    return {"servers": list(dns.nameservers), "searches": list(dns.search), "options": list(dns.options)}
