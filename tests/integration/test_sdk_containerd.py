"""The SDK on another CRI runtime's socket: Debian's containerd, with what CRI covers and what it does not."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

import atoll
from atoll import errors
from bench.daemons import Containerd
from bench.places import Places, take_away
from tests.integration.leaks import Footprint

IMAGE = "docker.io/atoll/busybox:latest"
BOUND_S = 120.0


@pytest.fixture
def containerd(leak_guard: Footprint) -> Iterator[Containerd]:
    places = Places(prefix=leak_guard.prefix, name="containerd", number=1)
    try:
        with Containerd(places) as daemon:
            yield daemon
    finally:
        take_away(places.prefix)


async def test_what_cri_covers_works_and_the_rest_is_refused_by_name(containerd: Containerd) -> None:
    address = f"unix://{containerd.places.socket}"
    async with asyncio.timeout(BOUND_S), atoll.connect(address) as client:
        assert any(IMAGE in image.tags for image in await client.images())
        cgroup = containerd.places.cgroup
        async with await client.run_pod("web", network="host", cgroup_parent=cgroup, labels={"a": "b"}) as pod:
            box = await pod.run(IMAGE, ["sh", "-c", "echo one; echo two >&2; sleep 1000"], name="box", memory="64MiB")
            result = await box.exec(["sh", "-c", "echo out; echo err >&2; exit 3"])
            assert (result.exit_code, result.text, result.error_text) == (3, "out\n", "err\n")
            assert [one.name for one in await client.pods(labels={"a": "b"})] == ["web"]
            assert [one.name for one in await pod.containers()] == ["box"]
            lines: dict[str, str] = {}
            async for line in box.logs(follow=True):
                lines[line.stream] = line.text
                if len(lines) == 2:
                    break
            assert lines == {"stdout": "one", "stderr": "two"}
            short = await pod.run(IMAGE, ["sh", "-c", "echo last; exit 7"], name="short")
            assert (await short.wait(60)).code == 7
            assert [line.text async for line in short.logs()] == ["last"]
            await box.update(memory="96MiB")
            for what, call in (
                ("Files", box.files.read("/etc/passwd")),
                ("Processes.Spawn", box.spawn(["true"])),
                ("Control.Pause", box.pause()),
                ("env", box.exec(["true"], env={"A": "b"})),
                ("without a network", client.run_pod(network="none")),
                ("lease", client.run_pod(ttl=60)),
            ):
                with pytest.raises(errors.Unimplemented, match=f"containerd at .*{what}.*only Atoll"):
                    await call
            with pytest.raises(errors.Unimplemented, match=r"Runtime\.Exec"):
                box.exec_stream(["true"])
            await box.stop(timeout=0)
            assert (await box.wait(60)).code == 137
        assert await client.pods() == ()


async def test_an_address_is_a_unix_socket_where_somebody_serves_cri(leak_guard: Footprint) -> None:
    with pytest.raises(errors.InvalidArgument, match="unix:///"):
        async with atoll.connect("tcp://127.0.0.1:1"):
            pass
    with pytest.raises(errors.Unavailable):
        async with atoll.connect("unix:///run/nobody/listens.sock"):
            pass
