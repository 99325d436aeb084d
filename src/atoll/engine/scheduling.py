"""The scheduler and the io priority of a container's process, where its spec names them.

Older OCI runtimes leave both out without a word, so they are set here, between the runtime's create and start: the
process waits then, and what it executes inherits them.
"""

from __future__ import annotations

from atoll import errors
from atoll.linux import scheduling
from atoll.oci import spec as oci

NAMED = (b'"scheduler"', b'"ioPriority"')


def apply(document: bytes, pid: int) -> None:
    """Set what the spec's JSON says; most specs say nothing. Raises `FailedPrecondition` where the kernel refuses."""
    if not any(name in document for name in NAMED):
        return
    process = oci.decode(document).process
    if process is None:
        return
    try:
        if process.scheduler is not None:
            scheduling.set_scheduler(pid, _attributes(process.scheduler))
        if process.io_priority is not None:
            io_class = scheduling.IO_CLASSES.get(process.io_priority.io_class)
            if io_class is None:
                raise errors.InvalidArgument(f"io priority class {process.io_priority.io_class!r}: is none")
            scheduling.set_io_priority(pid, io_class, process.io_priority.priority)
    except OSError as error:
        raise errors.FailedPrecondition(f"scheduling of {error.filename}: {error.strerror}") from error


def _attributes(asked: oci.Scheduler) -> scheduling.SchedAttr:
    policy = scheduling.POLICIES.get(asked.policy)
    unknown = [flag for flag in asked.flags if flag not in scheduling.FLAGS]
    if policy is None or unknown:
        raise errors.InvalidArgument(f"scheduler {' '.join((asked.policy, *unknown))}: this kernel has none")
    return scheduling.SchedAttr(
        policy=policy,
        flags=sum(scheduling.FLAGS[flag] for flag in set(asked.flags)),
        nice=asked.nice,
        priority=asked.priority,
        runtime=asked.runtime,
        deadline=asked.deadline,
        period=asked.period,
    )
