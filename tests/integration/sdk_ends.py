"""`python -m tests.integration.sdk_ends STATE SOCKET VICTIM DAEMON_PID FOLDER`: calls that last, and a death.

Prints as JSON what each call ended with: an error's kind and text, empty texts for a result, null for one that did not
end within `BOUND_S`. A program of its own, so that whatever it leaves in its process goes with that.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import atoll
from atoll import errors

IMAGE = "atoll/busybox"
PORT = 9000
BOUND_S = 45.0
"""In which every call must have ended: about thirty times what it takes on an idle machine."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What the calls are made on, and where local files are."""

    client: atoll.Client
    pod: atoll.Pod
    container: atoll.Container
    process: atoll.BackgroundProcess
    folder: Path


Call = Callable[[Scene, Callable[[], None]], Coroutine[object, object, object]]
"""Makes a call that lasts for ever; `begun` is called once it is under way."""


async def _drained(items: AsyncIterator[object], begun: Callable[[], None]) -> None:
    async for _ in items:
        begun()


async def exec_(scene: Scene, begun: Callable[[], None]) -> object:
    begun()
    return (await scene.container.exec(["sleep", "1000"])).cause


async def exec_stream(scene: Scene, begun: Callable[[], None]) -> object:
    async with scene.container.exec_stream(["sh", "-c", "echo up; exec cat"], stdin=True) as process:
        async for _ in process.stdout:
            begun()
        return (await process.wait()).cause


async def exec_that_talks(scene: Scene, begun: Callable[[], None]) -> object:
    async with scene.container.exec_stream(["yes"]) as process:
        async for _ in process.stdout:
            begun()
        return (await process.wait()).cause


async def attach(scene: Scene, begun: Callable[[], None]) -> object:
    async with scene.container.attach() as process:
        async for _ in process.stdout:
            begun()
        return (await process.wait()).cause


async def wait(scene: Scene, begun: Callable[[], None]) -> object:
    begun()
    return (await scene.container.wait()).cause


async def logs(scene: Scene, begun: Callable[[], None]) -> object:
    return await _drained(scene.container.logs(follow=True), begun)


async def stop(scene: Scene, begun: Callable[[], None]) -> object:
    begun()
    return await scene.container.stop(timeout=1000)


async def follow(scene: Scene, begun: Callable[[], None]) -> object:
    return await _drained(scene.process.follow(), begun)


async def wait_for_process(scene: Scene, begun: Callable[[], None]) -> object:
    begun()
    return (await scene.process.wait()).cause


async def watch(scene: Scene, begun: Callable[[], None]) -> object:
    return await _drained(scene.container.files.watch("/tmp"), begun)


async def upload(scene: Scene, begun: Callable[[], None]) -> object:
    """One after the other, so that one is under way whenever it is."""
    while True:
        await scene.container.files.upload(scene.folder, "/tmp/up")
        begun()


async def download(scene: Scene, begun: Callable[[], None]) -> object:
    while True:
        await scene.container.files.download("/bin", scene.folder.with_name("down"))
        begun()


async def status(scene: Scene, begun: Callable[[], None]) -> object:
    while (await scene.container.status()).state is atoll.ContainerState.RUNNING:
        begun()
    return "ended"


async def forward(scene: Scene, begun: Callable[[], None]) -> object:
    async with scene.pod.forward(PORT) as (reader, _):
        while await reader.read(65536):
            begun()


async def listen(scene: Scene, begun: Callable[[], None]) -> object:
    """What a client of the port sees: the end of its connection, and then that nothing answers there."""
    async with scene.pod.listen(PORT) as listener:
        reader, writer = await asyncio.open_connection(listener.host, listener.port)
        try:
            while await reader.read(65536):
                begun()
        except OSError as error:
            raise errors.Unavailable(f"the connection to port {listener.port} broke: {error}") from error
        finally:
            writer.close()


async def events(scene: Scene, begun: Callable[[], None]) -> object:
    return await _drained(scene.client.events(since=datetime.fromtimestamp(0, UTC)), begun)


async def stats_stream(scene: Scene, begun: Callable[[], None]) -> object:
    return await _drained(scene.client.stats_stream(interval=0.2), begun)


LASTING: tuple[Call, ...] = (
    exec_,
    exec_stream,
    exec_that_talks,
    attach,
    wait,
    logs,
    follow,
    wait_for_process,
    watch,
    upload,
    download,
    status,
    forward,
    listen,
    events,
    stats_stream,
)
_OTHERS = frozenset({"upload", "download", "events", "stats_stream"})
GOES_ON = {"shim": _OTHERS, "container": _OTHERS}
"""What is right to go on: the files of a container that has ended are still there, and the daemon tells of others."""


async def _under_way(group: asyncio.TaskGroup, call: Call, scene: Scene) -> asyncio.Task[errors.AtollError | None]:
    begun = asyncio.Event()
    task = group.create_task(_outcome(call(scene, begun.set)), name=call.__name__)
    async with asyncio.timeout(BOUND_S):
        while not begun.is_set():
            assert not task.done(), (call.__name__, task.result())
            await asyncio.wait({task}, timeout=0.02)
    return task


async def _outcome(work: Awaitable[object]) -> errors.AtollError | None:
    """What a call ended with; an error that is none of ours fails the test."""
    try:
        await work
    except errors.AtollError as error:
        return error
    return None


def victim_pid(victim: str, state: Path, pod_id: str, container_id: str, daemon: int) -> int:
    if victim == "daemon":
        return daemon
    path = (
        state / "shims" / pod_id / "shim.json" if victim == "shim" else state / "bundles" / container_id / "task.json"
    )
    return int(json.loads(path.read_text())["pid"])


async def play(state: Path, socket: Path, victim: str, daemon: int, folder: Path) -> dict[str, tuple[str, str] | None]:
    """Make all the calls, kill, and wait for their ends. The pod stays."""
    async with atoll.connect(socket, start=False) as client:
        pod = await client.run_pod("ends", network="none")
        script = "trap '' TERM; while :; do echo tick; date > /tmp/tick; sleep 0.05; done"
        container = await pod.run(IMAGE, ["sh", "-c", script])
        process = await container.spawn(["sh", "-c", "while :; do echo tick; sleep 0.05; done"])
        await container.spawn(["nc", "-ll", "-p", str(PORT), "-e", "yes"])
        until = f"until nc 127.0.0.1 {PORT} </dev/null | head -c 1 | grep -q y; do sleep 0.05; done 2>/dev/null"
        await container.exec(["sh", "-c", until], timeout=BOUND_S)
        scene = Scene(client=client, pod=pod, container=container, process=process, folder=folder)
        async with asyncio.TaskGroup() as group:
            tasks = {one.__name__: await _under_way(group, one, scene) for one in LASTING}
            tasks["stop"] = group.create_task(_outcome(stop(scene, lambda: None)))
            os.kill(victim_pid(victim, state, pod.id, container.id, daemon), signal.SIGKILL)
            waits = [task for name, task in tasks.items() if name not in GOES_ON.get(victim, frozenset())]
            await asyncio.wait(waits, timeout=BOUND_S)
            ends = {name: _told(task) for name, task in tasks.items()}
            for task in tasks.values():
                task.cancel()
        return ends


def _told(task: asyncio.Task[errors.AtollError | None]) -> tuple[str, str] | None:
    if not task.done():
        return None
    error = task.result()
    return (type(error).__name__, error.message) if error is not None else ("", "")


if __name__ == "__main__":
    words = sys.argv[1:]
    print(json.dumps(asyncio.run(play(Path(words[0]), Path(words[1]), words[2], int(words[3]), Path(words[4])))))
