"""Execs whose caller goes away, at any moment, or whose daemon is killed: nothing of them stays in the container."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path

import grpc
import pytest

from atoll.api import cri_runtime_v1_pb2 as pb
from tests.integration.conftest import Daemon, Roots
from tests.integration.cri_client import CRI, eventually

pytestmark = pytest.mark.shared_daemon

CALLERS, CALLS = 4, 12


def asked(cri: CRI, container: str, *command: str, timeout: int = 600) -> grpc.Future:
    request = pb.ExecSyncRequest(container_id=container, cmd=command, timeout=timeout)
    ask = cri.runtime.channel.unary_unary(
        "/runtime.v1.RuntimeService/ExecSync",
        request_serializer=pb.ExecSyncRequest.SerializeToString,
        response_deserializer=pb.ExecSyncResponse.FromString,
    )
    return ask.future(request, timeout=60)


def running(word: str) -> list[int]:
    """The processes with this word in their command line, of any container here."""
    found: list[int] = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                words = (folder / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if word.encode() in words:
                found.append(int(folder.name))
    return found


def unused_seconds() -> str:
    return f"{700 + time.monotonic_ns() % 100_000 / 100_000:.5f}"


def test_callers_that_leave_while_an_exec_begins_leave_nothing(cri: CRI) -> None:
    container = cri.script(cri.run_pod(), "sleep 1000")
    word = unused_seconds()

    def call(number: int) -> None:
        for turn in range(CALLS):
            future = asked(cri, container, "sleep", word)
            time.sleep((number * CALLS + turn) * 0.0007)
            future.cancel()

    threads = [threading.Thread(target=call, args=(number,)) for number in range(CALLERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    eventually(lambda: not running(word), "the processes are gone", within=20.0)
    assert cri.sh(container, "echo well") == "well"
    assert cri.fsck() == []


def test_execs_of_a_killed_daemon_end_with_the_next(cri: CRI, daemon: Daemon) -> None:
    container = cri.script(cri.run_pod(), "sleep 1000")
    word = unused_seconds()
    futures = [asked(cri, container, "sleep", word) for _ in range(4)]
    eventually(lambda: len(running(word)) == len(futures), "they run")
    daemon.kill()
    assert len(running(word)) == len(futures)
    daemon.start()
    eventually(lambda: not running(word), "the processes are gone", within=20.0)
    assert cri.sh(container, "echo well") == "well"


def test_the_limit_of_an_exec_covers_its_start(cri: CRI, daemon: Daemon, roots: Roots) -> None:
    slow = roots.state / "slow"
    slow.write_text(f'#!/bin/sh\ncase " $* " in *\' exec \'*) sleep 3;; esac\nexec {shutil.which("crun")} "$@"\n')
    slow.chmod(0o755)
    daemon.stop()
    roots.write_config(f'[runtimes.atoll]\n[runtimes.slow]\noci_runtime = "{slow}"\n')
    daemon.start()
    pod = cri.run_pod(handler="slow")
    container = cri.script(pod, "sleep 1000")
    word = unused_seconds()
    begun = time.monotonic()
    with pytest.raises(grpc.RpcError, match="timeout 1s exceeded"):
        asked(cri, container, "sleep", word, timeout=1).result()
    assert time.monotonic() - begun < 2.5
    leaving = asked(cri, container, "sleep", word)
    time.sleep(0.2)
    leaving.cancel()
    eventually(lambda: not running("exec"), "the starts have come to their end", within=20.0)
    eventually(lambda: not running(word), "the processes are gone", within=20.0)
    cri.remove_pod(pod)
    assert cri.fsck() == []


def test_the_end_of_what_a_late_exec_wrote_is_told(cri: CRI) -> None:
    container = cri.script(cri.run_pod(), "sleep 1000")
    script = "yes beginning | head -c 20000000; echo the end; sleep 60"
    with pytest.raises(grpc.RpcError) as refused:
        asked(cri, container, "sh", "-c", script, timeout=3).result()
    failed = refused.value
    assert isinstance(failed, grpc.Call)
    assert failed.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    told = [item.value for item in failed.trailing_metadata() if item.key == "grpc-status-details-bin"]
    assert b"beginning\nthe end\n" in told[0]
