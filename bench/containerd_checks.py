"""The parts of `scripts/containerd-conformance`: what a CRI client asks of a containerd whose sandboxer is Atoll."""

from __future__ import annotations

import re
from collections.abc import Callable

from bench import containerd_faults, containerd_images
from bench.containerd_pair import Leftovers, Pair
from bench.cri_checks import crictl, equal
from bench.cri_subject import Outcome
from bench.critest import run as run_critest

__all__ = ["PARTS", "Leftovers", "Outcome", "Pair"]


def critest(pair: Pair, outcome: Outcome) -> None:
    """Every spec of critest that this machine can run."""
    outcome.check(f"critest --runtime-handler {pair.handler}", lambda: run_critest(pair, pair.runtime.images).judge())


def versions(pair: Pair, outcome: Outcome) -> None:
    """A configuration file of each version gives the same pods."""
    version = pair.containerd.version

    def walk() -> None:
        with pair.pod(host_network=False) as (pod, request):
            container = pair.run(pod, request)
            equal(pair.sh(container, "cat /etc/hostname"), "pod")
            plugins = pair.containerd.ctr("plugins", "ls").stdout
            assert re.search(r"io\.containerd\.sandbox\.controller\.v1\s+atoll\s+\S*\s*ok", plugins), plugins

    outcome.check(f"config version {version}", walk)
    outcome.check(f"config version {version}: ctr run", lambda: _ctr_run(pair))
    for handler in ("runc", "atoll-shim"):

        def other(handler: str = handler) -> None:
            request = pair.request(handler=handler, host_network=False)
            pod = pair.cri.run_pod(request)
            container = pair.run(pod, request)
            equal(pair.sh(container, "cat /etc/hostname"), "pod")
            equal(pair.exit_code(pair.run(pod, request, "exit 7")), 7)
            pair.cri.stop_pod(pod)
            pair.cri.remove_pod(pod)

        outcome.check(f"config version {version}: handler {handler}", other)


def _ctr_run(pair: Pair) -> None:
    """Our shim by itself, started with the bootstrap parameters of 2.3."""
    run = ("run", "--runtime", "io.containerd.atoll.v1", "--cgroup", f"{pair.containerd.places.cgroup}/ctr")
    image = containerd_images.builtin.BUSYBOX
    done = pair.containerd.ctr(*run, "--rm", image, "ctr-one", "sh", "-c", "echo said; exit 3", check=False)
    equal((done.stdout, done.returncode), ("said\n", 3))
    pair.containerd.ctr(*run, "-d", image, "ctr-two", "sleep", "600")
    done = pair.containerd.ctr("task", "exec", "--exec-id", "e", "ctr-two", "echo", "in")
    equal(done.stdout, "in\n")
    pair.containerd.ctr("task", "metrics", "ctr-two")
    pair.containerd.ctr("task", "pause", "ctr-two")
    pair.containerd.ctr("task", "resume", "ctr-two")
    pair.containerd.ctr("task", "rm", "--force", "ctr-two", check=False)
    pair.containerd.ctr("container", "rm", "ctr-two")


PARTS: dict[str, Callable[[Pair, Outcome], None]] = {
    "crictl": crictl,
    "restarts": containerd_faults.restarts,
    "leaks": containerd_faults.leaks,
    "critest": critest,
    "versions": versions,
}
