"""How a pod gets its network, and how nothing of it stays behind.

model       the words: AttachRequest, Attachment, Result, PortMapping, ...
config      CNI config lists of a folder, validated; followed by re-reading what changed, when asked
result      CNI results of every spec version, parsed into one `Result`
plugin      one plugin executed: bounded time, bounded output, its whole process tree killed
cache       what was added, on disk, from before ADD until DEL has succeeded
cni         the verbs ADD, DEL, CHECK, GC, STATUS, VERSION on a config list
teardown    which plugins leave something on the host, and which need not be executed at all
bandwidth   the limits that a pod's annotations ask for
ports       host ports: refused before CNI runs where somebody has them
masquerade  one masquerade rule a range, in place of the plugins' chains a pod
default     the built-in bridge network
joining     the steps that a pod and a pooled namespace share: join the networks, leave them
pool        ready namespaces, refilled in the background
service     `Network`, the facade the engine uses
"""
