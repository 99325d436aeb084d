"""One boot of the guest: qemu without hardware acceleration, bounded in time, and what its report said."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.guest.image import Image
from tests.guest.report import PREFIX

QEMU = "qemu-system-x86_64"
MEMORY = "2G"
INSTRUCTION_CLOCK = "shift=0,sleep=off"
"""The guest's clock goes by its instructions, a nanosecond each, and over its sleeps: to the guest this is a machine of
its own speed, however slow or busy the host is, so the bounds in the tests mean there what they mean anywhere."""

OUTCOME = re.compile(rf"{PREFIX} (passed|failed|skipped) ([0-9.]+) (.+)")
VERDICT = re.compile(rf"{PREFIX} verdict (\d+) (\d+) (\d+)")
END = re.compile(rf"{PREFIX} end, status (\d+)")
READ_BYTES = 65536
KILLED_WITHIN_S = 10


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What a boot came to; `console` is the file with everything the guest wrote."""

    console: Path
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    has_verdict: bool = False
    status: int | None = None
    ran_out_of_time: bool = False
    lines: list[str] = field(default_factory=list[str])

    @property
    def is_good(self) -> bool:
        return self.has_verdict and self.status == 0 and self.passed > 0 and self.failed == 0

    def take(self, line: str) -> str | None:
        """Enter one line of the console; itself where it belongs to the report."""
        if match := VERDICT.search(line):
            self.passed, self.failed, self.skipped = map(int, match.groups())
            self.has_verdict = True
        elif match := END.search(line):
            self.status = int(match[1])
        elif PREFIX not in line:
            return None
        self.lines.append(line[line.index(PREFIX) :])
        return self.lines[-1]


def command(image: Image, project: Path, words: Sequence[str]) -> list[str]:
    """The command line of qemu; `words` go to the kernel's."""
    kernel = ["console=ttyS0", "quiet", "panic=-1", "reboot=t", "random.trust_cpu=on", *words]
    disks = [(image.disk, "on"), (project, "off")]
    drives = [
        word
        for number, (path, snapshot) in enumerate(disks)
        for word in (
            "-drive",
            f"id=d{number},file={path},format=raw,if=none,snapshot={snapshot}",
            "-device",
            f"virtio-blk-device,drive=d{number}",
        )
    ]
    return [
        QEMU,
        *("-M", "microvm", "-accel", "tcg", "-icount", INSTRUCTION_CLOCK, "-cpu", "max", "-smp", "1", "-m", MEMORY),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"),
        *("-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", " ".join(kernel)),
        *drives,
    ]


def boot(
    image: Image, project: Path, words: Sequence[str], console: Path, within_s: float, tell: Callable[[str], None]
) -> Outcome:
    """Run the guest to its end, or to the end of its time, when it is killed; `tell` gets the report as it comes."""
    outcome = Outcome(console=console)
    started = time.monotonic()
    with (
        console.open("wb") as log,
        subprocess.Popen(
            command(image, project, words), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as process,
    ):
        pidfd = os.pidfd_open(process.pid)
        try:
            assert process.stdout is not None
            fd, rest = process.stdout.fileno(), b""
            while True:
                left = started + within_s - time.monotonic()
                if left <= 0 or not select.select([fd], [], [], left)[0]:
                    outcome.ran_out_of_time = True
                    break
                if not (chunk := os.read(fd, READ_BYTES)):
                    break
                log.write(chunk)
                log.flush()
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    if (told := outcome.take(line.decode(errors="replace").rstrip())) is not None:
                        tell(told)
        finally:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.close(pidfd)
            process.wait(KILLED_WITHIN_S)
    outcome.seconds = time.monotonic() - started
    return outcome
