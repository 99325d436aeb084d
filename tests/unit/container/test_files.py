"""Checkpoints as containerd's CRI plugin has them on disk: what it wrote is read, what is written it reads.

`files/` has such texts: of 2.x, of an exited container with the escapes that Go's encoder makes, and of an early
1.x, which knew neither Resources nor Restore and kept a transient flag.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from atoll.container.checkpoint import read_checkpoint, write_checkpoint
from atoll.container.status import ContainerResources, State, Status, decode_status, encode_status
from atoll.oci.config import HugepageLimit, LinuxContainerResources

FILES = Path(__file__).parent / "files"

RUNNING = Status(
    pid=4711,
    created_at=1_700_000_000_123_456_789,
    started_at=1_700_000_001_000_000_001,
    resources=ContainerResources(
        linux=LinuxContainerResources(
            cpu_period=100_000,
            cpu_quota=50_000,
            cpu_shares=512,
            memory_limit_in_bytes=64 << 20,
            oom_score_adj=-997,
            cpuset_cpus="0-1",
            hugepage_limits=(HugepageLimit(page_size="2MB", limit=4 << 20),),
            unified={"memory.high": "50000000"},
        )
    ),
)
EXITED = Status(
    created_at=1_700_000_000_123_456_789,
    started_at=1_700_000_001_000_000_001,
    finished_at=1_700_000_002_000_000_002,
    exit_code=128,
    reason="StartError",
    message='failed to create task: exec: "<none>": \ufffd not found',
    restore=True,
)
OLDER = Status(pid=12, created_at=1_600_000_000_000_000_000, started_at=1_600_000_001_000_000_000)

GO_TYPES: dict[str, type | tuple[type, ...]] = {
    "Version": str, "Pid": int, "CreatedAt": int, "StartedAt": int, "FinishedAt": int, "ExitCode": int,
    "Reason": str, "Message": str, "Resources": (dict, type(None)), "Restore": bool,
}  # fmt: skip
"""The fields of containerd's versioned status, in their order, and what its decoder takes in each."""


@pytest.mark.parametrize(
    ("name", "status"), [("status-running.json", RUNNING), ("status-exited.json", EXITED), ("status-older.json", OLDER)]
)
def test_what_containerd_wrote_is_read(name: str, status: Status) -> None:
    assert decode_status((FILES / name).read_bytes()) == status


@pytest.mark.parametrize(("name", "status"), [("status-running.json", RUNNING), ("status-exited.json", EXITED)])
def test_what_is_written_is_what_containerd_writes(tmp_path: Path, name: str, status: Status) -> None:
    write_checkpoint(tmp_path, encode_status(status))
    ours, theirs = (json.loads(text) for text in (read_checkpoint(tmp_path), (FILES / name).read_bytes()))
    assert ours == theirs
    assert list(ours) == list(theirs) == list(GO_TYPES), "in one order, too"


@pytest.mark.parametrize("status", [RUNNING, EXITED, OLDER, Status()])
def test_every_field_has_a_type_that_its_decoder_takes(status: Status) -> None:
    found: dict[str, Any] = json.loads(encode_status(status))
    assert found.keys() == GO_TYPES.keys()
    for name, kind in GO_TYPES.items():
        assert isinstance(found[name], kind), name
        assert not (kind is int and isinstance(found[name], bool))


def test_a_message_of_odd_bytes_is_written_and_read() -> None:
    odd = dataclasses.replace(EXITED, message=b"exec: \xff\xfe".decode("utf-8", "surrogateescape"))
    assert decode_status(encode_status(odd)).message.startswith("exec: \ufffd")


@pytest.mark.parametrize("transient", ["starting", "removing", "unknown"])
def test_what_is_transient_is_never_on_disk(transient: str) -> None:
    status = dataclasses.replace(RUNNING, **{transient: True})
    assert encode_status(status) == encode_status(RUNNING)
    assert decode_status(encode_status(status)).state is State.RUNNING
