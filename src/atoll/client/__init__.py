"""The Python SDK: pods and containers as objects, over the daemon's socket.

    async with atoll.connect() as client:                    Client: pods, images, fsck
        async with await client.run_pod(ports={8080: 80}) as pod:    Pod: containers, phases
            server = await pod.run("atoll/busybox", ["httpd", "-f"])     Container: exec, logs, wait
            result = await server.exec(["uname", "-a"], timeout=5)       ExecResult: exit_code, stdout, stderr
            async with server.exec_stream(["sh"], stdin=True) as shell:  ExecProcess: live streams

Without an event loop, `connect_sync` gives the same objects with methods that wait: `atoll.client.sync`.

Words: `Exit` how a process ended, `Cause` why; `Publish` a port, `Mount` a folder of the host. Errors are those
of `atoll.errors`, and `CommandFailed` for a command that cannot be executed.

They are imported at their first use, so that what needs no gRPC does not wait for it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from atoll.client.background import BackgroundProcess as BackgroundProcess
    from atoll.client.background import OutputChunk as OutputChunk
    from atoll.client.background import ProcessStatus as ProcessStatus
    from atoll.client.branches import DiffEntry as DiffEntry
    from atoll.client.branches import DiffKind as DiffKind
    from atoll.client.branches import Snapshot as Snapshot
    from atoll.client.branches import SnapshotStatus as SnapshotStatus
    from atoll.client.client import Client as Client
    from atoll.client.client import connect as connect
    from atoll.client.container import Container as Container
    from atoll.client.files import FileChange as FileChange
    from atoll.client.files import FileChangeKind as FileChangeKind
    from atoll.client.files import FileKind as FileKind
    from atoll.client.files import Files as Files
    from atoll.client.files import FileStat as FileStat
    from atoll.client.files import TransferProgress as TransferProgress
    from atoll.client.files import Transferred as Transferred
    from atoll.client.forwarding import Forward as Forward
    from atoll.client.forwarding import Listener as Listener
    from atoll.client.leases import Lease as Lease
    from atoll.client.leases import LeaseStatus as LeaseStatus
    from atoll.client.model import Cause as Cause
    from atoll.client.model import CommandFailed as CommandFailed
    from atoll.client.model import ContainerState as ContainerState
    from atoll.client.model import ContainerStatus as ContainerStatus
    from atoll.client.model import DaemonInfo as DaemonInfo
    from atoll.client.model import ExecResult as ExecResult
    from atoll.client.model import Exit as Exit
    from atoll.client.model import Finding as Finding
    from atoll.client.model import FsckReport as FsckReport
    from atoll.client.model import Image as Image
    from atoll.client.model import LayerProgress as LayerProgress
    from atoll.client.model import LoadedImage as LoadedImage
    from atoll.client.model import LogLine as LogLine
    from atoll.client.model import Phase as Phase
    from atoll.client.model import PodState as PodState
    from atoll.client.model import PodStatus as PodStatus
    from atoll.client.model import Reloaded as Reloaded
    from atoll.client.pod import Pod as Pod
    from atoll.client.pools import Pool as Pool
    from atoll.client.pools import PooledPod as PooledPod
    from atoll.client.pools import PoolStatus as PoolStatus
    from atoll.client.pools import Rung as Rung
    from atoll.client.pools import Start as Start
    from atoll.client.process import AttachedProcess as AttachedProcess
    from atoll.client.process import ExecProcess as ExecProcess
    from atoll.client.request import ContainerOptions as ContainerOptions
    from atoll.client.request import Mount as Mount
    from atoll.client.request import PodOptions as PodOptions
    from atoll.client.request import Publish as Publish
    from atoll.client.sync import SyncAttachedProcess as SyncAttachedProcess
    from atoll.client.sync import SyncBackgroundProcess as SyncBackgroundProcess
    from atoll.client.sync import SyncClient as SyncClient
    from atoll.client.sync import SyncContainer as SyncContainer
    from atoll.client.sync import SyncExecProcess as SyncExecProcess
    from atoll.client.sync import SyncFiles as SyncFiles
    from atoll.client.sync import SyncForward as SyncForward
    from atoll.client.sync import SyncLease as SyncLease
    from atoll.client.sync import SyncListener as SyncListener
    from atoll.client.sync import SyncPod as SyncPod
    from atoll.client.sync import SyncPool as SyncPool
    from atoll.client.sync import SyncPooledPod as SyncPooledPod
    from atoll.client.sync import SyncSnapshot as SyncSnapshot
    from atoll.client.sync import connect_sync as connect_sync

MODULES = {
    "AttachedProcess": "process",
    "Cause": "model",
    "BackgroundProcess": "background",
    "OutputChunk": "background",
    "ProcessStatus": "background",
    "SyncBackgroundProcess": "sync",
    "Forward": "forwarding",
    "Listener": "forwarding",
    "SyncForward": "sync",
    "SyncListener": "sync",
    "Client": "client",
    "FileChangeKind": "files",
    "FileChange": "files",
    "FileKind": "files",
    "FileStat": "files",
    "Files": "files",
    "TransferProgress": "files",
    "Transferred": "files",
    "SyncFiles": "sync",
    "CommandFailed": "model",
    "Container": "container",
    "ContainerOptions": "request",
    "ContainerState": "model",
    "ContainerStatus": "model",
    "DaemonInfo": "model",
    "DiffEntry": "branches",
    "DiffKind": "branches",
    "ExecProcess": "process",
    "ExecResult": "model",
    "Exit": "model",
    "Finding": "model",
    "FsckReport": "model",
    "Reloaded": "model",
    "Image": "model",
    "LayerProgress": "model",
    "Lease": "leases",
    "LeaseStatus": "leases",
    "LoadedImage": "model",
    "LogLine": "model",
    "Mount": "request",
    "Phase": "model",
    "Pod": "pod",
    "PodState": "model",
    "PodStatus": "model",
    "PodOptions": "request",
    "Pool": "pools",
    "PoolStatus": "pools",
    "PooledPod": "pools",
    "Publish": "request",
    "Rung": "pools",
    "Snapshot": "branches",
    "SnapshotStatus": "branches",
    "Start": "pools",
    "SyncAttachedProcess": "sync",
    "SyncClient": "sync",
    "SyncContainer": "sync",
    "SyncExecProcess": "sync",
    "SyncLease": "sync",
    "SyncPod": "sync",
    "SyncPool": "sync",
    "SyncPooledPod": "sync",
    "SyncSnapshot": "sync",
    "connect": "client",
    "connect_sync": "sync",
}
"""Where each name of the SDK lives."""


def __getattr__(name: str) -> object:
    if name in MODULES:
        return getattr(importlib.import_module(f"atoll.client.{MODULES[name]}"), name)
    raise AttributeError(f"module 'atoll.client' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *MODULES})
