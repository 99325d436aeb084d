"""What a shim leaves on disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from atoll import errors
from atoll.shim import records
from atoll.shim.records import BootstrapRecord, ExitRecord, SandboxExit, SandboxRecord, TaskRecord


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    task = TaskRecord(
        id="a", namespace="n", binary="/bin/crun", root="/run/r", systemd_cgroup=False, pid=7, cgroups=("/sys/x",)
    )
    pod = SandboxRecord(id="p", files="/f", exit=SandboxExit(exit_status=137, exited_at_ns=5))
    for record in (task, pod):
        records.write(tmp_path / "r.json", record)
        assert records.read(tmp_path / "r.json", type(record)) == record
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


def test_the_bootstrap_record_is_containerds(tmp_path: Path) -> None:
    records.write(tmp_path / "b", BootstrapRecord(version=3, address="unix:///s", protocol="ttrpc"))
    assert (tmp_path / "b").read_bytes() == b'{"version":3,"address":"unix:///s","protocol":"ttrpc"}'


def test_exits_of_init_and_execs_never_share_a_file(tmp_path: Path) -> None:
    for exec_id in ("", "exit", "execs"):
        records.write_exit(
            tmp_path, ExitRecord(id="c", exec_id=exec_id, pid=1, exit_status=len(exec_id), exited_at_ns=1)
        )
    for exec_id in ("", "exit", "execs"):
        record = records.read(records.exit_path(tmp_path, exec_id), ExitRecord)
        assert record is not None
        assert record.exit_status == len(exec_id)
    records.forget_exit(tmp_path, "exit")
    records.forget_exit(tmp_path, "exit")
    assert records.read(records.exit_path(tmp_path, "exit"), ExitRecord) is None


def test_a_missing_record_is_none_and_a_broken_one_is_told(tmp_path: Path) -> None:
    path = tmp_path / "exit.json"
    assert records.read(path, ExitRecord) is None
    for broken in (b"", b"{", b'{"id":"a"}', b"[]"):
        path.write_bytes(broken)
        with pytest.raises(errors.DataLoss, match=r"exit\.json"):
            records.read(path, ExitRecord)


def test_a_failed_write_keeps_the_old_record(tmp_path: Path) -> None:
    path = tmp_path / "exit.json"
    old = ExitRecord(id="c", pid=1, exit_status=1, exited_at_ns=1)
    records.write(path, old)
    (tmp_path / "exit.json.new").mkdir()
    with pytest.raises(OSError, match=r"exit\.json\.new"):
        records.write(path, ExitRecord(id="c", pid=1, exit_status=2, exited_at_ns=1))
    assert records.read(path, ExitRecord) == old


def test_what_is_no_plain_file_is_no_record_and_holds_nobody_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "endless").symlink_to("/dev/zero")
    for name in ("fifo", "folder", "endless"):
        with pytest.raises(errors.DataLoss, match=name):
            records.read(tmp_path / name, TaskRecord)
        assert records.last(tmp_path / name, TaskRecord) is None
    assert records.read(tmp_path / "none", TaskRecord) is None
