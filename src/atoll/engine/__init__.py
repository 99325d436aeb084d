"""The use cases, behind every face.

engine      `Engine`: all of it, and what concerns the daemon as a whole
pods        run, stop, remove a pod          containers  create, start, stop, remove a container; its end
execs       one more process in a container  specs       from a container's config to its runtime spec
kinds       what the ledger knows of pods and containers, in the order it is entered
recovery    what a new daemon makes of what an earlier one left
orphans     containers whose shim is gone    lines       the connection to a pod's shim, made again
phases      the story of every operation     events      what happened, for whoever listens
sandboxes   sandboxes of foreign callers: their lives     hosted    what is kept of each
hosting     what one is made of                          hosts     who runs it, by the sandboxer's name
front       controllers for the sandbox API's faces      topics    containerd's events
hosted_recovery  what a new daemon makes of those that an earlier one left
strays, leases   what fsck looks for beyond the ledger
parts       what the engine is made of       paths       where it keeps what
"""
