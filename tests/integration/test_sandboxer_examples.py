"""The controllers under examples/, each behind its wire: they keep the contract, and their scripts end well."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import pytest

from atoll import errors
from atoll.api.cri_runtime_v1_pb2 import NamespaceMode, PodSandboxConfig
from atoll.sandbox import listening
from atoll.sandbox.controller import (
    Controller,
    ControllerInstance,
    CreateOptions,
    Mount,
    Runtime,
    Sandbox,
    State,
    TypedAny,
)
from atoll.sandboxers.remote import RemoteController
from atoll.testing.conformance import CHECKS, SAFE, LinuxHost, Subject, check_controller
from atoll.testing.fake import FakeController
from tests.integration.conftest import Roots

T = TypeVar("T")


EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
KILLED = 128 + signal.SIGKILL
WIRES = ("unix://", "ttrpc+unix://")


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def later(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    return asyncio.get_running_loop().create_task(work)


@pytest.fixture(params=WIRES)
def address(request: pytest.FixtureRequest, roots: Roots) -> str:
    return f"{request.param}{roots.state}/example"


def record(made: str) -> Sandbox:
    return Sandbox(id=made, sandboxer="example", runtime=Runtime(name="example"), labels={"a": "b"})


async def kill(instance: ControllerInstance) -> int:
    os.kill(instance.pid, signal.SIGKILL)
    return KILLED


def pod(**modes: int) -> TypedAny:
    config = PodSandboxConfig(hostname="inside")
    for name, mode in modes.items():
        setattr(config.linux.security_context.namespace_options, name, mode)
    return TypedAny(type_url="runtime.v1.PodSandboxConfig", value=config.SerializeToString())


# The thirty lines


async def test_thirty_lines_keep_the_contract_on_every_wire(address: str) -> None:
    assert len((EXAMPLES / "sandboxer.py").read_text().splitlines()) <= 30
    async with listening(load("sandboxer").NamespaceSandboxer(), address):
        controller = RemoteController(address)
        subject = Subject(
            controller=controller,
            sandbox=record,
            options=lambda made: CreateOptions(options=pod()),
            refused=lambda made: CreateOptions(netns_path="/run/netns/no-such"),
            end=kill,
            host=LinuxHost(),
            namespaces=frozenset({"pid", "ipc", "uts", "net"}),
        )
        report = await check_controller(subject, SAFE)
        await controller.aclose()
        assert report.is_passed, report


def test_the_script_serves_until_sigterm(roots: Roots) -> None:
    code = f"import runpy, sys; sys.argv = ['x']; import atoll.sandbox as s; run = s.run; s.run = lambda make, _: run(make, 'unix://{roots.state}/x'); runpy.run_path('{EXAMPLES}/sandboxer.py', run_name='__main__')"  # noqa: E501
    ready = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    ready.bind(str(roots.state / "ready"))
    ready.settimeout(20)
    env = {**os.environ, "NOTIFY_SOCKET": str(roots.state / "ready")}
    with ready, subprocess.Popen([sys.executable, "-c", code], env=env) as process:
        assert ready.recv(100) == b"READY=1"
        assert (roots.state / "x").stat().st_mode & 0o777 == 0o600
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    assert not (roots.state / "x").exists()


# bubblewrap


class Script:
    """An example run as a program, killed and run again."""

    def __init__(self, name: str, *arguments: str) -> None:
        self._command = [sys.executable, str(EXAMPLES / f"{name}.py"), *arguments]
        self.process: asyncio.subprocess.Process | None = None

    async def begin(self) -> None:
        self.process = await asyncio.create_subprocess_exec(*self._command)

    async def end(self, number: signal.Signals = signal.SIGKILL) -> int:
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)
        return await self.process.wait()


async def answers(controller: Controller) -> None:
    async with asyncio.timeout(20):
        while True:
            try:
                await controller.status("nobody")
            except errors.NotFound:
                return
            except errors.Unavailable:
                await asyncio.sleep(0.05)


@asynccontextmanager
async def bubblewrap(roots: Roots, address: str) -> AsyncIterator[tuple[Script, RemoteController]]:
    script = Script("bubblewrap_sandboxer", address, str(roots.base / "sandboxes"))
    controller = RemoteController(address)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(script.end)
        stack.push_async_callback(controller.aclose)
        await script.begin()
        await answers(controller)
        yield script, controller


async def test_bubblewrap_keeps_the_contract_on_every_wire(roots: Roots, address: str) -> None:
    async with bubblewrap(roots, address) as (script, controller):

        async def restart(sandboxes: tuple[Sandbox, ...]) -> Controller:
            await script.end()
            await script.begin()
            await answers(controller)
            return controller

        async def left(made: str) -> tuple[str, ...]:
            return tuple(str(path) for path in (roots.base / "sandboxes").glob(f"{made}*"))

        @asynccontextmanager
        async def another() -> AsyncIterator[Controller]:
            made = RemoteController(address)
            yield made
            await made.aclose()

        subject = Subject(
            controller=controller,
            sandbox=record,
            options=lambda made: CreateOptions(options=pod()),
            refused=lambda made: CreateOptions(netns_path="/run/netns/no-such"),
            end=kill,
            left=left,
            restart=restart,
            another=another,
            host=LinuxHost(),
            namespaces=frozenset({"ipc", "uts", "net", "pid"}),
        )
        report = await check_controller(subject, CHECKS if address.startswith("unix") else SAFE)
        assert report.is_passed, report


async def test_bubblewrap_follows_its_options(roots: Roots) -> None:
    address = f"unix://{roots.state}/bw"
    root = roots.base / "root"
    for name in ("bin", "proc", "dev", "tmp"):
        (root / name).mkdir(parents=True)
    (root / "bin" / "busybox").write_bytes(Path("/bin/busybox").read_bytes())
    (root / "bin" / "busybox").chmod(0o755)
    spec = json.dumps({"process": {"args": ["/bin/busybox", "sh", "-c", "hostname > /said; exit 5"]}}).encode()
    async with bubblewrap(roots, address) as (_, controller):
        made = Sandbox(
            id="one",
            sandboxer="",
            runtime=Runtime(name=""),
            spec=TypedAny(type_url="types.containerd.io/opencontainers/runtime-spec/1/Spec", value=spec),
        )
        mount = Mount(type="bind", source=str(root), options=("rbind",))
        await controller.create(made, CreateOptions(rootfs=(mount,), options=pod(network=NamespaceMode.NODE)))
        instance = await controller.start("one")
        async with asyncio.timeout(10):
            ended = await controller.wait("one")
        assert (ended.exit_status, (root / "said").read_text()) == (5, "inside\n")
        status = await controller.status("one", verbose=True)
        assert (status.state, status.exited_at, status.created_at) == (
            State.NOTREADY,
            ended.exited_at,
            instance.created_at,
        )
        for bad in (CreateOptions(rootfs=(mount, mount)), CreateOptions(annotations={"a": "b"})):
            with pytest.raises(errors.InvalidArgument):
                await controller.create(record("two"), bad)
        await controller.shutdown("one")
    assert list((roots.base / "sandboxes").iterdir()) == []


async def test_a_polite_stop_in_bubblewrap_is_a_sigterm(roots: Roots) -> None:
    async with bubblewrap(roots, f"unix://{roots.state}/bw") as (_, controller):
        await controller.create(record("one"), CreateOptions())
        await controller.start("one")
        await asyncio.sleep(0.2)
        await controller.stop("one", 10)
        assert (await controller.wait("one")).exit_status == 128 + signal.SIGTERM
        await controller.shutdown("one")


async def test_a_wait_outlives_bubblewrap_sandboxers_and_learns_of_the_end_between_them(roots: Roots) -> None:
    async with bubblewrap(roots, f"unix://{roots.state}/bw") as (script, controller):
        await controller.create(record("one"), CreateOptions())
        instance = await controller.start("one")
        waiting = later(controller.wait("one"))
        await asyncio.sleep(0.1)
        assert await script.end(signal.SIGTERM) == 0
        os.kill(instance.pid, signal.SIGKILL)
        await asyncio.sleep(0.3)
        assert not waiting.done()
        await script.begin()
        async with asyncio.timeout(20):
            ended = await waiting
        assert ended.exit_status == KILLED
        assert await controller.wait("one") == ended
        await controller.shutdown("one")


# chaos


@pytest.fixture
def chaos() -> ModuleType:
    return load("chaos_sandboxer")


async def test_chaos_without_rules_keeps_the_contract_on_every_wire(chaos: ModuleType, address: str) -> None:
    fake = FakeController()

    async def end(instance: ControllerInstance) -> int:
        fake.end(instance.sandbox_id, 7)
        return 7

    async with listening(chaos.ChaosSandboxer(fake, chaos.Plan()), address):
        controller = RemoteController(address)
        subject = Subject(controller=controller, sandbox=record, options=lambda made: CreateOptions(), end=end)
        report = await check_controller(subject, SAFE)
        await controller.aclose()
        assert report.is_passed, report


async def test_chaos_happens_as_planned(chaos: ModuleType, address: str) -> None:
    plan = chaos.Plan.read(
        json.dumps(
            {
                "rules": [
                    {"method": "create", "calls": [1], "error": "ResourceExhausted", "text": "full"},
                    {"method": "start", "calls": [1], "error": "Internal", "when": "after"},
                    {"method": "status", "calls": [2], "delay_s": 0.2},
                ]
            }
        ).encode()
    )
    fake = FakeController()
    here = chaos.ChaosSandboxer(fake, plan)
    async with listening(here, address):
        controller = RemoteController(address)
        with pytest.raises(errors.ResourceExhausted, match="full"):
            await controller.create(record("one"), CreateOptions())
        await controller.create(record("one"), CreateOptions())
        with pytest.raises(errors.Internal):
            await controller.start("one")
        assert (await controller.status("one")).state is State.READY  # it runs, and nobody was told
        begun = asyncio.get_running_loop().time()
        await controller.status("one")
        assert asyncio.get_running_loop().time() - begun >= 0.2
        assert [(method, number) for method, number, _ in here.done] == [("create", 1), ("start", 1), ("status", 2)]
        await controller.shutdown("one")
        await controller.aclose()


def test_a_seed_gives_the_same_chaos_and_another_seed_another(chaos: ModuleType) -> None:
    text = b'{"rules": [{"method": "*", "chance": 0.5, "delay_s": [0.1, 2.0]}]}'

    def happens(seed: int) -> list[list[float]]:
        plan = chaos.Plan.read(text, seed)
        return [[delay for _, delay in plan.of("status", number)] for number in range(1, 60)]

    assert happens(7) == happens(7) != happens(8)
    hits = [delay for call in happens(7) for delay in call]
    assert 15 < len(hits) < 45
    assert all(0.1 <= delay <= 2.0 for delay in hits)


@pytest.mark.parametrize(
    "text",
    [b"{", b'{"rule": []}', b'{"rules": [{"method": "begin"}]}', b'{"rules": [{"method": "start", "error": "Odd"}]}'],
)
def test_a_plan_that_is_none_is_told(chaos: ModuleType, text: bytes) -> None:
    with pytest.raises(errors.InvalidArgument, match="plan"):
        chaos.Plan.read(text)


async def test_a_crash_cuts_every_call_and_a_wait_outlives_it(roots: Roots) -> None:
    real, address = f"ttrpc+unix://{roots.state}/real", f"unix://{roots.state}/chaos"
    plan = roots.base / "plan.json"
    plan.write_text('{"rules": [{"method": "status", "calls": [3], "crash": true}]}')
    fake, controller = FakeController(), RemoteController(address)
    script = Script("chaos_sandboxer", address, real, str(plan))
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(listening(fake, real))
        stack.push_async_callback(script.end)
        await script.begin()
        assert script.process is not None
        await until((roots.state / "chaos").exists)
        await controller.create(record("one"), CreateOptions())
        await controller.start("one")
        waiting = later(controller.wait("one"))
        await controller.status("one")
        await controller.status("one")
        with pytest.raises(errors.Unavailable):
            await controller.status("one")
        assert await script.process.wait() == -signal.SIGKILL
        await script.begin()  # over the dead socket
        await asyncio.sleep(0.3)
        assert not waiting.done()
        fake.end("one", 9)
        async with asyncio.timeout(20):
            assert (await waiting).exit_status == 9
        await controller.aclose()


async def until(is_true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not is_true():  # noqa: ASYNC110  a file tells nobody that it came
            await asyncio.sleep(0.02)


# A new project


def test_a_new_project_passes_the_kit_and_runs(roots: Roots) -> None:
    project = roots.base / "my-box"
    python = [sys.executable, "-m"]
    subprocess.run([*python, "atoll.cli.main", "sandboxer", "new", "my-box", "--in", str(roots.base)], check=True)
    own = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}  # of the run around this one
    env = {**own, "PYTHONPATH": f"{project / 'src'}:{EXAMPLES.parent / 'src'}"}
    done = subprocess.run(
        [*python, "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=project,
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert (done.returncode, "2 passed" in done.stdout) == (0, True), done.stdout
    with subprocess.Popen([*python, "my_box", f"unix://{roots.state}/box"], env=env) as process:
        asyncio.run(_lives(f"unix://{roots.state}/box"))
        process.terminate()
        assert process.wait(20) == 0


async def _lives(address: str) -> None:
    controller = RemoteController(address)
    await answers(controller)
    await controller.create(record("one"), CreateOptions())
    instance = await controller.start("one")
    assert os.readlink(f"/proc/{instance.pid}/ns/net") != os.readlink("/proc/self/ns/net")
    await controller.shutdown("one")
    await controller.aclose()
