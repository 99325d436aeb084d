"""The metrics that are told, by name: what they mean, their kind, their labels.

The names are those that cAdvisor gives and that a kubelet passes on; it adds the names of pod, namespace and container
by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from atoll.api import cri_runtime_v1_pb2 as pb

BASE_KEYS = ("id", "name", "image")
"""The cgroup's path, the ID, the image's name; a kubelet adds others and refuses any of these twice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    """One metric; `keys` are labels beside `BASE_KEYS`."""

    help: str
    kind: pb.MetricType = pb.COUNTER
    keys: tuple[str, ...] = ()


def _counter(text: str, *keys: str) -> Descriptor:
    return Descriptor(help=text, keys=keys)


def _gauge(text: str, *keys: str) -> Descriptor:
    return Descriptor(help=text, kind=pb.GAUGE, keys=keys)


DESCRIPTORS: Mapping[str, Descriptor] = {
    "container_cpu_usage_seconds_total": _counter("CPU time used, in seconds."),
    "container_cpu_user_seconds_total": _counter("CPU time used in user mode, in seconds."),
    "container_cpu_system_seconds_total": _counter("CPU time used in the kernel, in seconds."),
    "container_cpu_cfs_periods_total": _counter("Enforcement periods that have passed."),
    "container_cpu_cfs_throttled_periods_total": _counter("Enforcement periods in which it was throttled."),
    "container_cpu_cfs_throttled_seconds_total": _counter("Time for which it was throttled, in seconds."),
    "container_memory_usage_bytes": _gauge("Memory in use, the page cache too."),
    "container_memory_working_set_bytes": _gauge("Memory in use that cannot be had back without harm."),
    "container_memory_rss": _gauge("Anonymous memory, in bytes."),
    "container_memory_cache": _gauge("Page cache, in bytes."),
    "container_memory_mapped_file": _gauge("Files mapped into memory, in bytes."),
    "container_memory_swap": _gauge("Swap in use, in bytes."),
    "container_memory_kernel_usage": _gauge("Memory that the kernel holds for it, in bytes."),
    "container_memory_max_usage_bytes": _gauge("The most memory that was ever in use."),
    "container_memory_failcnt": _counter("How often its use of memory met the limit."),
    "container_memory_failures_total": _counter("Page faults, by kind and scope.", "failure_type", "scope"),
    "container_oom_events_total": _counter("Its processes that the kernel killed because memory ran out."),
    "container_hugetlb_usage_bytes": _gauge("Huge pages in use, in bytes.", "pagesize"),
    "container_hugetlb_max_usage_bytes": _gauge("The most huge pages ever in use, in bytes.", "pagesize"),
    "container_pressure_cpu_waiting_seconds_total": _counter("Time for which some tasks waited for CPU, in seconds."),
    "container_pressure_cpu_stalled_seconds_total": _counter("Time for which all tasks waited for CPU, in seconds."),
    "container_pressure_memory_waiting_seconds_total": _counter(
        "Time for which some tasks waited for memory, in seconds."
    ),
    "container_pressure_memory_stalled_seconds_total": _counter(
        "Time for which all tasks waited for memory, in seconds."
    ),
    "container_pressure_io_waiting_seconds_total": _counter("Time for which some tasks waited for I/O, in seconds."),
    "container_pressure_io_stalled_seconds_total": _counter("Time for which all tasks waited for I/O, in seconds."),
    "container_fs_usage_bytes": _gauge("Disk that its writable layer takes, in bytes.", "device"),
    "container_fs_limit_bytes": _gauge("Size of the file system of its writable layer, in bytes.", "device"),
    "container_fs_inodes_total": _gauge("Inodes of the file system of its writable layer.", "device"),
    "container_fs_inodes_free": _gauge("Free inodes of the file system of its writable layer.", "device"),
    "container_fs_reads_bytes_total": _counter("Bytes read from block devices.", "device"),
    "container_fs_reads_total": _counter("Reads from block devices.", "device"),
    "container_fs_writes_bytes_total": _counter("Bytes written to block devices.", "device"),
    "container_fs_writes_total": _counter("Writes to block devices.", "device"),
    "container_blkio_device_usage_total": _counter(
        "Bytes to and from a block device.", "device", "major", "minor", "operation"
    ),
    "container_network_receive_bytes_total": _counter("Bytes received.", "interface"),
    "container_network_receive_packets_total": _counter("Packets received.", "interface"),
    "container_network_receive_packets_dropped_total": _counter("Packets dropped while receiving.", "interface"),
    "container_network_receive_errors_total": _counter("Errors while receiving.", "interface"),
    "container_network_transmit_bytes_total": _counter("Bytes sent.", "interface"),
    "container_network_transmit_packets_total": _counter("Packets sent.", "interface"),
    "container_network_transmit_packets_dropped_total": _counter("Packets dropped while sending.", "interface"),
    "container_network_transmit_errors_total": _counter("Errors while sending.", "interface"),
    "container_processes": _gauge("Processes in it."),
    "container_threads": _gauge("Threads in it."),
    "container_threads_max": _gauge("The most threads that it may have; 0 is no limit."),
    "container_file_descriptors": _gauge("Open file descriptors of its processes."),
    "container_sockets": _gauge("Open sockets of its processes."),
    "container_ulimits_soft": _gauge("Soft limits of its first process.", "ulimit"),
    "container_spec_cpu_period": _gauge("Its enforcement period, in microseconds."),
    "container_spec_cpu_quota": _gauge("Its CPU quota in a period, in microseconds."),
    "container_spec_cpu_shares": _gauge("Its share of CPU, where several want it."),
    "container_spec_memory_limit_bytes": _gauge("Its limit of memory; 0 is none."),
    "container_spec_memory_reservation_limit_bytes": _gauge("Its soft limit of memory; 0 is none."),
    "container_spec_memory_swap_limit_bytes": _gauge("Its limit of memory and swap together; 0 is none."),
    "container_start_time_seconds": _gauge("When it was started, in seconds since the epoch."),
    "container_last_seen": _gauge("When it was last seen, in seconds since the epoch."),
}
