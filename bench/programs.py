"""What the OCI runtime's program takes by itself for the containers of the latency table, with no daemon around it.

The spec is the one that Atoll made for such a container, in the namespaces of a pod that lives; so these figures are
the floor under "create + start" and "ExecSync" of every daemon that runs these programs. The runtimes take turns.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

from atoll.linux import syscalls
from atoll.linux.cgroup import expedite_attach
from atoll.linux.cgroup_layout import detect
from bench import timing
from bench.cri import container_config
from bench.timing import Contestant, Samples

CREATE, START, EXEC = "create", "start", "exec --detach"
ROWS = (CREATE, START, "create + start", EXEC)


def measure(own: Contestant, runtimes: Sequence[str], *, n: int, warm_up: int) -> Samples:
    """The milliseconds of each program, `n` containers each, after `warm_up` unmeasured ones."""
    samples = Samples()
    with _subreaper(), _spec(own) as spec:
        for number in range(-warm_up, n):
            for name in runtimes if number % 2 == 0 else runtimes[::-1]:
                _one(own, name, number, spec, samples if number >= 0 else Samples())
                time.sleep(timing.BREATH_S)
    found = samples.ms
    found["create + start"] = {
        name: [sum(pair) for pair in zip(found[CREATE][name], found[START][name], strict=True)] for name in runtimes
    }
    return samples


def table(samples: Samples) -> str:
    names = list(samples.ms[CREATE])
    n = len(samples.ms[CREATE][names[0]])
    lines = [
        f"### The OCI runtime's program alone, ms (n = {n} each)",
        "",
        f"| call | {' | '.join(f'{name} p50 / p99' for name in names)} |",
        f"|---|{'---:|' * len(names)}",
    ]
    for row in ROWS:
        cells = []
        for name in names:
            values = samples.ms[row][name]
            cells.append(f"{timing.median(values):.1f} / {timing.percentile(values, 0.99):.1f}")
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines)


@contextlib.contextmanager
def _subreaper() -> Generator[None]:
    # What the programs leave running becomes a child of ours, to be waited for.
    before = syscalls.is_child_subreaper()
    syscalls.set_child_subreaper(True)
    try:
        yield
    finally:
        syscalls.set_child_subreaper(before)


@contextlib.contextmanager
def _spec(own: Contestant) -> Generator[dict[str, object]]:
    """The spec of a container that Atoll made; its pod lives meanwhile."""
    request = own.request("alone")
    pod = own.cri.run_pod(request)
    own.daemon.networked += 1
    try:
        container = own.cri.create(pod, request, container_config())
        yield own.cri.container_info(container)["runtimeSpec"]
    finally:
        own.cri.stop_pod(pod)
        own.daemon.networked -= 1
        own.cri.remove_pod(pod)


@dataclass(frozen=True, slots=True)
class _Program:
    name: str
    root: Path

    def run(self, *arguments: str) -> float:
        """Milliseconds until it has ended; raises `ChildProcessError` where it fails."""
        argv = [self.name, "--root", str(self.root), *arguments]
        expediting = threading.Thread(target=expedite_attach, args=(detect(),))
        opened = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in range(3)]
        begun = time.perf_counter()
        expediting.start()  # as Atoll does
        pid = os.posix_spawnp(self.name, argv, os.environ, file_actions=opened)
        _, status = os.waitpid(pid, 0)
        took = (time.perf_counter() - begun) * 1000
        expediting.join()
        if status:
            raise ChildProcessError(f"{' '.join(argv)}: {os.waitstatus_to_exitcode(status)}")
        return took


def _one(own: Contestant, name: str, number: int, spec: dict[str, object], samples: Samples) -> None:
    folder = own.daemon.places.base / f"alone-{name}-{number}"
    program, container = _Program(name, folder / "state"), f"alone-{name}-{number}"
    cgroup = f"{own.daemon.places.cgroup}/{container}"
    _bundle(folder, spec, cgroup)
    files = [str(folder / one) for one in ("init.pid", "exec.pid", "exec.json")]
    try:
        samples.add(name, CREATE, program.run("create", "--bundle", str(folder), "--pid-file", files[0], container))
        samples.add(name, START, program.run("start", container))
        took = program.run("exec", "--detach", "--process", files[2], "--pid-file", files[1], container)
        samples.add(name, EXEC, took)
        os.waitpid(int(Path(files[1]).read_text()), 0)
    finally:
        with contextlib.suppress(FileNotFoundError, ChildProcessError):
            init = int(Path(files[0]).read_text())
            os.kill(init, signal.SIGKILL)
            os.waitpid(init, 0)
        program.run("delete", "--force", container)
        shutil.rmtree(folder)


def _bundle(folder: Path, spec: dict[str, object], cgroup: str) -> None:
    """The spec with a root and a cgroup of its own, and the process of an exec beside it."""
    binaries = folder / "rootfs" / "bin"
    binaries.mkdir(parents=True)
    for name in ("proc", "dev", "sys", "etc"):
        (folder / "rootfs" / name).mkdir()
    shutil.copy2("/bin/busybox", binaries)
    for name in ("sleep", "true"):
        (binaries / name).symlink_to("busybox")
    changed = json.loads(json.dumps(spec))
    changed["linux"]["cgroupsPath"] = cgroup
    changed["root"] = {"path": "rootfs"}
    (folder / "config.json").write_text(json.dumps(changed))
    process = changed["process"] | {"args": ["true"], "terminal": False}
    (folder / "exec.json").write_text(json.dumps(process))
