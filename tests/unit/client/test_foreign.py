"""Another runtime's socket: its address, and the lines of its logs."""

from __future__ import annotations

from pathlib import Path

import pytest

from atoll import errors
from atoll.client import foreign
from atoll.client.model import Cause, ContainerState, ContainerStatus


def test_an_address_is_a_unix_url() -> None:
    assert foreign.path_of("unix:///run/x.sock") == Path("/run/x.sock")
    assert foreign.path_of("/run/x.sock") is None
    assert foreign.path_of(None) is None
    for wrong in ("tcp://127.0.0.1:1", "unix://relative", "http://x/"):
        with pytest.raises(errors.InvalidArgument, match="unix:///"):
            foreign.path_of(wrong)


def status(path: Path, state: ContainerState, *, code: int = 0) -> ContainerStatus:
    return ContainerStatus(
        id="c" * 64,
        pod_id="p",
        name="box",
        image="i",
        state=state,
        created_at=None,
        started_at=None,
        finished_at=None,
        exit_code=code,
        reason="",
        message="",
        log_path=str(path),
    )


async def test_a_log_is_followed_until_the_container_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "log"
    head = "2026-01-01T00:00:0"
    path.write_bytes(f"{head}1Z stdout F one\nnot a line\n{head}2.5+00:00 stderr P two\n".encode())
    states = iter((ContainerState.RUNNING, ContainerState.RUNNING, ContainerState.EXITED))

    async def ask() -> ContainerStatus:
        found = status(path, next(states))
        if found.state is ContainerState.EXITED:
            with path.open("ab") as file:
                file.write(f"{head}3Z stdout F last\n".encode())
        return found

    lines = [line async for line in foreign.logs(ask, follow=True, tail=None, since_ns=0)]
    assert [(line.stream, line.text, line.partial) for line in lines] == [
        ("stdout", "one", False),
        ("stderr", "two", True),
        ("stdout", "last", False),
    ]
    assert lines[1].time_ns - lines[0].time_ns == 1_500_000_000

    async def ended() -> ContainerStatus:
        return status(path, ContainerState.EXITED)

    tail = [line.text async for line in foreign.logs(ended, follow=False, tail=1, since_ns=0)]
    since = [line.text async for line in foreign.logs(ended, follow=False, tail=None, since_ns=lines[1].time_ns)]
    assert (tail, since) == (["last"], ["two", "last"])


async def test_a_wait_tells_the_code_and_its_cause(tmp_path: Path) -> None:
    async def ended() -> ContainerStatus:
        return status(tmp_path, ContainerState.EXITED, code=137)

    async def runs() -> ContainerStatus:
        return status(tmp_path, ContainerState.RUNNING)

    end = await foreign.wait(ended, "box", 1)
    assert (end.code, end.cause) == (137, Cause.SIGNAL)
    with pytest.raises(errors.DeadlineExceeded, match="box"):
        await foreign.wait(runs, "box", 0.01)
