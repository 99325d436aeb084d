"""Checks of execs and of stdio: more processes in a container, and where their output goes."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

from atoll import errors
from atoll.concurrency import TaskOwner
from atoll.runtime.bundle import Bundle
from atoll.runtime.capture import Capture
from atoll.runtime.shim import Shim
from atoll.runtime.streams import FifoSet, ProcessIO
from atoll.runtime.task import StdioPaths, TaskStatus
from atoll.testing.conformance.check import Check, check, equal, refuses, true
from atoll.testing.conformance.shim.subject import ShimTrial

TASK = "containerd.task.v3.Task"
STDIO = "containerd's shim protocol, IO forms"
KILLED = 128 + signal.SIGKILL
OUTPUT_LIMIT = 1 << 20
LONG = 200_000


async def an_exec_runs_and_ends(trial: ShimTrial) -> None:
    """An exec has a pid and an exit of its own, kept until it is deleted; the container runs on."""
    bundle, shim, pid = await trial.running()
    tasks, exec_id = shim.tasks, "probe"
    await tasks.exec(bundle.id, exec_id, spec=trial.exec_spec("/bin/sh", "-c", "exit 5"), stdio=StdioPaths())
    exec_pid = await tasks.start(bundle.id, exec_id)
    true("pid of the exec", f"not {pid}", exec_pid not in (0, pid), exec_pid)
    ended = await tasks.wait(bundle.id, exec_id)
    equal("exit status", 5, ended.exit_status)
    equal("a second Wait", ended, await tasks.wait(bundle.id, exec_id))
    equal("what Delete tells", ended, await tasks.delete(bundle.id, exec_id))
    await refuses("State after Delete", tasks.state(bundle.id, exec_id), errors.NotFound)
    equal("status of the container", TaskStatus.RUNNING, (await tasks.state(bundle.id)).status)


async def exec_ids_are_taken_once(trial: ShimTrial) -> None:
    """A second Exec with an ID that is there is AlreadyExists; after Delete the ID is free."""
    bundle, shim, _ = await trial.running()
    spec = trial.exec_spec("/bin/true")
    await shim.tasks.exec(bundle.id, "one", spec=spec, stdio=StdioPaths())
    again = shim.tasks.exec(bundle.id, "one", spec=spec, stdio=StdioPaths())
    await refuses("a second Exec with one ID", again, errors.AlreadyExists)
    await shim.tasks.start(bundle.id, "one")
    await shim.tasks.wait(bundle.id, "one")
    await shim.tasks.delete(bundle.id, "one")
    await shim.tasks.exec(bundle.id, "one", spec=spec, stdio=StdioPaths())
    await shim.tasks.delete(bundle.id, "one")


async def an_exec_is_killed_by_itself(trial: ShimTrial) -> None:
    """Kill of an exec ends the exec with 137, and not the container."""
    bundle, shim, _ = await trial.running()
    await shim.tasks.exec(bundle.id, "sleeper", spec=trial.exec_spec("/bin/sleep", "1000000"), stdio=StdioPaths())
    await shim.tasks.start(bundle.id, "sleeper")
    await shim.tasks.kill(bundle.id, signal.SIGKILL, exec_id="sleeper")
    equal("exit status", KILLED, (await shim.tasks.wait(bundle.id, "sleeper")).exit_status)
    equal("status of the container", TaskStatus.RUNNING, (await shim.tasks.state(bundle.id)).status)


async def unknown_execs_are_not_found(trial: ShimTrial) -> None:
    """State, Start, Kill, Wait and Delete of an unknown exec are NotFound."""
    bundle, shim, _ = await trial.running()
    tasks = shim.tasks
    await refuses("State", tasks.state(bundle.id, "none"), errors.NotFound)
    await refuses("Start", tasks.start(bundle.id, "none"), errors.NotFound)
    await refuses("Kill", tasks.kill(bundle.id, signal.SIGKILL, exec_id="none"), errors.NotFound)
    await refuses("Wait", tasks.wait(bundle.id, "none"), errors.NotFound)
    await refuses("Delete", tasks.delete(bundle.id, "none"), errors.NotFound)


async def an_exec_of_a_missing_program_fails(trial: ShimTrial) -> None:
    """Start of an exec whose program is not there is an error; the exec can be deleted, and the container runs on."""
    bundle, shim, _ = await trial.running()
    await shim.tasks.exec(bundle.id, "lost", spec=trial.exec_spec("/bin/no-such-program"), stdio=StdioPaths())
    await refuses("Start", shim.tasks.start(bundle.id, "lost"), errors.AtollError)
    await shim.tasks.delete(bundle.id, "lost")
    equal("status of the container", TaskStatus.RUNNING, (await shim.tasks.state(bundle.id)).status)


async def an_exec_of_the_dead_is_refused(trial: ShimTrial) -> None:
    """Exec, or its Start, in a container that has ended is an error."""
    bundle, shim, _ = await trial.running(("/bin/true",))
    await shim.tasks.wait(bundle.id)

    async def exec_and_start() -> None:
        await shim.tasks.exec(bundle.id, "late", spec=trial.exec_spec("/bin/true"), stdio=StdioPaths())
        await shim.tasks.start(bundle.id, "late")

    await refuses("Exec and Start", exec_and_start(), errors.AtollError)


# --- stdio ---


async def _piped(
    trial: ShimTrial, arguments: tuple[str, ...], *, stdin: bool = False, terminal: bool = False
) -> tuple[Bundle, Shim, ProcessIO]:
    """A running container whose stdio are fifos, and our ends of them."""
    bundle, shim = await trial.launched(arguments, terminal=terminal)
    fifos = FifoSet.create(bundle.path / "io", bundle.id, stdin=stdin, terminal=terminal)
    io = fifos.open(lambda: shim.tasks.close_io(bundle.id))
    trial.on_end(fifos.remove)
    await trial.created(bundle, shim, fifos.paths)
    fifos.connected()
    await shim.tasks.start(bundle.id)
    return bundle, shim, io


async def output_goes_to_fifos(trial: ShimTrial) -> None:
    """What a container writes comes out of its fifos, each stream whole and by itself, and they end with it."""
    script = f"yes out | head -c {LONG}; echo err >&2; exit 3"
    bundle, shim, io = await _piped(trial, ("/bin/sh", "-c", script))
    output = Capture(io, OUTPUT_LIMIT)
    await trial.bounded(output.run(), "the end of the output")
    equal("bytes of stdout", LONG, len(output.stdout.data))
    equal("stderr", b"err\n", output.stderr.data)
    equal("exit status", 3, (await shim.tasks.wait(bundle.id)).exit_status)


async def output_goes_to_a_file(trial: ShimTrial) -> None:
    """With file:// both streams are appended to a file, which is made with its folders."""
    bundle, shim = await trial.launched(("/bin/sh", "-c", "echo out; echo err >&2"))
    path = Path(bundle.path / "logs" / "of" / "it.log")
    await trial.created(bundle, shim, StdioPaths(stdout=f"file://{path}", stderr=f"file://{path}"))
    await shim.tasks.start(bundle.id)
    await shim.tasks.wait(bundle.id)
    await shim.tasks.delete(bundle.id)
    await trial.soon(lambda: len(path.read_bytes().split()) >= 2)  # the reference shim may write behind its answer
    equal("lines of the file", ["err", "out"], sorted((await asyncio.to_thread(path.read_text)).split()))


async def input_reaches_it_and_ends(trial: ShimTrial) -> None:
    """What is written to the stdin fifo reaches the container, and CloseIO ends its input."""
    bundle, shim, io = await _piped(trial, ("/bin/cat",), stdin=True)
    output = Capture(io, OUTPUT_LIMIT)
    async with TaskOwner("output") as owner:
        reading = owner.spawn(output.run(), name="output")
        assert io.stdin is not None
        await trial.bounded(io.stdin.write(b"hello\n"), "the input")
        came = await trial.soon(lambda: output.stdout.data == b"hello\n")
        true("what came back", "hello", came, output.stdout.data)
        await trial.bounded(io.stdin.close(), "CloseIO")
        await asyncio.wait({reading}, timeout=trial.subject.within_s)
        true("the output", "ended", reading.done(), "it goes on")
    equal("exit status", 0, (await shim.tasks.wait(bundle.id)).exit_status)


async def a_terminal_has_a_size(trial: ShimTrial) -> None:
    """A container with a terminal has one, of the size that ResizePty set."""
    script = 'until [ "$(stty size 2>/dev/null)" = "33 77" ]; do sleep 0.02; done; echo is 33 77'
    bundle, shim, io = await _piped(trial, ("/bin/sh", "-c", script), stdin=True, terminal=True)
    await shim.tasks.resize_pty(bundle.id, width=77, height=33)
    output = Capture(io, OUTPUT_LIMIT)
    await trial.bounded(output.run(), "the end of the output")
    equal("what it saw", b"is 33 77\r\n", output.stdout.data)
    equal("exit status", 0, (await shim.tasks.wait(bundle.id)).exit_status)


CHECKS: tuple[Check[ShimTrial], ...] = (
    check(an_exec_runs_and_ends, source=f"{TASK}/Exec"),
    check(exec_ids_are_taken_once, source=f"{TASK}/Exec"),
    check(an_exec_is_killed_by_itself, source=f"{TASK}/Kill"),
    check(unknown_execs_are_not_found, source=TASK),
    check(an_exec_of_a_missing_program_fails, source=f"{TASK}/Exec, /Start"),
    check(an_exec_of_the_dead_is_refused, source=f"{TASK}/Exec, /Start"),
    check(output_goes_to_fifos, source=STDIO),
    check(output_goes_to_a_file, source=STDIO),
    check(input_reaches_it_and_ends, source=f"{TASK}/CloseIO"),
    check(a_terminal_has_a_size, source=f"{TASK}/ResizePty"),
)
