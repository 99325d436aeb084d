"""A private daemon, the blow of a cell, and what must be true after it."""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
import msgspec
import pytest

from atoll.engine.paths import NAMESPACE
from atoll.faults import VARIABLE, Action, Rule
from atoll.linux import syscalls
from tests.chaos.cells import Blow, Cell, Notes
from tests.chaos.kinds import possible
from tests.chaos.life import Life, World
from tests.chaos.outside import Outside
from tests.chaos.restarts import RestartLife
from tests.integration.cri_client import CRI, connected
from tests.integration.daemons import Daemon, Roots
from tests.integration.leaks import (
    MARKER,
    Footprint,
    awaits_init,
    fds_before,
    links,
    pids,
    read,
    settled_leaks,
    wait_until,
)
from tests.integration.test_remote_pods import SCRIPT, Far

REACHED_WITHIN_S = 30.0
DEAD_WITHIN_S = 30.0
READY_WITHIN_S = 40.0
"""A start of the daemon, on a machine that has other things to do."""
LIFE_WITHIN_S = 120.0
CLEAN_WITHIN_S = 20.0
"""The bound of the clean-up: from the end of a life to a machine with nothing of it."""
KILLED_EXIT_CODES = (0, 7, 137, 255)
"""Of a container whose shim, or whose machine, may have been taken from under it: its own, killed, not known."""
FAR_SCHEME = "ttrpc+unix://"
WHOLE_PROC = "whole-proc"
BOOT_ID = "/proc/sys/kernel/random/boot_id"
CONFIG = """
[runtimes.atoll]
[runtimes.runc]
oci_runtime = "runc"
[runtimes.pod]
sandboxer = "podsandbox"
[runtimes.go]
sandboxer = "podsandbox"
shim = "io.containerd.runc.v2"
[runtimes.far]
sandboxer = "remote"
address = "{far}"
[sandboxes]
containerd_root = "{base}/c-root"
containerd_state = "{base}/c-state"
[images.registries."{registry}"]
plain_http = true
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a cell ended; `fault` is empty where all is as it must be."""

    cell: Cell
    seconds: float
    fault: str = ""
    struck: bool = True


class Other(Far):
    """The sandboxer of another process, which is not told of faults."""

    def begin(self) -> None:
        command = [sys.executable, "-c", SCRIPT, self.address, str(self.state), str(shutil.which("runc")), NAMESPACE]
        told = {name: value for name, value in os.environ.items() if name != VARIABLE}
        with (self.state / "log").open("ab") as log:
            self.process = subprocess.Popen(command, env=told, stderr=log)
        wait_until(self._answers)


class Arena:
    """One daemon under private roots, used by cell after cell, in a process that is `alone`."""

    def __init__(self, roots: Roots, out: Outside, config: str = "") -> None:
        self.roots = roots
        self.daemon = Daemon(roots, ready_within_s=READY_WITHIN_S)
        self.world = World(
            roots=roots, reference=out.reference, archive=out.archive, archived=out.archived, marks=out.marks
        )
        self._lives_of = possible()
        self._faults = roots.base / "faults"
        self._boots = 0
        self._lives = 0
        self._naming = threading.Lock()
        self._clean: frozenset[str] = frozenset()
        self._kept: frozenset[str] = frozenset()
        """What was there at first; `_clean` is what is put up with."""
        self._far = Other(roots, FAR_SCHEME)
        self._needs_far = self.keeps_far = False
        for name in ("c-root", "c-state"):
            (roots.base / name / "io.containerd.grpc.v1.cri" / "sandboxes").mkdir(parents=True)
        roots.write_config(config + CONFIG.format(far=self._far.address, base=roots.base, registry=out.address))

    @contextlib.contextmanager
    def open(self, only: Sequence[str] = (), *, looks: bool = True) -> Iterator[list[Notes]]:
        """Start the daemon and lead a life of each kind. The points they reached, where it `looks`."""
        (self._faults / "rules").mkdir(parents=True)
        self._begin_far()
        os.environ[VARIABLE] = str(self._faults)
        try:
            self.daemon.start()
            with connected(self.roots) as cri:
                for name, kind in self._lives_of.items():  # what is made once is there then
                    if not issubclass(kind, RestartLife):
                        self.life(cri, name).lead()
                self._require_clean(cri)
            self._clean = self._kept = self._settled()
            looked = [name for name in self._lives_of if looks and (not only or name in only)]
            yield [notes for name in looked for notes in self._noted(name)]
            assert self.daemon.stop() == 0
        finally:
            os.environ.pop(VARIABLE, None)
            self.daemon.kill()
            for point in (str(self.roots.base / WHOLE_PROC), BOOT_ID) * self._boots:  # else they stay
                subprocess.run(["umount", point], check=False, capture_output=True)
            if self._far.process is not None:
                self._far.end(signal.SIGTERM)

    def _noted(self, name: str) -> Iterator[Notes]:
        kind = self._lives_of[name]
        known: set[str] = set()
        for cause in ("", *kind.CAUSES):
            outcome = self.play(Cell(name, cause, Blow.ERROR)) if cause else self.play(None, life=name)
            assert not outcome.fault, f"{name}, error at {cause or 'no point'}: {outcome.fault}"
            lines = (self._faults / "reached").read_text().splitlines()
            new = tuple(line for line in lines if line not in known)
            known.update(lines)
            yield Notes(life=name, lines=new, again=() if cause else kind.AGAIN, cause=cause)

    def life(self, cri: CRI, name: str) -> Life:
        """A new one of that kind, under a name of its own."""
        self._needs_far = "far" in name or self.keeps_far
        if self._needs_far:
            self._begin_far()
        with self._naming:
            self._lives += 1
            number = self._lives
        return self._lives_of[name](cri, self.world, f"{self.roots.prefix}-life{number}")

    def _begin_far(self) -> None:
        """Have the other sandboxer run, from now on after each reboot too."""
        with self._naming:
            if self._far.process is None:
                self._far.begin()

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

    def play(self, cell: Cell | None, life: str = "") -> Outcome:
        """Lead a life that is struck once (or not, where there is no cell), and judge what is left of it."""
        begun = time.monotonic()
        for path in ("held", "go", "reached"):
            (self._faults / path).unlink(missing_ok=True)
        fault, struck = "", True
        with connected(self.roots) as cri:
            one = self.life(cri, cell.life if cell else life)
            try:
                fault, struck = self._played(cri, one, cell)
            except (AssertionError, grpc.RpcError, pytest.fail.Exception) as error:
                fault = f"{str(error) or type(error).__name__}; calls failed with {one.failures[-3:]}"
        self.disarm()
        (self._faults / "go").touch()
        seconds = time.monotonic() - begun
        if fault:
            self._clear()
        return Outcome(cell or Cell(life, "", Blow.ERROR), seconds, fault, struck)

    def _clear(self) -> None:
        """After a cell that failed: take away what can be, and put up with the rest, which is not the next one's."""
        if not self.daemon.is_running():
            self.daemon.kill()
            self._start()
        with connected(self.roots) as cri, contextlib.suppress(grpc.RpcError):
            for pod in cri.list_pods():
                cri.remove_pod(pod.id)
            cri.fsck(repair=True)
        self._begin_far()
        self._clean |= self._settled()

    def arm(self, rules: Sequence[Rule]) -> None:
        """What is to happen from now on, in place of what was."""
        for number, rule in enumerate(rules):
            fresh = self._faults / "rule.new"  # a program may look at any instant: half a rule is none
            fresh.write_bytes(msgspec.json.encode(rule))
            fresh.replace(self._faults / "rules" / f"{number:02}")

    def disarm(self) -> None:
        """Nothing is to happen from now on."""
        for path in (self._faults / "rules").iterdir():
            path.unlink(missing_ok=True)

    def _played(self, cri: CRI, life: Life, cell: Cell | None) -> tuple[str, bool]:
        rules = cell.rules() if cell else []
        holds = [rule for rule in rules if rule.action is Action.HOLD]
        if isinstance(life, RestartLife):
            life.before(self._hold)
            self._restart(cell, rules)
            life.lead()
        else:
            self.arm(rules)
            fault = self._led(life, cell if holds else None)
            if fault:
                return fault, True
        left = {path.name for path in (self._faults / "rules").iterdir()}
        struck = not rules or f"{1 if cell and cell.cause else 0:02}" not in left
        kills = cell is not None and cell.blow in (Blow.SHIM, Blow.REBOOT)
        known = KILLED_EXIT_CODES if kills else life.CODES
        if any(code not in known for code in life.exit_codes):
            return f"exit codes {life.exit_codes}, not of {known}", struck
        self.disarm()  # a second blow that nothing came by must not strike the judge
        return self.dirt(cri), struck

    def _led(self, life: Life, held: Cell | None) -> str:
        """Lead a life beside the blow of a cell whose program stands still; what went wrong, in words."""
        faults: list[str] = []
        thread = threading.Thread(target=self._lead, args=(life, faults), daemon=True)
        thread.start()
        if held is not None:
            wait_until(lambda: (self._faults / "held").exists() or not thread.is_alive(), within=REACHED_WITHIN_S)
            if (self._faults / "held").exists():
                self.strike(held.blow)
        thread.join(LIFE_WITHIN_S)
        if thread.is_alive():
            return f"the life did not end within {LIFE_WITHIN_S:g} s: {life.failures[-3:]}"
        return faults[0] if faults else ""

    @staticmethod
    def _lead(life: Life, faults: list[str]) -> None:
        try:
            life.lead()
        except (AssertionError, grpc.RpcError, OSError, ValueError) as error:  # the last: its channel was closed
            faults.append(f"{error or type(error).__name__}; calls failed with {life.failures[-3:]}")

    def _hold(self, point: str) -> None:
        """Return when the daemon stands still at a point."""
        self.arm([Rule(point=point, action=Action.HOLD)])
        assert wait_until((self._faults / "held").exists, within=REACHED_WITHIN_S), f"{point} is not reached"

    def _restart(self, cell: Cell | None, rules: Sequence[Rule]) -> None:
        """Kill the daemon and start it again, under the blow of a cell; one that ends by itself is started again."""
        self.daemon.kill()
        for path in ("held", "reached"):
            (self._faults / path).unlink(missing_ok=True)
        self.arm(rules)
        if cell is None or not any(rule.action is Action.HOLD for rule in rules):
            (self._faults / "go").touch()
            self._start()
            return
        self.daemon.launch()
        if wait_until((self._faults / "held").exists, within=REACHED_WITHIN_S):
            self.strike(cell.blow)
        self.daemon.await_ready()

    def _start(self) -> None:
        """As a service manager does: what fails is started again."""
        try:
            self.daemon.start()
        except pytest.fail.Exception:
            self.disarm()
            self.daemon.start()

    def _require_clean(self, cri: CRI) -> None:
        assert wait_until(lambda: not cri.fsck(), within=CLEAN_WITHIN_S)

    def dirt(self, cri: CRI) -> str:
        """What fsck or a look at the machine finds, when the clean-up has had its time."""
        found: list[str] = []

        def clean() -> bool:
            found[:] = [str(finding).replace("\n", " ") for finding in cri.fsck()]
            now = self._things()
            found.extend(f"left: {thing}" for thing in sorted(now - self._clean))
            # What is volatile comes back when it is needed; what is durable may not go.
            gone = (thing for thing in self._kept - now if thing.startswith(f"file {self.roots.root}/"))
            found.extend(f"gone: {thing}" for thing in sorted(gone))
            return not found

        return "" if wait_until(clean, within=CLEAN_WITHIN_S) else "; ".join(found[:5])

    # the blows

    def strike(self, blow: Blow, only: random.Random | None = None) -> None:
        """A kill; of the shims all, or one that `only` chooses. What stood still goes on."""
        go = self._faults / "go"
        match blow:
            case Blow.DAEMON:
                self.daemon.kill()
                go.touch()
                self._start()
            case Blow.SHIM:
                shims = self._named("atoll-shim", "containerd-shim")
                for pid in [only.choice(shims)] if only and shims else shims:
                    _kill(pid)
                go.touch()
            case Blow.ZYGOTE:
                for pid in self._named("atoll-zygote"):
                    _kill(pid)
                go.touch()
            case _:
                assert blow is Blow.REBOOT
                self._reboot()
                go.touch()

    def _named(self, *names: str) -> list[int]:
        """The processes of this arena with such a name (PR_SET_NAME)."""
        mark = self.roots.prefix.encode()
        return [
            pid
            for pid in pids()
            if read(pid, "comm").strip().decode(errors="replace") in names
            and (mark in read(pid, "environ") or mark in read(pid, "cmdline"))
        ]

    def _reboot(self) -> None:
        """What a reboot does, as far as the arena owns it, and a boot ID that was not there before."""
        footprint = self._footprint()
        doomed = _with_children(footprint.processes())  # what holds a pod's namespaces carries no mark of its own
        self.daemon.kill()
        if self._far.process is not None:
            self._far.end(signal.SIGKILL)
        for path in footprint.cgroups():
            _thaw(path)  # what is frozen does not die
        for pid in doomed:
            _kill(pid)
        assert wait_until(lambda: not _killed(footprint), within=DEAD_WITHIN_S), "a process outlives SIGKILL"
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
        # In mounts of our own, see `alone`. Where a part of /proc is hidden the kernel lets no user namespace
        # mount another, unless there is one that is whole.
        whole = self.roots.base / WHOLE_PROC
        whole.mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "proc", "proc", str(whole)], check=True)
        subprocess.run(["mount", "--bind", str(boot_id), BOOT_ID], check=True)
        self._far = Other(self.roots, FAR_SCHEME)
        if self._needs_far:
            self._begin_far()
        self._start()

    # what there is

    def _processes(self) -> list[int]:
        """As those of a footprint, without a look at everybody's mounts, which takes long: a container has a cgroup."""
        mark = self.roots.prefix.encode()
        return [
            pid
            for pid in pids()
            if pid != os.getpid()
            and not awaits_init(pid)
            and any(mark in read(pid, name) for name in ("environ", "cmdline", "cgroup"))
        ]

    def _footprint(self) -> Footprint:
        return Footprint(prefix=self.roots.prefix, folders=(self.roots.base, self.roots.state), fds_before=frozenset())

    def _things(self) -> frozenset[str]:
        """Everything with the arena's prefix that a life could leave, in words without numbers that change."""
        footprint, roots = self._footprint(), self.roots
        # A process that is kept ahead of its need is a spare one, and a shim once it had a pod: one of them is there.
        comms = (read(pid, "comm").decode().strip() for pid in self._processes())
        names = Counter("atoll-shim" if comm == "atoll-spare" else comm for comm in comms)
        found = [f"process {name} {number}" for name, count in names.items() for number in range(1, count + 1)]
        found += [f"mount {point}" for point in footprint.mounts() if not point.endswith(WHOLE_PROC)]
        found += [f"link {name}" for name in links() if roots.prefix in name and name != roots.bridge]
        found += [f"port of the bridge: {name}" for name, bridge in links().items() if bridge == roots.bridge]
        found += [f"cgroup {path}" for path in footprint.cgroups()]
        found += [f"address {path.name}" for path in (roots.base / "ipam").glob("*/*") if path.name[0].isdigit()]
        for folder in (roots.root, roots.state, roots.base / "c-root", roots.base / "c-state"):
            for parent, folders, files in os.walk(folder):  # which passes over what goes meanwhile
                found += [f"file {parent}/{name}" for name in (*folders, *files) if not name.endswith(("-wal", "-shm"))]
        return frozenset(found)


@contextlib.contextmanager
def arena_in(out: Outside, told: Callable[[str], None], *, config: str = "", keep: bool = False) -> Iterator[Arena]:
    """An arena under roots of its own; what it leaves behind is told, and taken away."""
    prefix = f"ch{secrets.token_hex(4)}"
    os.environ[MARKER] = prefix
    footprint = Footprint.of(prefix, fds_before())
    base, state = footprint.folders
    roots = Roots(prefix=prefix, base=base, state=state)
    roots.make()
    try:
        yield Arena(roots, out, config)
    finally:
        roots.delete_bridge()
        for leak in settled_leaks(footprint, None):
            if "file descriptor" not in leak:  # its own, of queues and channels
                told(f"left behind: {leak}")
        if keep:
            print(f"logs: {roots.log}", file=sys.stderr)
        else:
            footprint.remove()


def alone() -> None:
    """Have this process, and all it starts, see mounts of its own: in one arena a machine is rebooted, not in others.

    Call it before there are threads. Raises `OSError`.
    """
    syscalls.unshare(syscalls.CLONE_NEWNS)
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)


def _with_children(found: list[int]) -> list[int]:
    """These processes and all that they have started, as far as it is still theirs."""
    doomed = list(found)
    for pid in doomed:
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                doomed += [int(child) for child in task.read_text().split() if int(child) not in doomed]
    return doomed


def _thaw(cgroup: Path) -> None:
    for name, word in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
        with contextlib.suppress(OSError):
            if (cgroup / name).exists():
                (cgroup / name).write_text(word)


def _killed(footprint: Footprint) -> list[int]:
    """Those that there were, killed: one may have begun behind an earlier look."""
    found = footprint.processes()
    for pid in found:
        _kill(pid)
    return found


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
