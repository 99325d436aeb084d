"""What tests of Atoll, and of controllers written by others, are made with.

conformance  the rules of `Controller` and of shims, as named checks that any implementation must pass
fake         a controller in memory with real semantics
fake_host    the host that it makes things on
fake_daemon  a daemon in memory for tests of programs that use the SDK
faultpoints  errors and delays at the n-th call of a named point
"""
