from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll import errors
from atoll.linux import process
from atoll.linux.process import PidfdSpawner, parse_stat

FIELDS = "S 1 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4242 0 0"


@given(st.text(alphabet=st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=20))
def test_any_command_name_is_parsed(command: str) -> None:
    parsed = parse_stat(f"17 ({command}) {FIELDS}\n")
    assert (parsed.pid, parsed.command, parsed.state, parsed.parent, parsed.start_ticks) == (17, command, "S", 1, 4242)


@given(st.text())
def test_any_text_is_a_line_or_refused(text: str) -> None:
    try:
        parse_stat(text)
    except ValueError:
        pass


def test_own_process_is_alive_and_another_of_its_pid_is_not() -> None:
    own = process.identify(os.getpid())
    assert own is not None
    assert process.is_alive(own)
    for other in (replace(own, start_ticks=own.start_ticks + 1), replace(own, boot_id="another boot")):
        assert not process.is_alive(other)
        assert process.open_pidfd(other) is None
        assert not process.send_signal(other, signal.SIGKILL)


def test_zombie_is_not_alive_but_has_its_identity() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        found = process.identify(child.pid)
        assert found is not None
        fd = process.open_pidfd(found)
        assert fd is not None
        assert process.send_signal(found, signal.SIGKILL)
        os.waitid(os.P_PIDFD, fd, os.WEXITED | os.WNOWAIT)
        assert not process.is_alive(found)
        assert process.identify(child.pid) == found
        os.close(fd)
    assert process.identify(child.pid) is None


async def test_spawner_returns_codes_and_signals() -> None:
    spawner = PidfdSpawner()
    assert await spawner.run(["true"], timeout_s=5) == 0
    assert await spawner.run(["sh", "-c", "exit 9"], timeout_s=5) == 9
    assert await spawner.run(["sh", "-c", "kill -15 $$"], timeout_s=5) == -15


async def test_spawner_hands_over_descriptors_environment_and_folder() -> None:
    read, write = os.pipe()
    extra, extra_write = os.pipe()
    os.write(extra_write, b"x")
    os.close(extra_write)
    script = f"read line <&0; echo $A; pwd; cat /dev/fd/{extra}; echo; echo err >&2"
    code = await PidfdSpawner().run(
        ["sh", "-c", script], stdout=write, stderr=write, pass_fds=(extra,), cwd=None, env={"A": "b"}, timeout_s=5
    )
    os.close(write)
    os.close(extra)
    with open(read) as stream:
        assert stream.read() == f"b\n{os.getcwd()}\nx\nerr\n"
    assert code == 0


async def test_spawner_kills_the_group_when_time_runs_out() -> None:
    read, write = os.pipe()
    with pytest.raises(errors.DeadlineExceeded, match=r"0\.1 s"):
        await PidfdSpawner().run(["sh", "-c", "sleep 60 & sleep 60"], stdout=write, timeout_s=0.1)
    os.close(write)
    with open(read) as stream:  # ends when the last process that holds the pipe has ended
        assert stream.read() == ""


async def test_spawner_kills_and_reaps_when_cancelled() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await PidfdSpawner().run([sys.executable, "-c", "import time; time.sleep(60)"], timeout_s=60)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


async def test_spawner_does_not_wait_for_what_a_program_leaves_behind() -> None:
    read, write = os.pipe()
    began = time.monotonic()
    assert await PidfdSpawner().run(["sh", "-c", "sleep 0.3 &"], stdout=write, timeout_s=5) == 0
    assert time.monotonic() - began < 0.25
    os.close(write)
    with open(read) as stream:
        stream.read()


async def test_spawner_tells_of_a_missing_program() -> None:
    with pytest.raises(FileNotFoundError):
        await PidfdSpawner().run(["/no/such/program"], timeout_s=1)
