"""What tests of Atoll, and of controllers written by others, are made with.

fake          a controller in memory with real semantics
contract      the rules of `Controller`, as named checks that any implementation must pass
fake_daemon   a daemon in memory for tests of programs that use the SDK
trial         what checks are made with
faultpoints   errors and delays at the n-th call of a named point
"""
