"""Atoll runs pod sandboxes on Linux.

The SDK's names are here too (`atoll.connect`, `atoll.Pod`, ...), imported at their first use: `import atoll` is cheap,
and a shim that does it has no gRPC.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from atoll.client import AttachedProcess as AttachedProcess
    from atoll.client import BackgroundProcess as BackgroundProcess
    from atoll.client import Cause as Cause
    from atoll.client import Client as Client
    from atoll.client import CommandFailed as CommandFailed
    from atoll.client import Container as Container
    from atoll.client import ContainerOptions as ContainerOptions
    from atoll.client import ContainerState as ContainerState
    from atoll.client import ContainerStatus as ContainerStatus
    from atoll.client import DaemonInfo as DaemonInfo
    from atoll.client import DiffEntry as DiffEntry
    from atoll.client import DiffKind as DiffKind
    from atoll.client import ExecProcess as ExecProcess
    from atoll.client import ExecResult as ExecResult
    from atoll.client import Exit as Exit
    from atoll.client import FileChange as FileChange
    from atoll.client import FileChangeKind as FileChangeKind
    from atoll.client import FileKind as FileKind
    from atoll.client import Files as Files
    from atoll.client import FileStat as FileStat
    from atoll.client import Finding as Finding
    from atoll.client import Forward as Forward
    from atoll.client import FsckReport as FsckReport
    from atoll.client import Image as Image
    from atoll.client import LayerProgress as LayerProgress
    from atoll.client import Lease as Lease
    from atoll.client import LeaseStatus as LeaseStatus
    from atoll.client import Listener as Listener
    from atoll.client import LoadedImage as LoadedImage
    from atoll.client import LogLine as LogLine
    from atoll.client import Mount as Mount
    from atoll.client import OutputChunk as OutputChunk
    from atoll.client import Phase as Phase
    from atoll.client import Pod as Pod
    from atoll.client import PodOptions as PodOptions
    from atoll.client import PodState as PodState
    from atoll.client import PodStatus as PodStatus
    from atoll.client import Pool as Pool
    from atoll.client import PooledPod as PooledPod
    from atoll.client import PoolStatus as PoolStatus
    from atoll.client import ProcessStatus as ProcessStatus
    from atoll.client import Publish as Publish
    from atoll.client import Rung as Rung
    from atoll.client import Snapshot as Snapshot
    from atoll.client import SnapshotStatus as SnapshotStatus
    from atoll.client import Start as Start
    from atoll.client import SyncAttachedProcess as SyncAttachedProcess
    from atoll.client import SyncBackgroundProcess as SyncBackgroundProcess
    from atoll.client import SyncClient as SyncClient
    from atoll.client import SyncContainer as SyncContainer
    from atoll.client import SyncExecProcess as SyncExecProcess
    from atoll.client import SyncFiles as SyncFiles
    from atoll.client import SyncForward as SyncForward
    from atoll.client import SyncListener as SyncListener
    from atoll.client import SyncPod as SyncPod
    from atoll.client import TransferProgress as TransferProgress
    from atoll.client import Transferred as Transferred
    from atoll.client import connect as connect
    from atoll.client import connect_sync as connect_sync

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    client = importlib.import_module("atoll.client") if not name.startswith("_") else None
    if client is not None and name in client.MODULES:
        return getattr(client, name)
    raise AttributeError(f"module 'atoll' has no attribute {name!r}")
