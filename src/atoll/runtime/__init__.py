"""The client side of shims.

bundle      the directory a shim and its tasks are given
bootstrap   where a shim answers: version, protocol, address; kept on disk for reconnection
shim        a connection to one shim: its tasks, its sandbox service, its end; the `Launcher` contract
forked      our shims: forked by the zygote
binary      anybody's shims: made by the `start` call of their program, cleared away by `delete`
task        the Task service, versions 2 and 3
sandbox     the Sandbox service
own         what our own shim serves beside it
zygote      the daemon's end of the process that forks our shims
streams     a process's stdio, whichever shim serves it
program, ending   one call of a shim's program; the end of a shim that does not end by itself
"""
