"""The use cases, behind every face.

engine      `Engine`: all of it, and what concerns the daemon as a whole
pods        run, stop, remove a pod          containers  create, start, stop, remove a container; its end
execs       one more process in a container  specs       from a container's config to its runtime spec
kinds       what the ledger knows of pods and containers, in the order it is entered
recovery    what a new daemon makes of what an earlier one left
orphans     containers whose shim is gone    lines       the connection to a pod's shim, made again
phases      the story of every operation     events      what happened, for whoever listens
parts       what the engine is made of       paths       where it keeps what
"""
