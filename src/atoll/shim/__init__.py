"""The shim: one process a pod that outlives the daemon.

zygote     the process that forks shims in a millisecond
request    what the daemon asks of the zygote
main       `containerd-shim-atoll-v1`: start, delete, -v, -info
server     the life of a shim process: set-up, services, end
reaper     who died: every child of the shim, and programs run to their end
records    exit codes and facts on disk, written before anybody is told
events     task events on their way to the daemon
task       the Task service; `container` and `process` are what it serves
sandbox    the Sandbox service; `pod_*` are the parts of a pod
stdio      the streams of a process: logs, attach, terminals
"""
