"""One plugin over a socket pair, its messages and its end."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from atoll import errors
from atoll.api import nri_v1alpha1_pb2 as pb
from atoll.nri import installed
from atoll.nri.plugin import SAID_LETTERS, Identity, Plugin, Timeouts, in_short, split
from tests.integration import nri_client as client


def test_everything_in_one_message_where_it_fits() -> None:
    pods = [pb.PodSandbox(id=str(number)) for number in range(3)]
    containers = [pb.Container(id=str(number)) for number in range(3)]
    [request] = split(pods, containers)
    assert (len(request.pods), len(request.containers), request.more) == (3, 3, False)
    assert [one.more for one in split([], [])] == [False]


def test_more_than_fits_goes_in_several_each_of_them_small_enough() -> None:
    pods = [pb.PodSandbox(id="p", name="x" * 100) for _ in range(20)]
    containers = [pb.Container(id="c", name="x" * 100) for _ in range(20)]
    requests = split(pods, containers, limit=1000)
    assert all(request.ByteSize() <= 1000 for request in requests)
    assert [request.more for request in requests] == [True] * (len(requests) - 1) + [False]
    assert sum(len(request.pods) for request in requests) == 20
    assert sum(len(request.containers) for request in requests) == 20


async def nobody(plugin: Plugin, request: pb.UpdateContainersRequest) -> pb.UpdateContainersResponse:
    raise AssertionError("no updates here")


async def connected() -> tuple[Plugin, socket.socket]:
    ours, its = socket.socketpair()
    timeouts = Timeouts(registration_s=0.05, request_s=0.05)
    return await Plugin.connect(ours, timeouts=timeouts, updater=nobody), its


async def test_who_says_nothing_does_not_register() -> None:
    plugin, its = await connected()
    with its, pytest.raises(errors.DeadlineExceeded, match="did not register"):
        await plugin.start(runtime="atoll", version="1", config="")
    await plugin.close()
    assert plugin.is_closed


async def test_who_hangs_up_does_not_register() -> None:
    plugin, its = await connected()
    its.close()
    with pytest.raises(errors.Unavailable, match="hung up"):
        await plugin.start(runtime="atoll", version="1", config="")
    await plugin.close()


async def test_garbage_ends_the_connection() -> None:
    plugin, its = await connected()
    with its:
        its.sendall(b"\xff" * 64)
        async with asyncio.timeout(1):
            await plugin.gone
    await plugin.close()


async def test_a_plugin_is_told_more_than_one_message_holds() -> None:
    ours, its = socket.socketpair()
    timeouts = Timeouts(registration_s=5.0, request_s=10.0)
    plugin = await Plugin.connect(ours, timeouts=timeouts, updater=nobody)
    other = client.Plugin(its, "test", "42")
    starting = asyncio.to_thread(other.start)
    pods = [pb.PodSandbox(id=str(number), name="x" * 300_000) for number in range(30)]

    async def runtime() -> None:
        await plugin.start(runtime="atoll", version="1", config="text")
        assert await plugin.synchronize(pods, []) == []

    async with asyncio.TaskGroup() as group:
        group.create_task(starting)
        group.create_task(runtime())
    assert str(plugin) == "42-test"
    assert other.configured is not None
    assert other.configured.config == "text"
    parts = other.of("Synchronize", pb.SynchronizeRequest)
    assert [part.more for part in parts] == [True, True, False]
    assert [pod.id for part in parts for pod in part.pods] == [str(number) for number in range(30)]
    await plugin.close()
    await asyncio.to_thread(other.close)


@pytest.mark.parametrize(("index", "name"), [("1", "a"), ("100", "a"), ("aa", "a"), ("10", ""), ("10", "a/b")])
def test_an_identity_is_two_digits_and_a_plain_name(index: str, name: str) -> None:
    with pytest.raises(errors.InvalidArgument):
        Identity.checked(index, name)
    assert str(Identity.checked("07", "a-b_c.d+e")) == "07-a-b_c.d+e"


def test_installed_plugins_are_found_with_their_configuration(tmp_path: Path) -> None:
    plugins, conf = tmp_path / "plugins", tmp_path / "conf.d"
    assert installed.find(plugins, conf) == []
    plugins.mkdir()
    conf.mkdir()
    for name in ("20-b", "10-a", "30-c", "noindex", "40-data"):
        (plugins / name).write_text("")
        (plugins / name).chmod(0o644 if name == "40-data" else 0o755)
    (conf / "10-a.conf").write_text("own")
    (conf / "a.conf").write_text("by name")
    (conf / "b.conf").write_text("by name")
    (conf / "30-c.conf").write_bytes(b"\xff")
    found = installed.find(plugins, conf)
    assert [(str(one.identity), one.config) for one in found] == [("10-a", "own"), ("20-b", "by name")]


def test_what_a_plugin_says_is_one_line_of_a_bounded_length() -> None:
    assert in_short("no\n\n  such\tthing\n") == "no such thing"
    said = in_short("line\n" * 1000)
    assert (len(said), "\n" in said, said[-3:]) == (SAID_LETTERS + 3, False, "...")
    assert in_short("\n" * 100_000) == ""
