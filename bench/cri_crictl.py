"""The commands of crictl that ask about the runtime and its images, and a pod's whole life by crictl alone."""

from __future__ import annotations

import json
import subprocess
import time

from bench.cri import IMAGE
from bench.cri_checks import equal, has
from bench.cri_subject import WITHIN_S, Outcome, Subject

PULLED = "registry.k8s.io/pause:3.9"


def rest(subject: Subject, outcome: Outcome) -> None:
    """What `cri_checks.crictl` leaves out."""
    crictl = subject.crictl
    outcome.check("crictl version", lambda: has(crictl("version").stdout, b"RuntimeApiVersion:  v1"))
    outcome.check("crictl info", lambda: _info(subject))
    outcome.check("crictl runtime-config", lambda: has(crictl("runtime-config").stdout, b"CGROUPFS"))
    outcome.check("crictl metricdescs", lambda: has(crictl("metricdescs").stdout, b"container_cpu_usage_seconds_total"))
    outcome.check("crictl imagefsinfo", lambda: has(crictl("imagefsinfo").stdout, b"usedBytes", b"inodesUsed"))
    outcome.check("crictl pull, images, inspecti, rmi", lambda: _images(subject))
    outcome.check("crictl runp, create, start, stop, rm, stopp, rmp, events", lambda: _life(subject))
    outcome.check("crictl run", lambda: _run(subject))


def _info(subject: Subject) -> None:
    told = json.loads(subject.crictl("info").stdout)
    conditions = {one["type"]: one["status"] for one in told["status"]["conditions"]}
    assert conditions["RuntimeReady"], told
    assert conditions["NetworkReady"], told
    assert subject.handler in [one.get("name") for one in told["runtimeHandlers"]], told


def _images(subject: Subject) -> None:
    has(subject.crictl("pull", PULLED).stdout, b"Image is up to date for sha256:")
    has(subject.crictl("images").stdout, b"registry.k8s.io/pause", b"3.9")
    told = json.loads(subject.crictl("inspecti", PULLED).stdout)
    assert told["status"]["repoTags"] == [PULLED], told
    assert told["info"]["imageSpec"]["rootfs"]["diff_ids"], told
    has(subject.crictl("rmi", PULLED).stdout, b"Deleted: registry.k8s.io/pause:3.9")
    assert subject.crictl("inspecti", PULLED, check=False).returncode


def _configs(subject: Subject, name: str) -> tuple[str, str]:
    """The files of a pod and of a container that logs and sleeps."""
    places = subject.runtime.places
    pod = {
        "metadata": {"name": name, "namespace": "crictl", "uid": name, "attempt": 0},
        "log_directory": str(places.logs),
        "linux": {"cgroup_parent": places.cgroup},
    }
    container = {
        "metadata": {"name": name, "attempt": 0},
        "image": {"image": IMAGE},
        "command": ["sh", "-c", "echo begun; exec sleep 3600"],
        "log_path": f"{name}.log",
    }
    paths = places.base / f"{name}.pod.json", places.base / f"{name}.container.json"
    for path, config in zip(paths, (pod, container), strict=True):
        path.write_text(json.dumps(config))
    return str(paths[0]), str(paths[1])


def _life(subject: Subject) -> None:
    pod_file, container_file = _configs(subject, "life")
    crictl = subject.crictl
    with subprocess.Popen(subject.crictl_command("events"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as events:
        try:
            time.sleep(0.5)  # it tells of nothing that was before it
            pod = crictl("runp", "--runtime", subject.handler, pod_file).stdout.decode().strip()
            container = crictl("create", pod, container_file, pod_file).stdout.decode().strip()
            has(crictl("ps", "-a", "--state", "created").stdout, container[:13])
            equal(crictl("start", container).stdout.decode().strip(), container)
            has(crictl("exec", "-s", container, "ps").stdout, b"pause", b"sleep 3600")
            crictl("stop", container)
            has(crictl("ps", "-a", "--state", "exited").stdout, container[:13])
            crictl("rm", container)
            assert container[:13].encode() not in crictl("ps", "-a").stdout
            crictl("stopp", pod)
            has(crictl("pods", "--state", "notready").stdout, pod[:13])
            crictl("rmp", pod)
            assert pod[:13].encode() not in crictl("pods").stdout
        finally:
            events.terminate()
        told, _ = events.communicate(timeout=WITHIN_S)
    for kind in (b"CONTAINER_CREATED_EVENT", b"CONTAINER_STARTED_EVENT", b"CONTAINER_STOPPED_EVENT"):
        assert told.count(kind) >= 2, told[-2000:]


def _run(subject: Subject) -> None:
    pod_file, container_file = _configs(subject, "run")
    container = subject.crictl("run", "--no-pull", container_file, pod_file).stdout.decode().strip()
    has(subject.crictl("ps").stdout, container[:13])
    pod = json.loads(subject.crictl("inspect", container).stdout)["info"]["sandboxID"]
    subject.crictl("rmp", "-f", pod)
