"""Who a shim is, in words, and what becomes of one that is given up; the processes are real, the shims are records."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from atoll import errors
from atoll.linux import process
from atoll.runtime import hung
from atoll.runtime.bootstrap import Bootstrap
from atoll.runtime.shim import Shim
from atoll.shim import records


@pytest.fixture
def shims(tmp_path: Path) -> Path:
    folder = tmp_path / "shims"
    folder.mkdir()
    return folder


@pytest.fixture
def running() -> Iterator[int]:
    with subprocess.Popen(["sleep", "100"]) as sleeping:
        yield sleeping.pid
        sleeping.kill()


def record(shims: Path, pod: str, pid: int, *, alone: bool = False, nested: bool = False) -> Path:
    """A pod's folder whose shim is `pid`, and listens."""
    bundle = shims / pod
    inner = bundle / pod if nested else bundle
    inner.mkdir(parents=True)
    seen = process.identify(pid)
    assert seen is not None
    shim = records.ShimRecord(
        pid=pid, start_ticks=seen.start_ticks, boot_id=seen.boot_id, version="", alone=alone
    )  # fmt: skip
    records.write(inner / records.SHIM, shim)
    path = shims.parent / f"{pod}.sock"
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))
    where = records.BootstrapRecord(version=3, address=f"unix://{path}", protocol="ttrpc")
    records.write(inner / records.BOOTSTRAP, where)
    return bundle


def test_a_shim_is_named_by_its_process_and_what_the_kernel_says_of_it(shims: Path, running: int) -> None:
    bundle = record(shims, "one", running)
    assert hung.describe(bundle) == f"shim one (process {running})"
    os.kill(running, signal.SIGSTOP)
    os.waitid(os.P_PID, running, os.WSTOPPED | os.WNOWAIT)
    assert hung.describe(bundle) == f"shim one (process {running}, stopped by a signal)"
    os.kill(running, signal.SIGCONT)
    assert hung.describe(shims / "none") == "shim none (it left no record of its process)"


def test_one_that_is_gone_is_told_as_that(shims: Path) -> None:
    with subprocess.Popen(["sleep", "100"]) as sleeping:
        bundle = record(shims, "one", sleeping.pid)
        sleeping.kill()
    assert hung.describe(bundle).endswith(", which is gone)")


async def test_one_that_is_gone_is_not_asked_although_what_it_began_keeps_its_socket(shims: Path) -> None:
    with subprocess.Popen(["sleep", "100"]) as sleeping:
        bundle = record(shims, "one", sleeping.pid)
        path = shims.parent / "one.sock"
        path.unlink()
        with socket.socket(socket.AF_UNIX) as inherited:
            inherited.bind(str(path))
            inherited.listen()
            where = Bootstrap(version=3, address=f"unix://{path}", protocol="ttrpc")
            shim = await Shim.connect(id="one", namespace="k8s.io", bootstrap=where, bundle=bundle)
            await shim.aclose()
            sleeping.kill()
            sleeping.wait()
            with pytest.raises(errors.Unavailable, match="which is gone"):
                await Shim.connect(id="one", namespace="k8s.io", bootstrap=where, bundle=bundle)


@pytest.mark.parametrize("nested", [False, True])
async def test_a_process_that_serves_nobody_else_is_killed(shims: Path, nested: bool) -> None:
    with subprocess.Popen(["sleep", "100"]) as sleeping:
        bundle = record(shims, "one", sleeping.pid, nested=nested)
        given_up = await hung.give_up(bundle, shims)
        assert sleeping.wait() == -signal.SIGKILL
    assert given_up.aside is None
    assert str(sleeping.pid) in given_up.text


async def test_a_process_that_serves_another_is_let_be_and_the_socket_put_aside(shims: Path, running: int) -> None:
    bundle, other = record(shims, "one", running), record(shims, "two", running, nested=True)
    given_up = await hung.give_up(bundle, shims)
    assert process.identify(running) is not None
    assert given_up.aside == shims.parent / "one.sock.aside"
    assert (shims.parent / "one.sock.aside").exists()
    assert not (shims.parent / "one.sock").exists()
    assert given_up.data()["pid"] == str(running)
    # The last of them takes the process along: nobody reaches the first any more.
    assert (await hung.give_up(other, shims)).aside is None


async def test_without_a_record_nothing_is_done(shims: Path) -> None:
    (shims / "one").mkdir()
    with pytest.raises(errors.NotFound, match="nothing tells where it runs"):
        await hung.give_up(shims / "one", shims)
