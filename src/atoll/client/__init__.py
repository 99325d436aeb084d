"""The Python SDK: pods and containers as objects, over the daemon's socket.

    async with atoll.connect() as client:                    Client: pods, images, fsck
        async with await client.run_pod(ports={8080: 80}) as pod:    Pod: containers, phases
            server = await pod.run("atoll/busybox", ["httpd", "-f"])     Container: exec, logs, wait
            result = await server.exec(["uname", "-a"], timeout=5)       ExecResult: exit_code, stdout, stderr
            async with server.exec_stream(["sh"], stdin=True) as shell:  ExecProcess: live streams

Words: `Exit` how a process ended, `Cause` why; `Publish` a port, `Mount` a folder of the host. Errors are those
of `atoll.errors`, and `CommandFailed` for a command that cannot be executed.
"""

from atoll.client.client import Client, connect
from atoll.client.container import Container
from atoll.client.model import (
    Cause,
    CommandFailed,
    ContainerState,
    ContainerStatus,
    DaemonInfo,
    ExecResult,
    Exit,
    Finding,
    FsckReport,
    Image,
    LayerProgress,
    LoadedImage,
    LogLine,
    Phase,
    PodState,
    PodStatus,
)
from atoll.client.pod import Pod
from atoll.client.process import AttachedProcess, ExecProcess
from atoll.client.request import ContainerOptions, Mount, Publish

__all__ = [
    "AttachedProcess",
    "Cause",
    "Client",
    "CommandFailed",
    "Container",
    "ContainerOptions",
    "ContainerState",
    "ContainerStatus",
    "DaemonInfo",
    "ExecProcess",
    "ExecResult",
    "Exit",
    "Finding",
    "FsckReport",
    "Image",
    "LayerProgress",
    "LoadedImage",
    "LogLine",
    "Mount",
    "Phase",
    "Pod",
    "PodState",
    "PodStatus",
    "Publish",
    "connect",
]
