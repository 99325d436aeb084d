"""The client side of shims.

bundle      the directory a shim and its tasks are given
bootstrap   where a shim answers: version, protocol, address; kept on disk for reconnection
launcher    how a shim comes to be: forked by the zygote (ours) or by the `start` call (anybody's)
shim        a connection to one shim: its tasks, its sandbox service, its end
task        the Task service, versions 2 and 3
zygote      the daemon's end of the process that forks our shims
streams     a process's stdio, whichever shim serves it
"""
