"""A containerd 2.x and its Atoll under check, and what they leave."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

import grpc

from bench import host
from bench.containerd_peer import AtollPeer, ContainerdPeer
from bench.cri_subject import Subject, eventually
from bench.places import wait_until


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair(Subject):
    """Both daemons, and the runtime handler whose pods are run."""

    atoll: AtollPeer
    runtime: ContainerdPeer

    @property
    def containerd(self) -> ContainerdPeer:
        return self.runtime

    def restart(self, *which: str) -> None:
        """SIGKILL to the named daemons (`atoll`, `containerd`); then start them, Atoll first."""
        daemons = {"atoll": self.atoll, "containerd": self.containerd}
        for name in which:
            daemons[name].crash()
        for name in sorted(which):
            daemons[name].start()
        self.reconnected()

    def reconnected(self) -> None:
        """Wait until containerd has its connection to Atoll back; it pauses before it tries again."""

        def answers() -> bool:
            try:
                self.removed(self.cri.run_pod(self.request("probe")))
            except grpc.RpcError as error:
                if error.code() is grpc.StatusCode.UNAVAILABLE:
                    return False
                raise
            return True

        eventually(answers, "containerd reaches Atoll again")


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftovers:
    """What the daemons' pods hold on this machine; two of them can be compared."""

    things: frozenset[str]

    @classmethod
    def of(cls, pair: Pair) -> Leftovers:
        prefix = pair.containerd.places.prefix
        # A network namespace that containerd pinned when it was killed stays, whoever its sandboxer is.
        found = {f"mount {point}" for point in host.mounts_with(prefix) if "cri/netns/cni-" not in point}
        # The parents of pods' cgroups, which come late in hierarchies that the run did not make them in, are nobody's.
        parent = re.compile(rf".*/{prefix}(/containerd|/atoll(/[0-9a-f]{{8}})?)?")
        found |= {f"cgroup {path}" for path in host.cgroups_with(prefix) if not parent.fullmatch(str(path))}
        for daemon in (pair.atoll, pair.containerd):
            processes = host.processes_of(daemon.pid, daemon.places.mark)
            shims = [pid for pid in processes.marked if b"shim" in host.read(f"/proc/{pid}/cmdline")]
            found |= {f"process {pid}: {host.command(pid)}" for pid in shims if daemon is pair.containerd}
            found |= {f"process {pid}: {host.command(pid)}" for pid in processes.below if _is_of_a_pod(pid)}
            if daemon.places.attached():
                found.add(f"networks of {daemon.places.name}: {daemon.places.held()}")
        state, root = pair.containerd.containerd_state, pair.containerd.places.root
        for folder in (
            *(pair.atoll.places.state / name for name in ("pods", "shims", "bundles", "netns", "s")),
            *(base / "io.containerd.grpc.v1.cri" / "sandboxes" for base in (state, root)),
            state / "io.containerd.runtime.v2.task" / "k8s.io",
        ):
            found |= {f"file {path}" for path in folder.glob("*")}
        return cls(things=frozenset(found))

    def expect_the_same(self, pair: Pair, *, within: float = 10.0) -> None:
        """Wait until nothing is there that was not there before; `AssertionError` names what stays."""
        new: list[str] = []

        def gone() -> bool:
            new[:] = sorted(Leftovers.of(pair).things - self.things)
            return not new

        assert wait_until(gone, within=within, every=0.1), f"left behind: {'; '.join(new)}"


def _is_of_a_pod(pid: int) -> bool:
    # The zygote's spare shims are nobody's yet.
    return "containerd-shim-atoll" not in host.command(pid)


def is_alive(pid: int) -> bool:
    return os.path.isdir(f"/proc/{pid}")
