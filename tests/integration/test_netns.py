"""Pinned network namespaces on the real kernel."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from atoll.linux import netlink, netns
from tests.integration.conftest import Roots


@pytest.fixture
def folder(roots: Roots) -> Iterator[Path]:
    folder = roots.state / "netns"
    yield folder
    netns.remove_folder(folder)


def mounts(path: Path) -> int:
    return sum(line.split()[4] == str(path) for line in Path("/proc/self/mountinfo").read_text().splitlines())


def test_a_namespace_is_made_with_lo_up_and_ours_stays_the_same(folder: Path) -> None:
    before = os.stat("/proc/self/ns/net").st_ino
    made = netns.create(folder / "a")
    assert netns.identity(folder / "a") == made
    assert made.inode != before
    assert os.stat("/proc/self/ns/net").st_ino == os.stat("/proc/thread-self/ns/net").st_ino == before
    (lo,) = netns.inside(folder / "a", netlink.links)
    assert (lo.name, lo.is_up) == ("lo", True)
    told = netns.inside(folder / "a", netlink.addresses)
    assert "127.0.0.1/8" in [str(address.interface) for address in told]


def test_a_pin_is_mounted_once_and_goes_with_its_file(folder: Path) -> None:
    netns.create(folder / "a")
    assert mounts(folder / "a") == 1
    for _ in range(2):
        netns.remove(folder / "a")
    assert mounts(folder / "a") == 0
    assert not netns.exists(folder / "a")
    assert netns.pins(folder) == []


def test_a_mount_namespace_cloned_meanwhile_does_not_keep_the_pin(folder: Path) -> None:
    netns.create(folder / "a")
    with subprocess.Popen(
        ["unshare", "--mount", "--propagation", "slave", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as clone:
        assert clone.stdin is not None
        assert clone.stdout is not None
        clone.stdin.write(b"up\n")
        clone.stdin.flush()
        assert clone.stdout.readline() == b"up\n"
        table = Path(f"/proc/{clone.pid}/mountinfo")
        assert str(folder / "a") in table.read_text()
        netns.remove(folder / "a")
        assert str(folder / "a") not in table.read_text()
        clone.stdin.close()


def test_a_path_in_use_is_refused_and_kept(folder: Path) -> None:
    made = netns.create(folder / "a")
    with pytest.raises(FileExistsError, match=str(folder / "a")):
        netns.create(folder / "a")
    assert netns.identity(folder / "a") == made


def test_a_plain_file_is_no_namespace_and_can_be_removed(folder: Path) -> None:
    netns.create(folder / "a")
    (folder / "b").touch()
    with pytest.raises(netns.NotPinned, match="no namespace"):
        netns.identity(folder / "b")
    assert not netns.exists(folder / "b")
    netns.remove(folder / "b")
    assert netns.pins(folder) == [folder / "a"]


def test_a_failure_leaves_no_file_behind(folder: Path) -> None:
    netns.create(folder / "a")
    with pytest.raises(FileNotFoundError, match=str(folder / "b")):
        netns.pin(Path("/proc/self/ns/no-such"), folder / "b")
    assert netns.pins(folder) == [folder / "a"]


def test_a_namespace_of_a_process_outlives_it_when_pinned(folder: Path) -> None:
    with subprocess.Popen(["unshare", "--net", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"up\n")
        process.stdin.flush()
        process.stdout.readline()
        pinned = netns.pin(Path(f"/proc/{process.pid}/ns/net"), folder / "a")
        process.stdin.close()
    assert netns.identity(folder / "a") == pinned
    assert [link.name for link in netns.inside(folder / "a", netlink.links)] == ["lo"]


def test_errors_inside_reach_the_caller_and_threads_end(folder: Path) -> None:
    netns.create(folder / "a")
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError):
        netns.inside(folder / "a", lambda: 1 // 0)
    assert threading.active_count() == before


def test_eight_threads_make_namespaces_at_once(folder: Path) -> None:
    threads = [threading.Thread(target=netns.create, args=(folder / str(at),)) for at in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({netns.identity(path).inode for path in netns.pins(folder)}) == 8
    assert mounts(folder) == 1


def test_links_addresses_and_routes_are_told_and_links_deleted(folder: Path) -> None:
    netns.create(folder / "a")

    def work() -> None:
        for command in (
            ["ip", "link", "add", "br7", "type", "bridge"],
            ["ip", "link", "add", "v1", "mtu", "1400", "type", "veth", "peer", "name", "v2"],
            ["ip", "link", "set", "v1", "master", "br7"],
            ["ip", "link", "set", "br7", "up"],
            ["ip", "addr", "add", "10.3.0.1/24", "dev", "br7"],
            ["ip", "-6", "addr", "add", "fd07::1/64", "dev", "br7", "nodad"],
            ["ip", "route", "add", "10.4.0.0/16", "via", "10.3.0.9"],
        ):
            subprocess.run(["nsenter", f"--net={folder / 'a'}", *command], check=True)
        links = {link.name: link for link in netlink.links()}
        assert (links["br7"].kind, links["v1"].kind, links["v1"].mtu) == ("bridge", "veth", 1400)
        assert links["v1"].master == links["br7"].index
        assert (links["br7"].is_up, links["v2"].is_up) == (True, False)
        told = [str(address.interface) for address in netlink.addresses() if address.link == links["br7"].index]
        assert {"10.3.0.1/24", "fd07::1/64"} <= set(told)
        ways = {(str(route.destination), route.link) for route in netlink.routes()}
        assert {("10.4.0.0/16", links["br7"].index), ("10.3.0.0/24", links["br7"].index)} <= ways
        assert netlink.delete_link("v1") is True
        assert netlink.delete_link("v1") is False
        assert {link.name for link in netlink.links()} == {"lo", "br7"}

    netns.inside(folder / "a", work)


def test_counters_count(folder: Path) -> None:
    netns.create(folder / "a")

    def work() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"x" * 1000, ("127.0.0.1", 9))
        (lo,) = netlink.links()
        assert lo.counters.tx_packets == lo.counters.rx_packets > 0
        assert lo.counters.tx_bytes >= 1000

    netns.inside(folder / "a", work)
