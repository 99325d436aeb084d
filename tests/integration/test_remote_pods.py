"""Pods of a daemon whose sandboxes another process makes, which serves them by `atoll.sandbox.serve`."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from atoll.api import cri_runtime_v1_pb2 as pb
from atoll.engine.paths import NAMESPACE
from tests.integration.conftest import Daemon, Roots
from tests.integration.cri_client import CRI, connected, refused
from tests.integration.leaks import wait_until

SCRIPT = """
import asyncio, contextlib, os, sys
from pathlib import Path
from atoll import errors, sandbox
from atoll.concurrency import Blocking
from atoll.runtime.forked import AtollLauncher
from atoll.runtime.zygote import Zygote
from atoll.sandboxers.shim import ShimController
from atoll.shim.request import RuntimeChoice

class Takes(ShimController):
    '''Takes up what an earlier process left at the first question about it.'''

    async def status(self, sandbox_id, verbose=False):
        if sandbox_id not in self._held and (self._bundles / sandbox_id).is_dir():
            made = sandbox.Sandbox(id=sandbox_id, sandboxer='', runtime=sandbox.Runtime(name='io.containerd.atoll.v1'))
            await self.recover(made)
        return await super().status(sandbox_id, verbose)

    async def wait(self, sandbox_id):
        await self.status(sandbox_id)
        return await super().wait(sandbox_id)

    async def stop(self, sandbox_id, timeout_s=None):
        with contextlib.suppress(errors.NotFound):
            await self.status(sandbox_id)
        await super().stop(sandbox_id, timeout_s)

async def main(address, state, binary, namespace):
    blocking = Blocking()
    async with await Zygote.start() as zygote:
        choice = RuntimeChoice(binary=binary, root=f'{state}/oci')
        launcher = AtollLauncher(
            zygote, sockets=Path(state, 's'), runtime=choice, events_address='', blocking=blocking
        )
        controller = Takes(launcher=launcher, bundles=Path(state, 'shims'), namespace=namespace, blocking=blocking)
        await sandbox.serve(controller, address)
        await controller.aclose()
    blocking.close()

asyncio.run(main(*sys.argv[1:]))
"""


class Far:
    """The other process."""

    def __init__(self, roots: Roots, scheme: str) -> None:
        self.state = roots.state / "far"
        self.address = f"{scheme}{self.state}/sock"
        for name in ("s", "shims"):
            (self.state / name).mkdir(parents=True)
        self.process: subprocess.Popen[bytes] | None = None

    def begin(self) -> None:
        runc = str(shutil.which("runc"))
        command = [sys.executable, "-c", SCRIPT, self.address, str(self.state), runc, NAMESPACE]
        self.process = subprocess.Popen(command)
        wait_until(self._answers)

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.state / "sock")) == 0

    def end(self, number: signal.Signals) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(20)


@pytest.fixture(params=["ttrpc+unix://", "unix://"])
def far(request: pytest.FixtureRequest, roots: Roots) -> Iterator[Far]:
    made = Far(roots, request.param)
    made.begin()
    yield made
    assert made.end(signal.SIGTERM) == 0
    assert list((made.state / "shims").iterdir()) == []


@pytest.fixture
def both(roots: Roots, far: Far) -> Iterator[tuple[CRI, Daemon]]:
    roots.write_config(f'[runtimes.atoll]\n[runtimes.far]\nsandboxer = "remote"\naddress = "{far.address}"\n')
    daemon = Daemon(roots)
    daemon.start()
    try:
        with connected(roots) as cri:
            yield cri, daemon
            for pod in cri.list_pods():
                cri.remove_pod(pod.id)
            assert cri.fsck() == []
        assert daemon.stop() == 0, daemon.log_tail()
    finally:
        daemon.kill()


def test_a_pod_lives_its_life_over_the_wire(both: tuple[CRI, Daemon], far: Far) -> None:
    cri, daemon = both
    pod = cri.run_pod(cri.pod_config(network=True, hostname="served"), "far")
    container = cri.script(pod, "trap 'exit 4' TERM; echo up; while :; do sleep 0.05; done")
    assert cri.sh(container, "hostname") == "served"
    assert cri.sh(container, "cat /etc/hostname") == "served"
    assert cri.pod_status(pod).network.ip in cri.sh(container, "ip -4 addr show eth0")
    daemon.kill()
    daemon.start()
    assert cri.pod_status(pod).state == pb.SANDBOX_READY
    assert cri.sh(container, "echo again") == "again"
    cri.stop(container, timeout=10)
    assert (cri.status(container).exit_code, cri.output(container)) == (4, b"up\n")
    cri.stop_pod(pod)
    assert cri.pod_status(pod).state == pb.SANDBOX_NOTREADY
    cri.remove_pod(pod)
    assert cri.list_pods() == []


def test_containers_go_on_while_the_other_side_is_replaced(both: tuple[CRI, Daemon], far: Far) -> None:
    cri, _ = both
    pod = cri.run_pod(cri.pod_config(), "far")
    container = cri.script(pod, "sleep 1000")
    far.end(signal.SIGKILL)
    assert cri.sh(container, "echo here") == "here"
    far.begin()
    assert cri.pod_status(pod).state == pb.SANDBOX_READY
    cri.stop(container, timeout=0)
    cri.stop_pod(pod)
    assert cri.pod_status(pod).state == pb.SANDBOX_NOTREADY
    cri.remove_pod(pod)


def test_a_pod_of_a_sandboxer_that_nobody_serves_leaves_nothing(roots: Roots) -> None:
    roots.write_config(f'[runtimes.atoll]\n[runtimes.far]\nsandboxer = "remote"\naddress = "{roots.state}/none"\n')
    daemon = Daemon(roots)
    daemon.start()
    try:
        with connected(roots) as cri:
            with refused(grpc.StatusCode.UNAVAILABLE, f"{roots.state}/none", "correct its address"):
                cri.run_pod(handler="far")
            assert cri.list_pods() == []
            assert cri.fsck() == []
        assert daemon.stop() == 0, daemon.log_tail()
    finally:
        daemon.kill()


THIRTY_LINES = """
import runpy, sys
from atoll import sandbox
made = runpy.run_path(sys.argv[1])
sandbox.run(made['NamespaceSandboxer'], sys.argv[2])
"""


def test_pods_by_thirty_lines_of_python(roots: Roots) -> None:
    sock = roots.state / "thirty"
    example = Path(__file__).resolve().parents[2] / "examples" / "sandboxer.py"
    roots.write_config(f'[runtimes.atoll]\n[runtimes.thirty]\nsandboxer = "remote"\naddress = "{sock}"\n')
    daemon = Daemon(roots)
    with subprocess.Popen([sys.executable, "-c", THIRTY_LINES, str(example), f"unix://{sock}"]) as served:
        try:
            daemon.start()
            wait_until(sock.is_socket)
            with connected(roots) as cri:
                pod = cri.run_pod(cri.pod_config(network=True, hostname="thirty"), "thirty")
                assert cri.pod_status(pod).state == pb.SANDBOX_READY
                pid = cri.pod_info(pod)["pid"]
                inside = ["nsenter", "-t", str(pid), "--net", "--uts", "--"]
                told = subprocess.run([*inside, "hostname"], capture_output=True, text=True, check=True).stdout
                assert told == "thirty\n"
                shown = subprocess.run([*inside, "ip", "-4", "addr"], capture_output=True, text=True, check=True).stdout
                assert cri.pod_status(pod).network.ip in shown
                daemon.kill()
                daemon.start()
                assert (cri.pod_status(pod).state, cri.pod_info(pod)["pid"]) == (pb.SANDBOX_READY, pid)
                with pytest.raises(grpc.RpcError, match="serves no task API"):
                    cri.script(pod, "sleep 5")
                cri.stop_pod(pod)
                assert cri.pod_status(pod).state == pb.SANDBOX_NOTREADY
                cri.remove_pod(pod)
                assert cri.fsck() == []
            assert daemon.stop() == 0
        finally:
            daemon.kill()
            served.terminate()
        assert served.wait(20) == 0


def atoll(daemon: Daemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "atoll.cli.main", "--socket", str(daemon.roots.socket), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_a_sandboxer_that_is_gone_for_good_can_be_given_up(roots: Roots) -> None:
    sock = roots.state / "thirty"
    example = Path(__file__).resolve().parents[2] / "examples" / "sandboxer.py"
    handler = f'[runtimes.thirty]\nsandboxer = "remote"\naddress = "{sock}"\n'
    roots.write_config(f"[runtimes.atoll]\n{handler}")
    daemon = Daemon(roots)
    with subprocess.Popen([sys.executable, "-c", THIRTY_LINES, str(example), f"unix://{sock}"]) as served:
        try:
            daemon.start()
            wait_until(sock.is_socket)
            with connected(roots) as cri:
                lost, forgotten, here = (cri.run_pod(handler=name) for name in ("thirty", "thirty", "atoll"))
                for pod, why in ((lost, "answers"), (here, "held by this machine"), ("nobody", "not in the books")):
                    told = atoll(daemon, "fsck", "--abandon", pod)
                    assert (told.returncode, why in told.stderr) == (125, True), told.stderr
                served.kill()  # its sandboxes end with it
                served.wait(20)
                with refused(grpc.StatusCode.UNAVAILABLE, "thirty", f"atoll fsck --abandon {lost}"):
                    cri.stop_pod(lost)
                told = atoll(daemon, "fsck", "--abandon", lost)
                assert (told.returncode, lost in told.stdout, forgotten in told.stdout) == (1, False, True)
                assert {pod.id for pod in cri.list_pods()} == {forgotten, here}
                daemon.stop()
                roots.write_config("[runtimes.atoll]\n")
                daemon.start()
                with refused(grpc.StatusCode.FAILED_PRECONDITION, f"atoll fsck --abandon {forgotten}"):
                    cri.stop_pod(forgotten)
                assert atoll(daemon, "fsck", "--abandon", forgotten).returncode == 0
                cri.remove_pod(here)
                assert cri.list_pods() == []
                assert cri.fsck() == []
            assert daemon.stop() == 0
        finally:
            daemon.kill()
            served.kill()
