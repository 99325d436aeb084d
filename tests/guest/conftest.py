"""One daemon for each OCI runtime, which all tests of a file share: starting one is the slowest step in a guest."""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.conftest import Daemon, Roots, settled_leaks
from tests.integration.cri_client import CRI, connected
from tests.integration.leaks import MARKER, Footprint, Machine, own_fds

HANDLERS = """
[runtimes.atoll]
oci_runtime = "{runtime}"

[runtimes.pause]
sandboxer = "podsandbox"
oci_runtime = "{runtime}"

[runtimes.pause-go]
sandboxer = "podsandbox"
shim = "io.containerd.runc.v2"
oci_runtime = "{runtime}"
"""
"""A pod of namespaces; one of a pause container by our own shim, and by containerd's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A daemon that runs its containers with `oci_runtime`, and a client of it."""

    oci_runtime: str
    roots: Roots
    daemon: Daemon
    cri: CRI


@pytest.fixture(scope="module", params=["crun", "runc"])
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    """At its end `atoll fsck` must find nothing, the daemon must stop, and the machine must be as it was."""
    with pytest.MonkeyPatch.context() as patch:
        prefix = f"at{secrets.token_hex(4)}"
        patch.setenv(MARKER, prefix)
        folders = (Path("/var/tmp", prefix), Path("/run", prefix))
        footprint = Footprint(prefix=prefix, folders=folders, fds_before=own_fds())
        machine = Machine.now() if "ATOLL_GUEST_CGROUPS" in os.environ else None
        for folder in folders:
            folder.mkdir(mode=0o700)
        roots = Roots(prefix=prefix, base=folders[0], state=folders[1])
        roots.root.mkdir(mode=0o700)
        roots.write_network()
        roots.write_config(HANDLERS.format(runtime=request.param))
        try:
            yield from serve(roots, request.param)
            subprocess.run(["ip", "link", "delete", roots.bridge], check=False, capture_output=True)  # no plugin does
            leaks = settled_leaks(footprint, machine)
        finally:
            footprint.remove()
        assert not leaks, "left behind:\n" + "\n".join(f"  {leak}" for leak in leaks)


def serve(roots: Roots, oci_runtime: str) -> Iterator[Host]:
    daemon = Daemon(roots)
    daemon.start()
    try:
        with connected(roots) as cri:
            yield Host(oci_runtime=oci_runtime, roots=roots, daemon=daemon, cri=cri)
            for pod in cri.list_pods():
                cri.remove_pod(pod.id)
        check = daemon.run("fsck")
        assert check.returncode == 0, f"atoll fsck found:\n{check.stdout}{check.stderr}"
        assert daemon.stop() == 0, f"the daemon's log ends:\n{daemon.log_tail()}"
    finally:
        daemon.kill()
