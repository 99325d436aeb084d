"""A process's stdio, owned by its shim so that it outlives every client.

request    what is asked for: `StdioRequest`, and the URIs that name a stream's target
stdio      `Stdio`: the streams of one process, from before its start until its deletion
pump       from a pipe or terminal to its sinks, with back-pressure and a fair share a wake-up
log        CRI log lines: the format, and the file that survives rotation and full disks
hub        live output for attached clients
stdin      input of the process: from a fifo, or from attached clients
console    the terminal's master, received from the OCI runtime
logger     external log programs (`binary://`)
streaming  the hubs and inputs of a shim by streaming id, served as containerd's Streaming service
relay      the same pumps for a shim that is not ours: from its fifos to logs and hubs
"""

from atoll.shim.stdio.request import StdioRequest, cri_uri, stream_uri
from atoll.shim.stdio.stdio import Stdio
from atoll.shim.stdio.streaming import Streams

__all__ = ["Stdio", "StdioRequest", "Streams", "cri_uri", "stream_uri"]
