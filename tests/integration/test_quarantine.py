"""Records that a start cannot read: kept aside, told by `fsck` and by an event; the rest is served as before."""

from __future__ import annotations

import json
from pathlib import Path

import grpc
import pytest

from atoll.api import cri_runtime_v1_pb2 as pb
from atoll.api.atoll_quarantine_v1_pb2 import RecordQuarantined
from tests.integration.conftest import Daemon, Roots
from tests.integration.cri_client import CRI, eventually
from tests.integration.sandbox_client import SandboxAPI
from tests.integration.test_restart import init_of

pytestmark = pytest.mark.shared_daemon

DAMAGE = {"empty": b"", "cut": b'{"Version":"v1","Pid":', "newer": b'{"Version":"v9"}'}


def test_damaged_checkpoints_are_told_and_everything_else_is_served(cri: CRI, daemon: Daemon, roots: Roots) -> None:
    pod = cri.run_pod(cri.pod_config())
    running = {name: cri.script(pod, "sleep 1000") for name in DAMAGE}
    whole = cri.script(pod, "exit 3")
    assert cri.wait(whole).code == 3
    daemon.kill()
    for name, container in running.items():
        (roots.root / "containers" / container / "status").write_bytes(DAMAGE[name])
    daemon.start()

    assert cri.status(whole).exit_code == 3
    for container in running.values():
        assert cri.status(container).state == pb.CONTAINER_RUNNING, "its shim knows better than its checkpoint"
        assert cri.exec(container, "true").code == 0
    findings = {one.key: one for one in cri.fsck()}
    assert findings.keys() == set(running.values())
    assert {(one.kind, one.problem.partition(":")[0]) for one in findings.values()} == {("checkpoint", "damaged")}

    with grpc.insecure_channel(f"unix:{roots.socket}") as channel:
        api = SandboxAPI(channel=channel)
        with api.subscribed("topic==/records/quarantined") as events:
            told = [RecordQuarantined.FromString(next(events).event.value) for _ in running]
    assert {(one.source, one.key) for one in told} == {("checkpoint", one) for one in running.values()}
    for one in told:
        assert (roots.root / "containers" / one.key / "status.unreadable").is_file()
        assert one.reason

    for container in running.values():
        cri.stop(container)
        cri.remove(container)
    assert cri.fsck() == []


@pytest.mark.parametrize("damage", ["gone", "empty"])
def test_a_start_without_its_records_is_refused_and_takes_nothing(
    cri: CRI, daemon: Daemon, roots: Roots, damage: str
) -> None:
    """Else it would sweep the files of what runs as nobody's; with the records back everything is as it was."""
    pod = cri.run_pod(cri.pod_config())
    container = cri.script(pod, "echo kept > /file; sleep 1000")
    daemon.kill()
    kept = {path: path.read_bytes() for path in roots.root.glob("state.db*")}
    for path in kept:
        if damage == "gone":
            path.unlink()
        else:
            path.write_bytes(b"")
    for _ in range(2):
        with pytest.raises(pytest.fail.Exception, match="has no records, yet there are files of 1 containers"):
            daemon.start()
    for path, text in kept.items():
        path.write_bytes(text)
    (roots.root / "state.db-shm").unlink(missing_ok=True)
    daemon.start()
    assert cri.status(container).state == pb.CONTAINER_RUNNING
    assert cri.sh(container, "read line < /file; echo $line") == "kept"
    cri.remove_pod(pod)


def test_a_checkpoint_that_says_it_has_ended_beside_a_process_that_runs(cri: CRI, daemon: Daemon, roots: Roots) -> None:
    """Nobody can tell which is right; the end of the process settles it, asked for or not."""
    pod = cri.run_pod(cri.pod_config())
    containers = [cri.script(pod, "while [ ! -e /go ]; do sleep 0.1; done; exit 9") for _ in range(2)]
    daemon.kill()
    for container in containers:
        path = roots.root / "containers" / container / "status"
        status = json.loads(path.read_bytes())
        path.write_text(json.dumps(status | {"FinishedAt": status["StartedAt"] + 1, "ExitCode": 3}))
    daemon.start()
    for container in containers:
        eventually(lambda one=container: "its checkpoint says exited" in cri.status(one).message, "it is unknown")
        assert cri.status(container).state == pb.CONTAINER_UNKNOWN
    cri.stop(containers[0])
    (Path("/proc") / str(init_of(containers[1])) / "root" / "go").touch()
    for container in containers:
        eventually(lambda one=container: cri.status(one).state == pb.CONTAINER_EXITED, "its end is known")
        assert cri.status(container).exit_code == 3, "the end that was told stands"
    cri.remove_pod(pod)
