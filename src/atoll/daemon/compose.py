"""Everything that a daemon is made of, made in order and taken apart in the reverse."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import atoll
from atoll import errors, faults
from atoll.concurrency import Blocking, TaskOwner
from atoll.config import Config
from atoll.config.changes import Live
from atoll.container import store as container_store
from atoll.container.store import ContainerStore
from atoll.daemon.first import require_records
from atoll.daemon.handlers import Chosen, Controllers, Handlers
from atoll.daemon.images import image_settings
from atoll.database import Database
from atoll.engine import hosted, kinds, lease_store, lost_files, stray_links, strays
from atoll.engine.drivers import AtollDriver, Drivers, ForeignDriver
from atoll.engine.engine import Engine
from atoll.engine.hosted import HostedStore
from atoll.engine.hosting import LINKS, LinksKind
from atoll.engine.lease_store import LeaseStore
from atoll.engine.nri import Nri
from atoll.engine.orphans import Orphans
from atoll.engine.parts import Parts
from atoll.engine.paths import NAMESPACE, Paths
from atoll.engine.pool_store import SCHEMA as POOLS_SCHEMA
from atoll.image import records as image_records
from atoll.image.store import ImageStore
from atoll.ledger import records as ledger_records
from atoll.ledger.kind import Kind
from atoll.ledger.ledger import Ledger
from atoll.linux.host import read_host_facts
from atoll.linux.process import PidfdSpawner, Spawner
from atoll.network.service import Network, NetworkSettings
from atoll.nri.plugin import Timeouts
from atoll.nri.plugins import Plugins
from atoll.nri.plugins import Settings as PluginSettings
from atoll.oci import apparmor
from atoll.oci.detect import choose
from atoll.oci.runtime import OCIRuntime
from atoll.runtime.relay import Relays
from atoll.runtime.zygote import Zygote
from atoll.sandbox import store as sandbox_store
from atoll.sandbox.store import SandboxStore
from atoll.snapshot import records as snapshot_records
from atoll.snapshot.snapshotter import Snapshotter

log = logging.getLogger(__name__)

SCHEMAS = (
    sandbox_store.SCHEMA,
    hosted.SCHEMA,
    container_store.SCHEMA,
    ledger_records.SCHEMA,
    snapshot_records.SCHEMA,
    image_records.SCHEMA,
    lease_store.SCHEMA,
    POOLS_SCHEMA,
)


@asynccontextmanager
async def compose(config: Config) -> AsyncGenerator[Engine]:
    """An engine with all its parts, recovered from nothing yet; leaving ends the daemon and no container."""
    async with AsyncExitStack() as stack:
        paths = Paths.prepare(Path(config.root), Path(config.state))
        blocking = Blocking()
        stack.callback(blocking.close)
        spawner = PidfdSpawner()
        host = await apparmor.with_default(await blocking.run(read_host_facts), spawner)
        zygote = await stack.enter_async_context(await Zygote.start(pods_per_shim=config.pods_per_shim))
        owner = await stack.enter_async_context(TaskOwner("daemon"))
        detected = await _runtimes(config, paths, spawner)
        await blocking.run(require_records, paths)
        db = await Database.open(paths.database, SCHEMAS)
        stack.push_async_callback(db.close)
        snapshotter = Snapshotter(paths.images, db, blocking)
        stack.push_async_callback(snapshotter.close)
        images = ImageStore(paths.images, db, snapshotter, blocking, owner, image_settings(config))
        stack.push_async_callback(images.close)
        await _recover_images(snapshotter, images)
        network = Network(_network_settings(config, paths), owner=owner, blocking=blocking)
        handlers = Handlers(
            config=config, paths=paths, zygote=zygote, runtimes=detected, images=images, snapshotter=snapshotter,
            host=host, spawner=spawner, blocking=blocking,
        )  # fmt: skip
        hosts = Controllers(handlers)
        stack.push_async_callback(hosts.aclose)
        foreign = handlers.foreign_launcher()
        orphans = Orphans(paths, spawner, foreign, blocking)
        await orphans.end_helpers()
        relays = Relays(zygote, folder=paths.relays, sockets=paths.sockets, namespace=NAMESPACE, blocking=blocking)
        containers = await ContainerStore.open(db, paths.root, blocking)
        max_line = config.max_container_log_line_bytes
        ledger_kinds = _further_kinds(config, paths, relays, blocking) | kinds.make(
            paths, config, network=network, hosts=hosts, snapshotter=snapshotter, hierarchies=host.hierarchies,
            reaper=orphans, blocking=blocking,
        )  # fmt: skip
        ledger_kinds |= strays.make(paths, lambda: _namespaces(ledger), spawner, blocking)
        ledger_kinds |= lost_files.make(snapshotter, images)
        links = stray_links.StrayLinkKind(network.default.bridge, blocking)
        ledger_kinds[links.name] = links
        ledger = await Ledger.open(db, ledger_kinds, owner)
        engine = await Engine.open(
            Parts(
                live=Live(config),
                paths=paths,
                db=db,
                ledger=ledger,
                sandboxes=await SandboxStore.open(db),
                hosted=HostedStore(db),
                containers=containers,
                leases=await LeaseStore.open(db),
                images=images,
                snapshotter=snapshotter,
                network=network,
                controllers=hosts.of_handlers(),
                hosts=hosts,
                features=handlers.features(),
                problems=handlers.problems(),
                shim_options=handlers.shim_options(),
                drivers=Drivers(
                    AtollDriver(max_line),
                    ForeignDriver(relays, foreign, containers, max_line=max_line, blocking=blocking, owner=owner),
                ),
                orphans=orphans,
                nri=Nri(_plugins(config, blocking), cgroup_parent=f"{config.cgroup_parent}/{paths.instance}"),
                host=host,
                blocking=blocking,
                owner=owner,
            )
        )
        stack.push_async_callback(engine.aclose)
        # Operations end, and are undone where they were cut short, while all that they use is still there.
        stack.push_async_callback(owner.aclose)
        yield engine


def _plugins(config: Config, blocking: Blocking) -> Plugins | None:
    """The plugins of NRI, where they are wanted."""
    section = config.nri
    if not section.enable:
        return None
    settings = PluginSettings(
        runtime="atoll",
        version=atoll.__version__,
        socket=None if section.disable_connections else Path(section.socket_path),
        plugin_path=Path(section.plugin_path),
        config_path=Path(section.plugin_config_path),
        timeouts=Timeouts(
            registration_s=section.plugin_registration_timeout_s, request_s=section.plugin_request_timeout_s
        ),
    )
    return Plugins(settings, blocking=blocking)


def _further_kinds(config: Config, paths: Paths, relays: Relays, blocking: Blocking) -> dict[str, Kind]:
    return {
        kinds.RELAY: kinds.RelayKind(relays, paths.relays, blocking),
        LINKS: LinksKind(config, paths.pods, blocking),
    }


def _namespaces(ledger: Ledger) -> frozenset[str]:
    """The containerd namespaces in which there are sandboxes."""
    entries = ledger.entries()
    return frozenset({NAMESPACE, *(entry.data["namespace"] for entry in entries if "namespace" in entry.data)})


async def _runtimes(config: Config, paths: Paths, spawner: Spawner) -> Mapping[str, Chosen]:
    """What each handler's `oci_runtime` comes to; one that does not work stops its own pods and nothing else."""
    found: dict[str, Chosen] = {}
    for name in {handler.oci_runtime for handler in config.runtimes.values()}:
        configured = () if name == "auto" else (name,)
        try:
            binary, _ = await choose(configured, spawner, cache=paths.state / "runtimes.json")
        except errors.FailedPrecondition as error:
            log.error("%s", error)
            found[name] = Chosen(problem=str(error))
            continue
        features = await OCIRuntime(binary, paths.oci(NAMESPACE), spawner).features()
        found[name] = Chosen(binary=str(binary), features=features)
    return found


async def _recover_images(snapshotter: Snapshotter, images: ImageStore) -> None:
    with faults.step("open/images"):
        await snapshotter.recover()
        await images.recover()
    try:
        await images.install_builtins()
    except errors.FailedPrecondition as error:
        log.warning("the built-in images are missing: %s", error)


def _network_settings(config: Config, paths: Paths) -> NetworkSettings:
    return NetworkSettings(
        root=paths.root,
        state=paths.state,
        conf_dir=Path(config.network.conf_dir),
        conf_template=Path(config.network.conf_template) if config.network.conf_template else None,
        default_network=config.network.default_network and not config.network.conf_template,
        bin_dirs=tuple(Path(one) for one in config.network.bin_dirs),
        max_conf_num=config.network.max_conf_num,
        default_subnet=config.network.default_subnet,
        pool_size=config.network.pool_size,
        pool_networks=frozenset(config.network.pool_networks),
    )
