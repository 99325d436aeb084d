"""fsck tells of leased addresses that nobody has, and of containers that an OCI runtime remembers in vain."""

from __future__ import annotations

import os
import shutil
import time

from tests.integration.conftest import Daemon, Roots
from tests.integration.cri_client import CRI


def test_a_lease_that_nobody_holds_is_told_and_left(cri: CRI, daemon: Daemon, roots: Roots) -> None:
    pod = cri.run_pod(cri.pod_config(network=True))
    folder = roots.base / "ipam" / f"{roots.prefix}net"
    (held,) = [path for path in folder.iterdir() if path.name[0].isdigit()]
    lost, young = (folder / held.name.rpartition(".")[0] for _ in range(2))
    lost = lost.with_name(f"{lost.name}.200")
    young = young.with_name(f"{young.name}.201")
    for path in (lost, young):
        path.write_text("somebody\r\neth0")
    for path in (lost, held):
        os.utime(path, (time.time() - 100, time.time() - 100))
    (finding,) = cri.fsck()
    assert (finding.kind, finding.key, finding.owner) == ("lease", str(lost), "somebody")
    assert finding.problem == "unheld"
    cri.fsck(repair=True)
    assert lost.exists()
    for path in (lost, young):
        path.unlink()
    assert cri.fsck() == []
    cri.remove_pod(pod)


def test_a_container_without_a_bundle_is_cleared_from_its_runtime(cri: CRI, daemon: Daemon, roots: Roots) -> None:
    pod = cri.run_pod()
    container = cri.script(pod, "sleep 1000")
    record = roots.state / "oci" / container
    assert record.is_dir()
    kept = roots.base / "kept"
    shutil.copytree(record, kept)
    cri.stop(container)
    cri.remove(container)
    assert not record.exists()
    shutil.copytree(kept, record)
    (finding,) = cri.fsck()
    assert (finding.kind, finding.key) == ("oci", f"oci/{container}")
    cri.fsck(repair=True)
    assert not record.exists()
    assert cri.fsck() == []
    shutil.rmtree(kept)
