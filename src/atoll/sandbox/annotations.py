"""Annotations by which the daemon tells our shim where a pod's things are, and users ask for more than CRI has."""

FILES = "io.atoll.sandbox.files"
"""In CreateSandbox: the folder of hostname, hosts, resolv.conf and shm."""

CGROUP = "io.atoll.sandbox.cgroup"
"""In CreateSandbox: the parent of the pod's cgroups, where its config names none."""

NO_NETWORK = "io.atoll.network/none"
"""On a pod; `true` gives a network namespace with nothing but loopback."""
