"""Each helper, misbehaving in each way: every call keeps its bound and names the culprit, nobody else notices,
memory stays flat, and once the helper is well the debts are paid and fsck is clean.

Registries that keep silent are in `test_image_pull.py`, plugins of NRI in `test_nri.py`, shims in `test_gone_shims.py`.
"""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import grpc
import pytest

from atoll.api import cri_runtime_v1_pb2 as pb
from atoll.linux.leftover import VARIABLE
from tests.integration.conftest import Daemon, Roots
from tests.integration.cri_client import CRI, connected, in_parallel
from tests.integration.leaks import pids, read, wait_until
from tests.integration.sick import MODES, Helpers
from tests.integration.test_restart import shim_of

BOUND_S = 25.0
"""Of any call: the programs' short bounds, one after the other, on a busy machine."""
PROBE_BOUND_S = 5.0
GROWTH_BYTES = 96 << 20
NO_ERROR = {"keep"}
"""It does its work; only its child stays."""


@pytest.fixture
def helpers(roots: Roots) -> Helpers:
    return Helpers.make(roots)


@contextmanager
def serving(helpers: Helpers, monkeypatch: pytest.MonkeyPatch, config: str = "") -> Iterator[tuple[Daemon, CRI]]:
    """A daemon with these helpers; in the end they are well, and nothing may be left of what they did."""
    roots = helpers.roots
    roots.write_config(config)
    for name, value in helpers.environment().items():
        monkeypatch.setenv(name, value)
    daemon = Daemon(roots)
    daemon.start()
    try:
        with connected(roots) as cri:
            try:
                yield daemon, cri
            finally:
                helpers.heal()
                for pod in cri.list_pods():
                    cri.remove_pod(pod.id)
            assert wait_until(lambda: cri.fsck() == [], within=40.0), cri.fsck()
        assert daemon.stop() == 0, daemon.log_tail()
    finally:
        daemon.kill()


@dataclass(slots=True)
class Probe:
    """A pod that is used all the time; how long each use took."""

    took_s: list[float] = field(default_factory=list[float])
    faults: list[str] = field(default_factory=list[str])


@contextmanager
def probed(cri: CRI, daemon: Daemon) -> Iterator[None]:
    """Somebody else's pod does not notice what goes on inside, and neither daemon nor shim grows."""
    pod = cri.run_pod()
    container = cri.script(pod, "sleep 1000")
    probe, over = Probe(), threading.Event()
    before = [resident(pid) for pid in (daemon.pid, shim_of(cri, pod))]

    def use() -> None:
        while not over.wait(0.2):
            begun = time.monotonic()
            if (outcome := cri.exec(container, "true")).code != 0:
                probe.faults.append(str(outcome))
            probe.took_s.append(time.monotonic() - begun)

    thread = threading.Thread(target=use)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    grown = [resident(pid) - was for pid, was in zip((daemon.pid, shim_of(cri, pod)), before, strict=True)]
    assert probe.faults == []
    assert len(probe.took_s) > 3
    assert max(probe.took_s) < PROBE_BOUND_S, probe.took_s
    assert max(grown) < GROWTH_BYTES, grown
    cri.remove_pod(pod)


def resident(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) << 10


@dataclass(frozen=True, slots=True)
class Told:
    """How a call ended: in time, and with what text; empty for success."""

    took_s: float
    text: str


def timed(call: Callable[[], object]) -> Told:
    begun = time.monotonic()
    text = ""
    try:
        call()
    except grpc.RpcError as error:
        text = error.details() or str(error.code())
    return Told(time.monotonic() - begun, text)


def judge(found: dict[str, Told | Exception], *culprit: str, silent: frozenset[str] = frozenset(NO_ERROR)) -> None:
    """Each call kept its bound; each that failed names the culprit and what it was asked for; all faults at once."""
    faults: list[str] = []
    for cell, told in found.items():
        mode = cell.rpartition("-")[2]
        if isinstance(told, Exception):
            faults.append(f"{cell}: {told!r}")
            continue
        if told.took_s > BOUND_S:
            faults.append(f"{cell}: took {told.took_s:.1f} s")
        if mode in silent and told.text:
            faults.append(f"{cell}: failed: {told.text}")
        if mode not in silent and not any(word in told.text for word in culprit):
            faults.append(f"{cell}: does not name one of {culprit}: {told.text!r}")
        if "\n" in told.text or "\x1b" in told.text:
            faults.append(f"{cell}: is not one clean line: {told.text!r}")
    assert not faults, "\n".join(faults)


def together(cells: Mapping[str, Callable[[], object]]) -> dict[str, Told | Exception]:
    return dict(zip(cells, in_parallel([partial(timed, call) for call in cells.values()]), strict=True))


@pytest.mark.slow
def test_an_oci_runtime(helpers: Helpers, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(helpers, monkeypatch, f'[runtimes.atoll]\noci_runtime = "{helpers.oci()}"\n') as (daemon, cri):
        pod = cri.run_pod()
        sound = cri.script(pod, "sleep 1000")

        def made(verb: str, mode: str) -> str:
            config = cri.container_config("/bin/sleep", "1000", env={"SICK": f"sick-{verb}-{mode}"})
            return cri.create(pod, config)

        creating = {f"create-{mode}": made("create", mode) for mode in MODES}
        deleting = {f"delete-{mode}": made("delete", mode) for mode in MODES}
        for container in deleting.values():
            cri.start(container)
        with probed(cri, daemon):
            judge(together({cell: partial(cri.start, one) for cell, one in creating.items()}), "crun create")
            asked = {f"exec-{mode}": partial(cri.exec, sound, "true", f"sick-exec-{mode}") for mode in MODES}
            judge(together(asked), "crun exec")
            # What the runtime does not delete is the ledger's, so that no removal fails for it.
            removed = together({cell: partial(cri.remove, one) for cell, one in deleting.items()})
            judge(removed, silent=frozenset(MODES))
            assert {one.id for one in cri.list()} >= set(creating.values())
            for cell, one in creating.items():
                if not cell.endswith("keep"):
                    assert cri.status(one).state == pb.CONTAINER_EXITED, cell
        helpers.heal()
        assert cri.sh(sound, "echo well") == "well"
        assert cri.wait(cri.script(pod, "exit 5")).code == 5


@pytest.mark.slow
def test_a_cni_plugin(helpers: Helpers, monkeypatch: pytest.MonkeyPatch) -> None:
    helpers.cni()
    with serving(helpers, monkeypatch) as (daemon, cri), probed(cri, daemon):

        def run(name: str) -> str:
            return cri.run_pod(cri.pod_config(f"{cri.roots.prefix}-{name}", network=True))

        adding = {f"add-{mode}": partial(run, f"sick-add-{mode}") for mode in MODES}
        judge(together(adding), "cni plugin sick-plugin ADD")
        pods = {f"del-{mode}": run(f"sick-del-{mode}") for mode in MODES}
        stopped = together({cell: partial(cri.stop_pod, pod) for cell, pod in pods.items()})
        removed = together({cell: partial(cri.remove_pod, pod) for cell, pod in pods.items()})
        # The pod goes; that its network was not given back is owed, and told by whom.
        judge(stopped, silent=frozenset(MODES))
        judge(removed, silent=frozenset(MODES))
        owed = {one.owner.removeprefix("net."): one.remedy + one.problem for one in cri.fsck()}
        for cell in ("del-hang", "del-flood", "del-die"):
            assert "sick-plugin DEL" in owed.get(pods[cell], ""), (cell, owed)
        helpers.heal()
        assert wait_until(lambda: cri.fsck(repair=True) == [] or cri.fsck() == [], within=30.0)


@pytest.mark.skipif(shutil.which("skopeo") is None, reason="needs skopeo")
def test_skopeo(helpers: Helpers, monkeypatch: pytest.MonkeyPatch) -> None:
    helpers.skopeo()
    with serving(helpers, monkeypatch, "[images]\nstall_timeout_s = 3.0\n") as (daemon, cri), probed(cri, daemon):

        def pull(mode: str) -> None:
            image = pb.ImageSpec(image=f"127.0.0.1:9/sick-inspect-{mode}:1")
            cri.images.call("PullImage", pb.PullImageRequest(image=image), pb.PullImageResponse)

        asked = {f"inspect-{mode}": partial(pull, mode) for mode in MODES}
        judge(together(asked), "127.0.0.1:9", "skopeo", silent=frozenset())


@pytest.mark.skipif(shutil.which("skopeo") is None, reason="needs skopeo")
def test_helpers_that_hang_go_with_who_ran_them(helpers: Helpers, monkeypatch: pytest.MonkeyPatch) -> None:
    helpers.skopeo()
    mark = f"{VARIABLE}={helpers.roots.base.parent}".encode(), f"{VARIABLE}={helpers.roots.state}".encode()

    def hung() -> list[int]:
        return [
            pid
            for pid in pids()
            if read(pid, "cmdline") == b"sleep\x00600\x00" and any(one in read(pid, "environ") for one in mark)
        ]

    with serving(helpers, monkeypatch, f'[runtimes.atoll]\noci_runtime = "{helpers.oci()}"\n') as (daemon, cri):
        pod = cri.run_pod()
        container = cri.create(pod, cri.container_config("/bin/true", env={"SICK": "sick-create-hang"}))
        shim = shim_of(cri, pod)
        image = pb.ImageSpec(image="127.0.0.1:9/sick-inspect-hang:1")
        calls = [
            cri.runtime.future(
                "StartContainer", pb.StartContainerRequest(container_id=container), pb.StartContainerResponse
            ),
            cri.images.future("PullImage", pb.PullImageRequest(image=image), pb.PullImageResponse),
        ]
        assert wait_until(lambda: len(hung()) == 2)
        daemon.kill()
        os.kill(shim, signal.SIGKILL)
        for call in calls:
            with pytest.raises(grpc.RpcError):
                call.result()
        assert len(hung()) == 2, "nobody ends them until there is a daemon again"
        daemon.start()
        assert wait_until(lambda: not hung())


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("containerd-shim-runc-v2") is None, reason="needs containerd's shim")
def test_a_foreign_shim(helpers: Helpers, monkeypatch: pytest.MonkeyPatch) -> None:
    shim = helpers.shim()
    config = f'[runtimes.atoll]\n[runtimes.sick]\nsandboxer = "podsandbox"\nshim = "{shim}"\n'
    with serving(helpers, monkeypatch, config) as (daemon, cri), probed(cri, daemon):

        def run(name: str) -> str:
            return cri.run_pod(cri.pod_config(f"{cri.roots.prefix}-{name}"), handler="sick")

        starting = {f"start-{mode}": partial(run, f"sick-start-{mode}") for mode in MODES}
        judge(together(starting), "containerd-shim-sick-v2", "shim")
        pods = {f"delete-{mode}": run(f"sick-delete-{mode}") for mode in MODES}
        removed = together({cell: partial(cri.remove_pod, pod) for cell, pod in pods.items()})
        judge(removed, silent=frozenset(MODES))
        helpers.heal()
        with suppress(AssertionError):
            wait_until(lambda: cri.fsck(repair=True) == [], within=20.0)
