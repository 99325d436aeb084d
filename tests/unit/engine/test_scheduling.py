"""The scheduler and the io priority that a spec names, set on a process."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest

from atoll import errors
from atoll.engine import scheduling
from atoll.oci import spec


@pytest.fixture
def pid() -> Iterator[int]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process.pid
        process.kill()


def document(**process: object) -> bytes:
    return spec.encode(spec.Spec(process=spec.Process(args=("x",), **process)))  # pyright: ignore[reportArgumentType]


def test_a_process_is_scheduled_as_its_spec_says(pid: int) -> None:
    asked = document(
        scheduler=spec.Scheduler(policy="SCHED_BATCH", nice=7),
        io_priority=spec.IOPriority(io_class="IOPRIO_CLASS_BE", priority=6),
    )
    scheduling.apply(asked, pid)
    assert os.sched_getscheduler(pid) == os.SCHED_BATCH
    assert os.getpriority(os.PRIO_PROCESS, pid) == 7


def test_a_spec_that_says_nothing_changes_nothing(pid: int) -> None:
    scheduling.apply(document(env=('A="scheduler"',)), pid)
    scheduling.apply(document(), 2**30)  # nobody is asked
    assert os.sched_getscheduler(pid) == os.SCHED_OTHER


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        (document(scheduler=spec.Scheduler(policy="SCHED_ISO")), errors.InvalidArgument),
        (document(scheduler=spec.Scheduler(policy="SCHED_BATCH", flags=("NONE",))), errors.InvalidArgument),
        (document(io_priority=spec.IOPriority(io_class="IOPRIO_CLASS_X")), errors.InvalidArgument),
        (document(scheduler=spec.Scheduler(policy="SCHED_FIFO", priority=1000)), errors.FailedPrecondition),
    ],
)
def test_what_the_kernel_has_not_is_refused(pid: int, asked: bytes, error: type[errors.AtollError]) -> None:
    with pytest.raises(error):
        scheduling.apply(asked, pid)
