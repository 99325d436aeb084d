"""The books of a controller in memory, over real processes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import Coroutine
from datetime import UTC, datetime
from typing import Any, TypeVar

import pytest

from atoll import errors
from atoll.api.cri_runtime_v1_pb2 import LinuxPodSandboxConfig, NamespaceMode, PodSandboxConfig
from atoll.sandbox import POD_CONFIG, CreateOptions, Lives, Mount, Runtime, Sandbox, State, TypedAny

T = TypeVar("T")
SANDBOX = Sandbox(id="one", sandboxer="", runtime=Runtime(name="toy"), labels={"a": "b"})
SHOUT = ("sh", "-c", 'trap "exit 3" TERM; read line; echo ready; while :; do sleep 0.05; done')
DEAF = ("sh", "-c", 'trap "" TERM; read line; echo ready; while :; do sleep 0.05; done')


def later(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    return asyncio.get_running_loop().create_task(work)


async def begun(*command: str) -> Lives:
    lives = Lives()
    lives.add(SANDBOX, CreateOptions())
    await lives.run("one", *command, prompt=b"\n")
    return lives


async def test_a_life_from_its_creation_to_its_end() -> None:
    lives = Lives()
    lives.add(SANDBOX, CreateOptions())
    made = lives["one"].status(verbose=True)
    assert (made.state, made.pid, made.exited_at) == (State.NOTREADY, 0, None)
    waiting = later(lives["one"].wait())
    instance = await lives.run("one", "cat", prompt=b"\n")
    assert os.readlink(f"/proc/{instance.pid}/exe").endswith("cat")
    status = lives["one"].status(verbose=True)
    assert (status.state, status.pid, status.created_at) == (State.READY, instance.pid, instance.created_at)
    assert json.loads(status.info["info"])["processStatus"] == "running"
    assert instance.labels == {"a": "b"}
    await lives.stop("one")
    ended = await waiting
    assert ended.exit_status == 128 + signal.SIGKILL
    status = lives["one"].status()
    assert (status.state, status.pid, status.exited_at) == (State.NOTREADY, 0, ended.exited_at)
    await lives.shutdown("one")
    with pytest.raises(errors.NotFound):
        lives["one"]
    assert len(lives) == 0


async def test_its_own_end_is_seen() -> None:
    lives = await begun("sh", "-c", "read line; echo; sleep 0.1; exit 5")
    assert (await lives["one"].wait()).exit_status == 5
    await lives.shutdown("one")


async def test_a_polite_stop_is_a_sigterm() -> None:
    lives = await begun(*SHOUT)
    await lives.stop("one", 20)
    assert (await lives["one"].wait()).exit_status == 3
    await lives.shutdown("one")


async def test_a_stop_that_is_not_heeded_is_a_sigkill() -> None:
    lives = await begun(*DEAF)
    await lives.stop("one", 0.1)
    assert (await lives["one"].wait()).exit_status == 128 + signal.SIGKILL
    await lives.shutdown("one")


async def test_a_shutdown_overtakes_a_polite_stop() -> None:
    lives = await begun(*DEAF)
    stopping = later(lives.stop("one", 100))
    await asyncio.sleep(0.05)
    async with asyncio.timeout(10):
        await lives.shutdown("one")
        await stopping


async def test_what_was_stopped_before_its_start_never_starts() -> None:
    lives = Lives()
    life = lives.add(SANDBOX, CreateOptions())
    await lives.stop("one")
    first = await life.wait()
    await lives.stop("one")
    assert (first.exit_status, await life.wait()) == (0, first)
    with pytest.raises(errors.FailedPrecondition, match="has ended"):
        await lives.run("one", "cat", prompt=b"\n")
    assert "one" in lives


async def test_a_second_start_is_refused_and_disturbs_nothing() -> None:
    lives = await begun("cat")
    with pytest.raises(errors.FailedPrecondition, match="started already"):
        await lives.run("one", "cat", prompt=b"\n")
    assert lives["one"].is_running
    await lives.shutdown("one")


@pytest.mark.parametrize("command", [["no-such-program"], ["false"], ["sh", "-c", "read line; exit 4"]])
async def test_a_start_that_fails_leaves_nothing(command: list[str]) -> None:
    with pytest.raises(errors.FailedPrecondition, match="sandbox one"):
        await begun(*command)
    lives = Lives()
    lives.add(SANDBOX, CreateOptions())
    with pytest.raises(errors.FailedPrecondition):
        await lives.run("one", *command, prompt=b"\n")
    assert list(lives) == []


async def test_a_start_that_is_given_up_leaves_nothing() -> None:
    lives = Lives()
    life = lives.add(SANDBOX, CreateOptions())
    starting = later(lives.run("one", "sh", "-c", "read line; exec sleep 1000", prompt=b"\n"))
    async with asyncio.timeout(10):
        while life.process is None:  # noqa: ASYNC110  what is waited for tells nobody
            await asyncio.sleep(0.01)
    starting.cancel()
    await asyncio.wait({starting})
    assert life.process.returncode is not None
    assert "one" not in lives


def pod(**modes: int) -> CreateOptions:
    config = PodSandboxConfig(hostname="inside")
    for name, mode in modes.items():
        setattr(config.linux.security_context.namespace_options, name, mode)
    return CreateOptions(options=TypedAny(type_url=POD_CONFIG, value=config.SerializeToString()))


def own(pid: int) -> set[str]:
    kinds = ("pid", "ipc", "uts", "net")
    return {kind for kind in kinds if os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")}


@pytest.mark.parametrize(
    ("options", "namespaces"),
    [
        (CreateOptions(), {"pid", "ipc", "uts", "net"}),
        (pod(network=NamespaceMode.NODE), {"pid", "ipc"}),
        (pod(pid=NamespaceMode.CONTAINER), {"ipc", "uts", "net"}),
        (pod(ipc=NamespaceMode.NODE, pid=NamespaceMode.NODE), {"uts", "net"}),
        (pod(network=NamespaceMode.NODE, ipc=NamespaceMode.NODE, pid=NamespaceMode.NODE), set[str]()),
    ],
)
async def test_namespaces_are_those_that_are_asked_for(options: CreateOptions, namespaces: set[str]) -> None:
    lives = Lives()
    lives.add(SANDBOX, options, takes=(POD_CONFIG,))
    instance = await lives.unshare("one", "cat", prompt=b"\n")
    assert own(instance.pid) == namespaces
    assert os.readlink(f"/proc/{instance.pid}/exe").endswith("cat")
    if options.options is not None and "uts" in namespaces:
        inside = subprocess.run(
            ["nsenter", f"--uts=/proc/{instance.pid}/ns/uts", "hostname"], capture_output=True, text=True, check=True
        )
        assert inside.stdout == "inside\n"
    await lives.stop("one")
    assert (await lives["one"].wait()).exit_status == 128 + signal.SIGKILL
    await lives.shutdown("one")


async def test_a_polite_stop_reaches_the_first_process_of_a_pid_namespace() -> None:
    lives = Lives()
    lives.add(SANDBOX, CreateOptions())
    await lives.unshare("one", *SHOUT, prompt=b"\n")
    await lives.stop("one", 20)
    assert (await lives["one"].wait()).exit_status == 3
    await lives.shutdown("one")


@pytest.mark.parametrize("value", [b"\xff\xff", PodSandboxConfig(linux=LinuxPodSandboxConfig(sysctls={"a": "b"}))])
async def test_a_pod_that_cannot_be_had_is_refused(value: bytes | PodSandboxConfig) -> None:
    lives, config = Lives(), value if isinstance(value, bytes) else value.SerializeToString()
    lives.add(SANDBOX, CreateOptions(options=TypedAny(type_url=POD_CONFIG, value=config)), takes=(POD_CONFIG,))
    with pytest.raises(errors.InvalidArgument, match="pod config"):
        await lives.unshare("one", "cat", prompt=b"\n")
    assert "one" not in lives


async def test_what_a_failed_start_said_is_told() -> None:
    lives = Lives()
    lives.add(SANDBOX, CreateOptions(netns_path="/run/netns/no-such"), takes=("netns_path",))
    with pytest.raises(errors.FailedPrecondition, match=r"nsenter.*no-such"):
        await lives.unshare("one", "cat", prompt=b"\n")


async def test_a_shutdown_answers_who_waits() -> None:
    lives = Lives()
    waiting = later(lives.add(SANDBOX, CreateOptions()).wait())
    await asyncio.sleep(0)
    lives.forget("one")
    lives.forget("one")
    assert (await waiting).exit_status == 255


@pytest.mark.parametrize(
    "options",
    [
        CreateOptions(rootfs=(Mount(type="bind", source="/"),)),
        CreateOptions(netns_path="/run/netns/x"),
        CreateOptions(annotations={"a": "b"}),
        CreateOptions(options=TypedAny(type_url="x", value=b"")),
    ],
)
def test_options_are_followed_or_refused(options: CreateOptions) -> None:
    lives = Lives()
    with pytest.raises(errors.InvalidArgument, match="does not follow"):
        lives.add(SANDBOX, options)
    assert len(lives) == 0
    lives.add(SANDBOX, options, takes=("rootfs", "netns_path", "annotations", "x"))


def test_what_only_tells_is_no_demand() -> None:
    Lives().add(SANDBOX, CreateOptions(annotations={"io.atoll.sandbox.files": "/x", "io.atoll.sandbox.cgroup": "/y"}))


def test_an_id_is_checked_and_there_once() -> None:
    lives = Lives()
    lives.add(SANDBOX, CreateOptions())
    with pytest.raises(errors.AlreadyExists):
        lives.add(SANDBOX, CreateOptions())
    with pytest.raises(errors.InvalidArgument):
        lives.add(Sandbox(id="../x", sandboxer="", runtime=Runtime(name="")), CreateOptions())


def test_a_life_of_before_can_be_taken_up() -> None:
    life, at = Lives().add(SANDBOX, CreateOptions()), datetime(2026, 1, 1, tzinfo=UTC)
    assert life.begin(7, at=at, address="ttrpc+unix:///x", version=3).created_at == at
    life.end(-9, at=at)
    life.end(0)
    status = life.status()
    assert (status.exited_at, status.exit_status, status.address, status.version) == (at, 137, "ttrpc+unix:///x", 3)
    with pytest.raises(errors.FailedPrecondition):
        life.require_running()
