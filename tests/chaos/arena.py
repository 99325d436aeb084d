"""A private daemon, the blow of a cell, and what must be true after it."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import msgspec

from atoll.faults import VARIABLE, Held
from tests.chaos.cells import Blow, Cell
from tests.chaos.life import EXIT_CODE, Life
from tests.integration.cri_client import CRI, connected
from tests.integration.daemons import Daemon, Roots
from tests.integration.leaks import Footprint, links, pids, read, wait_until

REACHED_WITHIN_S = 30.0
LIFE_WITHIN_S = 120.0
CLEAN_WITHIN_S = 20.0
"""The bound of the clean-up: from the end of a life to a machine with nothing of it."""
KILLED_EXIT_CODES = (EXIT_CODE, 137, 255)
"""Of a container whose shim, or whose machine, may have been taken from under it: its own, killed, not known."""
_NUMBER = re.compile(r"[0-9]+")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a cell ended; `fault` is empty where all is as it must be."""

    cell: Cell
    seconds: float
    fault: str = ""
    struck: bool = True


class Arena:
    """One daemon under private roots, used by cell after cell."""

    def __init__(self, roots: Roots) -> None:
        self.roots = roots
        self.daemon = Daemon(roots)
        self._faults = roots.base / "faults"
        self._boots = 0
        self._lives = 0
        self._clean: frozenset[str] = frozenset()

    @contextlib.contextmanager
    def open(self) -> Iterator[list[str]]:
        """Start the daemon and lead a whole life; gives the points that it reached, as noted."""
        (self._faults / "rules").mkdir(parents=True)
        os.environ[VARIABLE] = str(self._faults)
        try:
            self.daemon.start()
            with connected(self.roots) as cri:
                self._life(cri).lead()  # what is made once is there now
                (self._faults / "reached").unlink()
                self._life(cri).lead()
                assert wait_until(lambda: not cri.fsck(), within=CLEAN_WITHIN_S)
            self._clean = self._settled()
            yield (self._faults / "reached").read_text().splitlines()
            assert self.daemon.stop() == 0
        finally:
            del os.environ[VARIABLE]
            self.daemon.kill()

    def _life(self, cri: CRI) -> Life:
        self._lives += 1
        return Life(cri, f"{self.roots.prefix}-life{self._lives}")

    def _settled(self) -> frozenset[str]:
        """The things there are once they stay the same."""
        before = self._things()
        while True:
            time.sleep(0.3)
            after = self._things()
            if after == before:
                return after
            before = after

    # a cell

    def play(self, cell: Cell) -> Outcome:
        """Lead a life that is struck once, and judge what is left of it."""
        begun = time.monotonic()
        for path in ("held", "go", "reached"):
            (self._faults / path).unlink(missing_ok=True)
        for number, rule in enumerate(cell.rules()):
            (self._faults / "rules" / f"{number}").write_bytes(msgspec.json.encode(rule))
        fault, struck = "", True
        try:
            fault, struck = self._played(cell)
        except (AssertionError, grpc.RpcError) as error:
            fault = str(error) or type(error).__name__
        for path in (self._faults / "rules").iterdir():
            path.unlink()
        (self._faults / "go").touch()
        if self.daemon.wrapper:
            self.daemon.stop()
            self.daemon.wrapper = ()
            self.daemon.start()
        return Outcome(cell, time.monotonic() - begun, fault, struck)

    def _played(self, cell: Cell) -> tuple[str, bool]:
        with connected(self.roots) as cri:
            life = self._life(cri)
            faults: list[str] = []
            thread = threading.Thread(target=self._lead, args=(life, faults), daemon=True)
            thread.start()
            if "hold" in {rule.action for rule in cell.rules()}:
                wait_until((self._faults / "held").exists, within=REACHED_WITHIN_S)
                if (self._faults / "held").exists():
                    self._strike(cell.blow)
            thread.join(LIFE_WITHIN_S)
            struck = not (self._faults / "rules" / "0").exists()
            if thread.is_alive():
                return f"the life did not end within {LIFE_WITHIN_S:g} s: {life.failures[-3:]}", struck
            if faults:
                return faults[0], struck
            known = KILLED_EXIT_CODES if cell.blow in (Blow.SHIM, Blow.REBOOT) else (EXIT_CODE,)
            if any(code not in known for code in life.exit_codes):
                return f"exit codes {life.exit_codes}, not of {known}", struck
            return self._dirt(cri), struck

    @staticmethod
    def _lead(life: Life, faults: list[str]) -> None:
        try:
            life.lead()
        except (AssertionError, grpc.RpcError) as error:
            faults.append(f"{error}; calls failed with {life.failures[-3:]}")

    def _dirt(self, cri: CRI) -> str:
        """What fsck or a look at the machine finds, when the clean-up has had its time."""
        found: list[str] = []

        def clean() -> bool:
            found[:] = [str(finding).replace("\n", " ") for finding in cri.fsck()]
            now = self._things()
            found.extend(f"left: {thing}" for thing in sorted(now - self._clean))
            # What is volatile comes back when it is needed; what is durable may not go.
            gone = (thing for thing in self._clean - now if thing.startswith(f"file {self.roots.root}/"))
            found.extend(f"gone: {thing}" for thing in sorted(gone))
            return not found

        return "" if wait_until(clean, within=CLEAN_WITHIN_S) else "; ".join(found[:5])

    # the blows

    def _strike(self, blow: Blow) -> None:
        held = msgspec.json.decode((self._faults / "held").read_bytes(), type=Held)
        match blow:
            case Blow.DAEMON:
                self.daemon.kill()
                (self._faults / "go").touch()
                self.daemon.start()
            case Blow.SHIM:
                for pid in self._named("atoll-shim"):
                    _kill(pid)
                (self._faults / "go").touch()
            case Blow.ZYGOTE:
                for pid in self._named("atoll-zygote"):
                    _kill(pid)
                (self._faults / "go").touch()
            case _:
                assert blow is Blow.REBOOT, held
                self._reboot()
                (self._faults / "go").touch()

    def _named(self, name: str) -> list[int]:
        """The processes of this arena with that name (PR_SET_NAME)."""
        mark = self.roots.prefix.encode()
        return [pid for pid in pids() if read(pid, "comm").strip() == name.encode() and mark in read(pid, "environ")]

    def _reboot(self) -> None:
        """What a reboot does, as far as the arena owns it, and a boot ID that was not there before."""
        footprint = self._footprint()
        doomed = _with_children(footprint.processes())  # what holds a pod's namespaces carries no mark of its own
        self.daemon.kill()
        for pid in doomed:
            _kill(pid)
        assert wait_until(lambda: not footprint.processes(), within=5)
        for point in footprint.mounts():
            subprocess.run(["umount", "--lazy", point], check=False, capture_output=True)
        for name in footprint.links():
            subprocess.run(["ip", "link", "delete", name], check=False, capture_output=True)
        for path in footprint.cgroups():
            with contextlib.suppress(OSError):
                path.rmdir()
        for path in self.roots.state.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        self._boots += 1
        boot_id = self.roots.base / f"boot-{self._boots}"
        boot_id.write_text(f"{secrets.token_hex(4)}-0000-4000-8000-{secrets.token_hex(6)}\n")
        script = f'mount --bind {boot_id} /proc/sys/kernel/random/boot_id && exec "$@"'
        self.daemon.wrapper = ("unshare", "--mount", "--propagation", "unchanged", "sh", "-c", script, "sh")
        self.daemon.start()

    # what there is

    def _mounts(self) -> list[str]:
        """Those that the daemon sees, who has a mount namespace of its own after a reboot."""
        lines = read(self.daemon.pid, "mountinfo").decode().splitlines()
        return [line.split()[4] for line in lines if self.roots.prefix in line.split()[4]]

    def _footprint(self) -> Footprint:
        return Footprint(prefix=self.roots.prefix, folders=(self.roots.base, self.roots.state), fds_before=frozenset())

    def _things(self) -> frozenset[str]:
        """Everything with the arena's prefix that a life could leave, in words without numbers that change."""
        footprint, roots = self._footprint(), self.roots
        # A process that is kept ahead of its need is a spare one, and a shim once it had a pod: one of them is there.
        comms = (read(pid, "comm").decode().strip() for pid in footprint.processes())
        names = Counter("atoll-shim" if comm == "atoll-spare" else comm for comm in comms)
        found = [f"process {name} {number}" for name, count in names.items() for number in range(1, count + 1)]
        found += [f"mount {point}" for point in self._mounts()]
        found += [f"link {name}" for name in links() if roots.prefix in name and name != roots.bridge]
        found += [f"port of the bridge: {name}" for name, bridge in links().items() if bridge == roots.bridge]
        found += [f"cgroup {path}" for path in footprint.cgroups()]
        found += [f"address {path.name}" for path in (roots.base / "ipam").glob("*/*") if path.name[0].isdigit()]
        for folder in (roots.root, roots.state):
            found += [f"file {path}" for path in folder.rglob("*") if not path.name.endswith(("-wal", "-shm"))]
        return frozenset(found)


def _with_children(found: list[int]) -> list[int]:
    """These processes and all that they have started, as far as it is still theirs."""
    doomed = list(found)
    for pid in doomed:
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                doomed += [int(child) for child in task.read_text().split() if int(child) not in doomed]
    return doomed


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
