"""The shim: what stands for a pod and outlives the daemon; many share a process.

zygote     the process that hands out shims in a millisecond; `fork` is how their processes come to be
request    what the daemon asks of the zygote
main       `containerd-shim-atoll-v1`: start, delete, -v, -info
host       the life of a process that serves shims
server     the life of a shim: services, records, end
reaper     who died: every child of the process, and programs run to their end
records    exit codes and facts on disk, written before anybody is told
events     task events on their way to the daemon
task       the Task service; `container` and `process` are what it serves
sandbox    the Sandbox service; `pod_*` are the parts of a pod
stdio      the streams of a process: logs, attach, terminals
"""
