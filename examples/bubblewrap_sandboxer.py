"""A complete sandboxer over bubblewrap (bwrap(1)): each sandbox is a process with a root and namespaces of its own.

It follows root mounts (one bind mount, else the host's /usr, read-only), the network namespace's path, and of a pod's
config the hostname and the namespace modes. The process is the one that the record's OCI spec names, else one that
sleeps. Sandboxes outlive the controller: all it knows is in <state>/<id>, and bwrap itself writes how a sandbox began
and ended. As root:

    python examples/bubblewrap_sandboxer.py unix:///run/bubblewrap.sock /var/lib/bubblewrap-sandboxer
"""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from atoll import errors
from atoll import sandbox as s
from atoll.api.cri_runtime_v1_pb2 import NamespaceMode, PodSandboxConfig
from atoll.concurrency import TaskOwner

CONFIG = "runtime.v1.PodSandboxConfig"
LINKS = [("--symlink", f"usr/{name}", f"/{name}") for name in ("bin", "lib", "lib64", "sbin")]
HOST_ROOT = ("--ro-bind", "/usr", "/usr", *(word for link in LINKS for word in link))
UNKNOWN = 255
TELLS_WITHIN_S = 2.0


class BubblewrapSandboxer(s.Controller):
    """`state` is the folder of what outlives the controller; entering the context takes up what is there."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.lives = s.Lives()
        self.tasks = TaskOwner("bubblewrap")

    async def __aenter__(self) -> Self:
        self.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in self.state.iterdir():
            self._take_up(folder)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.tasks.aclose()

    # create

    async def create(self, sandbox: s.Sandbox, options: s.CreateOptions) -> None:
        self.lives.add(sandbox, options, takes=("rootfs", "netns_path", CONFIG))
        folder = self.state / sandbox.id
        try:
            command = _command(sandbox, options)
            folder.mkdir()
            record = {"command": command, "labels": dict(sandbox.labels), "runtime": sandbox.runtime.name}
            _write(folder / "record.json", record)
        except BaseException as error:
            self.lives.forget(sandbox.id)
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, OSError):
                raise errors.Unavailable(f"{folder}: cannot be made: {error.strerror}") from error
            raise

    # start

    async def start(self, sandbox_id: str) -> s.ControllerInstance:
        life, folder = self.lives[sandbox_id], self.state / sandbox_id
        life.require_fresh()
        try:
            command = json.loads((folder / "record.json").read_text())["command"]
            (folder / "started").touch()
            with open(folder / "status", "xb") as status, open(folder / "output", "ab") as output:
                process = await asyncio.create_subprocess_exec(
                    *(str(status.fileno()) if word == "{status}" else word for word in command),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=(status.fileno(),),
                    start_new_session=True,
                )
            self.tasks.spawn(process.wait(), name=f"sandbox/{sandbox_id}/reap")
            return self._begin(life, await self._told(folder, process))
        except BaseException:
            await self.shutdown(sandbox_id)
            raise

    async def _told(self, folder: Path, process: asyncio.subprocess.Process) -> dict[str, int]:
        """What bwrap says of the process that it began, once that is past bwrap's own code."""
        async with asyncio.timeout(TELLS_WITHIN_S):
            while not _is_begun(told := _read_status(folder)):
                if process.returncode is not None:
                    why = (folder / "output").read_text(errors="replace").strip()
                    raise errors.FailedPrecondition(f"sandbox {folder.name}: {why or 'bwrap ended at once'}")
                await asyncio.sleep(0.002)
        return told

    def _begin(self, life: s.Life, told: dict[str, int]) -> s.ControllerInstance:
        """It runs, or has run: watched from now on."""
        folder = self.state / life.sandbox.id
        pid, at = told["child-pid"], datetime.fromtimestamp((folder / "started").stat().st_mtime, UTC)
        instance = life.begin(pid, at=at)
        try:
            pidfd = os.pidfd_open(pid) if _is_it(pid, told) else -1
        except ProcessLookupError:
            pidfd = -1
        self.tasks.spawn(self._follow(life, folder, pidfd), name=f"sandbox/{life.sandbox.id}/end")
        return instance

    async def _follow(self, life: s.Life, folder: Path, pidfd: int) -> None:
        """Wait for the kernel to say that it ended, then for bwrap to say how."""
        if pidfd >= 0:
            ended, loop = asyncio.Event(), asyncio.get_running_loop()
            loop.add_reader(pidfd, ended.set)
            try:
                await ended.wait()
            finally:
                loop.remove_reader(pidfd)
                os.close(pidfd)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TELLS_WITHIN_S):
                while "exit-code" not in _read_status(folder):
                    await asyncio.sleep(0.002)
        self._settle(life, folder)

    def _settle(self, life: s.Life, folder: Path, code: int = UNKNOWN) -> None:
        """The end as bwrap wrote it; where it did not, `code`, written in its place."""
        if not folder.is_dir():
            return
        if "exit-code" not in _read_status(folder):
            with open(folder / "status", "a") as status:
                status.write(json.dumps({"exit-code": code}) + "\n")
        at = datetime.fromtimestamp((folder / "status").stat().st_mtime, UTC)
        life.end(_read_status(folder)["exit-code"], at=at)

    def _take_up(self, folder: Path) -> None:
        """A sandbox of an earlier life; one whose create was cut short is gone."""
        try:
            record = json.loads((folder / "record.json").read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            shutil.rmtree(folder, ignore_errors=True)
            return
        runtime = s.Runtime(name=record["runtime"])
        made = s.Sandbox(id=folder.name, sandboxer="", runtime=runtime, labels=record["labels"])
        life = self.lives.add(made, s.CreateOptions())
        told = _read_status(folder)
        if "child-pid" in told:
            self._begin(life, told)
        elif "exit-code" in told:
            self._settle(life, folder)
        elif (folder / "started").exists():  # a start that was cut short
            shutil.rmtree(folder, ignore_errors=True)
            self.lives.forget(folder.name)

    # the end

    async def stop(self, sandbox_id: str, timeout_s: float | None = None) -> None:
        if sandbox_id not in self.lives:
            return
        life = self.lives[sandbox_id]
        if life.instance is None:
            self._settle(life, self.state / sandbox_id, 0)
            return
        if timeout_s and life.is_running:
            for pid in _children(life.instance.pid):  # the first process of a PID namespace takes no SIGTERM
                _kill(pid, signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await life.wait()
        if life.is_running and _is_it(life.instance.pid, _read_status(self.state / sandbox_id)):
            _kill(life.instance.pid, signal.SIGKILL)
        await life.wait()

    async def shutdown(self, sandbox_id: str) -> None:
        await self.stop(sandbox_id)
        if sandbox_id in self.lives:
            shutil.rmtree(self.state / sandbox_id, ignore_errors=True)
            self.lives.forget(sandbox_id)

    # questions

    async def wait(self, sandbox_id: str) -> s.ExitStatus:
        return await self.lives[sandbox_id].wait()

    async def status(self, sandbox_id: str, verbose: bool = False) -> s.ControllerStatus:
        return self.lives[sandbox_id].status(verbose)


# Command lines


def _command(sandbox: s.Sandbox, options: s.CreateOptions) -> list[str]:
    """What to execute; raises `InvalidArgument` for what cannot be followed."""
    config = PodSandboxConfig.FromString(options.options.value) if options.options else PodSandboxConfig()
    asked = config.linux.security_context.namespace_options
    if config.linux.sysctls or config.HasField("dns_config"):
        raise errors.InvalidArgument(f"sandbox {sandbox.id}: sysctls and dns_config are not followed")
    command = ["bwrap", "--json-status-fd", "{status}", "--new-session", "--unshare-uts", "--unshare-cgroup-try"]
    command += ["--unshare-pid"] if asked.pid != NamespaceMode.NODE else []
    command += ["--unshare-ipc"] if asked.ipc != NamespaceMode.NODE else []
    if options.netns_path:
        if not os.path.exists(options.netns_path):
            raise errors.InvalidArgument(f"sandbox {sandbox.id}: no network namespace at {options.netns_path}")
        command = ["nsenter", f"--net={options.netns_path}", *command]
    elif asked.network != NamespaceMode.NODE:
        command += ["--unshare-net"]
    command += ["--hostname", config.hostname or sandbox.id[:63]]
    command += [*_root(sandbox, options), "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--"]
    return command + _process(sandbox)


def _root(sandbox: s.Sandbox, options: s.CreateOptions) -> list[str]:
    if not options.rootfs:
        return list(HOST_ROOT)
    root, *more = options.rootfs
    if more or root.type not in ("bind", "none"):
        raise errors.InvalidArgument(f"sandbox {sandbox.id}: one bind mount is followed as its root, and nothing else")
    return ["--ro-bind" if "ro" in root.options else "--bind", root.source, "/"]


def _process(sandbox: s.Sandbox) -> list[str]:
    try:
        spec = json.loads(sandbox.spec.value) if sandbox.spec is not None else {}
        arguments = [str(word) for word in spec.get("process", {}).get("args", ())]
    except (ValueError, AttributeError, TypeError) as error:
        raise errors.InvalidArgument(f"sandbox {sandbox.id}: its spec is no OCI runtime spec") from error
    return arguments or ["sleep", "infinity"]


# Files and processes


def _write(path: Path, value: object) -> None:
    """On disk when it returns, whole or not at all."""
    new = path.with_suffix(".new")
    with open(new, "w") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)


def _read_status(folder: Path) -> dict[str, int]:
    """All that bwrap has said so far; it says it in several JSON texts, a line each."""
    told: dict[str, int] = {}
    with contextlib.suppress(FileNotFoundError):
        for line in (folder / "status").read_text().splitlines():
            with contextlib.suppress(json.JSONDecodeError):  # a line that is being written
                told |= json.loads(line)
    return told


def _is_it(pid: int, told: dict[str, int]) -> bool:
    """Whether `pid` is still the process that bwrap began, and no later one of that number."""
    with contextlib.suppress(OSError):
        return os.stat(f"/proc/{pid}/ns/mnt").st_ino == told.get("mnt-namespace", 0)
    return False


def _is_begun(told: dict[str, int]) -> bool:
    """Whether the program is executed, or has ended already."""
    if "child-pid" not in told or "exit-code" in told:
        return "child-pid" in told
    with contextlib.suppress(OSError):
        programs = {os.readlink(f"/proc/{pid}/exe") for pid in [told["child-pid"], *_children(told["child-pid"])]}
        return any(Path(program).name != "bwrap" for program in programs)
    return False


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _kill(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


if __name__ == "__main__":
    s.run(lambda: BubblewrapSandboxer(Path(sys.argv[2])), sys.argv[1])
