"""What a pod may do to others, and learn of them: the threats of docs/threat-model.md that no other test shows."""

from __future__ import annotations

import contextlib
import secrets
import subprocess
import time
from pathlib import Path

import grpc
import pytest

from atoll.api import cri_runtime_v1_pb2 as pb
from atoll.engine.execs import MAX_EXECS
from tests.integration.conftest import Roots
from tests.integration.cri_client import CRI, eventually

pytestmark = pytest.mark.shared_daemon

NOBODY = 65534


def test_nothing_of_a_pod_can_be_read_by_another_nor_by_the_hosts_users(cri: CRI, roots: Roots) -> None:
    secret = secrets.token_hex(16)
    owner, other = cri.run_pod(cri.pod_config(hostname="owner")), cri.run_pod()
    keep = "echo $SECRET > /file; echo $SECRET > /dev/shm/file; echo $SECRET; sleep 1000"
    theirs = cri.create(owner, cri.container_config("/bin/sh", "-c", keep, env={"SECRET": secret}))
    cri.start(theirs)
    eventually(lambda: secret in cri.output(theirs).decode(), "the secret is everywhere")
    thief = cri.script(other, "sleep 1000")
    pattern = f"[{secret[0]}]{secret[1:]}"  # which does not find itself
    look = f"grep -rls '{pattern}' /proc/[0-9]*/environ /proc/[0-9]*/cmdline /dev/shm /tmp /run /var"
    assert cri.exec(thief, "/bin/sh", "-c", look).stdout == b""
    assert cri.exec(theirs, "/bin/sh", "-c", look).stdout != b"", "its own pod finds it"
    for text in (owner, theirs):
        assert text not in cri.sh(thief, "cat /proc/self/mountinfo /proc/net/unix /proc/self/cgroup; hostname")
    # As anybody else on the host: the paths are no secret, what is in them is.
    look_up = ["grep", "-rls", secret, str(roots.state), str(roots.root)]
    assert subprocess.run(look_up, capture_output=True, check=False).stdout != b"", "root finds it"
    for user in (NOBODY, 1000):
        told = subprocess.run(look_up, user=user, group=user, extra_groups=(), capture_output=True, check=False)
        assert told.stdout == b""
    for pod in (owner, other):
        cri.remove_pod(pod)


def test_words_of_a_container_are_no_words_of_who_runs_it(cri: CRI, roots: Roots, tmp_path: Path) -> None:
    """Its environment, command and labels reach its own process as they are, and no program on the way."""
    mark = tmp_path / "was-run"
    hostile = {
        "LD_PRELOAD": "/nowhere/evil.so",
        "LD_LIBRARY_PATH": "/nowhere",
        "PATH": f"{tmp_path}:/bin",
        "CNI_COMMAND": "DEL",
        "XDG_RUNTIME_DIR": str(tmp_path),
        "NOTIFY_SOCKET": str(mark),
        "LISTEN_FDS": "1",
        "ATOLL_RUN_BY": f"{roots.state}/:1:1",
        "A": "x\ny; touch /x $(touch /x)",
    }
    for name in ("crun", "runc", "sh"):
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\ntouch {mark}\n")
        program.chmod(0o755)
    pod = cri.run_pod(cri.pod_config(network=True))
    arguments = ("--root", "/", "--help", "-", "; touch /x", "$(touch /x)", "a\nb", "")
    script = 'for one; do printf "<%s>" "$one"; done; [ -e /x ] && echo no; echo "$A"; echo $CNI_COMMAND; sleep 1000'
    config = cri.container_config("/bin/sh", "-c", script, "sh", *arguments, env=hostile)
    config.labels["a\nb"] = "--privileged"
    config.annotations["run.oci.handler"] = "wasm"
    container = cri.create(pod, config)
    cri.start(container)
    said = "".join(f"<{one}>" for one in arguments) + f"{hostile['A']}\nDEL\n"
    eventually(lambda: cri.output(container).decode() == said, "it got its words")
    outcome = cri.exec(container, "/bin/echo", *arguments)
    assert outcome.stdout.decode() == " ".join(arguments) + "\n"
    assert not mark.exists()
    cri.remove_pod(pod)
    assert cri.fsck() == []


@pytest.mark.slow
def test_one_pods_execs_are_bounded_and_no_neighbours(cri: CRI) -> None:
    pod, other = cri.run_pod(), cri.run_pod()
    busy, neighbour = cri.script(pod, "sleep 1000"), cri.script(other, "sleep 1000")
    request = pb.ExecSyncRequest(container_id=busy, cmd=["sleep", "1000"])
    calls = [cri.runtime.future("ExecSync", request, pb.ExecSyncResponse) for _ in range(MAX_EXECS + 8)]
    eventually(lambda: sum(one.done() for one in calls) == 8, "those over the bound are refused", within=30.0)
    for one in [one for one in calls if one.done()]:
        with pytest.raises(grpc.RpcError, match=f"has {MAX_EXECS} execs already"):
            one.result()
    begun = time.monotonic()
    assert cri.sh(neighbour, "echo well") == "well"
    assert time.monotonic() - begun < 25.0, "beside hundreds that begin on a busy machine"
    cri.remove_pod(pod)
    for one in calls:
        with contextlib.suppress(grpc.RpcError):
            one.result()
    cri.remove_pod(other)


def test_a_pod_that_forks_without_end_has_its_own_pids_only(cri: CRI) -> None:
    pod, other = cri.run_pod(), cri.run_pod()
    config = cri.container_config("/bin/sh", "-c", "f() { f | f & }; while :; do f; sleep 0.01; done")
    config.linux.resources.unified["pids.max"] = "40"
    bomb = cri.create(pod, config)
    neighbour = cri.script(other, "sleep 1000")
    cri.start(bomb)
    for _ in range(5):
        begun = time.monotonic()
        assert cri.sh(neighbour, "echo well") == "well"
        assert time.monotonic() - begun < 25.0, "on a busy machine"
    cri.remove_pod(pod)
    assert not cri.list(pod_sandbox_id=pod)
    cri.remove_pod(other)
