"""`atoll pod run FILE`: pods of Kubernetes manifests, from their images to nothing left."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.integration.conftest import Daemon

pytestmark = pytest.mark.shared_daemon

WEB = """
apiVersion: v1
kind: Pod
metadata:
  name: web
  labels: {app: web}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  volumes:
  - {name: data, emptyDir: {}}
  - {name: fast, emptyDir: {medium: Memory, sizeLimit: 4Mi}}
  - {name: etc, hostPath: {path: /etc, type: Directory}}
  initContainers:
  - name: prepare
    image: atoll/busybox
    command: [sh, -c, "echo from init as $(id -u) > /data/index.html"]
    securityContext: {runAsUser: 1000}
    volumeMounts:
    - {name: data, mountPath: /data}
  containers:
  - name: main
    image: atoll/busybox
    command: [sleep, "1000"]
    env:
    - {name: A, value: one}
    - {name: B, value: $(A) two}
    resources:
      limits: {cpu: 500m, memory: 32Mi}
    volumeMounts:
    - {name: data, mountPath: /data, readOnly: true}
    - {name: fast, mountPath: /fast}
    - {name: etc, mountPath: /hostetc, readOnly: true}
    securityContext:
      readOnlyRootFilesystem: true
      allowPrivilegeEscalation: false
      capabilities: {drop: [ALL], add: [NET_RAW]}
  - name: side
    image: atoll/busybox
    command: [sleep, "1000"]
    volumeMounts:
    - {name: fast, mountPath: /fast}
"""
LOOK = """
cat /data/index.html; echo $B
touch /data/x 2>/dev/null || echo data is read-only
touch /x 2>/dev/null || echo root is read-only
grep CapEff /proc/self/status | cut -f2
grep NoNewPrivs /proc/self/status | cut -f2
cmp /hostetc/passwd /hostetc/passwd && echo etc
df -k /fast | tail -1 | tr -s ' ' | cut -d' ' -f2
echo shared > /fast/file
"""


def test_a_pod_runs_as_its_manifest_says_and_goes_without_a_trace(daemon: Daemon) -> None:
    done = daemon.run("pod", "run", "-", "--json", stdin=WEB)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert [(one["name"], one["state"]) for one in told["containers"]] == [
        ("prepare", "exited"),
        ("main", "running"),
        ("side", "running"),
    ]
    look = daemon.run("exec", "web/main", "sh", "-c", LOOK)
    assert look.stdout.splitlines() == [
        "from init as 1000",
        "one two",
        "data is read-only",
        "root is read-only",
        f"{1 << 13:016x}",
        "1",
        "etc",
        "4096",
    ]
    assert daemon.run("exec", "web/side", "cat", "/fast/file").stdout == "shared\n"
    row = daemon.run("pod", "ls").stdout.splitlines()[1].split()
    assert (row[1:5]) == ["web", "default", "ready", "2/3"]
    volumes = daemon.roots.root / "volumes"
    assert [os.listdir(volumes / pod) for pod in os.listdir(volumes)] == [["data"]]
    assert daemon.run("pod", "rm", "web").returncode == 0
    assert os.listdir(volumes) == []
    assert daemon.run("pod", "ls", "-q").stdout == ""


def test_volumes_outlive_the_daemon(daemon: Daemon) -> None:
    assert daemon.run("pod", "run", "-", stdin=WEB).returncode == 0
    daemon.run("exec", "web/main", "sh", "-c", "echo kept > /fast/file")
    daemon.kill()
    daemon.start()
    assert daemon.run("exec", "web/side", "cat", "/fast/file").stdout == "kept\n"
    assert daemon.run("fsck").returncode == 0
    assert daemon.run("pod", "rm", "-f", "web").returncode == 0


def test_an_init_container_that_fails_tells_why_and_leaves_nothing(daemon: Daemon) -> None:
    broken = WEB.replace("echo from init as", "echo no luck; exit 3; echo")
    done = daemon.run("pod", "run", "-", stdin=broken.replace(" > /data/index.html", ""))
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr == "atoll: init container prepare: ended with 3: no luck\n"
    assert daemon.run("pod", "ls", "-q").stdout == ""


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("restartPolicy: Never", "restartPolicy: Always", "spec.restartPolicy: Always: is not supported"),
        (
            "    resources:",
            "    livenessProbe: {}\n    resources:",
            "spec.containers[0].livenessProbe: is not supported",
        ),
        (
            "runAsUser: 1000",
            "runAsNonRoot: true",
            "container prepare: runAsNonRoot, but image atoll/busybox runs as root",
        ),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_made(daemon: Daemon, old: str, new: str, words: str) -> None:
    done = daemon.run("pod", "run", "-", stdin=WEB.replace(old, new))
    assert (done.returncode, done.stdout) == (125, "")
    assert words in done.stderr
    assert daemon.run("pod", "ls", "-q").stdout == ""


def test_a_file_that_is_not_there(daemon: Daemon, tmp_path: Path) -> None:
    done = daemon.run("pod", "run", str(tmp_path / "nope.yaml"))
    assert (done.returncode, "No such file" in done.stderr) == (125, True)
