"""Atoll measured beside containerd, and under a load that lasts.

run      `make bench`: both daemons in one run, the same calls in turns; a table, JSON, docs/benchmarks.md
soak     many pods at once, many pods one after another, and what of them is left
places   where a run keeps its things, and that nothing of it stays
daemons  the two daemons under test      cri     one CRI client for both
timing   latencies and throughput        costs   memory, fsyncs, programs and processes a pod
host     /proc and /sys, read            report  the tables
"""
