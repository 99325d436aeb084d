"""`Network` with the distribution's plugins (bridge, host-local, portmap, bandwidth), and the default network."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from atoll import errors
from atoll.concurrency import Blocking, TaskOwner
from atoll.linux import netlink, netns
from atoll.network.model import Attachment, AttachRequest, Bandwidth, PortMapping
from atoll.network.service import Network, NetworkSettings
from tests.integration.conftest import Roots
from tests.integration.leaks import wait_until

BIN_DIRS = (Path("/opt/cni/bin"), Path("/usr/lib/cni"))


class Host:
    """Networks of one test's roots, with what its pods may ask for."""

    def __init__(self, roots: Roots, owner: TaskOwner, blocking: Blocking) -> None:
        self.roots = roots
        self._owner = owner
        self._blocking = blocking
        self.settings = NetworkSettings(
            root=roots.root,
            state=roots.state,
            conf_dir=roots.conf_dir,
            bin_dirs=BIN_DIRS,
            default_bridge=roots.bridge,
            default_subnet=roots.subnet,
            masquerade_by_range=False,
        )
        self.opened: list[Network] = []

    async def network(self, live: tuple[str, ...] = (), **changes: object) -> Network:
        self.settings = replace(self.settings, **changes)
        network = Network(self.settings, owner=self._owner, blocking=self._blocking)
        await network.start([], live)
        self.opened.append(network)
        return network

    def use_bridge(self, *, masquerade: bool = False) -> None:
        """A bridge list whose attachments can be dropped, or cannot, for they masquerade."""
        path = self.roots.conf_dir / "10-test.conflist"
        said = json.loads(path.read_text())
        said["plugins"][0] |= {"ipMasq": masquerade, "capabilities": {"ips": True, "mac": True}}
        said["plugins"][1]["snat"] = True
        said["plugins"].append({"type": "bandwidth", "capabilities": {"bandwidth": True}})
        path.write_text(json.dumps(said))

    def use_default(self) -> None:
        (self.roots.conf_dir / "10-test.conflist").unlink()

    def request(self, number: int, **changes: object) -> AttachRequest:
        sandbox_id = f"{self.roots.prefix}-{number}"
        request = AttachRequest(
            sandbox_id=sandbox_id,
            netns_path=str(self.roots.state / "netns" / sandbox_id),
            name=f"pod{number}",
            namespace="default",
            uid=f"uid{number}",
        )
        return replace(request, **changes)

    def leases(self) -> set[str]:
        """The addresses that host-local has given out for these roots."""
        found = [*self.roots.base.glob("ipam/*/*.*.*.*"), *self.roots.state.glob("network/ipam/*/*.*.*.*")]
        return {path.name for path in found}

    def rules(self) -> list[str]:
        saved = subprocess.run(["iptables-save"], capture_output=True, text=True, check=True).stdout
        return [line for line in saved.splitlines() if self.roots.prefix in line]


@pytest.fixture
async def host(roots: Roots) -> AsyncIterator[Host]:
    blocking = Blocking(4)
    async with TaskOwner("test") as owner:
        host = Host(roots, owner, blocking)
        host.use_bridge()
        yield host
        for network in host.opened:
            await network.drain_pool()
        assert host.opened, "the test opened no network"
        assert await host.opened[-1].retire(), "attachments or pins are left"
        netlink.delete_link(roots.bridge)
    blocking.close()
    assert host.leases() == set()
    assert host.rules() == []


def ping(attachment: Attachment, address: str) -> int:
    """Whether a TCP connection inside the pod gets an answer (refused is one): 0 or the errno."""

    def work() -> int:
        with socket.socket() as probe:
            probe.settimeout(3)
            return probe.connect_ex((address, 9))

    return netns.inside(Path(attachment.netns_path), work)


def serve_once(attachment: Attachment, port: int) -> subprocess.Popen[bytes]:
    """A process inside the pod that answers one connection with `hello`."""
    script = (
        "import socket\n"
        f"with socket.create_server(('0.0.0.0', {port})) as s:\n"
        "    print('up', flush=True)\n    c, _ = s.accept()\n    c.sendall(b'hello')\n    c.close()\n"
    )
    process = subprocess.Popen(
        ["nsenter", f"--net={attachment.netns_path}", sys.executable, "-c", script], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    return process


async def test_a_pod_gets_a_namespace_an_address_and_a_way_to_the_bridge(host: Host) -> None:
    network = await host.network()
    attachment = await network.attach(host.request(1))
    inside = netns.inside(Path(attachment.netns_path), netlink.addresses)
    assert attachment.ip in {str(address.interface.ip) for address in inside}
    assert attachment.networks[0].result.routes[0].dst == "0.0.0.0/0"
    assert [(t.plugin, t.verb) for t in attachment.timings] == [("bridge", "ADD")]
    assert host.leases() == {attachment.ip}
    gateway = attachment.networks[0].result.ips[0].gateway
    assert await asyncio.to_thread(ping, attachment, gateway) == 111  # refused: the host answered
    await network.check(attachment)
    await network.detach(attachment)


@pytest.mark.parametrize("masquerade", [False, True])
async def test_detaching_gives_everything_back_and_runs_del_once(host: Host, masquerade: bool) -> None:
    host.use_bridge(masquerade=masquerade)
    network = await host.network()
    attachment = await network.attach(host.request(1))
    assert bool(host.rules()) is masquerade
    timings = await network.detach(attachment)
    assert [(t.plugin, t.verb) for t in timings] == [("bridge" if masquerade else "host-local", "DEL")]
    assert await network.detach(attachment) == ()
    assert await network.detach(host.request(1)) == ()
    assert host.leases() == set()
    assert not Path(attachment.netns_path).exists()
    assert wait_until(lambda: not veths(host))


def veths(host: Host) -> list[str]:
    links = netlink.links()
    bridges = {link.index for link in links if link.name == host.roots.bridge}
    return [link.name for link in links if link.master in bridges]


async def test_drop_answers_at_once_and_detach_gives_the_address_back_behind_it(host: Host) -> None:
    network = await host.network()
    attachment = await network.attach(host.request(1))
    assert await network.drop(attachment)
    assert not Path(attachment.netns_path).exists()
    assert host.leases() == {attachment.ip}
    await network.detach(attachment)
    host.use_bridge(masquerade=True)
    masqueraded = await network.attach(host.request(2))
    assert not await network.drop(masqueraded)
    assert netns.exists(Path(masqueraded.netns_path))
    await network.detach(masqueraded)


async def test_a_vanished_namespace_still_gives_its_address_back(host: Host) -> None:
    network = await host.network()
    attachment = await network.attach(host.request(1))
    netns.remove(Path(attachment.netns_path))
    with pytest.raises(errors.FailedPrecondition, match="the network namespace is gone"):
        await network.check(attachment)
    await network.detach(attachment)
    assert host.leases() == set()


async def test_a_half_made_attachment_is_taken_back_by_its_request(host: Host) -> None:
    network = await host.network()
    await network.attach(host.request(1))
    fresh = await host.network()
    await fresh.detach(host.request(1))
    assert host.leases() == set()


async def test_a_second_attach_replaces_the_first(host: Host) -> None:
    network = await host.network()
    first = await network.attach(host.request(1))
    second = await network.attach(host.request(1))
    assert host.leases() == {second.ip}
    assert first.netns_path == second.netns_path
    await network.detach(second)


async def test_a_lost_record_is_deleted_by_force(host: Host) -> None:
    network = await host.network()
    attachment = await network.attach(host.request(1))
    for path in (host.roots.root / "network" / "attachments").rglob("*.json"):
        path.unlink()
    await network.detach(attachment)
    assert host.leases() == {attachment.ip}
    await network.detach(attachment, force=True)
    assert host.leases() == set()


async def test_a_torn_record_falls_back_on_todays_configuration(host: Host) -> None:
    network = await host.network()
    attachment = await network.attach(host.request(1))
    for path in (host.roots.root / "network" / "attachments").rglob("*.json"):
        path.write_bytes(b"\0\0")
    await network.detach(attachment)
    assert host.leases() == set()


async def test_check_tells_what_was_taken_from_the_pod(host: Host) -> None:
    network = await host.network()
    attachment = await network.attach(host.request(1))
    command = ["nsenter", f"--net={attachment.netns_path}", "ip", "addr", "flush", "dev", "eth0"]
    await asyncio.to_thread(subprocess.run, command, check=True)
    with pytest.raises(errors.AtollError, match=f"network {host.roots.prefix}net: cni plugin bridge CHECK"):
        await network.check(attachment)
    await network.detach(attachment)


async def test_address_and_mac_are_as_asked(host: Host) -> None:
    network = await host.network()
    wanted = host.roots.subnet.replace(".0/24", ".77")
    attachment = await network.attach(host.request(1, ips=(wanted,), mac="02:00:00:00:00:77"))
    assert attachment.ip == wanted
    links = netns.inside(Path(attachment.netns_path), netlink.links)
    assert "02:00:00:00:00:77" in [link.mac for link in links]
    await network.detach(attachment)


async def test_what_no_plugin_can_do_is_refused(host: Host) -> None:
    said = json.loads((host.roots.conf_dir / "10-test.conflist").read_text())
    said["plugins"] = [{key: value for key, value in said["plugins"][0].items() if key != "capabilities"}]
    (host.roots.conf_dir / "10-test.conflist").write_text(json.dumps(said))
    network = await host.network()
    for changes in ({"mac": "02:00:00:00:00:77"}, {"ports": (PortMapping(host_port=1, container_port=1),)}):
        with pytest.raises(errors.FailedPrecondition, match="no plugin of network"):
            await network.attach(host.request(1, **changes))
    assert host.leases() == set()


async def test_bandwidth_is_limited_and_its_device_goes_again(host: Host) -> None:
    network = await host.network()
    before = {link.name for link in netlink.links() if link.kind == "ifb"}
    limits = Bandwidth(ingress_rate_bits=10_000_000, egress_rate_bits=10_000_000)
    for asked in ({"bandwidth": limits}, {"annotations": {"kubernetes.io/egress-bandwidth": "10M"}}):
        attachment = await network.attach(host.request(1, **asked))
        assert {link.name for link in netlink.links() if link.kind == "ifb"} > before
        await network.detach(attachment)
        assert {link.name for link in netlink.links() if link.kind == "ifb"} == before


async def test_two_networks_are_eth0_and_eth1_and_leave_together(host: Host) -> None:
    said = json.loads((host.roots.conf_dir / "10-test.conflist").read_text())
    said["name"] += "2"
    (host.roots.conf_dir / "20-test.conflist").write_text(json.dumps(said))
    network = await host.network(max_conf_num=0)
    attachment = await network.attach(host.request(1))
    assert [(joined.network, joined.ifname) for joined in attachment.networks] == [
        (f"{host.roots.prefix}net", "eth0"),
        (f"{host.roots.prefix}net2", "eth1"),
    ]
    names = {link.name for link in netns.inside(Path(attachment.netns_path), netlink.links)}
    assert names == {"lo", "eth0", "eth1"}
    await network.detach(attachment)
    said["plugins"] = [{"type": "no-such-plugin"}]
    (host.roots.conf_dir / "20-test.conflist").write_text(json.dumps(said))
    with pytest.raises(errors.FailedPrecondition, match="no-such-plugin"):
        await network.attach(host.request(1))
    assert host.leases() == set()
    assert not Path(host.request(1).netns_path).exists()


async def test_a_cancelled_attach_leaves_nothing(host: Host) -> None:
    network = await host.network()
    cut_short = 0
    for delay in (0.0, 0.0005, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.01):
        try:
            await asyncio.wait_for(network.attach(host.request(1)), delay)
        except TimeoutError:
            cut_short += 1
            assert netns.pins(network.netns_folder) == []
            assert host.leases() == set()
        await network.detach(host.request(1))
        assert host.leases() == set()
        assert not Path(host.request(1).netns_path).exists()
    assert cut_short > 4


async def test_a_pod_without_network_has_lo_alone(host: Host) -> None:
    network = await host.network()
    attachment = await network.isolate(host.request(1))
    assert await network.isolate(host.request(1)) == attachment
    assert [link.name for link in netns.inside(Path(attachment.netns_path), netlink.links)] == ["lo"]
    assert (attachment.ip, attachment.networks) == ("", ())
    assert await network.detach(attachment) == ()
    assert not Path(attachment.netns_path).exists()


async def test_a_port_that_a_pod_of_another_daemon_publishes_is_refused(host: Host) -> None:
    network, other = await host.network(), await host.network()
    ports = (PortMapping(host_port=free_port(), container_port=80),)
    attachment = await network.attach(host.request(1, ports=ports))
    leads = f"{ports[0].host_port}/tcp leads to sandbox {host.roots.prefix}-1 of another program"
    with pytest.raises(errors.FailedPrecondition, match=leads):
        await other.attach(host.request(2, ports=ports))
    assert not Path(host.request(2).netns_path).exists()
    await network.detach(attachment)
    await other.detach(await other.attach(host.request(2, ports=ports)))


async def test_of_two_daemons_that_publish_one_port_at_once_one_is_refused(host: Host) -> None:
    daemons = [await host.network(), await host.network()]
    ports = (PortMapping(host_port=free_port(), container_port=80),)
    refused: list[errors.AtollError] = []

    async def publish(number: int) -> None:
        try:
            made = await daemons[number].attach(host.request(number, ports=ports))
        except errors.FailedPrecondition as error:
            refused.append(error)
            return
        while not refused:  # noqa: ASYNC110  the other one's answer
            await asyncio.sleep(0.01)
        await daemons[number].detach(made)

    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        for number in range(2):
            group.create_task(publish(number))
    assert len(refused) == 1


async def test_a_published_port_is_reached_from_the_host(host: Host) -> None:
    network = await host.network()
    port = free_port()
    attachment = await network.attach(host.request(1, ports=(PortMapping(host_port=port, container_port=80),)))
    with serve_once(attachment, 80):
        address = attachment.networks[0].result.ips[0].gateway
        with socket.create_connection((address, port), timeout=5) as client:
            assert await asyncio.to_thread(client.recv, 100) == b"hello"
    with pytest.raises(
        errors.AlreadyExists, match=f"host port {port}/tcp is published by sandbox {host.roots.prefix}-1"
    ):
        await network.attach(host.request(2, ports=(PortMapping(host_port=port, container_port=81),)))
    assert host.leases() == {attachment.ip}
    assert host.rules()
    timings = await network.detach(attachment)
    assert {(t.plugin, t.verb) for t in timings} == {("host-local", "DEL"), ("portmap", "DEL")}
    assert host.rules() == []
    again = await network.attach(host.request(2, ports=(PortMapping(host_port=port, container_port=81),)))
    await network.detach(again)


def free_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize(("kind", "protocol"), [(socket.SOCK_STREAM, "tcp"), (socket.SOCK_DGRAM, "udp")])
async def test_a_port_that_a_process_listens_on_is_refused_with_its_name(
    host: Host, kind: socket.SocketKind, protocol: str
) -> None:
    network = await host.network()
    with socket.socket(socket.AF_INET, kind) as listener:
        listener.bind(("127.0.0.1", 0))
        if kind == socket.SOCK_STREAM:
            listener.listen()
        port = listener.getsockname()[1]
        wanted = PortMapping(host_port=port, container_port=80, protocol=protocol)
        for host_ip in ("", "127.0.0.1"):
            with pytest.raises(errors.FailedPrecondition) as raised:
                await network.attach(host.request(1, ports=(replace(wanted, host_ip=host_ip),)))
            assert f"host port {port}/{protocol} is in use by process {os.getpid()} (" in str(raised.value)
        assert host.leases() == set()
        other = await network.attach(host.request(1, ports=(replace(wanted, host_ip="127.0.0.2"),)))
        await network.detach(other)


async def test_a_connection_that_merely_uses_the_port_number_is_no_listener(host: Host) -> None:
    network = await host.network()
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        mapping = PortMapping(host_port=client.getsockname()[1], container_port=80)
        attachment = await network.attach(host.request(1, ports=(mapping,)))
        await network.detach(attachment)


async def test_ports_of_an_earlier_daemon_are_held(host: Host) -> None:
    network = await host.network()
    mapping = PortMapping(host_port=free_port(), container_port=80)
    held = Attachment(sandbox_id="earlier", container_id="earlier", netns_path="/x", ports=(mapping,))
    await network.start([held], ["earlier"])
    with pytest.raises(errors.AlreadyExists, match="sandbox earlier"):
        await network.attach(host.request(1, ports=(mapping,)))


async def test_status_follows_the_folder_on_disk(host: Host) -> None:
    network = await host.network(default_network=False)
    assert (await network.status(probe=True)).ready
    path = host.roots.conf_dir / "10-test.conflist"
    good = path.read_text()
    path.write_text("{")
    broken = await network.status()
    assert (broken.ready, broken.reason) == (False, "NetworkPluginNotReady")
    assert str(path) in broken.message
    path.unlink()
    assert "cni config not initialized" in (await network.status()).message
    with pytest.raises(errors.FailedPrecondition, match="cni config not initialized"):
        await network.attach(host.request(1))
    path.write_text(good.replace('"bridge",', '"bridge-of-sighs",', 1))
    assert "cni plugin bridge-of-sighs is not in" in (await network.status()).message
    path.write_text(good)
    assert (await network.status()).ready


async def test_gc_gives_back_what_nobody_knows(host: Host) -> None:
    before = await host.network()
    kept = await before.attach(host.request(1))
    lost = await before.attach(host.request(2))
    assert await before.gc([]) == ()  # its own count although nobody names them
    network = await host.network(pool_size=1, pool_networks=frozenset({f"{host.roots.prefix}net"}))
    async with asyncio.TaskGroup() as group:
        collecting = group.create_task(network.gc([kept]))
        attaching = group.create_task(network.attach(host.request(3)))
    fresh = attaching.result()
    assert [key.container_id for key in collecting.result()] == [lost.container_id]
    assert {kept.ip, fresh.ip} <= host.leases()
    assert lost.ip not in host.leases()
    await network.gc([kept])
    assert {kept.ip, fresh.ip} <= host.leases()
    for attachment in (kept, lost, fresh):
        await network.detach(attachment)


async def test_the_default_network_has_one_masquerade_rule_and_goes_without_trace(host: Host) -> None:
    host.use_default()
    network = await host.network()
    assert (await network.status()).ready
    attachments = [await network.attach(host.request(number)) for number in range(3)]
    assert masquerade_rules(host) == 1
    assert host.rules() == []
    with pytest.raises(errors.FailedPrecondition, match=f"bridge {host.roots.bridge} is still used by"):
        await network.default.remove()
    again = await host.network()
    joined = await again.attach(host.request(3))
    assert masquerade_rules(host) == 1
    assert len({attachment.ip for attachment in (*attachments, joined)}) == 4
    for attachment in (*attachments, joined):
        await network.detach(attachment)
    for _ in range(2):
        await network.default.remove()
    assert masquerade_rules(host) == 0
    assert host.roots.bridge not in [link.name for link in netlink.links()]


def masquerade_rules(host: Host) -> int:
    listed = subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True).stdout
    return sum(host.roots.prefix in line and "masquerade" in line for line in listed.splitlines())


async def test_a_masquerading_list_gets_one_rule_and_its_pods_are_dropped(host: Host) -> None:
    host.use_bridge(masquerade=True)
    network = await host.network(masquerade_by_range=True)
    attachments = [await network.attach(host.request(number)) for number in range(2)]
    assert (masquerade_rules(host), host.rules()) == (1, [])
    again = await host.network()
    attachments.append(await again.attach(host.request(2)))
    assert (masquerade_rules(host), host.rules()) == (1, [])
    await reach_another_host(host, attachments[0])
    for attachment in attachments:
        assert [timing.plugin for timing in await network.detach(attachment)] == ["host-local"]
    assert await network.retire()
    assert masquerade_rules(host) == 0


async def test_the_default_network_reaches_other_hosts_masqueraded(host: Host) -> None:
    host.use_default()
    network = await host.network()
    attachment = await network.attach(host.request(1))
    await reach_another_host(host, attachment)
    await network.detach(attachment)


async def reach_another_host(host: Host, attachment: Attachment) -> None:
    """The other host is a namespace behind a veth, which knows no way back to the pods."""
    other = host.roots.state / "netns" / "other"
    netns.create(other)
    link = f"{host.roots.prefix}x"
    here, there = (f"203.0.113.{int(host.roots.prefix[-2:], 16) // 4 * 4 + at}" for at in (1, 2))
    inside = ["nsenter", f"--net={other}", "ip"]
    for command in (
        ["ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", str(other)],
        ["ip", "addr", "add", f"{here}/30", "dev", link],
        ["ip", "link", "set", link, "up"],
        [*inside, "addr", "add", f"{there}/30", "dev", "eth0"],
        [*inside, "link", "set", "eth0", "up"],
    ):
        await asyncio.to_thread(subprocess.run, command, check=True)
    assert await asyncio.to_thread(ping, attachment, there) == 111
    netns.remove(other)
    netlink.delete_link(link)


async def test_the_default_range_gives_way_to_routes_of_the_host_and_then_stays(host: Host, roots: Roots) -> None:
    host.use_default()
    link = f"{roots.prefix}d"
    commands = [
        ["ip", "link", "add", link, "type", "veth", "peer", "name", f"{link}2"],
        ["ip", "addr", "add", roots.subnet.replace(".0/24", ".9/25"), "dev", link],
        ["ip", "link", "set", link, "up"],
    ]
    for command in commands:
        await asyncio.to_thread(subprocess.run, command, check=True)
    network = await host.network()
    attachment = await network.attach(host.request(1))
    chosen = json.loads((roots.root / "network" / "default.json").read_text())["subnet"]
    assert chosen != roots.subnet
    netlink.delete_link(link)
    again = await host.network()
    assert (await again.networks())[0].digest == (await network.networks())[0].digest
    await network.detach(attachment)
