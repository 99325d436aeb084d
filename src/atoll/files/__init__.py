"""The files of a container: read, written and moved by a small process of its own, never by the daemon.

    client ──Open (gRPC)──> daemon ──fork──> agent: holds the container's root, and nothing else of the host
      │                                        │
      └────── one unix socket: frames, descriptors of big files ──────┘

A path is resolved by the kernel with the container's root as its root, and nothing but regular files of real file
systems is opened: no symbolic link, device, FIFO or race leads out of the container. What hangs (a FUSE file system of
the container's own) hangs the agent, which the daemon kills when its client goes, or the container ends.

wire      frames and messages           root      one folder as the root of all paths
sending   a tree becomes frames         receiving frames become a tree
agent     the process                   agents    the daemon's end of it
"""
