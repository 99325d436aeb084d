"""A host and a runtime that can do everything, for tests that ask no real one."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType

import pytest

from atoll.linux.cgroup_layout import Hierarchies, Layout
from atoll.linux.host import CAPABILITIES, HostFacts
from atoll.oci.features import RuntimeFeatures


@pytest.fixture
def host() -> HostFacts:
    names = ("cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "hugetlb")
    return HostFacts(
        kernel=(6, 1),
        kernel_release="6.1.0",
        machine="x86_64",
        hierarchies=Hierarchies(
            layout=Layout.V1,
            v1=MappingProxyType({name: Path("/sys/fs/cgroup", name) for name in names}),
            unified=None,
            unified_controllers=frozenset(),
        ),
        capabilities=frozenset(CAPABILITIES) - {"CAP_SYS_RESOURCE"},
        oom_score_adj=0,
        seccomp=True,
        apparmor=False,
        apparmor_default="",
        selinux=False,
        user_namespaces=True,
        overlay=True,
        swap_limit=True,
        hugepage_sizes=("2MB",),
    )


@pytest.fixture
def runtime() -> RuntimeFeatures:
    return RuntimeFeatures(name="runc", version="1.1.5", seccomp=True, recursive_read_only=True)
